"""Training HiDiff: both networks, exact resume, the model folder, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from interrupted import losses
from made_up_labelled import Discs, hidiff_recipe, mixture

from synthgen.core.errors import (
    GeometryError,
    LeakageError,
    RequestError,
    SchemaError,
    StoreError,
)
from synthgen.core.manifest import sealed
from synthgen.core.rng import SampleKey
from synthgen.diffusion.resample import imgx_scheduler
from synthgen.models.imgx import ImgXUNet
from synthgen.segment.hidiff import HiDiffSegmenter
from synthgen.segment.imgx import ImgXNetworks, save_imgx
from synthgen.segment.train_hidiff import train_hidiff
from synthgen.segment.use import SegmenterUse


def weights_of(folder):
    names = ("segmentor", "refiner")
    return [(folder / n / "diffusion_pytorch_model.safetensors").read_bytes() for n in names]


def images(count=2, shape=(32, 32)):
    return torch.rand((count, 1, *shape), generator=torch.Generator().manual_seed(0))


def keys(count=2):
    return [SampleKey(0, i) for i in range(count)]


def test_training_ends_in_a_model_folder_that_segments(tmp_path):
    recipe = hidiff_recipe(tmp_path, train__sheet_every=3, pretrain__sheet_every=4)
    held_out = Discs(seed=1, count=3, real=True, subjects=("x/1",), name="held-out")
    data = mixture(subjects=("x/0",))
    out = train_hidiff(recipe, data, tmp_path / "models" / "hidiff", validation=held_out)
    model = HiDiffSegmenter.load(out)
    assert model.schema.names == ("background", "csf", "gm", "wm")
    assert model.subjects == ("x/0",)
    found = model.steps(images(), keys())
    assert found.shape == (3, 2, 4, 32, 32)
    assert torch.allclose(found.sum(2), torch.ones(()), atol=1e-5)
    assert torch.equal(found[-1], model.predict(images(), keys()))
    assert model.prior(images()).shape == (2, 4, 32, 32)
    record = json.loads((out / "synthgen.json").read_text())
    scores = record["training"]["validation"]
    assert len(scores["dice"]) == 3
    assert set(scores["segmentor_dice"]) == {"csf", "gm", "wm", "mean"}
    assert record["training"]["steps"] == {"segmentor": 4, "hidiff": 6}
    card = (out / "card.md").read_text()
    assert "segmentor alone" in card
    assert "x/0" in card
    run = tmp_path / "runs" / "hidiff"
    sheets = sorted(p.name for p in (run / "hidiff" / "sheets").iterdir())
    assert sheets == ["step_0000003.png", "step_0000006.png"]
    assert (run / "segmentor" / "sheets" / "step_0000004.png").is_file()


def test_a_saved_model_finds_what_the_trained_one_did(tmp_path):
    out = train_hidiff(hidiff_recipe(tmp_path), mixture(), tmp_path / "m")
    first, second = HiDiffSegmenter.load(out), HiDiffSegmenter.load(out)
    assert torch.equal(first.steps(images(), keys()), second.steps(images(), keys()))
    assert first.identity == second.identity
    half = HiDiffSegmenter.load(out, dtype="bfloat16").predict(images(), keys())
    assert half.dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_has_the_same_losses_and_weights(tmp_path, precision):
    recipe = hidiff_recipe(
        tmp_path, train__precision=precision, pretrain__precision=precision, train__ema_decay=0.5
    )
    whole = tmp_path / "whole"
    train_hidiff(recipe, mixture(), tmp_path / "m1", whole)
    cuts = {"segmentor": (4, True), "hidiff": (4, False)}
    for stage, (step, before) in cuts.items():
        cut = tmp_path / f"cut-{stage}"
        shutil.copytree(whole, cut)
        for later in range(step, 7, 2):
            shutil.rmtree(cut / stage / "checkpoints" / f"step_{later:07d}", ignore_errors=True)
        if before:
            shutil.rmtree(cut / "hidiff")
        train_hidiff(recipe, mixture(), tmp_path / f"m-{stage}", cut, resume=True)
        for name in ("segmentor", "hidiff"):
            assert losses(whole / name) == losses(cut / name)
        assert weights_of(tmp_path / "m1") == weights_of(tmp_path / f"m-{stage}")


def test_a_run_killed_while_the_refiner_is_alone_goes_on(tmp_path):
    """The segmentor's optimiser has no state yet then."""
    recipe = hidiff_recipe(tmp_path, collaboration__warmup=4)
    train_hidiff(recipe, mixture(), tmp_path / "m1", tmp_path / "run")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "run" / "hidiff" / "checkpoints" / f"step_{step:07d}")
    train_hidiff(recipe, mixture(), tmp_path / "m2", tmp_path / "run", resume=True)
    assert weights_of(tmp_path / "m1") == weights_of(tmp_path / "m2")


