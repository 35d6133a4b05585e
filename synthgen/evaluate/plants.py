"""Planted copies: training slices in disguise, which a copy detector must find.

A detector that reports no copies may be right or blind. Copies are therefore planted into every
audit, and the share of them that is found stands in its report.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.data.augment import PvAugment, augment_pair, augment_pv
from synthgen.evaluate.sets import UNKNOWN, Floats, SliceSet, SliceTable

if TYPE_CHECKING:
    from synthgen.evaluate.descriptors import What

Kind = Literal[
    "exact", "flipped", "shifted", "gamma", "inverted", "remapped", "bias", "combined", "warped"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Every way to disguise a copy; see `planted`."""

MUST_FIND: dict[str, tuple[Kind, ...]] = {
    "labels": ("exact", "flipped", "shifted", "gamma", "combined"),
    "images": KINDS[:-1],
}
"""Disguises that change label maps and images and that a detector must see through.

`warped` is shown beside them: it is the strength of the training augments, and a map warped so
far may be a different one by any measure.
"""

WARP = PvAugment(
    rotate_deg=8, scale=0.08, shear=0.05, shift_px=5, elastic_px=4, elastic_grid=5,
    flip_probability=0.5,
)  # fmt: skip
"""The augments of `recipes/small.yaml`: a model that memorises may memorise these."""

_LEAST_SHIFT, _MOST_SHIFT = 2, 4  # px
_GAMMAS = (0.5, 2.0)
_BIAS = 0.4  # largest coefficient of the log of the field
_CYCLES = (0.7, 1.0)  # of a wave from black to white: above 0.5, grey values rise and fall
_DARKEST = 1 / 255  # 0 is outside the brain


@dataclass(frozen=True)
class _Disguise:
    """What happens to one slice."""

    mirror: bool = False
    shift: tuple[int, int] = (0, 0)
    gamma: float = 1.0
    invert: bool = False
    cycles: float = 0.0
    phase: float = 0.0
    bias: tuple[float, ...] = ()
    warp: SampleKey | None = None


def planted(subset: SliceSet, kind: Kind, key: SampleKey) -> SliceSet:
    """Return copies of every slice of a set and of its images, disguised.

    Args:
        subset: usually training slices.
        kind: `exact`; `flipped` left to right; `shifted` by 2 to 4 px along both axes; `gamma`,
            which raises grey values to the power 0.5 or 2, and so the partial volumes, whose
            borders get softer or sharper; `inverted` grey values; `remapped` by a wave, so that
            their order is lost; multiplied by a `bias` field; `combined`, which is flipped,
            shifted, remapped and biased; or `warped` by the augments of training.
        key: decides shifts, powers, waves, fields and warps.

    Returns:
        A set of the same size, of unknown subjects. `inverted`, `remapped` and `bias` leave the
        label maps as they are.

    Raises:
        RequestError: another kind.
    """
    if kind not in KINDS:
        raise RequestError(f"planted copies are {', '.join(KINDS)}, got '{kind}'")
    rng = key.numpy(Stream.EVALUATE)
    disguises = [_draw(kind, rng, replace(key, index=key.index + i)) for i in range(len(subset))]
    return replace(
        subset,
        name=f"{kind} copies of {subset.name}",
        table=SliceTable((UNKNOWN,) * len(subset), subset.table.position, subset.table.requested),
        read_pv=partial(_read_pv, subset, disguises),
        read_image=partial(_read_image, subset, disguises),
        ancestors=frozenset(subset.subjects),
    )


