"""Mixtures of labelled data, such as one real picture to three synthetic ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from synthgen.core.errors import GeometryError, RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from synthgen.data.labelled import LabelledData


def parse_data(texts: Sequence[str]) -> list[tuple[Path, float]]:
    """Read `PATH` and `PATH=SHARE`: parts without a share divide evenly what the others leave.

    Returns:
        Paths and shares, which sum to 1.

    Raises:
        RequestError: no data, a share outside (0, 1], or shares that do not sum to 1.

    Examples:
        >>> [share for _, share in parse_data(["real=0.25", "made"])]
        [0.25, 0.75]
    """
    if not texts:
        raise RequestError("--data: expected at least one PATH or PATH=SHARE")
    parsed = [_parse(text) for text in texts]
    stated = sum(share for _, share in parsed if share is not None)
    open_parts = sum(share is None for _, share in parsed)
    left = (1 - stated) / open_parts if open_parts else 0.0
    if (open_parts and left <= 0) or (not open_parts and abs(stated - 1) > 1e-6):
        raise RequestError(
            f"--data: shares must sum to 1, got {stated:g} in {' '.join(texts)}"
            + (", which leaves nothing for the parts without one" if open_parts else "")
        )
    return [(path, left if share is None else share) for path, share in parsed]


def _parse(text: str) -> tuple[Path, float | None]:
    path, sign, number = text.rpartition("=")
    try:
        share = float(number) if sign and path else None
    except ValueError:
        share = None  # the sign belongs to the path
    if share is None:
        return Path(text), None
    if not 0 < share <= 1:
        raise RequestError(f"--data: a share must lie in (0, 1], got {number} in '{text}'")
    return Path(path), share


class Mixture:
    """Labelled data of several parts, drawn by share.

    Args:
        parts: data and their shares, relative to one another.

    Attributes:
        parts: the data.
        shares: of the parts; they sum to 1.
        tissues: of all parts; see `LabelledData`.
        overlapping: likewise.
        channels: names of the input channels, as the first part calls them.
        spatial_dims: 2 or 3.
        spacing_mm: voxel size of the first part: what the others are brought to.
        subjects: real subjects that any part shows or descends from, sorted.

    Raises:
        RequestError: no parts, a share that is not positive, or parts whose tissues or channels
            differ.
        GeometryError: 2-D beside 3-D data.
    """

    def __init__(self, parts: Sequence[tuple[LabelledData, float]]) -> None:
        if not parts:
            raise RequestError("expected at least one set of labelled data, got none")
        total = sum(share for _, share in parts)
        for data, share in parts:
            if not (math.isfinite(share) and share > 0):
                raise RequestError(f"{data.name}: a share must be above 0, got {share:g}")
        self.parts = tuple(data for data, _ in parts)
        self.shares = tuple(share / total for _, share in parts)
        first = self.parts[0]
        for other in self.parts[1:]:
            _require_alike(first, other)
        self.tissues, self.overlapping = first.tissues, first.overlapping
        self.channels, self.spatial_dims = first.channels, first.spatial_dims
        self.spacing_mm = first.spacing_mm
        self.subjects = tuple(sorted({s for data in self.parts for s in data.subjects}))

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides what is drawn."""
        parts = [
            {"share": share, **data.identity}
            for data, share in zip(self.parts, self.shares, strict=True)
        ]
        return {"parts": parts}

    def draw(self, rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
        """Draw cases: places of their parts, and of the cases in them.

        Of `count` cases each part gives its share, rounded up or down at random; within a part
        every case is as likely as any other, again and again. The order is random.
        """
        places = (rng.random() + np.arange(count)) / count  # systematic sampling
        ends = np.cumsum(self.shares)
        drawn = np.minimum(np.searchsorted(ends, places, side="right"), len(ends) - 1)
        return [
            (int(part), int(rng.integers(len(self.parts[part].cases))))
            for part in rng.permutation(drawn)
        ]


def _require_alike(first: LabelledData, other: LabelledData) -> None:
    if other.spatial_dims != first.spatial_dims:
        raise GeometryError(
            f"mixed 2D and 3D data: {first.name} is {first.spatial_dims}-D, {other.name} is "
            f"{other.spatial_dims}-D; train on data of one kind"
        )
    if (other.tissues, other.overlapping) != (first.tissues, first.overlapping):
        raise RequestError(
            f"{other.name}: expected the tissues of {first.name} ({_tissues(first)}), "
            f"got {_tissues(other)}"
        )
    # Single pictures of several modalities are mixed on purpose.
    named = len(first.channels) > 1
    ours, theirs = ([c.lower() for c in data.channels] for data in (first, other))
    if len(ours) != len(theirs) or (named and ours != theirs):
        raise RequestError(
            f"{other.name}: expected the input channels of {first.name} "
            f"({', '.join(first.channels)}), got {', '.join(other.channels)}; choose with the "
            "recipe's modalities"
        )


def _tissues(data: LabelledData) -> str:
    return ", ".join(data.tissues) + (" (overlapping)" if data.overlapping else "")
