"""Dice of steps: counted over all pictures of a group, never the mean over slices."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from made_up_labelled import Discs, mixture

from synthgen.core.errors import LeakageError, RequestError
from synthgen.data.labelled import LabelledCase
from synthgen.segment.validation import chosen_cases, dice_of_steps, require_unseen


@dataclass(frozen=True)
class Slices:
    """Two slices of one subject, one of another; the label stands in the image."""

    overlapping: bool = False
    tissues: tuple[str, ...] = ("background", "a", "b")

    @property
    def cases(self):
        return tuple(LabelledCase(f"{n}", g, g, (1.0, 1.0)) for n, g in enumerate("xxy"))

    def load(self, index):
        labels = np.zeros((4, 4), np.int64)
        labels[: (2, 1, 3)[index]] = 1
        soft = np.moveaxis(np.eye(3, dtype=np.float32)[labels], -1, 0)
        return soft[1:2], soft[1:] if self.overlapping else soft


def found(*rows):
    """Return a prediction that calls so many rows `a` in each case, at one step."""

    def predict(_image, index):
        labels = torch.zeros(1, 4, 4, dtype=torch.long)
        labels[:, : rows[index]] = 1
        return torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()

    return predict


def test_pictures_of_a_group_are_counted_together():
    (scores,) = dice_of_steps(found(2, 0, 4), Slices(), [0, 1, 2], (1.0, 1.0))
    x, y = 2 * 2 / (3 + 2), 2 * 3 / (3 + 4)
    assert scores["a"] == pytest.approx((x + y) / 2, abs=1e-4)
    assert scores["b"] is None
    assert scores["mean"] == scores["a"]


def test_what_is_found_where_nothing_is_counts_as_0():
    def predict(_image, _index):
        return torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)

    (scores,) = dice_of_steps(predict, Slices(), [2], (1.0, 1.0))
    assert scores == {"a": 0.0, "b": 0.0, "mean": 0.0}


def test_overlapping_regions_are_thresholded_each():
    data = replace(Slices(), overlapping=True, tissues=("a", "b"))

    def predict(image, _index):
        return torch.cat([image * 0.6, image * 0.6], dim=1)

    (scores,) = dice_of_steps(predict, data, [0], (1.0, 1.0))
    assert scores == {"a": 1.0, "b": 0.0, "mean": 0.5}


def test_every_step_has_scores():
    def predict(_image, index):
        return torch.cat([found(0, 0, 0)(None, index), found(2, 1, 3)(None, index)])

    first, last = dice_of_steps(predict, Slices(), [0, 1, 2], (1.0, 1.0))
    assert (first["a"], last["a"]) == (0.0, 1.0)


def test_images_come_to_the_models_spacing_and_masks_back():
    shapes = []

    def predict(image, _index):
        shapes.append(tuple(image.shape))
        return torch.cat([1 - image, image, 0 * image], dim=1)

    (scores,) = dice_of_steps(predict, Slices(), [0], (0.5, 2.0))
    assert shapes == [(1, 1, 8, 2)]
    assert scores["a"] == 1.0


def test_validation_on_training_subjects_or_other_tissues_is_refused():
    training = mixture(Discs(subjects=("a/sub-1",)))
    require_unseen(training, Discs(real=True, subjects=("a/sub-2",)))
    require_unseen(training, Discs(real=False, subjects=("a/sub-1",)))
    with pytest.raises(LeakageError, match="'a/sub-1' is in the training data"):
        require_unseen(training, Discs(real=True, subjects=("a/sub-1",)))
    with pytest.raises(RequestError, match=r"tissues background, csf, gm, wm.*background, wm"):
        require_unseen(training, Discs(tissues=("background", "wm")))
    with pytest.raises(RequestError, match="got background, csf, gm, wm, 1 and 3"):
        require_unseen(training, Discs(shape=(8, 8, 8)))


def test_few_cases_are_all_taken():
    assert chosen_cases(Slices(), 9) == [0, 1, 2]
