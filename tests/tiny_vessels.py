"""Small real parts for tests of vessel datasets: straight tubes, their negative, a threshold."""

from dataclasses import dataclass

import numpy as np

from synthgen.core.rng import Stream
from synthgen.core.schema import VESSEL
from synthgen.core.vessels import VesselMaps

SHAPE = (48, 64)
WIDEST = 4.0


@dataclass(frozen=True)
class Tube:
    """A straight vessel of six nodes, the last two of which are too thin to be labelled."""

    nodes: np.ndarray
    radius: np.ndarray
    parent: np.ndarray
    branch: np.ndarray
    visible: np.ndarray


class Tubes:
    """Draws one straight tube, down the picture's left half."""

    schema = VESSEL

    def __init__(self, shape=SHAPE, *, preset="tubes", coverage=1.0, subjects=()):
        self.shape, self.subjects = shape, subjects
        self.identity = {"preset": preset, "coverage": coverage}
        self.batches = []
        self._coverage = coverage

    def tree(self, key):
        rng = key.numpy(Stream.VESSEL)
        x = np.linspace(0, self.shape[0] - 1, 6)
        y = np.full(6, rng.uniform(6, self.shape[1] / 4))
        nodes = np.stack([x, y, np.zeros(6)], axis=1).astype(np.float32)
        radius = np.full(6, rng.uniform(1.5, WIDEST), np.float32)
        visible = np.arange(6) < 4
        return Tube(nodes, radius, np.arange(-1, 5, dtype=np.int32), np.zeros(6, np.int32), visible)

    def draw(self, keys):
        self.batches.append([(key.index, key.attempt) for key in keys])
        covered = np.stack([self._covered(self.tree(key)) for key in keys])
        nothing, circles = np.zeros_like(covered), np.zeros((len(keys), 3), np.float32)
        return VesselMaps(
            covered * np.float32(self._coverage), 4 * covered, nothing, nothing, circles, circles
        )

    def extras(self, keys, names):
        covered = np.stack([self._covered(self.tree(key)) > 0 for key in keys])
        made = {
            "centreline": covered.astype(np.uint8),
            "path_length": covered.astype(np.float16),
            "radius": covered.astype(np.float16),
            "branches": covered.astype(np.int16),
            "bifurcations": np.zeros_like(covered, np.uint8),
        }
        return {name: made[name] for name in names}

    def _covered(self, tube):
        away = np.abs(np.arange(self.shape[1]) - tube.nodes[0, 1])
        across = np.rint(255 * np.clip(0.5 + tube.radius[0] - away, 0, 1)) / 255
        return np.repeat(across[None].astype(np.float32), self.shape[0], axis=0)


class Negative:
    """Paints 1 - coverage; `faults` of the pictures show a second tube that no mask holds."""

    name = "negative"

    def __init__(self, faults=0.0, *, level=1.0, subjects=()):
        self.identity = {"renderer": "negative", "faults": faults}
        self.subjects = subjects
        self._faults, self._level = faults, level

    def render(self, maps, keys):
        images = self._level * (1 - maps.coverage[:, None])
        for image, key in zip(images, keys, strict=True):
            if key.numpy(Stream.RENDER).uniform() < self._faults:
                width = key.numpy(Stream.BACKGROUND).integers(3, 9)
                image[0, :, -12 : -12 + width] = 0
        return images


class Threshold:
    """Finds what is dark. It paints as well, as a trained model does."""

    name = "darl"

    def __init__(self, faults=0.0, subjects=()):
        self.identity = {"model": "threshold"}
        self.subjects = subjects
        self._painter = Negative(faults)

    def render(self, maps, keys):
        return self._painter.render(maps, keys)

    def segment(self, images):
        return 1 - images
