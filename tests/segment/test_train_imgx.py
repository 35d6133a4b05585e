"""Training ImgX: a model folder with scores, exact resume, and what does not fit."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from interrupted import losses
from made_up_labelled import VOLUMES, Discs, imgx_recipe, mixture

from synthgen.core.errors import GeometryError, LeakageError, RequestError
from synthgen.core.rng import SampleKey
from synthgen.recipe import load_recipe
from synthgen.segment.imgx import ImgXSegmenter
from synthgen.segment.train_imgx import train_imgx, twin_steps


def weights_of(folder):
    names = ("unet", "twin")
    return [(folder / n / "diffusion_pytorch_model.safetensors").read_bytes() for n in names]


def test_training_ends_in_a_model_folder_with_scores_of_every_step(tmp_path):
    out = tmp_path / "models" / "imgx"
    data = mixture(Discs(subjects=("a/sub-1",)), Discs(seed=1))
    validation = Discs(seed=9, count=3, real=True, subjects=("a/sub-2",), name="held out")
    recipe = imgx_recipe(train__sheet_every=3, train__ema_decay=0.5, validation_cases=2)
    assert train_imgx(recipe, data, out, validation=validation) == out
    model = ImgXSegmenter.load(out)
    assert model.subjects == ("a/sub-1",)
    assert model.use.tissues == data.tissues
    assert model.use.window == (32, 32)
    training = json.loads((out / "synthgen.json").read_text())["training"]
    assert training["steps"] == {"diffusion": 6, "twin": 6}
    assert training["data"] == {"discs": 0.5}
    scores = training["validation"]
    assert (scores["data"], scores["real"], scores["cases"]) == ("held out", True, 2)
    assert len(scores["dice"]) == 5
    for dice in (*scores["dice"], scores["twin_dice"]):
        assert set(dice) == {"csf", "gm", "wm", "mean"}
        assert 0 <= dice["mean"] <= 1
    card = (out / "card.md").read_text()
    assert "| step 5 |" in card
    assert "| supervised twin |" in card
    assert "a/sub-1" in card
    runs = tmp_path / "runs" / "imgx"
    for name in ("diffusion", "twin"):
        assert len(losses(runs / name)) == 6
        assert sorted(p.name for p in (runs / name / "sheets").iterdir()) == [
            "step_0000003.png",
            "step_0000006.png",
        ]
    found = model.predict(torch.full((1, 1, 40, 36), 0.5), [SampleKey(0, 0)])
    assert found.shape == (1, 4, 40, 36)


@pytest.mark.parametrize(
    "overrides",
    [{"train__precision": "bf16", "train__accumulation": 2, "train__ema_decay": 0.9}, VOLUMES],
    ids=["bf16", "3D"],
)
def test_a_resumed_run_has_the_same_losses_and_weights(tmp_path, overrides):
    recipe = imgx_recipe(network__dropout=0.1, train__steps=4, **overrides)
    data = mixture(Discs(shape=recipe.imgx.data.patch, count=3))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_imgx(recipe, data, tmp_path / "m1", whole)
    shutil.copytree(whole, cut)
    # Killed while the twin was trained, and before the last checkpoint of the other.
    for name in ("diffusion", "twin"):
        shutil.rmtree(cut / name / "checkpoints" / "step_0000004")
    shutil.rmtree(cut / "twin" / "checkpoints" / "step_0000002")
    train_imgx(recipe, data, tmp_path / "m2", cut, resume=True)
    for name in ("diffusion", "twin"):
        assert losses(whole / name) == losses(cut / name)
    assert weights_of(tmp_path / "m1") == weights_of(tmp_path / "m2")


def test_a_run_is_not_continued_by_another_recipe_rank_or_data(tmp_path):
    run, out = tmp_path / "run", tmp_path / "m"
    short = {"train__steps": 2, "twin": "none"}
    recipe = imgx_recipe(**short)
    train_imgx(recipe, mixture(count=3), out, run)
    with pytest.raises(RequestError, match="--resume"):
        train_imgx(recipe, mixture(count=3), out, run)
    other = imgx_recipe(**short, strategy="standard")
    with pytest.raises(RequestError, match="another recipe"):
        train_imgx(other, mixture(count=3), out, run, resume=True)
    with pytest.raises(RequestError, match="other data"):
        train_imgx(recipe, mixture(count=3, seed=2), out, run, resume=True)
    volumes = imgx_recipe(**short, **VOLUMES)
    with pytest.raises(RequestError, match="another recipe or other data"):
        train_imgx(volumes, mixture(Discs(shape=(16, 16, 16))), out, run, resume=True)
    # Windows and validation may change.
    wider = imgx_recipe(**short, window__size=[48, 48], validation_cases=1)
    train_imgx(wider, mixture(count=3), out, run, resume=True)
    assert ImgXSegmenter.load(out).use.window == (48, 48)


def test_the_twin_gets_equal_steps_or_equal_compute():
    def steps(**overrides):
        return twin_steps(imgx_recipe(train__steps=30, **overrides).imgx)

    assert steps(twin="none") == 0
    assert steps(twin="equal_steps") == 30
    assert steps(twin="equal_compute") == 40
    assert steps(twin="equal_compute", strategy="standard") == 30


def test_time_that_is_up_still_gives_a_model(tmp_path):
    train_imgx(imgx_recipe(), mixture(), tmp_path / "m", max_minutes=0.0)
    record = json.loads((tmp_path / "m" / "synthgen.json").read_text())
    assert record["training"]["steps"] == {"diffusion": 0, "twin": 0}
    assert "Not validated" in (tmp_path / "m" / "card.md").read_text()


def test_overlapping_regions_are_trained(tmp_path, untouched_rng):
    regions = Discs(tissues=("whole", "core"), overlapping=True)
    recipe = imgx_recipe(data__tissues=["whole", "core"], train__steps=2)
    train_imgx(recipe, mixture(regions), tmp_path / "m", validation=regions)
    model = ImgXSegmenter.load(tmp_path / "m")
    assert model.use.overlapping
    assert model.schema.names == ("background", "whole", "core")


@pytest.mark.parametrize(
    "overrides",
    [
        {"strategy": "self_condition"},
        {"network__time_conditioning": "none", "schedule__clip": True},
        {"schedule__num_train_timesteps": 1001, "schedule__sampler": "ddim"},
    ],
    ids=["self-conditioned", "as published", "1001 steps"],
)
def test_every_kind_of_model_segments_after_training(tmp_path, overrides):
    recipe = imgx_recipe(train__steps=1, twin="none", **overrides)
    train_imgx(recipe, mixture(count=2), tmp_path / "m")
    found = ImgXSegmenter.load(tmp_path / "m").predict(
        torch.full((1, 1, 32, 32), 0.5), [SampleKey(0, 0)]
    )
    assert found.isfinite().all()


def test_bad_requests_are_refused(tmp_path):
    out, recipe = tmp_path / "m", imgx_recipe()
    with pytest.raises(RequestError, match="has no section 'imgx'"):
        train_imgx(load_recipe("tiny"), mixture(), out)
    with pytest.raises(RequestError, match=r"csf, gm, wm.*but the data have vessel.*imgx\.data"):
        train_imgx(recipe, mixture(tissues=("background", "vessel")), out)
    with pytest.raises(GeometryError, match=r"for 2-D images.*discs is 3-D"):
        train_imgx(recipe, mixture(shape=(16, 16, 16)), out)
    seen = Discs(real=True, subjects=("a/sub-1",))
    with pytest.raises(LeakageError, match="a/sub-1"):
        train_imgx(recipe, mixture(seen), out, validation=seen)
    assert not out.exists()
