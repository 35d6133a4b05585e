"""Recipes of ImgX: the papers' numbers, and what does not fit is one clear line."""

from __future__ import annotations

import pytest

from synthgen.core.errors import RecipeError
from synthgen.recipe import dump, load_recipe


@pytest.mark.parametrize("name", ["imgx", "imgx_small", "imgx3d_small", "tiny_segmentation"])
def test_they_are_read_and_written_back(name, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / "r.yaml"
    path.write_text(dump(recipe))
    assert load_recipe(path) == recipe
    assert recipe.imgx.data.spatial_dims == len(recipe.imgx.window_size)


def test_the_paper_recipe_has_the_published_numbers():
    imgx = load_recipe("imgx").imgx
    assert imgx.strategy == "recycle_start"
    assert imgx.network.channels == (32, 64, 128, 256)
    assert imgx.network.time_conditioning == "none"
    schedule = imgx.schedule
    assert (schedule.num_train_timesteps, schedule.num_inference_steps) == (1001, 5)
    train = imgx.train
    assert train.steps * train.batch_size * train.accumulation == 100_000
    assert (train.lr_first, train.lr, train.lr_last) == (1e-5, 8e-4, 5e-5)
    assert (train.weight_decay, train.betas, train.clip_norm) == (1e-8, (0.9, 0.999), 1.0)
    assert len(imgx.data.tissues) == 15
    assert load_recipe("imgx").label_schema.names[1:] == imgx.data.tissues


def test_small_recipes_know_the_time_and_train_on_the_steps_of_the_inference():
    for name in ("imgx_small", "imgx3d_small"):
        imgx = load_recipe(name).imgx
        assert imgx.network.time_conditioning == "film"
        assert imgx.schedule.num_train_timesteps == imgx.schedule.num_inference_steps == 5


def test_a_recipe_without_imgx_keeps_its_fingerprint():
    """Model cards and running trainings quote it."""
    tiny = load_recipe("tiny")
    assert tiny.fingerprint == "5dc519fb5cf85e4a75fb03069b4e87da3172d66054a52640bc4087eced565f6f"
    with_section = load_recipe("tiny_segmentation")
    without = with_section.model_copy(update={"imgx": None})
    assert with_section.fingerprint != without.fingerprint


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.patch=[32]", "imgx.data.patch"),
        ("data.patch=[32, 32, 32]", "augmentation.mirror needs one chance for each of the 3 axes"),
        ("window.size=[32, 32, 32]", "window.size needs 2 numbers as data.patch, got 3"),
        ("network.strides=[[2, 2, 2]]", r"network.strides\[0\] needs 2 numbers"),
        ("network.channels=[8, 16, 32]", "strides needs 2 entries for 3 channels, got 1"),
        ("schedule.num_inference_steps=4", "num_inference_steps - 1 must divide.*1000, got 4"),
        ("schedule.num_train_timesteps=1", "imgx.schedule.num_train_timesteps"),
        ("losses.dice=0", "losses.*got|one of dice, cross_entropy and focal"),
        ("strategy=recycle", "imgx.strategy"),
        ("train.lrr=1", "unknown key 'imgx.train.lrr'"),
        ("window.overlap=1.0", "imgx.window.overlap"),
        ("data.tissues=[]", "imgx.data.tissues"),
    ],
)
def test_what_does_not_fit_is_one_line(override, message):
    extra = ["imgx.losses.cross_entropy=0"] if override == "losses.dice=0" else []
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe("tiny_segmentation", [f"imgx.{override}", *extra])
    assert "\n" not in str(caught.value)
