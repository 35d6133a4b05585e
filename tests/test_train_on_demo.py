"""What the shipped models make teaches segmenters: made, trained on, segmented, scored."""

import json

import nibabel as nib
import numpy as np
import pytest

from synthgen import Shards
from synthgen.starter import starter_folder

RECIPES = {
    "imgx": ("imgx.train.steps=60", "imgx.twin=none"),
    "hidiff": (
        "hidiff.pretrain.steps=60",
        "hidiff.train.steps=10",
        "hidiff.schedule.prediction=correction",
        "hidiff.schedule.sampler=mode",
    ),
}


@pytest.fixture
def synthgen(command_line, monkeypatch, tmp_path):
    """Run a command in this process; it must succeed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code, _, err = command_line(*arguments)
        assert code == 0, err

    return call


def test_segmenters_learn_from_what_the_shipped_models_make(synthgen, tmp_path):
    if not (starter_folder("labels") and starter_folder("images")):
        pytest.skip("this checkout ships no models")
    for work, n, seed in (("train", 16, 0), ("test", 8, 1)):
        common = ("--seed", seed, "--workspace", work, "--precision", "bf16", "--device", "cpu")
        synthgen("labels", "--n", n, "--slice", "0.4:0.7", "--steps", 8, *common)
        synthgen("images", "--style", "oasis_t1", "--out", f"{work}/images", *common)
    stack = np.stack([row.images[0] for row in Shards(tmp_path / "test/images")], axis=-1)
    (tmp_path / "heads").mkdir()
    nib.save(nib.Nifti1Image(stack.astype(np.float32), np.eye(4)), tmp_path / "heads/a.nii.gz")
    for kind, settings in RECIPES.items():
        overrides = [word for setting in settings for word in ("-o", setting)]
        data = ("--data", "train/images", "--validate", "test/images")
        synthgen("train", kind, "tiny_segmentation", *data, *overrides)
        record = json.loads((tmp_path / f"work/models/{kind}/synthgen.json").read_text())
        # Chance gives a third.
        assert record["training"]["validation"]["dice"][-1]["mean"] > 0.5
        synthgen("segment", kind, "heads", "--out", f"masks_{kind}", "--device", "cpu")
        found = np.asarray(nib.load(tmp_path / f"masks_{kind}/a.nii.gz").dataobj)
        assert found.shape == stack.shape
        assert set(np.unique(found)) == {0, 1, 2, 3}
