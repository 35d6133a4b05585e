"""A segmenter that tells voxels apart by how bright they are."""

import torch

from synthgen.segment.use import SegmenterUse


class Brightness:
    """Finds one tissue above each level; sees the first channel alone."""

    def __init__(self, use, *, levels=(0.5,), dark=False):
        self.use, self.levels, self._dark = use, levels, dark
        self.schema, self.identity, self.subjects = use.schema, {"model": "brightness"}, ()
        self.shapes, self.keys = [], []

    def predict(self, images, keys=()):
        self.use.check(images, keys)
        self.shapes.append(tuple(images.shape))
        self.keys += [(key.seed, key.index) for key in keys]
        first = 1 - images[:, :1] if self._dark else images[:, :1]
        if self.use.overlapping:
            return torch.cat([(first > level).float() for level in self.levels], dim=1)
        if len(self.levels) == 1:
            return torch.cat([1 - first, first], dim=1)
        place = sum((first > level).long() for level in self.levels)
        return torch.cat([(place == k).float() for k in range(len(self.levels) + 1)], dim=1)


def use(*tissues, spatial_dims=3, spacing_mm=None, channels=("t1",), overlapping=False, window=8):
    """Return a `SegmenterUse` of tissues without background."""
    names = tissues or ("bright",)
    return SegmenterUse(
        names if overlapping else ("background", *names),
        overlapping,
        channels,
        spatial_dims,
        (1.0,) * spatial_dims if spacing_mm is None else spacing_mm,
        (window,) * spatial_dims,
        0.5,
    )
