"""Images moved from one MR acquisition to another, with a real image's anatomy and noise.

Every tissue's intensity changes by the ratio of the two signals of `synthgen.core.acquisition`.
Jog et al. 2019 (doi:10.1016/j.neuroimage.2019.05.033) and Borges et al. 2020 (arXiv:2001.10767)
train networks for many acquisitions on images made from tissue parameters by such equations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from synthgen.core.acquisition import CSF_T1, Acquisition, null_time, tissue_signals
from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

_MAIN = ("csf", "gm", "wm")
"""The brightest of these fixes the level of an image; lesions are too few for that."""

_FLOOR = 0.15
_BLUR_PX = 1.0
_TINY = 1e-6
_LONGEST = 0.9
"""Longest echo or inversion time that is drawn, in repetition times."""

_STEEPEST_DEG = 89.0
"""Largest flip angle that is drawn."""

_OTHER_FIELD = {1.5: 3.0, 3.0: 1.5}


@dataclass(frozen=True)
class AcquisitionAugment:
    """How far a training image is moved from its own acquisition.

    Attributes:
        known: the acquisition of each (data set, modality) where it is known; other images stay
            as they are.
        protocols: acquisitions of each modality, around which targets are drawn.
        probability: chance that a sample is moved.
        tr: largest factor by which a target's repetition time differs from its protocol's.
        te: the same of the echo time.
        ti: the same of the inversion time.
        flip_deg: the same of the flip angle.
        field_flip: chance that the target has the other field strength.

    Raises:
        RequestError: a factor below 1, or a probability outside [0, 1].
    """

    known: Mapping[tuple[str, str], Acquisition] = field(default_factory=dict)
    protocols: Mapping[str, tuple[Acquisition, ...]] = field(default_factory=dict)
    probability: float = 0.0
    tr: float = 1.0
    te: float = 1.0
    ti: float = 1.0
    flip_deg: float = 1.0
    field_flip: float = 0.0

    def __post_init__(self) -> None:
        for name in ("tr", "te", "ti", "flip_deg"):
            if not 1 <= getattr(self, name) < math.inf:
                raise RequestError(
                    f"{name} must be a factor of at least 1, got {getattr(self, name)}"
                )
        for name in ("probability", "field_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise RequestError(f"{name} must lie in [0, 1], got {getattr(self, name)}")

    def draw(
        self, dataset: str, modality: str, rng: np.random.Generator
    ) -> tuple[Acquisition, Acquisition] | None:
        """Return an image's own acquisition and the one to move it to, or None to leave it."""
        source = self.known.get((dataset, modality))
        protocols = self.protocols.get(modality, ())
        if source is None or not protocols or rng.random() >= self.probability:
            return None
        protocol = protocols[int(rng.integers(len(protocols)))]
        ranges = (self.tr, self.te, self.ti, self.flip_deg)
        factors = [most ** float(rng.uniform(-1, 1)) for most in ranges]
        return source, _varied(protocol, factors, other_field=rng.random() < self.field_flip)


def _varied(protocol: Acquisition, factors: Sequence[float], *, other_field: bool) -> Acquisition:
    """Return a protocol with scaled times and flip angle.

    The inversion time follows the repetition time as the one that nulls CSF does.
    """
    tr = protocol.tr * factors[0]
    follow = null_time(CSF_T1, tr) / null_time(CSF_T1, protocol.tr)
    ti, flip = protocol.inversion_time * follow * factors[2], protocol.flip_deg
    return replace(
        protocol,
        tr=tr,
        te=min(protocol.te * factors[1], _LONGEST * tr),
        ti=min(ti, _LONGEST * tr) if protocol.inverts else None,
        flip_deg=None if flip is None else min(flip * factors[3], _STEEPEST_DEG),
        field_t=_OTHER_FIELD[protocol.field_t] if other_field else protocol.field_t,
    )


def move_contrast(
    image: Tensor, pv: Tensor, tissues: Sequence[str], source: Acquisition, target: Acquisition
) -> Tensor:
    """Give images the contrast that another acquisition would have given.

    Every pixel is multiplied by the ratio of the two signals of its tissues, mixed by partial
    volume. Signals count from `_FLOOR` of the brightest main tissue on, for the little that
    shows in nulled CSF is not CSF; the mixtures are blurred a little, so that labels which are
    off by a pixel leave no edge; and the brightest main tissue keeps its level, so that 1.0 stays
    the robust maximum of a volume.

    Args:
        image: `(B, 1, X, Y)` in [0, 1], magnitude.
        pv: `(B, C, X, Y)` in [0, 1], summing to 1, background first.
        tissues: names of the C channels.
        source: how the images were made.
        target: how they shall look as if they had been made.

    Returns:
        `(B, 1, X, Y)` in [0, 1], exactly 0 where background PV exceeds 0.5; inside unchanged
        where the acquisitions are equal.

    Raises:
        RequestError: a tissue without relaxation times.
    """
    weights = torch.tensor(
        [_relative_signals(target, tissues), _relative_signals(source, tissues)]
    ).to(pv)
    mixed = _blur(torch.einsum("sc,bcxy->bsxy", weights, pv))  # (B, 2, X, Y)
    ratio = mixed[:, :1] / mixed[:, 1:].clamp(min=_TINY)
    return (image * ratio).clamp(0, 1).masked_fill(pv[:, :1] > 0.5, 0)


def _relative_signals(acquisition: Acquisition, tissues: Sequence[str]) -> list[float]:
    """Return signals relative to the brightest main tissue, not below the floor."""
    signals = tissue_signals(acquisition, tissues)
    main = [s for s, name in zip(signals, tissues, strict=True) if name in _MAIN]
    reference = max(main or signals)
    return [
        0.0 if name == "background" else max(s / reference, _FLOOR)
        for s, name in zip(signals, tissues, strict=True)
    ]


def _blur(maps: Tensor) -> Tensor:
    """Blur maps `(B, N, X, Y)` by a Gaussian, one axis after the other."""
    reach = math.ceil(3 * _BLUR_PX)
    offsets = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-0.5 * (offsets / _BLUR_PX) ** 2)
    kernel = (kernel / kernel.sum()).reshape(1, 1, -1, 1)
    planes = maps.flatten(0, 1)[:, None]
    planes = functional.conv2d(planes, kernel, padding=(reach, 0))
    planes = functional.conv2d(planes, kernel.transpose(2, 3), padding=(0, reach))
    return planes.reshape(maps.shape)
