"""Made-up labelled images: bright discs and balls on noise, for trainers of segmenters."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from synthgen.data.labelled import LabelledCase
from synthgen.data.mixture import Mixture
from synthgen.recipe import find_recipe, load_recipe
from synthgen.recipe.yaml12 import parse, render

LEVELS = (0.15, 0.4, 0.6, 0.9)


@dataclass(frozen=True)
class Discs:
    """Nested discs, one tissue a ring; see `synthgen.data.labelled.LabelledData`."""

    shape: tuple[int, ...] = (32, 32)
    tissues: tuple[str, ...] = ("background", "csf", "gm", "wm")
    overlapping: bool = False
    count: int = 8
    seed: int = 0
    real: bool = False
    subjects: tuple[str, ...] = ()
    name: str = "discs"
    channels: tuple[str, ...] = ("image",)

    @property
    def spatial_dims(self):
        return len(self.shape)

    @property
    def spacing_mm(self):
        return (1.0,) * len(self.shape)

    @property
    def identity(self):
        return {"discs": [*self.shape], "tissues": [*self.tissues], "seed": self.seed}

    @property
    def cases(self):
        names = [f"{self.name}{i}" for i in range(self.count)]
        return tuple(LabelledCase(n, "", n, self.spacing_mm) for n in names)

    def load(self, index):
        rng = np.random.default_rng([self.seed, index])
        axes = np.meshgrid(*(np.arange(n) for n in self.shape), indexing="ij")
        centre = [n / 2 + rng.uniform(-3, 3) for n in self.shape]
        far = np.sqrt(sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)))
        rings = len(self.tissues) - (not self.overlapping)
        outer = rng.uniform(0.3, 0.42) * min(self.shape)
        edges = [outer * (rings - k) / rings for k in range(rings)]
        depth = sum((far < edge).astype(int) for edge in edges)  # 0 outside
        grey = np.asarray(LEVELS)[depth] + 0.08 * rng.standard_normal(self.shape)
        if self.overlapping:
            soft = np.stack([depth > k for k in range(rings)])
        else:
            soft = np.stack([depth == k for k in range(rings + 1)])
        return np.clip(grey, 0, 1)[None].astype(np.float32), soft.astype(np.float32)


def mixture(*parts, **settings):
    """Return data to train on."""
    return Mixture([(part, 1.0) for part in parts or (Discs(**settings),)])


def hidiff_recipe(folder, **overrides):
    """Return the tiny recipe, `hidiff.KEY` overridden by KEY with `__` for dots."""
    document = parse(find_recipe("tiny_segmentation").read_text(), "tiny_segmentation")
    common = {
        "pretrain.steps": 4,
        "pretrain.sheet_every": 0,
        "pretrain.checkpoint_every": 2,
        "pretrain.keep": 9,
        "pretrain.batch_size": 2,
        "train.steps": 6,
        "train.sheet_every": 0,
        "train.checkpoint_every": 2,
        "train.keep": 9,
        "train.batch_size": 2,
        "collaboration.warmup": 1,
        "collaboration.ramp": 2,
        "segmentor.channels": [4, 8],
    }
    path = folder / "segmentation.yaml"
    path.write_text(render(document))
    changes = common | {key.replace("__", "."): value for key, value in overrides.items()}
    return load_recipe(
        path, [f"hidiff.{key}={json.dumps(value)}" for key, value in changes.items()]
    )


def imgx_recipe(**overrides):
    """Return the tiny recipe, `imgx.KEY` overridden by KEY with `__` for dots."""
    common = {
        "train.steps": 6,
        "train.sheet_every": 0,
        "train.checkpoint_every": 2,
        "train.keep": 9,
        "train.batch_size": 2,
        "network.channels": [4, 8],
    }
    changes = common | {key.replace("__", "."): value for key, value in overrides.items()}
    texts = [f"imgx.{key}={json.dumps(value)}" for key, value in changes.items()]
    return load_recipe("tiny_segmentation", texts)


VOLUMES = {
    "data__patch": [16, 16, 16],
    "data__augmentation__mirror": [0.5, 0.0, 0.0],
    "network__strides": [[2, 2, 2]],
}
"""Overrides of `imgx_recipe` for volumes."""
