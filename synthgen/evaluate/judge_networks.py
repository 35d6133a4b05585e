"""Networks of the judges, and how they are trained.

The segmenter is a small U-Net (Ronneberger et al. 2015, arXiv:1505.04597, as MONAI builds it after
Falk et al. 2019, doi:10.1038/s41592-018-0261-2). It sees each image standardised over its brain, so
that one network serves all modalities. Batch norm lets it train on crops around the brain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from synthgen.core.errors import RequestError
from synthgen.data.augment import ImageAugment, PvAugment
from synthgen.models.classifier import ModalityDatasetClassifier
from synthgen.runtime import place

Precision = Literal["fp32", "bf16"]

POOLED = 16
"""The segmenter pools four times: it wants image sizes that are multiples of this."""

_REACH = 3.0  # standardised intensities end here, and the background lies here
_NEVER = -1e4  # logit of a tissue that the judge does not know: its probability is exactly 0
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class JudgeSettings:
    """How judges are built and trained; the defaults take some minutes on one CPU core.

    Attributes:
        classifier_steps: optimiser steps of the classifier.
        classifier_batch: images a step.
        classifier_width: channels of its first layer, a multiple of 8.
        classifier_pool: its images are averaged over squares of this many pixels.
        classifier_lr: its largest learning rate.
        segmenter_steps: optimiser steps of the segmenter.
        segmenter_batch: images a step.
        segmenter_widths: channels of its five levels, from fine to coarse, and of its last layers.
        segmenter_lr: its largest learning rate.
        lesion_probability: share of the segmenter's images that are drawn among those that show
            a lesion.
        warp: augmentation of shape; lengths in pixels of the full image.
        contrast: augmentation of contrast.
        precision: "fp32", or autocast to "bf16", which is slow without hardware for it.
    """

    classifier_steps: int = 1000
    classifier_batch: int = 8
    classifier_width: int = 32
    classifier_pool: int = 2
    classifier_lr: float = 2e-3
    segmenter_steps: int = 800
    segmenter_batch: int = 4
    segmenter_widths: tuple[int, ...] = (8, 16, 32, 64, 128, 8)
    segmenter_lr: float = 4e-3
    lesion_probability: float = 0.3
    warp: PvAugment = field(
        default_factory=lambda: PvAugment(
            rotate_deg=8, scale=0.1, shift_px=6, elastic_px=3, flip_probability=0.5
        )
    )
    contrast: ImageAugment = field(
        default_factory=lambda: ImageAugment(bias=0.25, gamma_low=0.8, gamma_high=1.25, noise=0.03)
    )
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        for name in ("classifier_steps", "classifier_batch", "classifier_pool"):
            _require_positive(name, getattr(self, name))
        for name in ("segmenter_steps", "segmenter_batch"):
            _require_positive(name, getattr(self, name))
        if len(self.segmenter_widths) != 6 or min(self.segmenter_widths) < 1:
            raise RequestError(
                f"segmenter_widths must be 6 positive numbers, got {self.segmenter_widths}"
            )
        if not 0 <= self.lesion_probability <= 1:
            raise RequestError(
                f"lesion_probability must lie in [0, 1], got {self.lesion_probability}"
            )


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise RequestError(f"{name} must be at least 1, got {value}")


class TissueSegmenter(nn.Module):
    """Tell the tissues of an image; those that it does not know get probability 0.

    Args:
        known: for each channel of the schema, whether the training data show that tissue.
        widths: see `JudgeSettings.segmenter_widths`.

    Examples:
        >>> net = TissueSegmenter((True, True, False), (8, 8, 8, 8, 8, 8))
        >>> logits = net(torch.zeros(1, 1, 40, 33))
        >>> logits.shape, logits.softmax(dim=1)[:, 2].sum().item()
        (torch.Size([1, 3, 40, 33]), 0.0)
    """

    known: Tensor

    def __init__(self, known: tuple[bool, ...], widths: tuple[int, ...]) -> None:
        from monai.networks.nets.basic_unet import BasicUNet  # noqa: PLC0415 - slow to import

        super().__init__()
        self.unet = BasicUNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=len(known),
            features=widths,
            norm="batch",
        )
        self.register_buffer("known", torch.tensor(known), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `(B, C, X, Y)` of images `(B, 1, X, Y)` in [0, 1], 0 outside the brain."""
        x, y = image.shape[-2:]
        padded = functional.pad(
            _standardised(image), (0, -y % POOLED, 0, -x % POOLED), value=-_REACH
        )
        logits = self.unet(padded.contiguous(memory_format=torch.channels_last))
        known = self.known.view(1, -1, 1, 1)
        return torch.where(known, logits.float()[..., :x, :y], _NEVER)


def _standardised(image: Tensor) -> Tensor:
    """Return images with mean 0 and deviation 1 over the pixels that are not 0."""
    inside = image > 0
    count = inside.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1)
    mean = image.sum(dim=(1, 2, 3), keepdim=True) / count
    gap = (image - mean).masked_fill(~inside, 0)
    deviation = (gap.square().sum(dim=(1, 2, 3), keepdim=True) / count).sqrt().clamp_min(1e-3)
    return (gap / deviation).clamp(-_REACH, _REACH).masked_fill(~inside, -_REACH)


def build_networks(
    settings: JudgeSettings, modalities: int, datasets: int, known: tuple[bool, ...]
) -> tuple[ModalityDatasetClassifier, TissueSegmenter]:
    """Return a classifier and a segmenter with initial weights of torch's global generator."""
    classifier = ModalityDatasetClassifier(
        modalities, datasets, arch="small", width=settings.classifier_width
    )
    segmenter = TissueSegmenter(known, settings.segmenter_widths)
    return place(classifier, _CPU), place(segmenter, _CPU)


def pooled_input(images: Tensor, pool: int) -> Tensor:
    """Return images `(B, 1, X, Y)` in [0, 1] averaged over squares, in [-1, 1]."""
    return 2 * functional.avg_pool2d(images, pool) - 1


def autocast(precision: Precision) -> torch.autocast:
    """Return the context in which judges run on a CPU."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
