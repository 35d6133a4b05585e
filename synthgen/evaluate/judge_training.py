"""Training of the judges on real slices, and their store: a second evaluation costs nothing.

Losses: binary cross-entropy on one-hot targets for the classifier (Fernandez et al. 2022,
arXiv:2209.08256); soft cross-entropy plus soft Dice against partial volumes for the segmenter,
the Dice of Wang et al. 2023 (arXiv:2303.16296), which a soft label fits best, not its hard one.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.data.augment import augment_image, augment_pair
from synthgen.evaluate.judge_networks import (
    POOLED,
    JudgeSettings,
    autocast,
    build_networks,
    pooled_input,
)
from synthgen.evaluate.judges import RECORD, Judges, judge_identity, set_fingerprint
from synthgen.evaluate.sets import UNKNOWN
from synthgen.losses.label_maps import soft_cross_entropy
from synthgen.losses.style import modality_dataset_bce
from synthgen.runtime import seeded_init

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from synthgen.evaluate.judge_networks import TissueSegmenter
    from synthgen.evaluate.sets import Indices, SliceSet
    from synthgen.models.classifier import ModalityDatasetClassifier

logger = logging.getLogger(__name__)

LESION_SHARE = 1e-3
"""A slice counts as showing lesions from this share of the brain on."""

_FEWEST_PX = 50.0  # summed PV from which on the training data show a tissue at all
_CLASSIFY, _SEGMENT = range(2)
_SMOOTH_PX = 1.0
_LARGEST_NORM = 1.0
_LARGEST_WEIGHT = 5.0

Pixels = npt.NDArray[np.float64]


def judges_for(
    real: SliceSet, folder: Path, key: SampleKey, settings: JudgeSettings | None = None
) -> Judges:
    """Load the judges of a set, or train them and store them.

    Args:
        real: real slices with images: the training split.
        folder: holds one folder for each set, key and settings.
        key: decides initial weights, draws and augmentation.
        settings: how to train.

    Raises:
        RequestError: the set has no images.
        StoreError: stored judges are damaged, or the folder cannot be written.
    """
    settings = settings or JudgeSettings()
    identity = judge_identity(set_fingerprint(real), key, settings)
    place = folder / identity[:16]
    if (place / RECORD).is_file():
        return Judges.load(place)
    judges = train_judges(real, key, settings)
    judges.save(place)
    return judges


def train_judges(real: SliceSet, key: SampleKey, settings: JudgeSettings | None = None) -> Judges:
    """Train a classifier and a segmenter.

    Both are the same, bit for bit, for one (set, key, settings) and one number of threads.
    Images without a named modality teach the segmenter alone, unless no image has one.

    Args:
        real: real slices with images: the training split.
        key: decides initial weights, draws and augmentation.
        settings: how to train.

    Raises:
        RequestError: the set has no images.
    """
    settings = settings or JudgeSettings()
    images = real.images
    rows = list(range(len(images.slices)))
    if not rows:
        raise RequestError(f"{real.name}: judges are trained on images, and the set has none")
    amount, lesioned = _scan(real)
    known = (True, *(bool(px >= _FEWEST_PX) for px in amount[1:]))
    named = [row for row in rows if images.modality[row] != UNKNOWN] or rows
    classes = tuple(
        tuple(sorted({column[row] for row in named}))
        for column in (images.modality, images.dataset)
    )
    seed = key.seed32(Stream.EVALUATE)
    with seeded_init(seed, 0):
        classifier, segmenter = build_networks(settings, len(classes[0]), len(classes[1]), known)
    draws = _Draws(real, named, lesioned, seed, _CLASSIFY)
    logger.info("training a classifier on %d images of %s", len(named), real.name)
    _fit(
        classifier,
        lambda step: _classifier_loss(classifier, draws, classes, settings, step),
        settings.classifier_steps,
        settings.classifier_lr,
    )
    content = _Draws(real, rows, lesioned, seed, _SEGMENT, settings.lesion_probability)
    weights = _tissue_weights(amount[list(known)])
    logger.info("training a segmenter on %d images of %s", len(rows), real.name)
    _fit(
        segmenter,
        lambda step: _segmenter_loss(segmenter, content, weights, settings, step),
        settings.segmenter_steps,
        settings.segmenter_lr,
    )
    return Judges(
        schema=real.schema,
        modalities=classes[0],
        datasets=classes[1],
        subjects=tuple(sorted({*real.image_subjects()} - {UNKNOWN})),
        identity=judge_identity(set_fingerprint(real), key, settings),
        settings=settings,
        known=known,
        classifier=classifier.eval(),
        segmenter=segmenter.eval(),
    )


def _scan(real: SliceSet) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """Return how many pixels of each tissue have an image, and which slices show lesions."""
    total = np.zeros(real.schema.channels)
    lesioned = np.zeros(len(real), dtype=bool)
    lesions = list(real.schema.lesion_channels)
    for index in np.unique(real.images.slices).tolist():
        amount = real.read_pv(index).sum(axis=(1, 2), dtype=np.float64)
        total += amount
        lesioned[index] = amount[lesions].sum() > LESION_SHARE * amount[1:].sum()
    return total, lesioned


def _tissue_weights(amount: Pixels) -> Tensor:
    """Return one weight for each tissue, background first; rare ones weigh more."""
    weights = np.sqrt(amount[1:].mean() / amount[1:]) if len(amount) > 1 else np.zeros(0)
    return torch.tensor([1.0, *np.clip(weights, 1, _LARGEST_WEIGHT)], dtype=torch.float32)


class _Draws:
    """Which image each sample of a training shows; sample i is a function of (seed, judge, i).

    Args:
        real: the training set.
        rows: images to draw from.
        lesioned: `(P,)`, whether a slice shows lesions.
        seed: seed of the training.
        judge: which judge is trained.
        share: share of samples that are drawn among images that show lesions.
    """

    def __init__(
        self,
        real: SliceSet,
        rows: Sequence[int],
        lesioned: npt.NDArray[np.bool_],
        seed: int,
        judge: int,
        share: float = 0.0,
    ) -> None:
        self.real = real
        self._seed, self._judge, self._share = seed, judge, share
        groups: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        for row in rows:
            style = (real.images.modality[row], real.images.dataset[row])
            everything, ill = groups.setdefault(style, ([], []))
            everything.append(row)
            if lesioned[real.images.slices[row]]:
                ill.append(row)
        self._groups = [groups[style] for style in sorted(groups)]

    def batch(self, step: int, size: int) -> tuple[Indices, list[torch.Generator]]:
        """Return image rows, and for each its generator of augmentation."""
        keys = [SampleKey(self._seed, step * size + i, self._judge) for i in range(size)]
        rows = np.asarray([self._draw(key) for key in keys], dtype=np.int64)
        return rows, [key.torch(Stream.AUGMENT) for key in keys]

    def _draw(self, key: SampleKey) -> int:
        """Draw an image; styles take turns."""
        rng = key.numpy(Stream.TRAIN)
        everything, ill = self._groups[key.index % len(self._groups)]
        wants_lesion = rng.random() < self._share
        return int(rng.choice(ill if wants_lesion and ill else everything))


def _fit(net: nn.Module, loss_of: Callable[[int], Tensor], steps: int, lr: float) -> None:
    """Train a network in place with one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-4)
    schedule = OneCycleLR(optimizer, max_lr=lr, total_steps=max(2, steps), pct_start=0.2)
    net.train()
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), _LARGEST_NORM)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            logger.info("step %d of %d: loss %.4f", step, steps, float(loss.detach()))


