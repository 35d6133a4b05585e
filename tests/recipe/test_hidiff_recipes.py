"""Recipes of HiDiff: the paper's numbers, and what does not fit is one clear line."""

from __future__ import annotations

import pytest

from synthgen.core.errors import RecipeError
from synthgen.recipe import dump, load_recipe


@pytest.mark.parametrize(
    "name", ["hidiff", "hidiff_small", "hidiff_vessels_small", "tiny_segmentation"]
)
def test_they_are_read_and_written_back(name, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / "r.yaml"
    path.write_text(dump(recipe))
    assert load_recipe(path) == recipe


def test_the_faithful_recipe_has_the_published_numbers():
    hidiff = load_recipe("hidiff").hidiff
    assert hidiff.schedule.num_train_timesteps == 10
    assert hidiff.refiner.binary
    assert hidiff.schedule.prediction == "flips"
    assert hidiff.train.batch_size * hidiff.train.accumulation == 32
    assert (hidiff.train.steps, hidiff.train.lr, hidiff.train.ema_decay) == (40_000, 1e-4, 0.9999)
    assert (hidiff.refiner_losses.bound, hidiff.refiner_losses.focal) == (1, 1)
    assert hidiff.collaboration.diffusion == 1
    assert hidiff.corruption.share == 0
    assert hidiff.segmentor.reductions[hidiff.features[-1]] == (32, 32)
    assert [hidiff.segmentor.channels[i] for i in hidiff.features] == [96, 192, 384, 768]


def test_a_recipe_without_hidiff_keeps_its_fingerprint():
    with_section = load_recipe("hidiff_small")
    without = with_section.model_copy(update={"hidiff": None})
    assert with_section.fingerprint != without.fingerprint
    assert "hidiff" not in load_recipe("tiny").model_dump(exclude_none=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("segmentor.kind=squid", "hidiff.segmentor"),
        ("segmentor.channels=[8, 16, 32]", "strides needs 2 entries for 3 channels, got 1"),
        ("segmentor.kind=dynunet", "dynunet needs at least 3 channels, got 2"),
        ("segmentor.kind=swinunetr", r"swinunetr has channels \[f, f, 2f"),
        ("segmentor.kind=imgx", "hidiff.segmentor.*num_blocks"),
        ("segmentor.depth=3", "unknown key 'hidiff.segmentor.depth'"),
        ("data.patch=[33, 32]", r"data.patch must be divisible by \[2, 2\].*got \[33, 32\]"),
        ("window.size=[48, 47]", "window.size must be divisible"),
        ("window.size=[8, 8, 8]", "window.size needs 2 numbers"),
        ("refiner.strides=[[2, 2, 2]]", r"refiner.strides\[0\] needs 2 numbers"),
        ("refiner.feature_levels=[2]", r"must rise and lie below 2, got \[2\]"),
        ("refiner.strides=[[4, 4]]", r"no map of the size of level 1, 1/\[4, 4\]"),
        ("schedule.num_inference_steps=11", "at most num_train_timesteps 10, got 11"),
        ("schedule.prior_floor=0.3", "hidiff.schedule.prior_floor"),
        ("schedule={kernel: categorical}", "missing key 'hidiff.schedule.num_train_timesteps'"),
        ("refiner_losses={bound: 0, focal: 0, dice: 0, gamma: 2}", "one of bound, focal and dice"),
        ("collaboration.every=0", "hidiff.collaboration.every"),
    ],
)
def test_what_does_not_fit_is_one_line(override, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe("tiny_segmentation", [f"hidiff.{override}"])
    assert "\n" not in str(caught.value)


def test_the_categorical_kernel_has_no_flips():
    overrides = ["hidiff.schedule.kernel=categorical", "hidiff.schedule.prediction=flips"]
    with pytest.raises(RecipeError, match="no flips: prediction must be mask"):
        load_recipe("tiny_segmentation", overrides)
