"""Tiny stores for the export tests, and `datasets` without a network."""

import datasets
import numpy as np

from synthgen.core.schema import BRAIN9
from synthgen.data.store import StoreWriter
from synthgen.data.tissue import quantize_pv

STORE_SHAPE = (12, 16)
SUBJECTS = (("a/sub-1", "train"), ("a/sub-2", "val"), ("b/sub-1", "test"))


def slice_of(seed):
    """Return a PV map and an image of it, 0 where all is background; off centre."""
    rng = np.random.default_rng(seed)
    pv = quantize_pv(np.moveaxis(rng.dirichlet(np.ones(BRAIN9.channels), STORE_SHAPE), -1, 0))
    pv[:, :2], pv[:, :, 12:] = 0, 0
    pv[0, :2], pv[0, :, 12:] = 255, 255
    return pv, np.where(pv[0] == 255, 0, rng.uniform(0.1, 1, STORE_SHAPE)).astype(np.float16)


def write_store(folder, *, subjects=SUBJECTS, zs=(4, 5, 6), flair=("a/sub-1", "b/sub-1")):
    """Write three slices of each subject, all with T1, some with FLAIR."""
    with StoreWriter(folder / "store.h5", BRAIN9, STORE_SHAPE, spacing_mm=1.5) as writer:
        for number, (subject, split) in enumerate(subjects):
            made = [slice_of(10 * number + z) for z in zs]
            rows = writer.add_slices(
                subject, dataset=subject[0], split=split, z=zs, position=[0.2, 0.5, 0.8],
                pv=np.stack([pv for pv, _ in made]),
            )  # fmt: skip
            painted = np.stack([image for _, image in made])[:, None]
            writer.add_image(rows, "t1", painted)
            if subject in flair:
                writer.add_image(rows, "flair", painted / 2)
        writer.commit()
    return folder


def load_rows(cache, path, data_dir=None, split="train"):
    """Load rows with `datasets.load_dataset`, caches in `cache`."""
    folder = None if data_dir is None else str(data_dir)
    return datasets.load_dataset(path, data_dir=folder, cache_dir=str(cache), split=split)
