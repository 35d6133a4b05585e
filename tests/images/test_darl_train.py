"""Training DARL: it ends in a model folder, resumes exactly, and refuses what does not fit."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from interrupted import losses
from made_up_vessels import pictures, recipe, sources

from synthgen.core.errors import RequestError, SchemaError, StoreError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9
from synthgen.images.angiogram.darl import AngiogramPipeline
from synthgen.images.angiogram.sources import prepare
from synthgen.images.angiogram.train import build_parts, train_angiograms
from synthgen.recipe import load_recipe


def weights_of(folder):
    """Return the bytes of all weights."""
    names = ("generator", "noise_predictor")
    return [(folder / n / "diffusion_pytorch_model.safetensors").read_bytes() for n in names]


def test_training_ends_in_a_model_folder(tmp_path):
    document = recipe(tmp_path, train__sheet_every=3, use__backgrounds=4)
    out = train_angiograms(document, sources(), tmp_path / "models" / "angiograms")
    loaded = AngiogramPipeline.load(out)
    assert loaded.subjects == tuple(f"plain/{s}{i}" for s in "ab" for i in range(6))
    assert loaded.shape == (48, 48)
    record = loaded.record
    assert record.training["steps"] == 6
    assert 0 <= record.training["cycle_dice"] <= 1
    assert record.use.segment == "tiles"
    assert record.use.crop == 32
    assert "plain/a0" in record.card
    assert "{" not in record.card.replace("{'", "")
    assert len(loaded._backgrounds) == 4
    assert (tmp_path / "runs" / "angiograms" / "losses.jsonl").is_file()
    sheets = sorted(p.name for p in (tmp_path / "runs" / "angiograms" / "sheets").iterdir())
    assert sheets == ["step_0000003.png", "step_0000006.png"]
    assert not any("parametrizations" in key for key in loaded.generator.state_dict())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_has_the_same_losses_and_weights(tmp_path, precision):
    """The fakes that critics remember are part of a checkpoint: a pool of 3 is full by then."""
    document = recipe(tmp_path, discriminator__pool_size=3, train__precision=precision)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_angiograms(document, sources(), tmp_path / "m1", whole)
    shutil.copytree(whole, cut)
    for step in (4, 6):
        shutil.rmtree(cut / "checkpoints" / f"step_{step:07d}")
    train_angiograms(document, sources(), tmp_path / "m2", cut, resume=True)
    assert losses(whole) == losses(cut)
    assert weights_of(tmp_path / "m1") == weights_of(tmp_path / "m2")


def test_a_run_is_not_continued_by_another_recipe_or_other_pictures(tmp_path):
    run, out = tmp_path / "run", tmp_path / "m"
    short = {"train__steps": 2}
    train_angiograms(recipe(tmp_path, **short), sources(), out, run)
    with pytest.raises(RequestError, match="--resume"):
        train_angiograms(recipe(tmp_path, **short), sources(), out, run)
    other = recipe(tmp_path, **short, losses__cycle=1.0)
    with pytest.raises(RequestError, match="another recipe"):
        train_angiograms(other, sources(), out, run, resume=True)
    with pytest.raises(RequestError, match="other data"):
        train_angiograms(recipe(tmp_path, **short), sources(seed=9), out, run, resume=True)


def test_the_same_seed_gives_the_same_batches_and_first_weights(tmp_path):
    section = recipe(tmp_path).angiograms
    first, second = prepare(section, sources()), prepare(section, sources())
    for number in (3, 0):
        for name in ("angiograms", "backgrounds", "masks"):
            one, two = (getattr(d.pools.batch(number), name) for d in (first, second))
            assert torch.equal(one, two)
        for one, two in zip(first.pairs.batch(number), second.pairs.batch(number), strict=True):
            assert torch.equal(one, two)
    one, two = build_parts(section), build_parts(section)
    for name, network in one.painters.items():
        other = two.painters[name].state_dict()
        assert all(torch.equal(v, other[k]) for k, v in network.state_dict().items())
    changed = build_parts(recipe(tmp_path, train__seed=1).angiograms)
    assert not torch.equal(
        one.painters["generator"].stem.weight, changed.painters["generator"].stem.weight
    )


def test_pairs_show_dark_vessels_where_their_masks_are(tmp_path):
    pairs = prepare(recipe(tmp_path, train__batch_size=8).angiograms, sources()).pairs
    images, masks = pairs.batch(0)
    assert images.shape == masks.shape == (8, 1, 32, 32)
    assert set(masks.unique().tolist()) == {-1.0, 1.0}
    assert ((masks == 1).flatten(1).sum(dim=1) > 0).all()
    assert float(images[masks == 1].mean()) < float(images[masks == -1].mean()) - 0.1


def test_the_faithful_networks_have_the_papers_sizes():
    parts = build_parts(load_recipe("darl").angiograms)

    def size(network):
        return sum(p.numel() for p in network.parameters())

    assert size(parts.networks.noise_predictor) == 27_432_513
    assert size(parts.networks.generator) == 7_936_513
    assert [size(critic.network) for critic in parts.critics.values()] == [2_762_689] * 2
    assert parts.networks.painter is None
    abar = parts.networks.scheduler.alphas_cumprod
    expected = [0.999999, 0.905043, 4.386e-5]
    assert [float(abar[t]) for t in (0, 199, 1999)] == pytest.approx(expected, rel=1e-4)
    std = float(parts.networks.generator.stem.weight.detach().std())
    assert std == pytest.approx(0.02, rel=0.05)


def test_time_that_is_up_still_gives_a_model(tmp_path):
    train_angiograms(recipe(tmp_path), sources(), tmp_path / "m", max_minutes=0.0)
    assert AngiogramPipeline.load(tmp_path / "m").record.training["steps"] == 0


@pytest.mark.parametrize(
    "overrides",
    [
        {"noise_predictor": "null"},
        {"generator__shared": "false"},
        {"data__background": "self", "losses__adversarial_mask": 0.0},
        {"data__background": "inpainted"},
        {"data__decimate": "true", "data__crop": 24, "use__segment": "polyphase"},
        {"noise_predictor__kind": "library", "noise_predictor__base_channels": 8},
        {"data__side": 40, "use__segment": "whole", "use__render_t": 100},
    ],
    ids=["clean", "two generators", "self", "inpainted", "decimated", "library", "scaled"],
)
def test_every_kind_of_model_paints_and_segments_after_training(tmp_path, overrides):
    document = recipe(tmp_path, train__steps=1, **overrides)
    made_from = sources()
    train_angiograms(document, made_from, tmp_path / "m")
    loaded = AngiogramPipeline.load(tmp_path / "m")
    assert loaded.shape == {"true": (24, 24)}.get(
        overrides.get("data__decimate"), (40, 40) if "data__side" in overrides else (48, 48)
    )
    keys = [SampleKey(0, i) for i in range(2)]
    maps = made_from.masks(loaded.shape).draw(keys)
    painted = loaded.render(maps, keys)
    assert painted.shape == (2, 1, *loaded.shape)
    assert np.isfinite(painted).all()
    assert loaded.segment(painted).shape == painted.shape


def test_decimation_keeps_scale_of_circles_and_backgrounds(tmp_path):
    section = recipe(tmp_path, data__decimate="true", data__crop=24).angiograms
    data = prepare(section, sources())
    assert data.shape == (24, 24)
    assert {b.image.shape for b in data.backgrounds} == {(24, 24)}


def empty(images):
    return replace(
        images, files=(), subjects=(), images=(), fields=(), circles=np.zeros((0, 3), np.float32)
    )


def test_bad_requests_are_refused(tmp_path):
    document, data = recipe(tmp_path), sources()
    out = tmp_path / "m"
    with pytest.raises(RequestError, match="has no section 'angiograms'"):
        train_angiograms(document.model_copy(update={"angiograms": None}), data, out)
    with pytest.raises(SchemaError, match="vessel"):
        train_angiograms(document.model_copy(update={"label_schema": BRAIN9}), data, out)
    with pytest.raises(RequestError, match=r"asks for a pool of backgrounds.*inpainted"):
        train_angiograms(document, replace(data, backgrounds=None), out)
    with pytest.raises(RequestError, match="pool of angiograms is empty"):
        train_angiograms(document, replace(data, angiograms=empty(data.angiograms)), out)
    with pytest.raises(RequestError, match="pool of backgrounds is empty"):
        train_angiograms(document, replace(data, backgrounds=empty(data.backgrounds)), out)
    small = pictures(2, (24, 24), vessels=True)
    with pytest.raises(RequestError, match="too small for crops of 32"):
        train_angiograms(document, replace(data, angiograms=small), out)
    with pytest.raises(StoreError, match="has the pixels of the angiogram"):
        train_angiograms(document, replace(data, backgrounds=data.angiograms), out)
    masks_wanted = recipe(tmp_path, data__masks="pool", losses__pairs=0.0)
    with pytest.raises(RequestError, match=r"asks for a pool of masks.*preset"):
        train_angiograms(masks_wanted, data, out)
    assert not out.exists()


def test_masks_may_be_pictures(tmp_path):
    document = recipe(tmp_path, data__masks="pool", losses__pairs=0.0, train__steps=1)
    drawn = pictures(3, (48, 48), vessels=False)
    strokes = replace(drawn, images=tuple((i > 0.6).astype(np.float32) for i in drawn.images))
    train_angiograms(document, replace(sources(), masks=strokes), tmp_path / "m")
    assert AngiogramPipeline.load(tmp_path / "m").record.training["masks"] == "pool"
