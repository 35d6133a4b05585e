"""The one-step segmenter: sizes, views, scales, and the same answer as the pipeline's."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_vessels import recipe, sources

from synthgen.core.errors import RequestError
from synthgen.core.schema import VESSEL
from synthgen.images.angiogram.darl import AngiogramPipeline, DarlRecord
from synthgen.images.angiogram.sources import prepare
from synthgen.images.angiogram.train import build_parts
from synthgen.models.darl_inference import PathA
from synthgen.models.darl_networks import DarlUse
from synthgen.models.spectral import fold_spectral_norm
from synthgen.segment.onestep import OneStepSegmenter

USE = DarlUse(render_t=1, segment="whole", crop=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a saved tiny model, untrained."""
    place = tmp_path_factory.mktemp("darl")
    section = recipe(place).angiograms
    data = prepare(section, sources())
    networks = build_parts(section).networks
    pipeline = AngiogramPipeline(
        fold_spectral_norm(networks.generator), networks.scheduler, networks.noise_predictor.eval()
    )
    record = DarlRecord(USE, data.shape, data.subjects)
    pipeline.save(place / "model", record, data.backgrounds)
    return place / "model"


def images(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


def changed(segmenter, **use):
    """Return a segmenter of the same networks, used otherwise."""
    networks = segmenter._path_a._networks
    return OneStepSegmenter(networks, replace(USE, **use), "d", ())


@pytest.mark.parametrize("view", ["whole", "tiles", "polyphase"])
@pytest.mark.parametrize("shape", [(32, 32), (33, 50), (48, 71), (20, 24)])
def test_any_size_gives_probabilities_of_that_size(folder, view, shape):
    segmenter = OneStepSegmenter.load(folder, view=view)
    found = segmenter.predict(images(2, 1, *shape))
    assert found.shape == (2, 2, *shape)
    assert found.dtype == torch.float32
    assert bool(((found >= 0) & (found <= 1)).all())
    assert torch.allclose(found.sum(dim=1), torch.ones(2, *shape))
    assert segmenter.identity["view"] == view
    assert segmenter.schema == VESSEL
    assert "plain/a0" in segmenter.subjects


def test_both_faces_of_a_model_find_the_same(folder):
    picture = images(1, 1, 48, 40)
    pipeline, segmenter = AngiogramPipeline.load(folder), OneStepSegmenter.load(folder)
    assert np.array_equal(pipeline.segment(picture), segmenter.segment(picture))
    assert segmenter.identity["model"] == pipeline.identity["model"]


def test_whole_is_one_pass_without_noise(folder):
    segmenter = OneStepSegmenter.load(folder)
    networks, picture = segmenter._path_a._networks, images(1, 1, 32, 32)
    with torch.no_grad():
        x = picture * 2 - 1
        eps = networks.noise_predictor(x, torch.zeros(1, dtype=torch.long)).sample
        expected = (networks.generator(x, eps) + 1) / 2
    assert np.allclose(segmenter.segment(picture), expected, atol=1e-6)


def test_polyphase_is_four_images_of_every_other_pixel(folder):
    segmenter = OneStepSegmenter.load(folder, view="polyphase")
    whole = OneStepSegmenter.load(folder)
    picture = images(1, 1, 64, 64)
    found = segmenter.segment(picture)
    for x in range(2):
        for y in range(2):
            phase = picture[..., x::2, y::2]
            assert np.allclose(found[..., x::2, y::2], whole.segment(phase), atol=1e-5)


def test_tiles_of_a_tile_are_the_tile_and_larger_images_have_no_seams(folder):
    tiled, whole = OneStepSegmenter.load(folder, view="tiles"), OneStepSegmenter.load(folder)
    picture = images(1, 1, 32, 32)
    assert np.allclose(tiled.segment(picture), whole.segment(picture), atol=1e-6)

    class Local:
        """A network of one pixel: tiles must put it together exactly."""

        generator = torch.nn.Conv2d(1, 1, 1)
        noise_predictor = None

        def segment(self, x, t, noise=None):
            return x / 2

    path = PathA(Local(), "tiles", 32)
    picture = images(2, 1, 75, 130)
    assert torch.allclose(path(picture), (picture * 2 - 1) / 4 + 0.5, atol=1e-6)


def test_each_image_counts_alone(folder):
    segmenter = OneStepSegmenter.load(folder)
    batch = images(3, 1, 32, 32)
    assert np.array_equal(segmenter.segment(batch)[1:2], segmenter.segment(batch[1:2]))


def test_padding_is_said_once(folder, caplog):
    segmenter = OneStepSegmenter.load(folder)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            segmenter.predict(images(2, 1, 30, 31))
    told = [r.getMessage() for r in caplog.records if "padded" in r.getMessage()]
    assert told == [
        "images of 30 x 31 are padded to 32 x 32 for the networks, and the masks cut back"
    ]


def test_images_are_brought_to_the_scale_of_the_training(folder, monkeypatch):
    segmenter = changed(OneStepSegmenter.load(folder), side=32)
    seen = []
    path = segmenter._path_a
    monkeypatch.setattr(segmenter, "_path_a", lambda x: seen.append(tuple(x.shape[-2:])) or path(x))
    assert segmenter.segment(images(1, 1, 64, 48)).shape == (1, 1, 64, 48)
    assert segmenter.segment(images(1, 1, 16, 8)).shape == (1, 1, 16, 8)
    assert seen == [(32, 24), (32, 16)]


def test_a_round_field_gives_the_scale(folder, monkeypatch, caplog):
    segmenter = changed(OneStepSegmenter.load(folder), field_diameter=40.0)
    seen = []
    path = segmenter._path_a
    monkeypatch.setattr(segmenter, "_path_a", lambda x: seen.append(tuple(x.shape[-2:])) or path(x))
    x, y = np.ogrid[:100, :120]
    photograph = (np.hypot(x - 50, y - 60) <= 40) * np.float32(0.4)
    segmenter.segment(photograph[None, None])
    with caplog.at_level(logging.INFO):
        segmenter.segment(images(1, 1, 32, 32) / 2 + 0.5)
    assert seen[0] == pytest.approx((50, 60), abs=1)
    assert seen[1] == (32, 32)
    assert "no round field" in caplog.text


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (torch.zeros(1, 3, 32, 32), r"single-channel.*\(1, 3, 32, 32\).*green"),
        (torch.zeros(32, 32), r"single-channel.*\(32, 32\)"),
        (torch.full((1, 1, 32, 32), 255.0), r"in \[0, 1\], got 255 .. 255"),
        (torch.full((1, 1, 32, 32), torch.nan), r"in \[0, 1\], got nan"),
        (torch.zeros(1, 1, 2, 32), "2 x 32 are too small"),
    ],
)
def test_other_images_are_refused(folder, picture, message):
    with pytest.raises(RequestError, match=message):
        OneStepSegmenter.load(folder).segment(picture)


def test_tiles_that_the_networks_cannot_take_are_refused(folder):
    with pytest.raises(RequestError, match="tiles: expected a side divisible by 4, got 30"):
        changed(OneStepSegmenter.load(folder), segment="tiles", crop=30)


def test_bfloat16_finds_nearly_the_same(folder):
    picture = images(1, 1, 32, 32)
    full, half = (OneStepSegmenter.load(folder, dtype=d) for d in ("float32", "bfloat16"))
    assert half.identity["dtype"] == "bfloat16"
    apart = np.abs(full.segment(picture) - half.segment(picture))
    assert 0 < apart.mean() < 0.02


def test_nothing_is_found_outside_the_field_of_view_of_even_pictures(folder):
    networks = OneStepSegmenter.load(folder)._path_a._networks
    picture = images(1, 1, 32, 32) * 0.3 + 0.4
    picture[..., :10, :] = 0
    found = PathA(networks, "tiles", 32, contrast="even")(picture)
    assert (found[..., :10, :] == 0).all()
    assert found[..., 10:, :].any()
    brighter = PathA(networks, "tiles", 32, contrast="even")((picture + 0.1) * (picture > 0))
    assert torch.allclose(found, brighter, atol=1e-4)
