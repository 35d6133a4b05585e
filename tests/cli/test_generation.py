"""The generating commands on tiny real models: labels, images, verify, preview, replay."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_models import SUBJECTS, write_image_model, write_label_model

from synthgen import starter
from synthgen.cli import generation
from synthgen.core.errors import RequestError, StoreError
from synthgen.core.manifest import Manifest
from synthgen.data.shards import Shards, shard_path
from synthgen.generate import DEFAULT_THREADS, GenerationSettings

SMALL = ("--shard-size", "4", "--batch-size", "2", "--threads", "1", "--steps", "2")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_label_model(root / "labels")
    write_image_model(root / "images")
    return root


pytestmark = pytest.mark.usefixtures("nothing_is_shipped")


@pytest.fixture
def work(models, tmp_path):
    shutil.copytree(models, tmp_path / "work" / "models")
    return tmp_path / "work"


@pytest.fixture
def synthgen(work, command_line):
    """Run the command line in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments):
        words = [str(argument) for argument in arguments]
        if words[0] in ("labels", "images"):
            words += ["--workspace", str(work), "--device", "cpu"]
        return command_line(*words)

    return call


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# the whole way


def test_labels_images_verify_preview_replay(synthgen, work):
    code, out, err = synthgen("labels", "--n", 6, "--lesion", "wmh=0.01:0.05", *SMALL)
    assert (code, err) == (0, "")
    assert f"model: {work / 'models/labels'}" in out
    assert "conditions: slice 0.2:0.9, wmh 0.01:0.05" in out
    assert "training data: slice 0.2:0.9, wmh 0:0.1, tumour 0:0.2" in out
    assert "holds 6 samples in all; made 6 in" in out
    styles = ("--style", "a_t1,a_flair", "--per-label", 2, *SMALL[:-2])
    code, out, err = synthgen("images", *styles)
    assert (code, err) == (0, "")
    images = work / "images" / "a_t1+a_flair"
    manifest = Manifest.read(images)
    assert manifest.subjects == [*SUBJECTS, "b/sub-03"]
    assert manifest.n == 12
    for folder in (work / "labels", images):
        code, out, err = synthgen("verify", folder)
        assert (code, err) == (0, "")
        assert "all right" in out
        code, out, _ = synthgen("preview", folder, "--n", 3)
        assert code == 0
        assert (folder / "preview.png").read_bytes().startswith(b"\x89PNG")
        code, out, err = synthgen("replay", folder, "--index", 5)
        assert (code, err) == (0, "")
        assert "equal bit for bit" in out


def test_contrast_renderer_needs_no_model(synthgen, work):
    synthgen("labels", "--n", 3, *SMALL)
    shutil.rmtree(work / "models" / "images")
    contrast = ("--renderer", "contrast", "--style", "oasis_flair", *SMALL[:-2])
    code, out, err = synthgen("images", *contrast)
    assert (code, err) == (0, "")
    assert "model: contrast renderer, no weights" in out
    folder = work / "images" / "oasis_flair"
    assert synthgen("verify", folder)[0] == 0
    assert synthgen("replay", folder, "--index", 2)[0] == 0


def test_bf16_is_the_default_and_said_to_be_slow_where_it_is_emulated(synthgen, work, monkeypatch):
    monkeypatch.setattr("synthgen.cli.doctor.native_bf16", lambda device: device != "cpu")
    code, out, _ = synthgen("labels", "--n", 1, *SMALL)
    assert code == 0
    assert "cpu only emulates bf16; --precision fp32 is faster here" in out
    assert Manifest.read(work / "labels").identity["generator.dtype"] == "bf16"
    code, out, _ = synthgen("images", "--style", "a_t1", *SMALL[:-2], "--precision", "fp32")
    assert code == 0
    assert "emulates" not in out
    assert Manifest.read(work / "images" / "a_t1").identity["generator.dtype"] == "float32"


