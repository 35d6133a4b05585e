"""`styles add`, `styles list`, images in workspace styles, and `info` about models and styles."""

import json
import shutil

import phantoms
import pytest
from tiny_models import write_image_model, write_label_model

from synthgen import starter
from synthgen.cli.styles import style_files
from synthgen.core.manifest import Manifest
from synthgen.generate import GenerationSettings, generate_labels
from synthgen.labels import load_label_generator

SMALL = ("--shard-size", "4", "--batch-size", "2")
NOTE = (
    "b_flair: simulated from its protocol, not fitted on its images; "
    "replace it with `synthgen styles add b_flair IMAGES...`"
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Return a workspace with two models and two label maps."""
    root = tmp_path_factory.mktemp("work")
    generator = load_label_generator(write_label_model(root / "models" / "labels"), steps=2)
    settings = GenerationSettings(batch_size=2, shard_size=4)
    generate_labels(generator, generator.conditions, 2, root / "labels", settings)
    write_image_model(root / "models" / "images")
    return root


@pytest.fixture
def synthgen(work, tmp_path, monkeypatch, command_line):
    """Run the command line in `tmp_path`; returns (exit code, stdout, stderr)."""
    shutil.copytree(work, tmp_path / "work")
    phantoms.save(tmp_path / "scans" / "sub-01_FLAIR.nii.gz", phantoms.image())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(starter, "FOLDER", tmp_path / "starter")

    def call(*arguments):
        words = [str(argument) for argument in arguments]
        words += ["--device", "cpu"] if words[0] in ("labels", "images", "replay") else []
        return command_line(*words)

    return call


def test_add_list_paint_and_replay(synthgen, tmp_path):
    code, out, err = synthgen("styles", "add", "mine_flair", "scans")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "model: work/models/images",
        "mine_flair: encoded 14 slices of 1 image(s) of 1 subject(s), kept in work/styles",
    ]
    rows = json.loads(synthgen("styles", "list", "--json")[1])
    assert [row["name"] for row in rows[:4]] == ["a_t1", "a_flair", "b_flair", "mine_flair"]
    assert (rows[3]["source"], rows[3]["renderer"]) == ("fitted", "workspace")
    assert "mine_flair" in synthgen("styles", "list")[1]
    code, out, err = synthgen("images", "--style", "mine_flair,a_t1", *SMALL)
    assert (code, err) == (0, "")
    assert "simulated" not in out
    folder = tmp_path / "work/images/mine_flair+a_t1"
    manifest = Manifest.read(folder)
    assert list(manifest.identity["workspace_styles"]) == ["mine_flair"]
    assert "mine/sub-01" in manifest.subjects
    assert "nothing to do" in synthgen("images", "--style", "mine_flair,a_t1", *SMALL)[1]
    assert "equal bit for bit" in synthgen("replay", folder, "--index", 1)[1]
    # An unrelated style changes nothing.
    synthgen("styles", "add", "yours_flair", "scans")
    assert "nothing to do" in synthgen("images", "--style", "mine_flair,a_t1", *SMALL)[1]
    code, _, err = synthgen("images", "--style", "his_flair", *SMALL)
    assert (code, "there are a_t1, a_flair, b_flair, mine_flair, yours_flair" in err) == (2, True)


def test_a_dataset_whose_style_changed_or_vanished_says_so(synthgen, tmp_path):
    synthgen("styles", "add", "mine_flair", "scans")
    synthgen("images", "--style", "mine_flair", *SMALL)
    folder = tmp_path / "work/images/mine_flair"
    phantoms.save(tmp_path / "scans/sub-02_FLAIR.nii.gz", phantoms.image(levels=(0.1, 0.2, 0.9)))
    code, _, err = synthgen("styles", "add", "mine_flair", "scans")
    assert (code, "--force replaces it" in err) == (2, True)
    assert synthgen("styles", "add", "mine_flair", "scans", "--force")[0] == 0
    code, _, err = synthgen("images", "--style", "mine_flair", *SMALL)
    assert (code, "holds another dataset (workspace_styles: there" in err) == (2, True)
    code, _, err = synthgen("replay", folder, "--index", 0)
    assert (code, err.count("\n")) == (2, 1)
    assert "the workspace's style 'mine_flair', which has changed since" in err
    shutil.move(tmp_path / "work/styles", tmp_path / "elsewhere")
    code, _, err = synthgen("replay", folder, "--index", 0)
    assert (code, "'mine_flair', which is not there" in err) == (2, True)
    (tmp_path / "scans/sub-02_FLAIR.nii.gz").unlink()
    add = ("styles", "add", "mine_flair", "scans", "--model", "work/models/images")
    assert synthgen(*add, "--workspace", "other")[0] == 0
    assert synthgen("replay", folder, "--index", 0, "--workspace", "other")[0] == 0


def test_a_simulated_style_says_so_until_it_is_replaced(synthgen, tmp_path):
    paint = ("images", "--style", "b_flair,a_t1", *SMALL)
    out = synthgen(*paint)[1]
    assert out.count(NOTE) == 1
    assert out.count("simulated") == 1
    simulated = tmp_path / "work/images/b_flair+a_t1"
    report = synthgen(*paint, "--json", "--out", "json")[1]
    assert json.loads(report)["n"] == 2
    contrast = synthgen(*paint[:2], "b_flair", "--renderer", "contrast", "--out", "c", *SMALL)[1]
    assert "simulated" not in contrast
    assert synthgen("styles", "add", "b_flair", "scans")[0] == 0
    assert "simulated" not in synthgen(*paint, "--out", "fitted")[1]
    rows = json.loads(synthgen("styles", "list", "--json")[1])
    assert [r["source"] for r in rows if r["name"] == "b_flair"] == ["fitted"]
    # What was painted with the simulated style still replays.
    assert synthgen("replay", simulated, "--index", 0)[0] == 0
    assert synthgen("replay", "fitted", "--index", 0)[0] == 0


def test_a_style_of_another_model_is_refused_by_name_alone(synthgen, tmp_path):
    synthgen("styles", "add", "mine_flair", "scans")
    shutil.rmtree(tmp_path / "work/models/images")
    write_image_model(tmp_path / "work/models/images", seed=1)
    code, _, err = synthgen("images", "--style", "mine_flair", *SMALL)
    assert (code, err.count("\n")) == (2, 1)
    assert "encode it again: `synthgen styles add mine_flair IMAGES... --force`" in err
    assert synthgen("images", "--style", "a_t1", *SMALL)[0] == 0
    (row,) = [r for r in json.loads(synthgen("styles", "list", "--json")[1]) if "mine" in r["name"]]
    assert row["renderer"] == "workspace, of another model: add it again"
    assert synthgen("styles", "add", "mine_flair", "scans", "--force")[0] == 0
    assert synthgen("images", "--style", "mine_flair", *SMALL)[0] == 0


def test_a_style_that_the_model_fitted_itself_is_its_own(synthgen, tmp_path):
    """A stale style of the workspace does not stand in its way."""
    synthgen("styles", "add", "mine_flair", "scans")
    styles = tmp_path / "work/styles"
    shutil.rmtree(tmp_path / "work/models/images")
    folder = write_image_model(tmp_path / "work/models/images", seed=1)
    bank = json.loads((folder / "style_bank/config.json").read_text())
    bank["styles"][0]["name"] = "mine_flair"
    (folder / "style_bank/config.json").write_text(json.dumps(bank))
    assert style_files(styles, folder, ["mine_flair"]) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("mine_pd", "scans"), 2, "knows no modality 'pd'"),
        (("a_flair", "scans"), 2, "fitted in the training of the model"),
        (("mine_t1", "scans"), 3, "no t1 image"),
        (("mine_flair", "nowhere"), 2, "no such file or folder"),
        (("mine_flair", "scans", "--model", "nowhere"), 3, "no images model in nowhere"),
    ],
)
def test_wrong_additions_are_one_line(synthgen, tmp_path, arguments, code, message):
    found, _, err = synthgen("styles", "add", *arguments)
    assert (found, err.count("\n")) == (code, 1)
    assert message in err
    assert not (tmp_path / "work/styles").exists()


def test_adding_reports_json(synthgen):
    row = json.loads(synthgen("styles", "add", "mine_flair", "scans", "--json")[1])
    assert (row["images"], row["slices"], row["subjects"]) == (1, 14, ["mine/sub-01"])


def test_lists_without_any_model_show_the_contrast_renderer(synthgen, tmp_path):
    shutil.rmtree(tmp_path / "work")
    code, out, err = synthgen("styles", "list")
    assert (code, err) == (0, "")
    assert out.startswith("(no image model in work: `synthgen train images RECIPE` makes one)")
    assert "contrast" in out
    code, out, _ = synthgen("info", "models")
    assert (code, out) == (0, "models: none in work\n")


def test_info_shows_models_with_their_cards_and_styles(synthgen, tmp_path):
    shutil.copytree(tmp_path / "work/models/images", tmp_path / "starter/images")
    (tmp_path / "starter/images/card.md").write_text("# The starter\n")
    (tmp_path / "work/models/broken").mkdir()
    (tmp_path / "work/models/broken/model_index.json").write_text("{}")
    code, out, err = synthgen("info", "models")
    assert (code, err) == (0, "")
    listed, *cards = out.split("\n-----")
    assert [line.split("  ")[1:4] for line in listed.splitlines()[1:]] == [
        ["broken", "unreadable", listed.splitlines()[1].split("  ")[3]],
        ["images", "images", "unknown recipe"],
        ["labels", "labels", "unknown recipe"],
        ["starter:images", "images", "unknown recipe"],
    ]
    assert "2 subjects" in listed
    assert " starter:images -----\n\n# The starter\n" in cards[-1]
    assert "# Label generator" in cards[2]
    rows = json.loads(synthgen("info", "models", "--json")[1])["models"]
    assert rows[3]["card"] == "# The starter\n"
    assert (rows[3]["subjects"], rows[3]["bytes"] > 1000) == (2, True)
    assert "card" not in synthgen("info")[1]
    synthgen("styles", "add", "mine_flair", "scans")
    styles = json.loads(synthgen("info", "styles", "--json")[1])["styles"]
    assert [styles[2][key] for key in ("name", "source")] == ["b_flair", "simulated"]
    assert [styles[3][key] for key in ("name", "dataset")] == ["mine_flair", "mine"]
