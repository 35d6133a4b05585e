"""`synthgen train imgx|hidiff`, then `segment` and `evaluate segmentation` with what came of it."""

import json

import nibabel as nib
import numpy as np
import pytest
from discs import image_of, write_disc_dataset, write_disc_store
from PIL import Image

from synthgen.data.store import TrainingStore

SHORT = {
    "imgx": ("imgx.train.steps=2", "imgx.validation_cases=2"),
    "hidiff": ("hidiff.train.steps=2", "hidiff.pretrain.steps=2", "hidiff.validation_cases=2"),
}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return write_disc_store(tmp_path_factory.mktemp("discs") / "store")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_disc_dataset(tmp_path_factory.mktemp("discs"))


@pytest.fixture
def synthgen(monkeypatch, tmp_path, command_line):
    """Run the command line in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.chdir(tmp_path)
        return command_line(*arguments)

    return call


def short(kind):
    return [word for pair in SHORT[kind] for word in ("-o", pair)]


@pytest.mark.parametrize("kind", ["imgx", "hidiff"])
def test_a_model_of_mixed_data_segments_pictures_and_volumes(kind, synthgen, real, made, tmp_path):
    code, told, err = synthgen(
        "train", kind, "tiny_segmentation", "--data", f"{real}=0.25", "--data", made,
        "--validate", real, *short(kind),
    )  # fmt: skip
    assert code == 0, err
    assert told == f"model: work/models/{kind}\n"
    record = json.loads((tmp_path / f"work/models/{kind}/synthgen.json").read_text())
    assert record["subjects"] == ["a/sub-1", "a/sub-2"]
    assert record["training"]["validation"]["cases"] == 2
    assert sorted(record["training"]["data"].values()) == [0.25, 0.75]

    with TrainingStore.open(real) as store:
        pv = store.pv(0)
    stack = np.stack([image_of(pv, "t1", np.random.default_rng(z)) for z in range(3)], axis=-1)
    affine = np.diag([-1.5, -1.5, 3.0, 1.0])
    (tmp_path / "heads").mkdir()
    nib.save(nib.Nifti1Image(stack.astype(np.float32), affine), tmp_path / "heads/a.nii.gz")
    code, told, err = synthgen("segment", kind, "heads", "--out", "masks", "--device", "cpu")
    assert (code, err) == (0, "")
    mask = nib.load(tmp_path / "masks/a.nii.gz")
    assert mask.shape == stack.shape
    assert np.array_equal(mask.affine, affine)
    Image.fromarray(np.rint(stack[..., 0] * 255).astype(np.uint8)).save(tmp_path / "a.png")
    code, told, err = synthgen("segment", kind, "a.png", "--out", "flat", "--device", "cpu")
    assert (code, err) == (0, "")
    code, told, err = synthgen("evaluate", "segmentation", "masks", "masks")
    assert code == 0
    assert [line.split()[0] for line in told.splitlines()[1:4]] == ["csf", "gm", "wm"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "Missing option '--data'"),
        (("--data", "nowhere"), 2, "nowhere: no labelled images"),
        (("--data", "{real}=1.5"), 2, "a share must lie in (0, 1], got 1.5"),
        (("--data", "{real}", "--exclude", "a/sub-1,a/sub-2"), 2, "no case is left"),
        (("--data", "{made}", "--exclude", "a/sub-1"), 3, "which is to be left out"),
        (("--data", "{real}", "-o", "imgx.data.tissues=[csf]"), 2, "belongs to none of csf"),
    ],
)
def test_bad_requests_are_one_line(arguments, code, message, synthgen, real, made, tmp_path):
    words = [word.format(real=real, made=made) for word in arguments]
    found, out, err = synthgen("train", "imgx", "tiny_segmentation", *words)
    assert (found, out) == (code, "")
    assert message in err
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("kind", ["imgx", "hidiff"])
def test_a_recipe_without_the_section_is_refused(kind, synthgen, real):
    code, _, err = synthgen("train", kind, "tiny", "--data", real)
    assert code == 2
    assert f"has no section '{kind}', which `train {kind}` needs" in err