def test_continues_and_reports_json(synthgen, work):
    first = json.loads(synthgen("labels", "--n", 3, "--json", *SMALL)[1])
    assert (first["generated"], first["kept"], first["n"]) == (3, 0, 3)
    again = json.loads(synthgen("labels", "--n", 5, "--json", *SMALL)[1])
    assert (again["generated"], again["kept"], again["n"]) == (2, 3, 5)
    report = json.loads(synthgen("verify", work / "labels", "--json")[1])
    assert report == {
        "dataset": str(work / "labels"),
        "kind": "labels",
        "n": 5,
        "problems": [],
    }
    code, out, _ = synthgen("labels", "--n", 5, *SMALL)
    assert code == 0
    assert "; nothing to do" in out


def test_labels_count_the_requests_that_were_met(synthgen, work):
    code, out, _ = synthgen("labels", "--n", 4, "--lesion", "wmh=0.01:0.05", *SMALL)
    attempts = Shards(work / "labels").column("attempt")
    assert code == 0
    assert f"lesion requests: {(attempts > 0).sum()} maps drawn again, " in out
    other = ("--out", work / "first_draws", "--max-attempts", 1)
    code, out, _ = synthgen("labels", "--n", 4, "--lesion", "wmh=0.01:0.05", *other, *SMALL)
    assert "lesion requests: 0 maps drawn again, " in out
    code, _, err = synthgen("labels", "--n", 4, "--max-attempts", 0, *SMALL)
    assert code == 2
    assert "max-attempts must be at least 1, got 0" in err


def test_dry_run_writes_nothing(synthgen, work):
    code, out, _ = synthgen("labels", "--n", 500, "--dry-run", *SMALL)
    assert code == 0
    assert "500 of 500 samples to make" in out
    assert "files: 125 shards and a manifest" in out
    assert "bytes: about" in out
    assert "measured on one batch of 2" in out
    assert not (work / "labels").exists()
    report = json.loads(synthgen("labels", "--n", 500, "--dry-run", "--json", *SMALL)[1])
    assert report["files"] == 125
    assert report["seconds"] > 0


def test_a_lesion_without_a_range_takes_that_of_the_training_data(synthgen, work):
    out = synthgen("labels", "--n", 2, "--lesion", "tumour", "--slice", "0.5", *SMALL)[1]
    assert "conditions: slice 0.5:0.5, tumour 0:0.2" in out
    row = Shards(work / "labels")[1]
    assert row.condition["position"] == 0.5
    assert 0 < row.condition["tumour"] < 0.2


# bad requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lesion", "foo=0.1:0.2"), "unknown lesion 'foo'; the model's labels have wmh"),
        (("--lesion", "foo=1"), "unknown lesion 'foo'"),
        (("--lesion", "foo"), "--lesion foo: not in the model's training data"),
        (("--lesion", "oedema"), "not in the model's training data, which shows wmh, tumour"),
        (("--lesion", "wmh=0.5:0.1"), "--lesion wmh: expected 0 <= LOW <= HIGH <= 1"),
        (("--lesion", "wmh=0.5:1.1"), "got '0.5:1.1'"),
        (("--lesion", "wmh=-0.1:0.1"), "got '-0.1:0.1'"),
        (("--lesion", "wmh=nan"), "got 'nan'"),
        (("--lesion", "wmh="), "--lesion wmh: expected LOW:HIGH such as 0.01:0.05, got ''"),
        (("--lesion", "wmh=a:b"), "got 'a:b'"),
        (("--lesion", "wmh=0.1:0.2:0.3"), "got '0.1:0.2:0.3'"),
        (("--lesion", "=0.1"), "--lesion: expected NAME=LOW:HIGH"),
        (("--lesion", "wmh=0.1", "--lesion", "wmh=0.2"), "'wmh' stands twice"),
        (("--slice", "0.7:0.3"), "--slice: expected 0 <= LOW <= HIGH <= 1, got '0.7:0.3'"),
        (("--n", "0"), "n=0"),
        (("--batch-size", "3"), "shard_size must be a multiple of batch_size"),
        (("--steps", "0"), "steps"),
        (("--threads", "0"), "threads must be at least 1"),
    ],
)
def test_wrong_label_requests_are_one_line_and_exit_code_2(synthgen, work, arguments, message):
    code, _, err = synthgen("labels", "--n", 4, *SMALL, *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert message in err
    assert not (work / "labels").exists()


def test_cuda_that_is_absent_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RequestError, match="no CUDA device here"):
        generation.pick_device("cuda")
    assert generation.pick_device("auto") == "cpu"


