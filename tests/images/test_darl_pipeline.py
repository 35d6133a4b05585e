"""A trained DARL model as a renderer: saved, loaded, the same pictures from the same keys."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_vessels import Strokes, recipe, sources
from scipy import ndimage

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import VESSEL
from synthgen.images.angiogram.background_file import read_backgrounds
from synthgen.images.angiogram.backgrounds import Background
from synthgen.images.angiogram.darl import AngiogramPipeline, DarlRecord
from synthgen.images.angiogram.sources import prepare
from synthgen.images.angiogram.train import build_parts
from synthgen.models.darl_networks import DarlUse
from synthgen.models.spectral import fold_spectral_norm

KEYS = [SampleKey(5, i) for i in range(3)]
USE = DarlUse(render_t=50, segment="tiles", crop=32)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return networks of a tiny recipe and its data, and where they were saved."""
    folder = tmp_path_factory.mktemp("darl")
    section = recipe(folder).angiograms
    data = prepare(section, sources())
    networks = build_parts(section).networks
    pipeline = AngiogramPipeline(
        fold_spectral_norm(networks.generator),
        networks.scheduler,
        networks.noise_predictor.eval(),
    )
    record = DarlRecord(USE, data.shape, data.subjects, {"steps": 0}, "# a card\n")
    pipeline.save(folder / "model", record, data.backgrounds)
    return pipeline, data, folder / "model"


@pytest.fixture
def model(parts):
    return AngiogramPipeline.load(parts[2])


def test_a_model_survives_saving_and_loading(parts, model):
    pipeline, data, folder = parts
    assert model.record.use == USE
    assert model.record.card == "# a card\n"
    assert model.schema == VESSEL
    assert model.subjects == data.subjects
    assert model.shape == (48, 48)
    x, t = torch.rand(1, 1, 32, 32), torch.tensor([7])
    for own, read in (
        (pipeline.generator(x, x, x.round()), model.generator(x, x, x.round())),
        (pipeline.noise_predictor(x, t).sample, model.noise_predictor(x, t).sample),
    ):
        # Loaded weights lie in channels_last, which sums in another order.
        assert torch.allclose(own, read, atol=1e-3)
    maps = Strokes((48, 48)).draw(KEYS)
    again = AngiogramPipeline.load(folder)
    assert np.array_equal(model.render(maps, KEYS), again.render(maps, KEYS))
    assert model.identity == again.identity
    assert model.identity["dtype"] == "float32"
    assert {b.name: b.image.tolist() for b in read_backgrounds(folder)} == {
        b.name: (np.rint(b.image * 255).astype(np.float32) / np.float32(255)).tolist()
        for b in data.backgrounds
    }


def test_diffusers_reads_the_components(parts):
    loaded = AngiogramPipeline.from_pretrained(parts[2], local_files_only=True)
    assert loaded.painter is None
    with pytest.raises(RequestError, match=r"AngiogramPipeline\.load"):
        _ = loaded.record


def test_pictures_are_in_range_and_a_key_decides_them(model):
    maps = Strokes((48, 48)).draw(KEYS)
    painted = model.render(maps, KEYS)
    assert painted.shape == (3, 1, 48, 48)
    assert painted.dtype == np.float32
    assert painted.min() >= 0
    assert painted.max() <= 1
    alone = model.render(Strokes((48, 48)).draw(KEYS[1:2]), KEYS[1:2])
    assert np.allclose(alone[0], painted[1], atol=1e-4)
    other = model.render(maps, [replace(key, attempt=1) for key in KEYS])
    assert not np.allclose(other, painted, atol=1e-3)


def test_the_mask_decides_what_is_painted(model):
    maps = Strokes((48, 48)).draw(KEYS)
    painted = model.render(maps, KEYS)
    none = np.zeros_like(maps.coverage)
    assert not np.allclose(model.render(replace(maps, coverage=none), KEYS), painted, atol=1e-4)


def test_rendering_leaves_the_global_generators_alone(model, untouched_rng):
    model.render(Strokes((48, 48)).draw(KEYS), KEYS)


def test_outside_a_round_field_pictures_are_black(model):
    maps = Strokes((40, 40)).draw(KEYS)
    field = np.tile(np.asarray([19.5, 19.5, 18.0], np.float32), (3, 1))
    painted = model.render(replace(maps, field=field), KEYS)
    x, y = np.ogrid[:40, :40]
    outside = np.hypot(x - 19.5, y - 19.5) > 19
    assert not painted[:, 0, outside].any()
    assert painted[:, 0, ~outside].any()


def test_trees_of_another_size_than_the_backgrounds_are_refused(model):
    with pytest.raises(RequestError, match="48 x 48 pixels but the trees are drawn on 40 x 40"):
        model.render(Strokes((40, 40)).draw(KEYS), KEYS)
    with pytest.raises(RequestError, match="2 keys but 3 vessel trees"):
        model.render(Strokes((48, 48)).draw(KEYS), KEYS[:2])


def test_segmentation_gives_probabilities(model):
    images = np.random.default_rng(0).random((2, 1, 48, 48), dtype=np.float32)
    found = model.segment(images)
    assert found.shape == images.shape
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("name", ["backgrounds.safetensors", "generator/config.json"])
def test_a_damaged_file_is_named(parts, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(parts[2], folder)
    with (folder / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(StoreError, match=name):
        AngiogramPipeline.load(folder)


def test_a_model_of_another_kind_is_refused(parts, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(parts[2], folder)
    record = json.loads((folder / "synthgen.json").read_text())
    (folder / "synthgen.json").write_text(json.dumps(record | {"kind": "images"}))
    with pytest.raises(StoreError, match="of kind 'angiograms'"):
        AngiogramPipeline.load(folder)
    with pytest.raises(StoreError, match="synthgen train angiograms"):
        AngiogramPipeline.load(tmp_path / "nowhere")


def test_backgrounds_keep_circles_and_subjects(parts, tmp_path):
    pipeline = parts[0]
    image = np.full((20, 30), 0.2, np.float32)
    one = Background(image, "x", (9.5, 14.0, 9.0), (4.0, 9.0, 2.0), "chase/01")
    record = DarlRecord(USE, (20, 20))
    pipeline.save(tmp_path / "m", record, [one, replace(one, name="y")])
    (read, second) = read_backgrounds(tmp_path / "m")
    assert (read.field, read.disc, read.subject) == (one.field, one.disc, one.subject)
    assert second.name == "y"
    assert np.allclose(read.image, 51 / 255)
    with pytest.raises(RequestError, match="without backgrounds"):
        pipeline.save(tmp_path / "n", record, [])


def test_the_background_is_kept_bit_for_bit_away_from_vessels(parts, tmp_path):
    pipeline, data, folder = parts
    record = DarlRecord(replace(USE, keep_background=True), data.shape, training={"masks": "pool"})
    pipeline.save(tmp_path / "kept", record, data.backgrounds)
    keeping = AngiogramPipeline.load(tmp_path / "kept")
    maps = Strokes((48, 48)).draw(KEYS)
    bare = replace(maps, coverage=0 * maps.coverage, path_length=0 * maps.path_length)
    kept, grounds = keeping.render(maps, KEYS)[:, 0], keeping.render(bare, KEYS)[:, 0]
    far = np.stack([ndimage.distance_transform_edt(~m) > 5 for m in maps.mask])
    assert np.array_equal(kept[far], grounds[far])
    assert np.abs(kept - grounds)[maps.mask].mean() > 0.01
    assert not np.array_equal(
        keeping.render(maps, KEYS), AngiogramPipeline.load(folder).render(maps, KEYS)
    )
