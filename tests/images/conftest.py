"""A small synthetic store with two contrasts, and a recipe that trains on it in seconds."""

from __future__ import annotations

import numpy as np
import pytest

from synthgen.core.schema import BRAIN9
from synthgen.data.store import StoreWriter, TrainingStore
from synthgen.recipe import find_recipe, load_recipe
from synthgen.recipe.yaml12 import parse, render

TISSUE_VALUES = {
    "t1": (0.0, 0.1, 0.5, 0.9, 0.6, 0.6, 0.7, 0.5, 0.5),
    "t2": (0.0, 0.95, 0.5, 0.25, 0.4, 0.4, 0.8, 0.5, 0.5),
}


def phantom(rng, shape, *, lesion):
    """Return a uint8 PV map of a round brain: rim of fluid, grey, white, ventricle, lesion."""
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.hypot(1.3 * x, y) * (1 + 0.2 * rng.random())
    labels = np.select([radius < 0.5, radius < 0.7, radius < 0.8], [3, 2, 1], default=0)
    labels[(abs(x) < 0.12) & (abs(y) < 0.25)] = 1
    if lesion:
        labels[np.hypot(x - 0.3, y - 0.1) < 0.1] = 6
    return (np.arange(9)[:, None, None] == labels).astype(np.uint8) * 255


def write_store(path, subjects, *, modalities=("t1", "t2"), shape=(64, 64), num_slices=4):
    """Write a store; every second slice of a subject has a lesion."""
    rng = np.random.default_rng(0)
    with StoreWriter(path, BRAIN9, shape) as writer:
        for subject, split in subjects:
            pv = np.stack([phantom(rng, shape, lesion=z % 2 == 1) for z in range(num_slices)])
            indices = writer.add_slices(
                subject,
                dataset=subject.partition("/")[0],
                split=split,
                z=range(num_slices),
                position=[z / num_slices for z in range(num_slices)],
                pv=pv,
            )
            for modality in modalities:
                values = np.asarray(TISSUE_VALUES[modality])[pv.argmax(axis=1)]
                noise = 0.02 * rng.standard_normal(values.shape) * (values > 0)
                writer.add_image(indices, modality, np.clip(values + noise, 0, 1)[:, None])
        writer.commit()
    return path


@pytest.fixture(scope="session")
def store_path(tmp_path_factory):
    subjects = [("a/s1", "train"), ("a/s2", "train"), ("b/s3", "train"), ("b/s4", "val")]
    return write_store(tmp_path_factory.mktemp("store") / "store.h5", subjects)


@pytest.fixture
def store(store_path):
    with TrainingStore.open(store_path) as opened:
        yield opened


@pytest.fixture
def tiny_recipe(tmp_path):
    """Return a function: overrides of the tiny recipe's images section to a float32 recipe."""
    document = parse(find_recipe("tiny").read_text(), "tiny")
    path = tmp_path / "recipe.yaml"
    path.write_text(render({"name": "tiny", "schema": "brain9", "images": document["images"]}))
    common = {
        "generator.base_channels": 2,
        "generator.hidden": 8,
        "style_encoder.base_channels": 4,
        "discriminator.base_channels": 4,
        "classifier.steps": 2,
        "train.precision": "fp32",
        "train.constant": 4,
        "train.decay": 2,
        "train.sheet_every": 0,
        "train.checkpoint_every": 2,
        "train.keep": 9,
    }

    def build(**overrides):
        changes = common | {key.replace("__", "."): value for key, value in overrides.items()}
        return load_recipe(path, [f"images.{key}={value}" for key, value in changes.items()])

    return build
