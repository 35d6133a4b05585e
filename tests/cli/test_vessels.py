"""The vessel commands: trees, angiograms with and without a model."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_vessels import Threshold

from synthgen.cli import angiograms
from synthgen.core.manifest import Manifest
from synthgen.data.shards import Shards

SMALL = ("--size", "64", "--shard-size", "4", "--batch-size", "2")
PHYSICS = ("angiograms", "--renderer", "physics", *SMALL)


pytestmark = pytest.mark.usefixtures("nothing_is_shipped")


@pytest.fixture
def synthgen(tmp_path, command_line):
    """Run the command line in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments):
        words = [str(argument) for argument in arguments]
        if words[0] in ("vessels", "angiograms"):
            words += ["--workspace", str(tmp_path / "work")]
        if words[0] == "angiograms" and "physics" not in words:
            words += ["--device", "cpu"]
        return command_line(*words)

    return call


class Model(Threshold):
    """Stands for a trained model of pictures of 64 x 96 pixels."""

    shape = (64, 96)
    masks = "retina"


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model in the workspace; returns how to choose what is loaded from it."""
    folder = tmp_path / "work/models/angiograms"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")

    def choose(faults=0.0):
        monkeypatch.setattr(angiograms, "load_pipeline", lambda *_: Model(faults))

    choose()
    return choose


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


# trees and angiograms


def test_vessels_verify_preview_replay(synthgen, tmp_path):
    extras = "centreline,path_length,radius,branches,bifurcations,graph"
    code, out, err = synthgen("vessels", "--n", 5, "--preset", "retina", "--with", extras, *SMALL)
    folder = tmp_path / "work/vessels"
    assert (code, err) == (0, "")
    assert "trees: retina, 64 x 64" in out
    assert "holds 5 samples in all" in out
    assert sorted(Shards(folder)[0].extras) == sorted(extras.split(","))
    assert synthgen("verify", folder)[:2] == (0, f"{folder}: 5 samples of labels, all right\n")
    assert synthgen("preview", folder, "--n", 2)[0] == 0
    assert "equal bit for bit" in synthgen("replay", folder, "--index", 4)[1]
    code, _, err = synthgen("evaluate", "overview", folder)
    assert (code, err.count("\n")) == (2, 1)
    assert "holds vessel trees" in err


@pytest.mark.parametrize("mask", ["coronary", "retina", "ssvs"])
def test_physics_needs_no_model_and_paints_the_trees_of_vessels(mask, synthgen, tmp_path):
    synthgen("vessels", "--n", 3, "--preset", mask, *SMALL)
    code, out, err = synthgen(*PHYSICS, "--n", 3, "--mask", mask)
    assert (code, err) == (0, "")
    assert "model: physics renderer, no weights" in out
    assert "gate: none" in out
    trees, images = (Shards(tmp_path / "work" / name) for name in ("vessels", "angiograms"))
    assert all(np.array_equal(trees[i].pv, images[i].pv) for i in range(3))
    assert synthgen("verify", images.folder)[0] == 0
    assert synthgen("replay", images.folder, "--index", 2)[0] == 0


def test_darl_paints_in_the_size_of_its_model_and_gates(synthgen, model, tmp_path):
    code, out, err = synthgen("angiograms", "--n", 4, *SMALL[2:])
    assert (code, err) == (0, "")
    assert "trees: retina, 64 x 96" in out
    assert "gate: at most 4 draws of a sample" in out
    assert "gate: refused 0 of 4 draws (0.0%); 4 of 4 samples pass, 0 are" in out
    folder = tmp_path / "work/angiograms"
    assert Shards(folder)[0].gate[0] > 0.8
    assert synthgen("verify", folder)[0] == 0
    assert synthgen("replay", folder, "--index", 3)[0] == 0
    assert synthgen("preview", folder)[0] == 0


def test_many_refused_draws_are_a_warning(synthgen, model, tmp_path):
    model(faults=1.0)
    code, out, err = synthgen("angiograms", "--n", 4, "--max-attempts", 2, *SMALL)
    shards = Shards(tmp_path / "work/angiograms")
    passed = int((np.abs(shards.column("gate") - [0.9, 0.025]) <= [0.1, 0.025]).all(axis=1).sum())
    assert code == 0
    assert f"{passed} of 4 samples pass" in out
    assert err.startswith("warning: the gate refused ")
    assert "train it longer" in err
    told = json.loads(synthgen("angiograms", "--n", 4, "--max-attempts", 2, "--json", *SMALL)[1])
    assert told["gate"]["samples"] == 4
    assert told["gate"]["failed"] == 4 - passed


def test_no_gate_measures_nothing(synthgen, model, tmp_path):
    code, out, _ = synthgen("angiograms", "--n", 2, "--no-gate", *SMALL)
    assert code == 0
    assert "gate: none" in out
    assert Shards(tmp_path / "work/angiograms")[0].gate is None


def test_a_model_guards_physics_where_it_is_named(synthgen, model, tmp_path):
    named = tmp_path / "work/models/angiograms"
    code, out, _ = synthgen(*PHYSICS, "--n", 2, "--model", named, "--max-attempts", 1)
    assert code == 0
    assert f"model: {named}" in out
    assert Manifest.read(tmp_path / "work/angiograms").identity["gate"]["max_attempts"] == 1
    code, _, err = synthgen(*PHYSICS, "--n", 2, "--model", named, "--no-gate")
    assert code == 2
    assert "--model means nothing to --renderer physics --no-gate" in err


def test_real_backgrounds_are_painted_on_and_their_subjects_named(synthgen, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        save(tmp_path / f"real/{name}.png", rng.integers(90, 200, (96, 96), dtype=np.uint8))
    code, _, err = synthgen(*PHYSICS, "--n", 3, "--backgrounds", tmp_path / "real")
    folder = tmp_path / "work/angiograms"
    assert (code, err) == (0, "")
    assert Manifest.read(folder).subjects == ["plain/a", "plain/b"]
    assert synthgen("replay", folder, "--index", 1)[0] == 0
    save(tmp_path / "real/b.png", rng.integers(90, 200, (96, 96), dtype=np.uint8))
    code, _, err = synthgen("replay", folder, "--index", 1)
    assert code == 2
    assert "generator.renderer.backgrounds" in err


def test_a_background_of_another_shape_is_refused_before_anything_is_written(synthgen, tmp_path):
    save(tmp_path / "real/a.png", np.full((32, 64), 120, np.uint8))
    code, _, err = synthgen(*PHYSICS, "--n", 3, "--backgrounds", tmp_path / "real")
    assert code == 2
    assert "a.png: a background of 32 x 64 pixels for trees of 64 x 64" in err
    assert not (tmp_path / "work").exists()


def test_dry_run_writes_nothing(synthgen, model, tmp_path):
    for command in (("vessels",), ("angiograms",)):
        code, out, _ = synthgen(*command, "--n", 100, "--dry-run", *SMALL)
        assert code == 0
        assert "100 of 100 samples to make" in out
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["models"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("vessels", "--n", 2, "--preset", "liver"), 2, "coronary"),
        (("vessels", "--n", 2, "--with", "depth"), 2, "unknown extra 'depth'; there are centrel"),
        (("vessels", "--n", 2, "--preset", "ssvs", "--with", "graph"), 2, "without a tree"),
        (("vessels", "--n", 0), 2, "n=0"),
        (("vessels", "--n", 2, "--size", 8), 2, "--size: expected 64 to 2048 pixels, got 8"),
        (("angiograms", "--n", 2), 3, "`synthgen train angiograms RECIPE` makes one"),
        (("angiograms", "--n", 2), 3, "`--renderer physics --no-gate` needs none"),
        (("angiograms", "--n", 2, "--renderer", "physics", "--gate"), 3, "no angiograms model in"),
        (("angiograms", "--n", 2, "--backgrounds", "."), 2, "a darl model holds its backgrounds"),
        ((*PHYSICS, "--n", 2, "--backgrounds", "nowhere"), 2, "nowhere: no such folder"),
        ((*PHYSICS, "--n", 2, "--mask", "liver"), 2, "coronary"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(
    arguments, code, message, synthgen, tmp_path
):
    found, out, err = synthgen(*arguments)
    assert found == code
    assert message in err
    assert not out
    assert not (tmp_path / "work").exists()


def test_trees_are_never_painted_or_drawn_anew_as_brains(synthgen, tmp_path):
    synthgen("vessels", "--n", 2, *SMALL)
    folder = tmp_path / "work/vessels"
    contrast = ("--renderer", "contrast", "--style", "oasis_t1")
    code, _, err = synthgen("images", "--labels", folder, *contrast)
    assert (code, err.count("\n")) == (2, 1)
    assert "no constants for vessel" in err
    flagged = {"dataset": str(folder), "total": 2, "flagged": [1]}
    (tmp_path / "flagged.json").write_text(json.dumps(flagged))
    code, _, err = synthgen("redraw", tmp_path / "flagged.json", "--out", tmp_path / "new")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds vessel trees, drawn without a model" in err