def test_a_run_is_not_continued_by_another_recipe_rank_or_data(tmp_path):
    run, out = tmp_path / "run", tmp_path / "m"
    train_hidiff(hidiff_recipe(tmp_path, train__steps=2), mixture(), out, run)
    with pytest.raises(RequestError, match="--resume"):
        train_hidiff(hidiff_recipe(tmp_path, train__steps=2), mixture(), out, run)
    other = hidiff_recipe(tmp_path, train__steps=2, refiner_losses__focal=0.5)
    with pytest.raises(RequestError, match="another recipe"):
        train_hidiff(other, mixture(), out, run, resume=True)
    same = hidiff_recipe(tmp_path, train__steps=2)
    with pytest.raises(RequestError, match="other data"):
        train_hidiff(same, mixture(seed=9), out, run, resume=True)
    with pytest.raises(RequestError, match="another recipe"):
        train_hidiff(volumes_recipe(tmp_path), volumes(), out, run, resume=True)


def volumes_recipe(folder, **overrides):
    cube = {"data__patch": [16, 16, 8], "data__augmentation__mirror": [0.5, 0.0, 0.0]}
    deep = {f"{n}__strides": [[2, 2, 1]] for n in ("segmentor", "refiner")}
    return hidiff_recipe(folder, train__steps=2, **cube, **deep, **overrides)


def volumes():
    return mixture(shape=(20, 16, 10))


