"""Made-up angiograms, backgrounds and vessel trees: straight dark lines on a smooth ground."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from synthgen.core.rng import Stream
from synthgen.core.vessels import VesselMaps
from synthgen.data.vessel_images import VesselImages
from synthgen.images.angiogram.sources import AngiogramSources
from synthgen.recipe import find_recipe, load_recipe
from synthgen.recipe.yaml12 import parse, render


def stroke(rng, shape, half=2.5):
    """Return the coverage (X, Y) of a line through the middle, `half` pixels to either side."""
    x, y = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    angle = rng.uniform(0, np.pi)
    across = np.abs(x * np.sin(angle) - y * np.cos(angle) + rng.uniform(-6, 6))
    return np.clip(half + rng.uniform(0, 1) - across, 0, 1).astype(np.float32)


def ground(rng, shape):
    """Return a smooth bright picture (X, Y) in [0, 1]."""
    x, y = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    a, b = rng.uniform(-0.2, 0.2, size=2)
    return np.clip(0.6 + a * x + b * y + 0.02 * rng.standard_normal(shape), 0, 1).astype(np.float32)


class Strokes:
    """A tree source that draws one stroke a key."""

    def __init__(self, shape, half=2.5):
        self.shape, self.half = shape, half
        self.identity = {"strokes": list(shape)}

    def draw(self, keys):
        drawn = [stroke(key.numpy(Stream.VESSEL), self.shape, self.half) for key in keys]
        coverage = np.rint(np.stack(drawn) * 255).astype(np.float32) / np.float32(255)
        none, circles = np.zeros_like(coverage), np.zeros((len(keys), 3), np.float32)
        return VesselMaps(coverage, coverage * 4, none, none, circles, circles)


def pictures(count, shape, *, vessels, seed=0, name="p", half=2.5):
    """Return made-up pictures of `count` people."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        image = ground(rng, shape)
        images.append(image * (1 - 0.5 * stroke(rng, shape, half)) if vessels else image)
    return VesselImages(
        layout="plain",
        files=tuple(Path(f"{name}{i}.png") for i in range(count)),
        subjects=tuple(f"{name}{i}" for i in range(count)),
        images=tuple(images),
        fields=(np.ones(shape, dtype=bool),) * count,
        circles=np.zeros((count, 3), np.float32),
        masks={},
    )


def sources(shape=(48, 48), *, count=6, seed=0, half=2.5):
    """Return everything that a training needs."""
    return AngiogramSources(
        pictures(count, shape, vessels=True, seed=seed, name="a", half=half),
        pictures(count, shape, vessels=False, seed=seed + 1, name="b"),
        lambda wanted: Strokes(wanted, half),
    )


def recipe(folder, **overrides):
    """Return a tiny recipe, `angiograms.KEY` overridden by KEY with `__` for dots."""
    document = parse(find_recipe("tiny_vessels").read_text(), "tiny_vessels")
    common = {
        "noise_predictor.base_channels": 4,
        "generator.base_channels": 2,
        "generator.spade_hidden": 4,
        "discriminator.base_channels": 2,
        "losses.ramp_from": 0,
        "losses.ramp": 1,
        "train.steps": 6,
        "train.decay": 0,
        "train.sheet_every": 0,
        "train.checkpoint_every": 2,
        "train.keep": 9,
    }
    path = folder / "vessels.yaml"
    path.write_text(render(document))
    changes = common | {key.replace("__", "."): value for key, value in overrides.items()}
    return load_recipe(path, [f"angiograms.{key}={value}" for key, value in changes.items()])
