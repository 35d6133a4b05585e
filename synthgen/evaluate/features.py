"""Feature spaces that need no download: what two sets of slices are compared in.

The radial power spectrum follows Durall et al. 2020, arXiv:2003.01826: generators with
up-convolutions betray themselves in it. Deviations: a Hann window keeps the borders of a slice from
leaking into all frequencies, and each bin holds the logarithm of the mean power.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt
from scipy import fft

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from synthgen.evaluate.sets import Floats

Features = npt.NDArray[np.float64]
What = Literal["labels", "images"]

RADIAL_BINS = 32
"""Most bins of a radial power spectrum."""
POWER_FLOOR = 1e-12
"""Added to the power, so that the logarithm of a blank slice is finite."""


class FeatureSpace(Protocol):
    """Turns a batch of slices into vectors.

    A space says what makes its numbers comparable with another run's: which encoder, by hash,
    and how its input was prepared.
    """

    @property
    def name(self) -> str:
        """Short and unique, such as `classifier`: part of a metric's name."""

    @property
    def title(self) -> str:
        """What a reader sees."""

    @property
    def what(self) -> What:
        """Whether it takes PV maps `(n, C, X, Y)` or images `(n, 1, X, Y)`, both in [0, 1]."""

    @property
    def facts(self) -> Mapping[str, str]:
        """Encoder, its hash, and the preprocessing, for a metric's provenance."""

    def __call__(self, batch: Floats) -> Features:
        """Return the features `(n, d)`."""


def radial_power_spectrum(images: Floats) -> Features:
    """Return the logarithm of the power at each distance from frequency 0.

    Frequencies are in cycles per pixel, so that slices need not be square. The bins divide
    (0, 0.5], the highest frequency along an axis, evenly; the corners beyond are left out.
    White noise of variance v has power v in all bins but the first, from which taking off the mean
    takes some.

    Args:
        images: `(n, 1, X, Y)`, of any range.

    Returns:
        `(n, bins)`: 32 bins, or half the shorter side of a slice below 64 pixels.

    Raises:
        RequestError: another shape, a side below 4 pixels, or values that are not finite.
    """
    require_images(images)
    if min(images.shape[2:]) < 4:
        raise RequestError(f"a spectrum needs slices of 4 x 4 pixels, got {images.shape[2:]}")
    window, rings = _polar_grid(int(images.shape[2]), int(images.shape[3]))
    slices = images[:, 0].astype(np.float64)
    slices -= (slices * window).sum(axis=(1, 2), keepdims=True) / window.sum()
    power = np.abs(fft.rfft2(slices * window)) ** 2 / (window**2).sum()
    spectrum: Features = np.log(power.reshape(len(images), -1) @ rings + POWER_FLOOR)
    return spectrum


@lru_cache(maxsize=4)
def _polar_grid(x: int, y: int) -> tuple[Features, Features]:
    """Return the window `(X, Y)` and the share `(X * (Y // 2 + 1), bins)` of a frequency in a bin.

    The window is a periodic Hann window whose peak lies at the middle of the slice, so that turned
    slices have equal spectra.
    """
    hann_x, hann_y = (np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (x, y))
    bins = min(RADIAL_BINS, min(x, y) // 2)
    radius = np.hypot(np.fft.fftfreq(x)[:, None], np.fft.rfftfreq(y)[None])
    # Rounded: 3 / 192 * 64 must be bin 1 whichever way the machine computes it.
    ring = np.ceil(np.round(radius * 2 * bins, 9)).astype(int) - 1
    # rfft2 leaves out the mirror images of all columns but the first and an even size's last.
    counted = np.full(radius.shape, 2.0)
    counted[:, 0] = 1
    if y % 2 == 0:
        counted[:, -1] = 1
    shares = (ring.reshape(-1, 1) == np.arange(bins)) * counted.reshape(-1, 1)
    return np.outer(hann_x, hann_y), shares / shares.sum(axis=0)


def require_images(batch: Floats) -> None:
    """Refuse what is no batch of images.

    Raises:
        RequestError: not `(n, 1, X, Y)`, or not finite.
    """
    if batch.ndim != 4 or batch.shape[1] != 1 or not len(batch):
        raise RequestError(f"expected images (n, 1, X, Y), got an array of {batch.shape}")
    if not np.isfinite(batch).all():
        raise RequestError("expected finite images, got NaN or infinite values")


def require_features(features: Features, count: int, encoder: str) -> Features:
    """Return features, refused if they are no vectors of finite numbers.

    Raises:
        RequestError: not `(count, d)`, or not finite.
    """
    if features.ndim != 2 or len(features) != count or not features.size:
        raise RequestError(
            f"{encoder}: expected features ({count}, d) of {count} slices, got {features.shape}"
        )
    if not np.isfinite(features).all():
        raise RequestError(f"{encoder}: some features are NaN or infinite; use another encoder")
    return features
