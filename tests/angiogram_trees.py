"""Simple vessel maps for tests of the angiogram renderers."""

import numpy as np

from synthgen.core.vessels import VesselMaps


def part(maps, index):
    """Samples of a batch: `index` is a slice or a list."""
    return VesselMaps(**{n: getattr(maps, n)[index] for n in maps.__dataclass_fields__})


def bars(shape=(96, 96), batch=2, *, field=(0, 0, 0), disc=(0, 0, 0)):
    """A bent tube of 4 pixels radius down the picture, the same in every sample."""
    x, y = np.ogrid[: shape[0], : shape[1]]
    distance = np.abs(y - shape[1] / 2 - 8 * np.sin(x / 20))
    distance[: shape[0] // 8] = 9
    path = (2 * np.sqrt(np.maximum(16 - distance**2, 0))).astype(np.float32)
    coverage = (np.rint(np.clip(4.5 - distance, 0, 1) * 255) / 255).astype(np.float32)
    maps = [np.repeat(a[None], batch, axis=0) for a in (coverage, path, 0 * path, 0.5 * path)]
    circles = [np.repeat(np.array([c], np.float32), batch, axis=0) for c in (disc, field)]
    return VesselMaps(*maps, *circles)
