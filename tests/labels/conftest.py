"""A small synthetic store of round brains, and a recipe that trains on it in seconds."""

import numpy as np
import pytest

from synthgen.core.schema import BRAIN9
from synthgen.data.store import StoreWriter, TrainingStore
from synthgen.recipe import load_recipe

SHAPE = (32, 48)

NARROW = {
    "autoencoder.patch_size": 2,
    "autoencoder.block_out_channels": "[8, 8]",
    "autoencoder.norm_groups": 4,
    "autoencoder.latent_channels": 2,
    "autoencoder.train.precision": "fp32",
    "autoencoder.train.steps": 6,
    "autoencoder.train.batch_size": 2,
    "autoencoder.train.checkpoint_every": 4,
    "autoencoder.train.sheet_every": 0,
    "autoencoder.train.log_every": 1,
    "diffusion.block_out_channels": "[8, 16]",
    "diffusion.norm_groups": 4,
    "diffusion.head_dim": 8,
    "diffusion.condition.templates": 3,
    "diffusion.latent_copies": 1,
    "diffusion.train.precision": "fp32",
    "diffusion.train.steps": 6,
    "diffusion.train.batch_size": 4,
    "diffusion.train.checkpoint_every": 4,
    "diffusion.train.sheet_every": 0,
    "diffusion.train.log_every": 1,
    "sampling.steps": 4,
}


def round_brain(radius, *, lesion):
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    r = np.hypot(x, y) / radius
    labels = np.select([r < 0.6, r < 0.8, r < 1], [3, 2, 1], default=0)
    if lesion:
        labels[np.hypot(x - 0.2, y) < 0.15] = 6
    return (np.arange(9)[:, None, None] == labels).astype(np.uint8) * 255


@pytest.fixture(scope="session")
def store_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels_store") / "store.h5"
    with StoreWriter(path, BRAIN9, SHAPE) as writer:
        for s, (subject, split) in enumerate(
            [("a/s1", "train"), ("a/s2", "train"), ("a/s3", "val")]
        ):
            radii = (0.5, 0.8, 0.9, 0.6)
            pv = [round_brain(r + 0.03 * s, lesion=z % 2 == 1) for z, r in enumerate(radii)]
            writer.add_slices(
                subject,
                dataset="a",
                split=split,
                z=range(4),
                position=[0.1, 0.4, 0.7, 0.9],
                pv=np.stack(pv),
            )
        writer.commit()
    return path


@pytest.fixture
def store(store_path):
    with TrainingStore.open(store_path) as opened:
        yield opened


@pytest.fixture(scope="session")
def label_recipe():
    """Return a function: overrides of the narrow recipe, by their path below `labels`."""

    def build(overrides=None):
        merged = NARROW | (overrides or {})
        return load_recipe("tiny", [f"labels.{key}={value}" for key, value in merged.items()])

    return build