@pytest.mark.parametrize(
    ("settings", "data", "shape"),
    [
        ({"data__tissues": ["vessel"]}, {"tissues": ("background", "vessel")}, (40, 33)),
        (
            {"data__tissues": ["whole", "core"]},
            {"tissues": ("whole", "core"), "overlapping": True},
            (32, 32),
        ),
        ({"schedule__kernel": "categorical", "schedule__posterior": "mixture"}, {}, (20, 48)),
        (
            {
                "segmentor__kind": "dynunet",
                "segmentor__channels": [4, 4, 8],
                "segmentor__strides": [[2, 2], [2, 2]],
                "schedule__sampler": "ddim",
            },
            {},
            (32, 32),
        ),
        ({"refiner__feature_levels": [], "train__ema_decay": 0.9}, {}, (32, 32)),
    ],
    ids=["one vessel", "regions", "categorical", "dynunet", "no features"],
)
def test_every_kind_of_model_segments_after_training(tmp_path, settings, data, shape):
    recipe = hidiff_recipe(tmp_path, train__steps=2, pretrain__steps=2, **settings)
    train_hidiff(recipe, mixture(**data), tmp_path / "m")
    model = HiDiffSegmenter.load(tmp_path / "m")
    found = model.predict(images(1, shape), keys(1))
    assert found.shape == (1, len(mixture(**data).tissues), *shape)
    assert bool(torch.isfinite(found).all())
    if not data.get("overlapping"):
        assert torch.allclose(found.sum(1), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_binary_refiner_runs_without_simulation(tmp_path, dtype):
    settings = {"refiner__binary": True, "train__steps": 2, "pretrain__steps": 2}
    train_hidiff(hidiff_recipe(tmp_path, **settings), mixture(), tmp_path / "m")
    model = HiDiffSegmenter.load(tmp_path / "m", dtype=dtype)
    assert model.identity["binary"] in ("popcount", "int8")
    assert model.identity["dtype"] == dtype
    found = model.predict(images(), keys())
    assert torch.allclose(found.sum(1), torch.ones(()), atol=1e-5)
    assert torch.equal(found[1:], model.predict(images()[1:], keys()[1:]))


def test_volumes_are_refined_in_windows(tmp_path):
    train_hidiff(volumes_recipe(tmp_path, pretrain__steps=2), volumes(), tmp_path / "m")
    model = HiDiffSegmenter.load(tmp_path / "m")
    found = model.steps(images(1, (20, 12, 9)), keys(1))
    assert found.shape == (3, 1, 4, 20, 12, 9)
    again = model.steps(torch.cat([images(1, (20, 12, 9))] * 2), [SampleKey(0, 5), *keys(1)])
    assert torch.equal(again[:, 1:], found)


def test_the_segmentor_of_another_model_can_be_refined(tmp_path):
    recipe = hidiff_recipe(tmp_path)
    train_hidiff(recipe, mixture(subjects=("x/0",)), tmp_path / "first")
    data = mixture(subjects=("x/1",))
    train_hidiff(recipe, data, tmp_path / "second", segmentor=tmp_path / "first")
    assert HiDiffSegmenter.load(tmp_path / "second").subjects == ("x/0", "x/1")
    assert not (tmp_path / "runs" / "second" / "segmentor").exists()
    seen = Discs(real=True, subjects=("x/0",))
    with pytest.raises(LeakageError, match="segmentor was trained on 'x/0'"):
        train_hidiff(recipe, data, tmp_path / "m", segmentor=tmp_path / "first", validation=seen)


def test_the_twin_of_imgx_can_be_refined(tmp_path):
    levels = {"channels": (4, 8), "strides": ((2, 2),)}
    attention = {"num_blocks": 1, "num_heads": 2, "head_dim": 4}
    common = {"out_channels": 4, "time_conditioning": "none", **levels, **attention}
    twin = ImgXUNet(mask_channels=0, **common)
    use = SegmenterUse(Discs().tissues, False, ("image",), 2, (1.0, 1.0), (32, 32), 0.5)
    scheduler = imgx_scheduler(
        "ddpm", 5, base_steps=1001, beta_start=1e-4, beta_end=0.02, variance="fixed_small"
    )
    networks = ImgXNetworks(ImgXUNet(mask_channels=4, **common), scheduler, twin, False)
    save_imgx(tmp_path / "imgx", networks, use, subjects=("x/3",), training={}, card="")
    settings = {"kind": "imgx", **levels, **attention}
    recipe = hidiff_recipe(tmp_path, segmentor=settings, train__steps=1, collaboration__warmup=2)
    train_hidiff(recipe, mixture(), tmp_path / "m", segmentor=tmp_path / "imgx")
    model = HiDiffSegmenter.load(tmp_path / "m")
    assert model.subjects == ("x/3",)
    with torch.no_grad():
        expected = twin.eval()(images()).softmax(1)
    assert torch.allclose(model.prior(images()), expected, atol=1e-5)
    lone = replace(networks, twin=None)
    save_imgx(tmp_path / "lone", lone, use, subjects=(), training={}, card="")
    with pytest.raises(RequestError, match="got one of kind 'imgx' without a twin"):
        train_hidiff(recipe, mixture(), tmp_path / "n", segmentor=tmp_path / "lone")


def test_segmentors_that_do_not_fit_are_refused(tmp_path):
    recipe = hidiff_recipe(tmp_path, train__steps=1, pretrain__steps=1)
    first = train_hidiff(recipe, mixture(), tmp_path / "first")
    vessels = hidiff_recipe(tmp_path, data__tissues=["vessel"])
    data = mixture(tissues=("background", "vessel"))
    with pytest.raises(SchemaError, match=r"first: expected label schema 'vessel'"):
        train_hidiff(vessels, data, tmp_path / "m", segmentor=first)
    with pytest.raises(GeometryError, match="for 2-D images, the data are 3-D"):
        train_hidiff(volumes_recipe(tmp_path), volumes(), tmp_path / "m", segmentor=first)
    wider = hidiff_recipe(tmp_path, segmentor__channels=[8, 16])
    with pytest.raises(RequestError, match=r"do not fit the recipe's segmentor"):
        train_hidiff(wider, mixture(), tmp_path / "m", segmentor=first)
    assert not (tmp_path / "m").exists()


def test_networks_of_different_models_are_refused(tmp_path):
    short = {"train__steps": 1, "pretrain__steps": 1}
    one = train_hidiff(hidiff_recipe(tmp_path, **short), mixture(), tmp_path / "one")
    vessels = hidiff_recipe(tmp_path, data__tissues=["vessel"], **short)
    data = mixture(tissues=("background", "vessel"))
    two = train_hidiff(vessels, data, tmp_path / "two")
    shutil.rmtree(one / "segmentor")
    shutil.copytree(two / "segmentor", one / "segmentor")
    with pytest.raises(StoreError, match="damaged"):
        HiDiffSegmenter.load(one)
    record = json.loads((one / "synthgen.json").read_text())
    theirs = json.loads((two / "synthgen.json").read_text())["files"]
    record["files"] |= {n: d for n, d in theirs.items() if n.startswith("segmentor/")}
    (one / "synthgen.json").write_text(json.dumps(sealed(record)))
    with pytest.raises(SchemaError, match=r"one: the refiner expects .* out_channels 4"):
        HiDiffSegmenter.load(one)


def test_data_that_do_not_fit_the_recipe_are_refused(tmp_path):
    recipe = hidiff_recipe(tmp_path)
    out = tmp_path / "m"
    with pytest.raises(RequestError, match="has no section 'hidiff'"):
        train_hidiff(recipe.model_copy(update={"hidiff": None}), mixture(), out)
    with pytest.raises(RequestError, match=r"csf, gm, wm, but the data have vessel"):
        train_hidiff(recipe, mixture(tissues=("background", "vessel")), out)
    with pytest.raises(GeometryError, match="is for 2-D images"):
        train_hidiff(recipe, volumes(), out)
    regions = hidiff_recipe(
        tmp_path, data__tissues=["whole", "core"], schedule__kernel="categorical"
    )
    with pytest.raises(RequestError, match="categorical kernel needs tissues that exclude"):
        train_hidiff(regions, mixture(tissues=("whole", "core"), overlapping=True), out)
    seen = Discs(real=True, subjects=("x/0",))
    with pytest.raises(LeakageError, match="x/0"):
        train_hidiff(recipe, mixture(subjects=("x/0",)), out, validation=seen)
    assert not out.exists()


def test_images_that_do_not_fit_the_model_are_refused(tmp_path):
    recipe = hidiff_recipe(tmp_path, train__steps=1, pretrain__steps=1)
    model = HiDiffSegmenter.load(train_hidiff(recipe, mixture(), tmp_path / "m"))
    with pytest.raises(RequestError, match="2-D images"):
        model.predict(images(1, (8, 8, 8)), keys(1))
    with pytest.raises(RequestError, match="one key for each of 2 images"):
        model.predict(images(2), keys(1))
    with pytest.raises(RequestError, match=r"in \[0, 1\]"):
        model.prior(2 * images(1) + 1)


def test_time_that_is_up_still_gives_a_model(tmp_path):
    train_hidiff(hidiff_recipe(tmp_path), mixture(), tmp_path / "m", max_minutes=0.0)
    record = json.loads((tmp_path / "m" / "synthgen.json").read_text())
    assert record["training"]["steps"] == {"segmentor": 0, "hidiff": 0}
