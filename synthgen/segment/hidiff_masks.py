"""Masks as HiDiff's networks and its Bernoulli diffusion see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from synthgen.diffusion.bernoulli import prior_probabilities

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MaskForm:
    """How G tissues become K mask channels.

    One tissue on a background is a single coin a pixel (Chen et al. 2024, arXiv:2407.03548, whose
    released code takes a softmax over this one channel). Overlapping regions are coins of their
    own. Several tissues are coins of which the segmentor's softmax is the prior, the background
    among them, or with the categorical kernel one die.

    Attributes:
        tissues: G, background included unless they overlap.
        overlapping: whether a voxel may belong to several.
        categorical: the diffusion's kernel is categorical.

    Examples:
        >>> MaskForm(2, False, False).channels, MaskForm(4, False, False).channels
        (1, 4)
    """

    tissues: int
    overlapping: bool
    categorical: bool

    @property
    def channels(self) -> int:
        """K."""
        return 1 if self._lone else self.tissues

    @property
    def exclusive(self) -> bool:
        """Whether the K channels sum to 1."""
        return not self.overlapping and not self._lone

    def labels(self, soft: Tensor) -> Tensor:
        """Return soft labels `(B, K, *S)` of those of the data, `(B, G, *S)`."""
        return soft[:, 1:] if self._lone else soft

    def hard(self, soft: Tensor) -> Tensor:
        """Return masks `(B, K, *S)` of 0 and 1: the largest share, or, alone, at least a half."""
        labels = self.labels(soft)
        if not self.exclusive:
            return (labels >= 0.5).float()
        one_hot = functional.one_hot(labels.argmax(dim=1), self.tissues)
        return one_hot.movedim(-1, 1).float()

    def prior(self, logits: Tensor) -> Tensor:
        """Return the segmentor's mask `(B, K, *S)` in (0, 1), float32."""
        return prior_probabilities(logits, exclusive=self.exclusive)

    def probabilities(self, masks: Tensor) -> Tensor:
        """Return probabilities `(B, G, *S)` of the tissues; they sum to 1 unless they overlap."""
        if self._lone:
            return torch.cat([1 - masks, masks], dim=1)
        if self.overlapping:
            return masks
        positive = masks.clamp_min(1e-6)
        return positive / positive.sum(dim=1, keepdim=True)

    @property
    def _lone(self) -> bool:
        return self.tissues == 2 and not self.overlapping and not self.categorical
