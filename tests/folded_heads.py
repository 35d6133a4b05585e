"""Slices of people who share an anatomy and differ in their folds, to look for copies among."""

from dataclasses import replace
from functools import cache

import numpy as np
from scipy import ndimage

from synthgen.core.schema import BRAIN9
from synthgen.evaluate.sets import UNKNOWN, from_arrays

SHAPE = (64, 96)
SLICES = 12
_COMMON = 10_000


@cache
def _folds(number):
    noise = np.random.default_rng(number).normal(size=(SLICES, *SHAPE))
    smooth = ndimage.gaussian_filter(noise, (1.5, 3, 3))
    return smooth / smooth.std()


@cache
def head(number):
    """Return the PV maps `(SLICES, 9, *SHAPE)` and images `(SLICES, 1, *SHAPE)` of a person."""
    rng = np.random.default_rng((number, 1))
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    width, length = 0.8 + rng.uniform(-0.05, 0.05, 2)
    brain = (x / width) ** 2 + (y / length) ** 2 < 1
    ventricle = ((abs(x) - 0.15) / 0.08) ** 2 + (y / (0.3 + rng.uniform(-0.1, 0.1))) ** 2 < 1
    white = 1 / (1 + np.exp(-5 * (_folds(_COMMON) + _folds(number))))
    tissue = brain & ~ventricle
    pv = np.zeros((SLICES, 9, *SHAPE), np.float32)
    pv[:, 0], pv[:, 1] = ~brain, brain & ventricle
    pv[:, 3], pv[:, 2] = tissue * white, tissue * (1 - white)
    noise = rng.normal(0, 0.01, (SLICES, *SHAPE)) * brain
    image = 0.15 * pv[:, 1] + 0.4 * pv[:, 2] + 0.8 * pv[:, 3] + noise
    return pv, np.clip(image, 0, 1).astype(np.float32)[:, None]


def people(numbers, *, name="people"):
    """Return the slices of some people, `SLICES` each, with one image a slice."""
    heads = [head(number) for number in numbers]
    count = SLICES * len(heads)
    return from_arrays(
        np.concatenate([pv for pv, _ in heads]),
        BRAIN9,
        name=name,
        images=np.concatenate([image for _, image in heads]),
        subject=[f"a/s{number}" for number in numbers for _ in range(SLICES)],
        position=np.tile(np.linspace(0, 1, SLICES), len(heads)).tolist(),
        modality=["t1"] * count,
        dataset=["a"] * count,
    )


def nameless(subset, *, name="generated", ancestors=()):
    """Return a set as a generator would give it: of nobody."""
    return replace(
        subset,
        name=name,
        table=replace(subset.table, subject=(UNKNOWN,) * len(subset)),
        ancestors=frozenset(ancestors),
    )


def blank(count):
    """Return slices and images without any tissue."""
    pv = np.zeros((count, 9, *SHAPE), np.float32)
    pv[:, 0] = 1
    return from_arrays(
        pv,
        BRAIN9,
        name="blank",
        images=np.zeros((count, 1, *SHAPE), np.float32),
        subject=["a/nobody"] * count,
    )
