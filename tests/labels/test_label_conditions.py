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
    measured = SCALE.scale(torch.tensor([[0.04, 0.0]]), torch.tensor([0.3]))
    torch.testing.assert_close(measured, values[:1])


def test_maxima_are_measured():
    shares = torch.tensor([[0.1, 0.0], [0.3, 0.0], [0.2, 0.0]])
    scale = ConditionScale.measure(("wmh", "tumour", "position"), shares)
    assert scale.maxima == (pytest.approx(0.3), 0.0, 1.0)
    assert ConditionScale.measure(("wmh", "tumour"), shares).names == ("wmh", "tumour")


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
