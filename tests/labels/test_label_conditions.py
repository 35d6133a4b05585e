import re

import pytest
import torch

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey
from synthgen.labels import ConditionRange, LabelCondition
from synthgen.labels.condition import ConditionScale

SCALE = ConditionScale(("wmh", "tumour", "position"), (0.16, 0.0, 1.0))


def test_a_drawn_condition_lies_in_its_range_and_is_a_function_of_the_key(untouched_rng):
    wanted = ConditionRange({"wmh": (0.01, 0.05), "tumour": (0.0, 0.0)}, (0.3, 0.7))
    drawn = [wanted.draw(SampleKey(3, i)) for i in range(200)]
    assert drawn == [wanted.draw(SampleKey(3, i)) for i in range(200)]
    shares = torch.tensor([d.lesions["wmh"] for d in drawn])
    positions = torch.tensor([d.position for d in drawn])
    assert 0.01 <= shares.min() < 0.015
    assert 0.045 < shares.max() <= 0.05
    assert 0.3 <= positions.min() <= positions.max() <= 0.7
    assert all(d.lesions["tumour"] == 0 for d in drawn)
    assert len({d.position for d in drawn}) == 200


def test_the_order_in_which_lesions_are_named_changes_nothing():
    one = ConditionRange({"a": (0, 0.1), "b": (0, 0.2)}, (0, 1)).draw(SampleKey(0, 0))
    two = ConditionRange({"b": (0, 0.2), "a": (0, 0.1)}, (0, 1)).draw(SampleKey(0, 0))
    assert one == two


@pytest.mark.parametrize("ends", [(0.5, 0.2), (-0.1, 0.2), (0.2, 1.5)])
def test_an_impossible_range_is_refused(ends):
    with pytest.raises(
        RequestError, match=re.escape(f"wmh: expected 0 <= low <= high <= 1, got {ends[0]:g}")
    ):
        ConditionRange({"wmh": ends}, (0, 1))
    with pytest.raises(RequestError, match="slice position"):
        ConditionRange({}, ends)


def test_shares_are_scaled_by_the_root_of_the_largest():
    values = SCALE.encode(
        [
            LabelCondition({"wmh": 0.04}, 0.3),
            LabelCondition({}, 1.0),
            LabelCondition({"wmh": 0.16}, 0),
        ]
    )
    torch.testing.assert_close(values, torch.tensor([[0.5, 0, 0.3], [0, 0, 1.0], [1.0, 0, 0]]))
    measured = SCALE.scale(torch.tensor([[0.04, 0.0]]), torch.tensor([0.3]), torch.zeros(1))
    torch.testing.assert_close(measured, values[:1])


def test_maxima_are_measured():
    shares, zeros = torch.tensor([[0.1, 0.0], [0.3, 0.0], [0.2, 0.0]]), torch.zeros(3)
    scale = ConditionScale.measure(("wmh", "tumour", "position"), shares, zeros, zeros)
    assert scale.maxima == (pytest.approx(0.3), 0.0, 1.0)
    assert ConditionScale.measure(("wmh", "tumour"), shares, zeros, zeros).names == (
        "wmh",
        "tumour",
    )


@pytest.mark.parametrize(
    ("lesions", "message"),
    [
        ({"cyst": 0.1}, "no lesion 'cyst'; it knows wmh, tumour"),
        ({"tumour": 0.1}, "saw no 'tumour'.*it saw wmh"),
        ({"wmh": 1.5}, "'wmh': expected a share in .0, 1., got 1.5"),
        ({"wmh": float("nan")}, "'wmh': expected a share"),
    ],
)
def test_a_lesion_that_cannot_be_made_is_refused(lesions, message):
    with pytest.raises(RequestError, match=message):
        SCALE.encode([LabelCondition(lesions, 0.5)])


def test_asking_for_none_of_an_unseen_lesion_is_fine():
    assert SCALE.encode([LabelCondition({"tumour": 0.0}, 0.5)]).tolist() == [[0, 0, 0.5]]


POPULATION = torch.Generator().manual_seed(0)
PLACES = torch.rand(4000, generator=POPULATION)
SHARES = 0.1 + 0.2 * PLACES + 0.1 * torch.rand(4000, generator=POPULATION)
NAMES = ("wmh", "csf", "position")


def ranked():
    return ConditionScale.measure(NAMES, torch.rand(4000, 1), PLACES, SHARES)


def test_csf_ranks_of_the_population_are_uniform_at_every_position():
    scale = ranked()
    values = scale.scale(torch.zeros(4000, 1), PLACES, SHARES)
    assert scale.names == NAMES
    assert values[:, 1].min() >= 0
    assert values[:, 1].max() <= 1
    for low in (0.0, 0.3, 0.6, 0.9):
        here = values[(low <= PLACES) & (low + 0.1 > PLACES), 1]
        counts = torch.histc(here, 5, 0, 1) / len(here)
        assert (counts - 0.2).abs().max() < 0.08


def test_the_csf_rank_is_the_share_of_slices_with_less():
    shares = torch.tensor([0.2, 0.25, 0.3, 0.05, 0.9])
    ranks = ranked().ranks(torch.full((5,), 0.5), shares)
    torch.testing.assert_close(ranks, torch.tensor([0, 0.5, 1, 0, 1]), atol=0.07, rtol=0)


def test_a_requested_csf_rank_reaches_the_network_as_it_is():
    values = ranked().encode([LabelCondition({"wmh": 0.0}, 0.5, 0.25)])
    assert values.tolist() == [[0, 0.25, 0.5]]


@pytest.mark.parametrize(
    ("scale", "csf", "message"),
    [
        (SCALE, 0.5, "csf rank: the label model was trained without it"),
        (ranked(), None, "csf rank: the label model needs one"),
        (ranked(), 1.5, "csf rank: expected a value in .0, 1., got 1.5"),
    ],
)
def test_a_csf_rank_that_does_not_fit_the_model_is_refused(scale, csf, message):
    with pytest.raises(RequestError, match=message):
        scale.encode([LabelCondition({}, 0.5, csf)])


def test_csf_ranks_are_drawn_from_their_range_and_move_no_other_draw():
    without = ConditionRange({"wmh": (0.0, 0.1)}, (0.3, 0.7))
    wanted = ConditionRange({"wmh": (0.0, 0.1)}, (0.3, 0.7), (0.8, 1.0))
    drawn = [wanted.draw(SampleKey(0, i)) for i in range(50)]
    assert all(0.8 <= d.csf <= 1 for d in drawn)
    assert [(d.lesions, d.position) for d in drawn] == [
        (d.lesions, d.position) for d in (without.draw(SampleKey(0, i)) for i in range(50))
    ]
    with pytest.raises(RequestError, match="range of csf rank: expected 0 <= low"):
        ConditionRange({}, (0, 1), (0.9, 0.1))