def test_missing_and_damaged_models_are_named(synthgen, work):
    weights = work / "models/labels/unet/diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    code, _, err = synthgen("labels", "--n", 2, *SMALL)
    assert (code, len(err.splitlines())) == (3, 1)
    assert "diffusion_pytorch_model.safetensors" in err
    weights.unlink()
    code, _, err = synthgen("labels", "--n", 2, *SMALL)
    assert (code, len(err.splitlines())) == (3, 1)
    code, _, err = synthgen("labels", "--n", 2, "--model", work / "nothing", *SMALL)
    assert code == 3
    assert "synthgen train labels RECIPE" in err
    assert "starter:labels, which is shipped" in err
    assert not (work / "labels").exists()


def test_wrong_image_requests_name_what_is_wrong(synthgen, work):
    code, _, err = synthgen("images", "--style", "a_t1")
    assert code == 3
    assert "not a synthgen dataset" in err
    synthgen("labels", "--n", 6, *SMALL)
    code, _, err = synthgen("images", "--style", "a_t9", *SMALL[:-2])
    assert code == 2
    assert "unknown style 'a_t9'; there are a_t1, a_flair, b_flair" in err
    code, _, err = synthgen("images", "--style", "a_t9", "--renderer", "contrast", *SMALL[:-2])
    assert (code, len(err.splitlines())) == (2, 1)
    shard_path(work / "labels", 1).unlink()
    code, _, err = synthgen("images", "--style", "a_t1", *SMALL[:-2])
    assert code == 3
    assert "1 of 2 shards are missing" in err
    assert not (work / "images").exists()


def test_another_identity_is_refused_and_nothing_is_touched(synthgen, work):
    synthgen("labels", "--n", 4, *SMALL)
    before = files(work / "labels")
    code, _, err = synthgen("labels", "--n", 8, "--seed", 1, *SMALL)
    assert code == 2
    assert "holds another dataset (seed: there 0, asked 1)" in err
    code, _, err = synthgen("labels", "--n", 3, *SMALL)
    assert code == 2
    assert "already holds 4 samples" in err
    assert files(work / "labels") == before


