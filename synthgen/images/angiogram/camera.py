"""The camera: blur, photon and electronic noise, display window.

Quantum noise is Gaussian with the variance of the Poisson law, which counts of some hundreds of
photons per pixel allow. XCAD's pictures show noise that hardly depends on the level, which a
window of gamma near 0.5 makes of Poisson noise; in CHASE_DB1 it grows with the level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from synthgen.images.angiogram.fields import FRAME, Range, between

if TYPE_CHECKING:
    from synthgen.core.vessels import Floats


@dataclass(frozen=True)
class Camera:
    """What happens to the light.

    Attributes:
        blur: standard deviation of the point spread in pixels, for a frame of 512 pixels.
        quantum: noise at full light, as a share of it: 1 / sqrt(photons per pixel).
        electronic: standard deviation of the noise that does not depend on the light.
        gamma: displayed level = light ** gamma.
    """

    blur: Range
    quantum: Range
    electronic: Range
    gamma: Range


XRAY_CAMERA = Camera((0.5, 1.0), (0.03, 0.09), (0.0, 0.005), (0.45, 0.7))
FUNDUS_CAMERA = Camera((0.45, 0.9), (0.015, 0.07), (0.001, 0.005), (0.9, 1.1))

_OPAQUE = 7.0  # log contrast beyond which nothing passes


def expose(rng: np.random.Generator, level: Floats, dense: Floats, camera: Camera) -> Floats:
    """Photograph a scene.

    Args:
        rng: its draws.
        level: displayed level of the scene without `dense`, `(X, Y)` in [0, 1].
        dense: displayed log contrast of what lies before it, `(X, Y)`; negative is brighter.
        camera: blur, noise and window.

    Returns:
        float32 `(X, Y)` in [0, 1]: without blur and noise, level * exp(-dense).
    """
    gamma = np.float32(between(rng, camera.gamma))
    quantum = np.float32(between(rng, camera.quantum))
    light = level * np.exp(-dense, dtype=np.float32)
    light = np.power(light, 1 / gamma, dtype=np.float32)
    noise = rng.standard_normal((2, *light.shape), dtype=np.float32)
    light += quantum * np.sqrt(light) * noise[0]
    blur = between(rng, camera.blur) * max(light.shape) / FRAME
    light = ndimage.gaussian_filter(light, blur, truncate=3)
    light += np.float32(between(rng, camera.electronic)) * noise[1]
    shown: Floats = np.power(np.maximum(light, 0), gamma)
    return np.minimum(shown, 1, out=shown)


def composite(rng: np.random.Generator, picture: Floats, dense: Floats, camera: Camera) -> Floats:
    """Paint on a picture that a camera took: where nothing is painted it stays bit for bit.

    Its own noise, of standard deviation s, is attenuated with it, to s T with T = exp(-dense).
    Through a window of gamma g, Poisson noise of that light would be s T ** (1 - 1 / (2 g)): the
    missing variance is added.

    Args:
        rng: its draws.
        picture: `(X, Y)` in [0, 1], with its own blur and noise.
        dense: displayed log contrast of what is painted, `(X, Y)`; negative is brighter.
        camera: the one that took the picture: its blur and its window.

    Returns:
        float32 `(X, Y)` in [0, 1].
    """
    blur = between(rng, camera.blur) * max(dense.shape) / FRAME
    power = 1 - 0.5 / between(rng, camera.gamma)
    blurred = ndimage.gaussian_filter(dense, blur, truncate=3)
    passed = np.exp(-np.minimum(blurred, _OPAQUE), dtype=np.float32)
    detail = picture - ndimage.gaussian_filter(picture, 1.0, truncate=3)
    level = 1.4826 * float(np.median(np.abs(detail[::4, ::4])))
    missing = np.sqrt(np.maximum(np.minimum(passed, 1) ** (2 * power) - passed**2, 0))
    noise = rng.standard_normal(dense.shape, dtype=np.float32)
    painted = picture * passed + np.float32(level) * missing * noise
    clipped: Floats = np.clip(painted, 0, 1, dtype=np.float32)
    return clipped
