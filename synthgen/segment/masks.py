"""From probabilities to label maps, and what the values of these mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from synthgen.segment.use import SegmenterUse

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]

THRESHOLD = 0.5
_REGIONS = 8


def harden(probabilities: Floats, use: SegmenterUse, threshold: float = THRESHOLD) -> Labels:
    """Return the label map `(*S)` of probabilities `(C, *S)`.

    One tissue is 1 where it is more probable than `threshold`; of several the most probable one
    counts, by its number. Regions that overlap are one bit each: region k where `label & 2 ** k`.

    Raises:
        RequestError: more overlapping regions than 8 bits.
    """
    if use.overlapping:
        if len(use.tissues) > _REGIONS:
            raise RequestError(
                f"label maps hold at most {_REGIONS} overlapping regions, the model finds "
                f"{len(use.tissues)}"
            )
        there = (probabilities > threshold).astype(np.uint8)
        bits: Labels = np.packbits(there, axis=0, bitorder="little")[0]
        return bits
    one = len(use.tissues) == 2
    found: Labels = (probabilities[1] > threshold if one else probabilities.argmax(axis=0)).astype(
        np.uint8
    )
    return found


def label_table(use: SegmenterUse, *, largest: int = 1) -> dict[str, Any]:
    """Return the value, or the values, of each name in the maps of `harden`, as nnU-Net has it.

    Args:
        use: of the segmenter.
        largest: value of a model's only tissue.

    Examples:
        >>> from synthgen.segment.use import SegmenterUse
        >>> label_table(SegmenterUse(("whole", "core"), True, ("t1",), 3, (1, 1, 1), (8,) * 3, 0.5))
        {'background': 0, 'whole': [1, 3], 'core': [2, 3]}
    """
    if use.overlapping:
        values = range(1, 2 ** len(use.tissues))
        table: dict[str, Any] = {"background": 0}
        for bit, name in enumerate(use.tissues):
            table[name] = [value for value in values if value >> bit & 1]
        return table
    if len(use.tissues) == 2:
        return {use.tissues[0]: 0, use.tissues[1]: largest}
    return {name: value for value, name in enumerate(use.tissues)}
