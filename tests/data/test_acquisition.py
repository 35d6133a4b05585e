"""Images moved to another acquisition: tissues follow the physics, labels leave no edges."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from synthgen.core.acquisition import Acquisition, tissue_signals
from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.core.schema import BRAIN9
from synthgen.data.acquisition import AcquisitionAugment, move_contrast

NAMES = BRAIN9.names
T1 = Acquisition("inversion_gradient", 2300, 3, ti=900, flip_deg=9, field_t=3.0)
SPIN = Acquisition("spin", 600, 15)
T2 = Acquisition("spin", 4500, 100)
FLAIR = Acquisition("inversion", 9000, 100, ti=2500, field_t=3.0)
ALL = [T1, SPIN, T2, FLAIR]


def stripes(width=16):
    """Return a map in which channel c fills columns c * width on, and an image of it."""
    pv = torch.zeros(1, 9, 9 * width, 24)
    for c in range(9):
        pv[:, c, c * width : (c + 1) * width] = 1
    image = 0.5 * (1 - pv[:, :1]) * (0.8 + 0.2 * torch.rand(1, 1, 9 * width, 24, generator=seed(1)))
    return pv, image


def seed(value):
    return torch.Generator().manual_seed(value)


def ratio_of(name, source, target):
    """Return by how much the middle of a tissue's stripe has brightened."""
    pv, image = stripes()
    moved = move_contrast(image, pv, NAMES, source, target)
    start = NAMES.index(name) * 16 + 6
    ratios = moved[..., start : start + 4, 6:18] / image[..., start : start + 4, 6:18]
    assert torch.allclose(ratios, ratios.mean(), atol=1e-4)
    return float(ratios.mean())


@pytest.mark.parametrize("acquisition", ALL)
def test_the_own_acquisition_changes_nothing(acquisition):
    pv, image = stripes()
    moved = move_contrast(image, pv, NAMES, acquisition, replace(acquisition))
    assert torch.allclose(moved, image, atol=1e-6)


@pytest.mark.parametrize(("source", "target"), [(SPIN, T1), (T1, SPIN), (FLAIR, T1)])
def test_tissues_change_by_the_ratio_of_their_signals(source, target):
    before, after = (
        dict(zip(NAMES, tissue_signals(a, NAMES), strict=True)) for a in (source, target)
    )
    asked = (after["gm"] / after["wm"]) / (before["gm"] / before["wm"])
    got = ratio_of("gm", source, target) / ratio_of("wm", source, target)
    assert got == pytest.approx(asked, rel=1e-3)


def test_the_brightest_main_tissue_keeps_its_level():
    assert ratio_of("wm", SPIN, T1) == pytest.approx(1, abs=1e-4)
    assert ratio_of("csf", T2, replace(T2, te=140)) == pytest.approx(1, abs=1e-4)


def test_long_echoes_darken_tissue_against_fluid():
    levels = [ratio_of("wm", T2, replace(T2, te=te)) for te in (70, 90, 110, 130)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > 1 > levels[-1]


def test_nulled_fluid_does_not_explode():
    null = Acquisition("inversion", 9000, 100, field_t=3.0)
    assert ratio_of("csf", null, replace(null, ti=2300)) < 2
    assert ratio_of("csf", null, replace(null, te=130)) == pytest.approx(1, abs=1e-3)


def test_background_is_zero_and_all_lies_in_range():
    pv, image = stripes()
    for source in ALL:
        for target in ALL:
            moved = move_contrast(image + 0.1, pv, NAMES, source, target)
            assert (moved[pv[:, :1] > 0.5] == 0).all()
            assert moved.min() >= 0
            assert moved.max() <= 1
            assert torch.isfinite(moved).all()


def test_labels_that_are_off_by_a_pixel_leave_no_edge():
    pv = torch.zeros(1, 9, 64, 24)
    pv[:, 2, :32], pv[:, 3, 32:] = 1, 1
    flat = torch.full((1, 1, 64, 24), 0.5)  # the image shows no border at all
    moved = move_contrast(flat, pv, NAMES, SPIN, T1)[0, 0, :, 12]
    whole = float((moved[50] - moved[10]).abs())
    assert whole > 0.05
    assert float(moved.diff().abs().max()) < 0.45 * whole


def test_mixtures_lie_between_their_tissues():
    pv = torch.zeros(1, 9, 24, 24)
    pv[:, 2], pv[:, 3] = 0.5, 0.5
    mixed = float(move_contrast(torch.full((1, 1, 24, 24), 0.5), pv, NAMES, SPIN, T1)[..., 12, 12])
    gm, wm = (0.5 * ratio_of(name, SPIN, T1) for name in ("gm", "wm"))
    assert gm < mixed < wm


def test_a_batch_is_its_samples():
    pv, image = stripes()
    two = move_contrast(
        torch.cat([image, image.flip(-1)]), pv.expand(2, -1, -1, -1), NAMES, SPIN, T1
    )
    alone = move_contrast(image, pv, NAMES, SPIN, T1)
    assert torch.allclose(two, torch.cat([alone, alone.flip(-1)]), atol=1e-6)


AUGMENT = AcquisitionAugment(
    known={("a", "t1"): SPIN, ("a", "flair"): FLAIR},
    protocols={"t1": (SPIN, T1), "flair": (replace(FLAIR, ti=None), FLAIR)},
    probability=0.5,
    tr=1.5,
    te=1.5,
    ti=1.5,
    flip_deg=20.0,
    field_flip=0.5,
)


def draws(count, modality, dataset="a"):
    rngs = (SampleKey(0, i).numpy(Stream.AUGMENT) for i in range(count))
    return [AUGMENT.draw(dataset, modality, rng) for rng in rngs]


def test_draws_are_a_function_of_the_key():
    assert draws(20, "t1") == draws(20, "t1")
    targets = {target for pair in draws(60, "t1") if pair for _, target in [pair]}
    assert {t.sequence for t in targets} == {"spin", "inversion_gradient"}
    assert {t.field_t for t in targets} == {1.5, 3.0}


@pytest.mark.parametrize("modality", ["t1", "flair"])
def test_draws_stay_around_a_protocol(modality):
    drawn = draws(200, modality)
    moved = [pair for pair in drawn if pair]
    assert 0.4 < len(moved) / len(drawn) < 0.6  # 3 standard deviations of 200 draws: 0.1
    protocols = AUGMENT.protocols[modality]
    for source, target in moved:
        assert source == AUGMENT.known["a", modality]
        near = [p for p in protocols if p.sequence == target.sequence]
        assert any(1 / 1.5 <= target.tr / p.tr <= 1.5 for p in near)
        assert any(1 / 1.5 <= target.te / p.te <= 1.5 for p in near)


def test_what_is_not_known_stays():
    assert draws(20, "t1", dataset="b") == [None] * 20
    assert draws(20, "t2") == [None] * 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tr": 0.9}, "tr must be a factor of at least 1, got 0.9"),
        ({"probability": 1.2}, r"probability must lie in \[0, 1\], got 1.2"),
        ({"field_flip": -0.1}, r"field_flip must lie in \[0, 1\], got -0.1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(RequestError, match=message):
        AcquisitionAugment(**settings)
