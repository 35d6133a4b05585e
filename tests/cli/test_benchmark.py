"""`synthgen benchmark nnunet` on four tiny heads."""

import json
import sys
from types import ModuleType

import pytest
from discs import write_disc_dataset, write_disc_store
from typer.testing import CliRunner

from synthgen.benchmark.run import Outcome
from synthgen.cli import benchmark
from synthgen.core.errors import RecipeError, RequestError


@pytest.fixture
def workspace(tmp_path):
    write_disc_store(tmp_path / "store")
    return tmp_path


def invoke(workspace, *arguments):
    done = CliRunner().invoke(benchmark.app, ["nnunet", *arguments, "--workspace", str(workspace)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def without_training(monkeypatch):
    """Let stores be written and nothing be trained; return the specs that would have been."""
    specs = []

    def train(spec, out, progress):
        specs.append(spec)
        failed = {"hybrid seed 0": "diverged"} if len(spec.arms) > 2 else {}
        return Outcome(out, tuple(a.name for a in spec.arms), (), failed, 1.0)

    monkeypatch.setattr("synthgen.benchmark.run.train_benchmark", train)
    module = ModuleType("synthgen.benchmark.report")
    module.write_report = lambda out: out / "report.html"
    monkeypatch.setitem(sys.modules, "synthgen.benchmark.report", module)
    return specs


def test_without_a_synthetic_dataset_it_says_what_makes_one(workspace):
    with pytest.raises(RequestError, match="`synthgen labels --n 200`, then `synthgen images"):
        invoke(workspace, "--train", "synthetic")


def test_several_datasets_are_named(workspace):
    for name in ("one", "two"):
        folder = workspace / "images" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    with pytest.raises(RequestError, match=r"which dataset.*one.*two"):
        invoke(workspace, "--train", "contrast")


def test_the_workspace_gives_the_defaults(workspace, without_training):
    made = write_disc_dataset(workspace / "made")
    (workspace / "images").mkdir()
    made.rename(workspace / "images" / "discs")
    done = invoke(workspace, "--train", "synthetic", "--trainer", "proxy", "--json")
    body = json.loads(done.stdout.splitlines()[-1])
    assert body["trained"] == ["real", "synthetic"]
    assert body["report"] == str(workspace / "benchmarks" / "proxy-smoke" / "report.html")
    (spec,) = without_training
    assert spec.test == ("a/sub-3", "b/sub-1")
    assert (workspace / "benchmarks" / "proxy-smoke" / "stores" / "synthetic.h5").is_file()


def test_a_failed_training_ends_with_exit_code_3_and_a_report(workspace, without_training):
    made = write_disc_dataset(workspace / "made")
    done = invoke(
        workspace, "--train", "hybrid,few", "--ratio", "0.5,2", "--few", "3", "--trainer", "proxy",
        "--synthetic", str(made), "--repeats", "2", "--margin", "0.02", "--modality", "T1",
        "--tissues", "csf,gm,wm,wmh", "--test", "test", "--out", str(workspace / "out"),
    )  # fmt: skip
    assert done.exit_code == benchmark.FAILED
    assert "FAILED hybrid seed 0: diverged" in done.stdout
    (spec,) = without_training
    assert [a.name for a in spec.arms] == ["real", "hybrid-0.5", "hybrid-2", "few-3"]
    assert (spec.seeds, spec.margin, spec.modalities) == ((0, 1), 0.02, ("t1",))
    assert (spec.test, spec.tissues[-1]) == (("b/sub-1",), "wmh")


@pytest.mark.parametrize(
    ("arguments", "error", "what"),
    [
        (["--train", "reel"], RequestError, "no arm 'reel'"),
        (["--train", "real", "--ratio", "a"], RequestError, "--ratio: expected numbers"),
        (["--train", "real", "--margin", "0"], RequestError, "--margin: expected a Dice above 0"),
        (["--train", "real", "-o", "benchmark.few=x"], RecipeError, "benchmark.few"),
    ],
)
def test_wrong_options_are_one_line(arguments, error, what, workspace):
    with pytest.raises(error, match=what):
        invoke(workspace, *arguments)
