"""Fit the style bank of a trained image generator: styles of its images, styles of protocols."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from synthgen.data.style_images import FULL_SLICE
from synthgen.models.style_bank import StyleBank

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from synthgen.data.image_loader import ImageBatches
    from synthgen.models.style_encoder import StyleEncoder
    from synthgen.recipe.images import AcquisitionRecipe

logger = logging.getLogger(__name__)

_ENCODE_BATCH = 16
_MAX_CODES = 256
"""Codes per style that the bank is fitted on: evenly spread over its images."""


@torch.no_grad()
def fit_style_bank(
    encoder: StyleEncoder,
    batches: ImageBatches,
    code_head: nn.Linear | None = None,
    protocols: Sequence[AcquisitionRecipe] = (),
) -> StyleBank:
    """Fit one Gaussian of code means per (dataset, modality) over the training images.

    A protocol's style (source `simulated`) is fitted on the training images of its modality,
    moved from their known acquisitions to the protocol's. It is left out, with a warning, where
    there is no such image, and where images of that style itself were trained on.

    Args:
        encoder: trained style encoder.
        batches: training batches.
        code_head: the linear classifier of codes; a code that it takes for another modality is
            left out, as the paper rejects images that its classifier takes for another one.
        protocols: styles that come from their protocol.
    """
    records, codes = [], {}
    for dataset, modality in batches.styles:
        rows = _spread(batches, dataset, modality, _MAX_CODES)
        found = _encode(encoder, [batches.images(part) for part in _parts(rows)])
        records.append(_record(dataset, modality, "fitted"))
        codes[f"{dataset}_{modality}"] = _of_modality(found, modality, batches, code_head)
    for protocol in protocols:
        sources = batches.sources(protocol.modality)
        if not sources or protocol.style in codes:
            reason = "it was trained on images" if sources else "no image of a known acquisition"
            logger.warning("protocol style %s is left out: %s", protocol.style, reason)
            continue
        share = _MAX_CODES // len(sources)
        rows = np.concatenate([_spread(batches, d, protocol.modality, share) for d in sources])
        target = protocol.acquisition
        found = _encode(encoder, [batches.moved_images(part, target) for part in _parts(rows)])
        records.append(_record(protocol.dataset, protocol.modality, "simulated"))
        codes[protocol.style] = _of_modality(found, protocol.modality, batches, code_head)
    bank: StyleBank = StyleBank.from_codes(records, codes)
    return bank


def _record(dataset: str, modality: str, source: str) -> dict[str, str]:
    return {
        "name": f"{dataset}_{modality}",
        "dataset": dataset,
        "modality": modality,
        "source": source,
    }


def _spread(batches: ImageBatches, dataset: str, modality: str, most: int) -> npt.NDArray[np.int64]:
    """Return rows of full slices, evenly spread over a style's images."""
    rows = batches.rows_of(dataset, modality)
    share = batches.brain_share(rows)
    rows = rows[share >= FULL_SLICE * share.max()]
    chosen = np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))
    spread: npt.NDArray[np.int64] = rows[chosen]
    return spread


def _parts(rows: npt.NDArray[np.int64]) -> list[list[int]]:
    listed = rows.tolist()
    return [listed[i : i + _ENCODE_BATCH] for i in range(0, len(listed), _ENCODE_BATCH)]


def _encode(encoder: StyleEncoder, images: list[Tensor]) -> Tensor:
    return torch.cat([encoder(part).mu for part in images])


def _of_modality(
    codes: Tensor, modality: str, batches: ImageBatches, code_head: nn.Linear | None
) -> Tensor:
    """Drop codes of another modality; all stay where none is right."""
    if code_head is None:
        return codes
    logits = code_head(codes.to(code_head.weight.device)).cpu()
    told = logits[:, : len(batches.modalities)].argmax(dim=1)
    right = told == batches.modalities.index(modality)
    logger.info("%s: %d of %d codes fitted", modality, int(right.sum()), len(codes))
    return codes[right] if right.any() else codes
