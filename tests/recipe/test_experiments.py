import pytest

from synthgen.core.errors import RecipeError
from synthgen.recipe.experiment import list_experiments, load_experiment
from synthgen.recipe.yaml12 import parse, render

NAMES = ["far_out_of_distribution", "in_distribution", "lesion", "near_out_of_distribution"]


@pytest.fixture
def write(tmp_path):
    """Write the in-distribution experiment with some top keys changed; None leaves one out."""

    def _write(**changes):
        raw = parse(list_experiments()["in_distribution"].read_text(), "in_distribution") | changes
        path = tmp_path / "e.yaml"
        path.write_text(render({k: v for k, v in raw.items() if v is not None}))
        return path

    return _write


def test_the_papers_experiments_are_there():
    assert [*list_experiments()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_loads_by_name_and_file(name):
    experiment = load_experiment(name)
    assert experiment.name == name
    assert load_experiment(list_experiments()[name]) == experiment
    assert experiment.published
    assert {p.arm for p in experiment.published} <= {*experiment.train}


@pytest.mark.parametrize("name", NAMES)
def test_no_number_is_quoted_without_a_source_at_hand(name):
    """The paper's tables were not at hand when these documents were written."""
    for result in load_experiment(name).published:
        assert result.dice is None
        assert "2209.08256" in result.source


@pytest.mark.parametrize("name", NAMES)
def test_sizes_grow(name):
    runs = load_experiment(name).runs
    assert runs.smoke.repeats < runs.short.repeats <= runs.paper.repeats
    assert runs.smoke.maps < runs.short.maps < runs.paper.maps == 20000


def test_fields_are_options_of_the_benchmark():
    assert load_experiment("lesion").options("short") == {
        "--train": "real,synthetic,hybrid",
        "--test": "sub-lo12",
        "--modality": "flair",
        "--tissues": "csf,gm,wm,wmh",
        "--margin": "0.01",
        "--repeats": "3",
        "--budget": "short",
        "--ratio": "1,18.8",
    }
    assert "--ratio" not in load_experiment("near_out_of_distribution").options("smoke")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"margin": 0}, "key 'margin'"),
        ({"margins": 0.01}, "unknown key 'margins'; did you mean margin"),
        ({"question": None}, "missing key 'question'"),
        ({"train": ["synthetic", "hybrid"]}, "train needs the arm 'real'"),
        ({"train": ["real", "few"], "ratio": []}, "an arm with synthetic data"),
        ({"train": ["real", "fake"]}, "key 'train"),
        ({"ratio": []}, "ratio belongs to the arm 'hybrid'"),
        ({"train": ["real", "synthetic", "few"], "ratio": []}, "runs.smoke.few belongs to the arm"),
        ({"name": "a/b"}, "key 'name'"),
    ],
)
def test_an_unusable_experiment_is_named(write, changes, message):
    with pytest.raises(RecipeError, match=message):
        load_experiment(write(**changes))


def test_a_missing_experiment_names_those_there_are(tmp_path):
    with pytest.raises(RecipeError, match=r"no experiment 'x'.*far_out_of_distribution"):
        load_experiment("x")
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(RecipeError, match=r"list.yaml"):
        load_experiment(path)
