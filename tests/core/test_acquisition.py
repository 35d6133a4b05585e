"""Signal equations: closed forms, limits, and the order of tissues in known sequences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from synthgen.core.acquisition import (
    CSF_T1,
    TISSUES,
    Acquisition,
    TissueConstants,
    null_time,
    signal,
    tissue_signals,
)
from synthgen.core.errors import RequestError
from synthgen.core.schema import BRAIN9

TISSUE = TissueConstants(1000, 100, 50, 0.8, 0)
NAMES = ("csf", "gm", "wm", "wmh")
MPRAGE = Acquisition("inversion_gradient", 2300, 2.98, ti=900, flip_deg=9, field_t=3.0)


def signals(acquisition):
    return dict(zip(NAMES, tissue_signals(acquisition, NAMES), strict=True))


def test_spoiled_gradient_echo_at_the_ernst_angle():
    # sin a (1 - E) / (1 - cos a E) is sqrt((1 - E) / (1 + E)) where cos a = E.
    recovered = math.exp(-20 / 1000)
    angle = math.degrees(math.acos(recovered))
    expected = 0.8 * math.sqrt((1 - recovered) / (1 + recovered)) * math.exp(-5 / 50)
    value = signal(Acquisition("gradient", 20, 5, flip_deg=angle), TISSUE)
    assert value == pytest.approx(expected)


def test_spin_echo_formula():
    value = signal(Acquisition("spin", 1000, 100), TISSUE)
    assert value == pytest.approx(0.8 * (1 - math.exp(-1)) * math.exp(-1))


def test_inversion_recovery_formula():
    value = signal(Acquisition("inversion", 2000, 100, ti=500), TISSUE)
    recovered = 1 - 2 * math.exp(-0.5) + math.exp(-2)
    assert value == pytest.approx(0.8 * abs(recovered) * math.exp(-1))


def test_inversion_time_nulls_its_tissue():
    csf = TISSUES["csf"]
    flair = Acquisition("inversion", 9000, 120, ti=null_time(csf.t1, 9000))
    assert signal(flair, csf) == pytest.approx(0, abs=1e-9)
    assert null_time(1000, 1e6) == pytest.approx(1000 * math.log(2))


@pytest.mark.parametrize("field_t", [1.5, 3.0])
def test_an_inversion_without_time_nulls_fluid(field_t):
    flair = Acquisition("inversion", 9000, 120, field_t=field_t)
    assert flair.inversion_time == pytest.approx(null_time(CSF_T1, 9000))
    assert signals(flair)["csf"] == pytest.approx(0, abs=1e-9)


def test_small_flip_angles_leave_mprage_its_inversion_recovery():
    # Without excitations: m = 1 - 2 exp(-TI / T1) / (1 + exp(-TR / T1)).
    weak = replace(MPRAGE, flip_deg=0.01)
    for tissue in (TISSUE, TISSUES["wm"], TISSUES["csf"]):
        free = 1 - 2 * math.exp(-900 / tissue.t1) / (1 + math.exp(-2300 / tissue.t1))
        expected = tissue.density * abs(free) * math.sin(math.radians(0.01))
        decay = math.exp(-2.98 / tissue.t2_star)
        assert signal(weak, tissue) == pytest.approx(expected * decay, rel=1e-3)


def test_long_repetition_of_mprage_starts_from_full_magnetisation():
    # Fully recovered before the inversion: 1 - 2 exp(-(TI - half) / T1), then half the train.
    angle, spacing, half = math.radians(9), 2.3 * 2.98, 80 * 2.3 * 2.98
    rate = 1 / 1000 - math.log(math.cos(angle)) / spacing
    excited = math.exp(-spacing / 1000)
    level = (1 - excited) / (1 - math.cos(angle) * excited)
    start = 1 - 2 * math.exp(-(900 - half) / 1000)
    centre = level + (start - level) * math.exp(-half * rate)
    expected = 0.8 * abs(centre) * math.sin(angle) * math.exp(-2.98 / 50)
    assert signal(replace(MPRAGE, tr=1e5), TISSUE) == pytest.approx(expected)


def test_mprage_agrees_with_excitations_one_by_one():
    angle, spacing, count = math.radians(9), 2.3 * 2.98, 160
    m, rest = 1.0, math.exp(-spacing / 1000)
    for _ in range(30):
        m = 1 + (-m - 1) * math.exp(-(900 - spacing * count / 2) / 1000)
        for number in range(count):
            if number == count // 2:
                centre = m
            m = 1 + (m * math.cos(angle) - 1) * rest
        m = 1 + (m - 1) * math.exp(-(2300 - 900 - spacing * count / 2) / 1000)
    expected = 0.8 * abs(centre) * math.sin(angle) * math.exp(-2.98 / 50)
    # The closed form spreads each excitation over its interval.
    assert signal(MPRAGE, TISSUE) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("field_t", [1.5, 3.0])
def test_known_sequences_show_the_known_order(field_t):
    t1 = signals(replace(MPRAGE, field_t=field_t))
    assert t1["csf"] < t1["wmh"] < t1["gm"] < t1["wm"]
    assert 0.5 < t1["gm"] / t1["wm"] < 0.85
    t2 = signals(Acquisition("spin", 5000, 100, field_t=field_t))
    assert t2["csf"] > t2["wmh"] > t2["gm"] > t2["wm"]
    flair = signals(Acquisition("inversion", 9000, 110, ti=2500, field_t=field_t))
    assert flair["csf"] < 0.15 * flair["wm"]
    assert flair["wm"] < flair["gm"] < flair["wmh"]


def test_longer_echoes_darken_every_tissue_and_white_matter_most():
    short, long = (signals(Acquisition("spin", 4000, te)) for te in (60, 120))
    ratios = {name: long[name] / short[name] for name in NAMES}
    assert all(ratio < 1 for ratio in ratios.values())
    assert ratios["wm"] < ratios["gm"] < ratios["csf"]


@pytest.mark.parametrize("field_t", [1.5, 3.0])
def test_every_tissue_of_the_schema_has_constants(field_t):
    values = tissue_signals(Acquisition("spin", 4000, 90, field_t=field_t), BRAIN9.names)
    assert values[0] == 0
    assert all(value > 0 for value in values[1:])


def test_a_tissue_without_constants_is_named():
    with pytest.raises(RequestError, match="no relaxation times are known for bone; there are csf"):
        tissue_signals(MPRAGE, ("background", "bone"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"te": 2400}, "expected 0 < te < tr, got te 2400 and tr 2300"),
        ({"ti": 2400}, "expected 0 < ti < tr, got ti 2400"),
        ({"ti": None}, "sequence inversion_gradient needs its inversion time"),
        ({"flip_deg": None}, r"needs flip_deg in \(0, 90\), got None"),
        ({"flip_deg": 120}, r"needs flip_deg in \(0, 90\), got 120"),
        ({"field_t": 7}, "field_t must be 1.5 or 3, got 7"),
        ({"sequence": "gradient"}, "sequence gradient has no inversion time, got ti 900"),
        ({"sequence": "inversion"}, "sequence inversion has no flip_deg of its own, got 9"),
    ],
)
def test_what_no_scanner_can_do_is_refused(changes, message):
    with pytest.raises(RequestError, match=message):
        replace(MPRAGE, **changes)