def _draw(kind: Kind, rng: np.random.Generator, key: SampleKey) -> _Disguise:
    shift = rng.integers(_LEAST_SHIFT, _MOST_SHIFT + 1, 2) * rng.choice([-1, 1], 2)
    gamma, bias = float(rng.choice(_GAMMAS)), rng.uniform(-_BIAS, _BIAS, 5)
    cycles, phase = float(rng.uniform(*_CYCLES)), float(rng.uniform(0, 2 * np.pi))
    every = kind == "combined"
    return _Disguise(
        mirror=every or kind == "flipped",
        shift=(int(shift[0]), int(shift[1])) if every or kind == "shifted" else (0, 0),
        gamma=gamma if kind == "gamma" else 1.0,
        invert=kind == "inverted",
        cycles=cycles if every or kind == "remapped" else 0.0,
        phase=phase,
        bias=tuple(float(b) for b in bias) if every or kind == "bias" else (),
        warp=key if kind == "warped" else None,
    )


def _read_pv(subset: SliceSet, disguises: list[_Disguise], index: int) -> Floats:
    disguise = disguises[index]
    pv = subset.read_pv(index)
    if disguise.warp is not None:
        generator = disguise.warp.torch(Stream.AUGMENT)
        return augment_pv(torch.from_numpy(pv[None]), [generator], WARP)[0].numpy()
    if disguise.gamma != 1:
        pv = pv**disguise.gamma
        pv = pv / pv.sum(axis=0, keepdims=True)
    return _moved(pv, disguise, outside=np.eye(len(pv), 1, dtype=np.float32)[:, :, None])


def _read_image(subset: SliceSet, disguises: list[_Disguise], row: int) -> Floats:
    index = int(subset.images.slices[row])
    disguise, image = disguises[index], subset.read_image(row)
    if disguise.warp is not None:
        pv = torch.from_numpy(subset.read_pv(index)[None])
        generator = disguise.warp.torch(Stream.AUGMENT)
        warped = augment_pair(pv, torch.from_numpy(image[None]), [generator], WARP)[1]
        return warped[0].numpy()
    recoloured = _recoloured(image, disguise)
    return _moved(recoloured, disguise, outside=np.zeros((1, 1, 1), np.float32))


def _recoloured(image: Floats, disguise: _Disguise) -> Floats:
    """Change the grey values inside the brain."""
    values = image**disguise.gamma
    if disguise.invert:
        values = 1 - values
    if disguise.cycles:
        values = 0.5 + 0.45 * np.sin(2 * np.pi * disguise.cycles * values + disguise.phase)
    if disguise.bias:
        values = values * _field(image.shape[-2:], disguise.bias)
    changed: Floats = np.where(image > 0, np.clip(values, _DARKEST, 1), 0).astype(np.float32)
    return changed


def _field(shape: tuple[int, ...], bias: tuple[float, ...]) -> npt.NDArray[np.float64]:
    x, y = np.linspace(-1, 1, shape[0])[:, None], np.linspace(-1, 1, shape[1])[None]
    terms = (x, y, x * y, x**2, y**2)
    field: npt.NDArray[np.float64] = np.exp(sum(b * t for b, t in zip(bias, terms, strict=True)))
    bounded: npt.NDArray[np.float64] = field / field.max()
    return bounded


def _moved(planes: Floats, disguise: _Disguise, outside: Floats) -> Floats:
    """Mirror and shift; `outside` comes in."""
    if disguise.mirror:
        planes = planes[:, ::-1]
    if disguise.shift == (0, 0):
        return np.ascontiguousarray(planes)
    moved = np.empty_like(planes)
    moved[:] = outside
    x, y = (_span(n, s) for n, s in zip(planes.shape[1:], disguise.shift, strict=True))
    moved[:, x[0], y[0]] = planes[:, x[1], y[1]]
    return moved


def _span(size: int, shift: int) -> tuple[slice, slice]:
    """Return where pixels go to, and where they come from."""
    return slice(max(0, shift), size + min(0, shift)), slice(max(0, -shift), size - max(0, shift))


def changes(kind: Kind, what: What) -> bool:
    """Return whether a disguise changes label maps or images at all, or leaves an exact copy."""
    return what == "images" or kind not in ("inverted", "remapped", "bias")
