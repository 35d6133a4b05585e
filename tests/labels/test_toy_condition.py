"""A tiny model learns what it is asked for: brainspade.md, acceptance check 3, on a toy set."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9
from synthgen.data.store import StoreWriter
from synthgen.labels import LabelCondition, load_label_generator
from synthgen.labels.train import train_labels

SHAPE = (32, 48)
WMH = BRAIN9.names.index("wmh")


def brain_with_lesion(radius, share, rng):
    """Return a round brain whose lesion disc covers `share` of it, as PV `(9, X, Y)` in 0..255."""
    x, y = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij")
    r = np.hypot(x, y) / radius
    labels = np.select([r < 0.75, r < 0.9, r < 1], [3, 2, 1], default=0)
    lesion = radius * np.sqrt(share)
    angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.7 * radius - lesion)
    centre = away * np.cos(angle), away * np.sin(angle)
    labels[np.hypot(x - centre[0], y - centre[1]) < lesion] = WMH
    return (np.arange(9)[:, None, None] == labels).astype(np.uint8) * 255


@pytest.fixture(scope="module")
def generator(tmp_path_factory, label_recipe):
    root, rng = tmp_path_factory.mktemp("toy"), np.random.default_rng(0)
    shares = np.linspace(0, 0.2, 24)
    with StoreWriter(root / "store.h5", BRAIN9, SHAPE) as writer:
        for subject in range(4):
            writer.add_slices(
                f"toy/s{subject}",
                dataset="toy",
                split="train",
                z=range(len(shares)),
                position=np.full(len(shares), 0.5),
                pv=np.stack([brain_with_lesion(13 + 0.5 * subject, s, rng) for s in shares]),
            )
        writer.commit()
    recipe = label_recipe(
        {
            "autoencoder.block_out_channels": "[16, 32]",
            "autoencoder.latent_channels": 4,
            "autoencoder.train.steps": 200,
            "autoencoder.train.batch_size": 8,
            "autoencoder.train.lr": 4e-3,
            "autoencoder.losses.kl": 1e-7,
            "diffusion.block_out_channels": "[32, 64]",
            "diffusion.norm_groups": 8,
            "diffusion.latent_copies": 2,
            "diffusion.train.steps": 600,
            "diffusion.train.batch_size": 16,
            "diffusion.train.lr": 2e-3,
            "augment.rotate_deg": 0.0,
            "augment.scale": 0.03,
            "augment.shift_px": 1.0,
            "augment.elastic_px": 0.0,
            "augment.lesion_paste_probability": 0.0,
            "lesion_share": 0.0,
            "sampling.steps": 12,
            "sampling.guidance": 2.0,
        }
    )
    train_labels(recipe, root / "store.h5", root / "models" / "labels")
    return load_label_generator(root / "models" / "labels")


@pytest.mark.slow
def test_lesions_grow_with_the_share_that_is_asked_for(generator):
    wanted = np.linspace(0, 0.15, 32)
    pv = generator.sample(
        [SampleKey(1, i) for i in range(len(wanted))],
        [LabelCondition({"wmh": float(share)}, 0.5) for share in wanted],
    ).numpy()
    assert pv.min() >= 0
    assert np.abs(pv.sum(axis=1) - 1).max() < 1e-5
    brain = 1 - pv[:, 0].mean(axis=(1, 2))
    realised = pv[:, WMH].mean(axis=(1, 2)) / brain
    assert spearmanr(wanted, realised).statistic > 0.8
    # Nothing asked for, nothing made; and no class that the toy set never showed.
    assert realised[0] < 0.005
    assert {*np.unique(pv.argmax(axis=1))} <= {0, 1, 2, 3, WMH}