def _classifier_loss(
    net: ModalityDatasetClassifier,
    draws: _Draws,
    classes: tuple[tuple[str, ...], ...],
    settings: JudgeSettings,
    step: int,
) -> Tensor:
    rows, generators = draws.batch(step, settings.classifier_batch)
    pool, warp, images = settings.classifier_pool, settings.warp, draws.real.images
    image = functional.avg_pool2d(torch.from_numpy(draws.real.image(rows)), pool)
    pv = [torch.from_numpy(draws.real.read_pv(int(images.slices[row]))[:1]) for row in rows]
    background = functional.avg_pool2d(torch.stack(pv), pool)
    labels, image = augment_pair(
        torch.cat([background, 1 - background], dim=1),
        image,
        generators,
        replace(warp, shift_px=warp.shift_px / pool, elastic_px=warp.elastic_px / pool),
    )
    brain = (labels[:, :1] <= 0.5).to(image.dtype)
    image = augment_image(image, brain, generators, settings.contrast)
    with autocast(settings.precision):
        logits = net(pooled_input(image, 1).contiguous(memory_format=torch.channels_last))
    targets = [
        torch.tensor([names.index(column[row]) for row in rows])
        for names, column in zip(classes, (images.modality, images.dataset), strict=True)
    ]
    return modality_dataset_bce(
        logits.modality.float(), logits.dataset.float(), *targets, alpha_mod=1.0, alpha_dat=1.0
    )


def _segmenter_loss(
    net: TissueSegmenter, draws: _Draws, weights: Tensor, settings: JudgeSettings, step: int
) -> Tensor:
    """Return soft cross-entropy plus soft Dice over the tissues that the data show."""
    from monai.losses.dice import DiceLoss  # noqa: PLC0415 - slow to import

    rows, generators = draws.batch(step, settings.segmenter_batch)
    pv = torch.from_numpy(draws.real.pv(draws.real.images.slices[rows]))[:, net.known]
    image = torch.from_numpy(draws.real.image(rows))
    pv, image = augment_pair(pv, image, generators, settings.warp)
    brain = (pv[:, :1] <= 0.5).to(image.dtype)
    image = augment_image(image, brain, generators, settings.contrast)
    window = _window(image)
    with autocast(settings.precision):
        logits = net(image[window])[:, net.known]
    dice = DiceLoss(
        include_background=False,
        batch=True,
        soft_label=True,
        smooth_nr=_SMOOTH_PX,
        smooth_dr=_SMOOTH_PX,
    )
    overlap: Tensor = dice(logits.softmax(dim=1), pv[window])
    return soft_cross_entropy(logits, pv[window], weights) + overlap


def _window(images: Tensor) -> tuple[slice, ...]:
    """Return the part of a batch that holds all brains, in sizes that the segmenter pools well."""
    sides = [slice(None), slice(None)]
    for axis in (2, 3):
        inside = torch.nonzero(images.amax(dim=(0, 1, 5 - axis))).flatten().tolist() or [0]
        room = images.shape[axis]
        size = min(room, -(-(inside[-1] + 1 - inside[0]) // POOLED) * POOLED)
        first = min(max(0, (inside[0] + inside[-1] + 1 - size) // 2), room - size)
        sides.append(slice(first, first + size))
    return tuple(sides)
