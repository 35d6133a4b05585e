from typing import get_args

import pytest
import yaml
from accelerate.utils import LoggerType

from synthgen.core.errors import RecipeError
from synthgen.core.schema import BRAIN9
from synthgen.recipe import Recipe, dump, find_recipe, list_recipes, load_recipe
from synthgen.recipe.training import Tracker
from synthgen.recipe.yaml12 import parse, render


@pytest.fixture
def write(tmp_path):
    def _write(text):
        path = tmp_path / "r.yaml"
        path.write_text(text)
        return path

    return _write


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1.10", 1.1),
        ("5.", 5.0),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("true", True),
        ("~", None),
        ("", None),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("t1", "t1"),
        ("nothing", "nothing"),
        ("'1e-4'", "1e-4"),
        ("[1, 2e3, on]", [1, 2000.0, "on"]),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    parsed = parse(text, "x")
    assert parsed == value
    assert type(parsed) is type(value)


def test_plain_yaml_would_get_the_learning_rate_wrong():
    assert yaml.safe_load("1e-4") == "1e-4"  # why the loader exists


@pytest.mark.parametrize(
    "value", ["1e-4", "on", "010", "1.5", "true", "~", "", "2024-01-01", 1e-4, 1e22, 3, None, True]
)
def test_written_scalars_read_back_equal(value):
    assert parse(render({"k": value}), "x") == {"k": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "line 4: key 'c' stands twice"),
        ("a: [1, 2", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("1.5: x", "line 1: a key must be a name"),
        ("a: &a [*a]", "holds itself|unhashable|recursive|plain data"),
    ],
)
def test_unusable_yaml_is_one_line_with_the_file(write, text, message):
    path = write(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "expected a mapping"),
        ("name: x", "missing key 'schema'"),
        ("name: x\nschema: brain9\nlabls: {}", "unknown key 'labls'; did you mean labels"),
        (
            "name: x\nschema: brain9\nzzz: {}",
            "expected one of angiograms, benchmark, distil, hidiff, images, imgx, labels, name",
        ),
        ("name: 5\nschema: brain9", "key 'name': .*string, got 5"),
        ("name: X Y\nschema: brain9", "key 'name'"),
        ("name: x\nschema: brain8", "key 'schema': expected brain9 or vessel, or a list"),
        ("name: x\nschema: [{name: gm, value: 1}]", "first tissue must be 'background'"),
        ("name: x\nschema: [{name: gm}]", "each tissue needs a name and a value"),
        ("name: x\nschema: [{name: gm, value: 1, colour: 2}]", "no key 'colour'"),
        ("name: x\nschema: [{name: background, value: one}]", "key 'schema'"),
    ],
)
def test_bad_keys_and_values_are_one_line_with_file_and_path(write, text, message):
    path = write(text)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_explicit_tissues_make_a_schema(write):
    path = write(
        "name: x\nschema:\n- {name: background, value: 0}\n- {name: v, value: 2, lesion: true}\n"
    )
    recipe = load_recipe(path)
    assert recipe.label_schema.names == ("background", "v")
    assert recipe.label_schema.lesions == ("v",)


@pytest.mark.parametrize(
    "name", ["tiny", "small", "brainspade2d", "starter_labels", "starter_images"]
)
def test_shipped_recipes_load_and_round_trip(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.label_schema == BRAIN9
    path = tmp_path / "again.yaml"
    path.write_text(dump(recipe))
    assert load_recipe(path) == recipe
    assert load_recipe(path).fingerprint == recipe.fingerprint


def test_recipes_are_found_by_name_and_by_file():
    assert find_recipe("tiny") == list_recipes()["tiny"]
    assert find_recipe(list_recipes()["tiny"]) == list_recipes()["tiny"]
    with pytest.raises(RecipeError, match=r"no recipe 'huge': .*tiny"):
        find_recipe("huge")


def test_overrides_set_values_and_change_the_fingerprint():
    base = load_recipe("tiny")
    changed = load_recipe("tiny", ["labels.diffusion.train.lr=1e-4", "name=other"])
    assert changed.labels.diffusion.train.lr == 1e-4
    assert changed.name == "other"
    assert changed.fingerprint != base.fingerprint
    assert load_recipe("tiny") == base


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("labels.diffusion.train.lrr=1", r"'labels\.diffusion\.train\.lrr'.*did you mean lr"),
        ("labels.difusion.train.lr=1", r"'labels\.difusion'.*did you mean diffusion"),
        ("latent_dim=3", r"'latent_dim'.*did you mean images\.generator\.latent_dim"),
        ("labels.diffusion.train.lr=fast", r"key 'labels\.diffusion\.train\.lr': .*got 'fast'"),
        ("labels.diffusion.train.lr.x=1", "'lr' is a value, not a section"),
        ("nonsense", "expected key.path=value"),
        ("=1", "expected key.path=value"),
        ("a..b=1", "expected key.path=value"),
        ("name={a: 1, a: 2}", "key 'a' stands twice"),
    ],
)
def test_bad_overrides_name_themselves(override, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe("tiny", [override])
    assert f"-o {override}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_trackers_are_those_of_accelerate():
    assert set(get_args(Tracker)) <= set(LoggerType.list())
    recipe = load_recipe("tiny", ["images.train.trackers=[wandb, tensorboard]"])
    assert recipe.images.train.trackers == ("wandb", "tensorboard")
    with pytest.raises(RecipeError, match=r"key 'images\.train\.trackers.*got 'wandbb'"):
        load_recipe("tiny", ["images.train.trackers=[wandbb]"])


@pytest.mark.parametrize(
    "section", ["labels.autoencoder.train", "labels.diffusion.train", "images.train"]
)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("betas", "[0.9, 1.5]"),
        ("ema_decay", 1),
        ("precision", "fp8"),
        ("keep", 0),
    ],
)
def test_all_trainings_check_their_common_keys_alike(section, key, value):
    with pytest.raises(RecipeError, match=rf"key '{section}\.{key}"):
        load_recipe("tiny", [f"{section}.{key}={value}"])


def test_a_loaded_recipe_is_frozen():
    recipe = load_recipe("tiny")
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"
    assert isinstance(recipe, Recipe)
