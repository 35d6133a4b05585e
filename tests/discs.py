"""Tiny heads as slices: white matter in grey matter in a rim of CSF, in a store and generated."""

import numpy as np
import torch

from synthgen.core.rng import Stream
from synthgen.core.schema import BRAIN9
from synthgen.data.shards import Shards
from synthgen.data.store import StoreWriter
from synthgen.data.tissue import quantize_pv
from synthgen.generate import GenerationSettings, generate_images, generate_labels
from synthgen.images.contrast import ContrastRenderer
from synthgen.labels import ConditionRange
from synthgen.recipe import load_recipe

SHAPE = (64, 64)
LEVELS = {"t1": (0.2, 0.5, 0.9), "flair": (0.1, 0.8, 0.6)}
SUBJECTS = (("a/sub-1", "train"), ("a/sub-2", "train"), ("a/sub-3", "val"), ("b/sub-1", "test"))


def disc(size, shift, sharpness=1.0):
    """Return the PV map of a head of radius `size`, moved by `shift` along X."""
    x, y = np.meshgrid(*(np.arange(s) - s / 2 for s in SHAPE), indexing="ij")
    r = np.hypot(x - shift, y) / size
    inside = [np.clip((edge - r) * size * sharpness + 0.5, 0, 1) for edge in (1.0, 0.85, 0.55)]
    pv = np.zeros((BRAIN9.channels, *SHAPE))
    pv[0], pv[1] = 1 - inside[0], inside[0] - inside[1]
    pv[2], pv[3] = inside[1] - inside[2], inside[2]
    return pv


def image_of(pv, modality, rng):
    levels = np.tensordot(LEVELS[modality], pv[1:4], axes=1)
    noisy = np.clip(levels + rng.normal(0, 0.03, SHAPE), 0.01, 1)
    return np.where(pv[0] > 0.5, 0, noisy).astype(np.float16)


def write_disc_store(folder, *, subjects=SUBJECTS, zs=range(4, 10), blank=()):
    """Write a store with T1 of all subjects and FLAIR of all; images of `blank` subjects are 0."""
    with StoreWriter(folder / "store.h5", BRAIN9, SHAPE, spacing_mm=1.5) as writer:
        for number, (subject, split) in enumerate(subjects):
            rng = np.random.default_rng(number)
            maps = [disc(22 + 0.5 * z, rng.uniform(-2, 2)) for z in zs]
            rows = writer.add_slices(
                subject, dataset=subject[0], split=split, z=list(zs),
                position=np.linspace(0, 1, len(maps)),
                pv=np.stack([quantize_pv(pv.astype(np.float32)) for pv in maps]),
            )  # fmt: skip
            for modality in LEVELS:
                images = np.stack([image_of(pv, modality, rng) for pv in maps])[:, None]
                writer.add_image(rows, modality, images * (subject not in blank))
        writer.commit()
    return folder


class DiscLabels:
    """Draws discs; made from subject a/sub-1, says its manifest."""

    schema, shape = BRAIN9, SHAPE
    identity = {"model": "discs"}  # noqa: RUF012 - read only
    conditions = ConditionRange({}, (0.2, 0.8))

    def __init__(self, subjects=("a/sub-1",)):
        self.subjects = subjects

    def sample(self, keys, conditions):
        draws = [key.numpy(Stream.NOISE).uniform(-1, 1, 2) for key in keys]
        return torch.stack([torch.as_tensor(disc(25 + a, 2 * b)).float() for a, b in draws])


def write_disc_dataset(folder, n=8, subjects=("a/sub-1",), styles=("a_t1", "a_flair")):
    """Generate discs and paint them with the contrast renderer."""
    settings = GenerationSettings(batch_size=2, shard_size=4)
    generator = DiscLabels(subjects)
    generate_labels(generator, generator.conditions, n, folder / "labels", settings)
    labels = Shards(folder / "labels")
    generate_images(ContrastRenderer(BRAIN9), labels, styles, folder / "images", settings)
    return folder / "images"


def tiny_recipe(epochs=2, steps=3, **proxy):
    """Return the benchmark recipe with a smoke budget of a few steps."""
    overrides = [
        f"benchmark.budgets.smoke.{key}={value}"
        for key, value in {
            "epochs": epochs, "steps_per_epoch": steps, "batch_size": 2, "features": 4,
        }.items()
    ]  # fmt: skip
    overrides += [f"benchmark.proxy.{k}={v}" for k, v in {"channels": [4, 8], **proxy}.items()]
    return load_recipe("benchmark", overrides).benchmark
