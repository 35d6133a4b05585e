"""A small synthetic store of round brains, and a recipe that trains on it in seconds."""

import numpy as np
import pytest
import torch

from synthgen.core.schema import BRAIN9
from synthgen.data.store import StoreWriter, TrainingStore
from synthgen.labels.build import build_autoencoder, condition_names
from synthgen.labels.condition import ConditionScale
from synthgen.labels.folder import ModelDetails, write_model
from synthgen.labels.train import build_pipeline
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


@pytest.fixture(scope="session")
def build_model():
    """Return a function: recipe to pipeline and details of an untrained model.

    Its output layer is no longer zero.
    """

    def build(recipe):
        section = recipe.labels
        vae = build_autoencoder(section.autoencoder, BRAIN9.channels, 0).eval()
        with torch.no_grad():
            latent_shape = vae.encode(torch.zeros(1, 9, *SHAPE)).latent_dist.mean.shape[1:]
        pipeline = build_pipeline(section, vae, BRAIN9, latent_shape)
        generator = torch.Generator().manual_seed(0)
        for tensor in (pipeline.unet.conv_out.weight, pipeline.condition_embedding.template):
            if tensor is not None:
                tensor.data.normal_(std=0.1, generator=generator)
        names = condition_names(section.diffusion, BRAIN9)
        maxima = tuple(0.1 if name in BRAIN9.lesions else 1.0 for name in names)
        return pipeline, ModelDetails(BRAIN9, SHAPE, ConditionScale(names, maxima), ("a/s1",))

    return build


@pytest.fixture(scope="session")
def written(label_recipe, build_model, tmp_path_factory):
    """Return a function: recipe overrides to the folder of an untrained model."""

    def write(**overrides):
        recipe = label_recipe({key.replace("__", "."): v for key, v in overrides.items()})
        pipeline, details = build_model(recipe)
        folder = tmp_path_factory.mktemp("model") / "labels"
        write_model(pipeline, folder, details, training={})
        return folder

    return write