def test_damage_is_found_and_repaired(synthgen, work):
    synthgen("labels", "--n", 6, *SMALL)
    before = files(work / "labels")
    path = shard_path(work / "labels", 1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
    code, out, _ = synthgen("verify", work / "labels")
    assert code == 3
    assert out.count("\n") == 1
    assert "00001.h5: damaged" in out
    code, _, err = synthgen("labels", "--n", 6, *SMALL)
    assert code == 3
    assert "--repair" in err
    code, out, _ = synthgen("labels", "--n", 6, "--repair", *SMALL)
    assert code == 0
    assert "1 damaged shards made again" in out
    assert files(work / "labels") == before


def test_replay_notices_another_model_and_changed_rows(synthgen, work, tmp_path):
    synthgen("labels", "--n", 3, *SMALL)
    other = write_label_model(tmp_path / "other", seed=1)
    code, _, err = synthgen("replay", work / "labels", "--index", 0, "--model", other)
    assert code == 2
    assert "was made by another generator (generator.model" in err
    code, _, err = synthgen("replay", work / "labels", "--index", 3)
    assert code == 2
    assert "holds the samples 0 .. 2" in err


# small things


def test_ranges_read_as_written():
    assert generation.parse_range("0.1:0.2", "x") == (0.1, 0.2)
    assert generation.parse_range("0.3", "x") == (0.3, 0.3)
    assert generation.parse_lesions(["wmh=0:1", "tumour"]) == {"wmh": (0.0, 1.0), "tumour": None}


def test_threads_default_is_the_engine_s():
    assert generation.THREADS == DEFAULT_THREADS


def test_progress_is_one_line_now_and_then(capsys, monkeypatch):
    clock = iter(np.arange(0.0, 100.0, 10.0))
    monkeypatch.setattr(generation.time, "monotonic", lambda: float(next(clock)))
    with generation.progress_on_stderr("labels") as progress:
        for done in range(1, 8):
            progress(done, 8)
    assert capsys.readouterr().err.splitlines() == [
        "labels: 3 of 8 samples, 0.1/s, 50.0 s left",
        "labels: 6 of 8 samples, 0.1/s, 20.0 s left",
    ]


def test_what_was_there_already_does_not_count_as_speed(capsys, monkeypatch):
    clock = iter(np.arange(0.0, 100.0, 10.0))
    monkeypatch.setattr(generation.time, "monotonic", lambda: float(next(clock)))
    with generation.progress_on_stderr("training", "steps") as progress:
        for done in (900, 901, 902):
            progress(done, 1002)
    assert capsys.readouterr().err == "training: 902 of 1002 steps, 0.1/s, 16 min 40 s left\n"


def test_idle_cores_are_mentioned(monkeypatch):
    monkeypatch.setattr(generation.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    note = generation.idle_cores(GenerationSettings(threads=2), "cpu", "labels")
    assert "torchrun --nproc-per-node 4 -m -- synthgen labels" in note
    for settings, device in (
        (GenerationSettings(threads=8), "cpu"),
        (GenerationSettings(), "cuda:0"),
        (GenerationSettings(num_workers=2), "cpu"),
    ):
        assert generation.idle_cores(settings, device, "labels") == ""


def test_model_is_the_one_given_else_the_workspace_s_own_else_the_shipped(models, work, tmp_path):
    given = generation.find_model(models / "labels", work, "labels")
    assert (given.folder, given.name) == (models / "labels", str(models / "labels"))
    own = generation.find_model(None, work, "labels")
    assert (own.folder, own.shown) == (work / "models/labels", str(work / "models/labels"))
    for model in (None, Path("starter:images"), tmp_path / "nothing"):
        with pytest.raises(StoreError, match="no images model in"):
            generation.find_model(model, tmp_path, "images")
    shutil.copytree(models, tmp_path / "starter")
    assert generation.find_model(None, work, "labels") == own
    shipped = generation.find_model(None, tmp_path, "images")
    assert (shipped.folder, shipped.name) == (tmp_path / "starter/images", "starter:images")
    assert shipped.shown == "starter:images, shipped with synthgen"
    assert generation.find_model(Path("starter:images"), work, "images") == shipped
    # A folder that is there but holds no model is no reason to take another one.
    (work / "models/labels/model_index.json").unlink()
    for model in (None, tmp_path / "nothing"):
        with pytest.raises(StoreError, match="no labels model in"):
            generation.find_model(model, work, "labels")


def test_datasets_of_a_shipped_model_replay_wherever_it_is(synthgen, work, models, monkeypatch):
    shutil.rmtree(work / "models")
    shutil.copytree(models, work / "one place")
    monkeypatch.setattr(starter, "FOLDER", work / "one place")
    out = synthgen("labels", "--n", 2, *SMALL)[1]
    assert "model: starter:labels, shipped with synthgen" in out
    out = synthgen("images", "--style", "a_t1", *SMALL[:-2])[1]
    assert "model: starter:images, shipped with synthgen" in out
    for kind, folder in (("labels", work / "labels"), ("images", work / "images/a_t1")):
        assert Manifest.read(folder).provenance["model"] == f"starter:{kind}"
    shutil.move(work / "one place", work / "another place")
    monkeypatch.setattr(starter, "FOLDER", work / "another place")
    for folder in (work / "labels", work / "images" / "a_t1"):
        assert "equal bit for bit" in synthgen("replay", folder, "--index", 1)[1]
