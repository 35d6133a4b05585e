"""Tiny nnU-Net raw folders, and labelled data in memory."""

import json

import nibabel as nib
import numpy as np
from PIL import Image

from synthgen.data.labelled import LabelledCase

LABELS = {"background": 0, "csf": 1, "wm": 5}


def save(path, array, affine=None, dtype=None):
    """Write an array as PNG or NIfTI, by the file's name; a slice becomes a volume of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array.astype(dtype or np.uint8)).save(path)
        return
    data = array[..., None] if array.ndim == 2 else array
    dtype = dtype or np.float32
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine, dtype=dtype), path)


def write_raw(folder, cases, *, labels=None, ending=".png", where="Tr", affine=None, **more):
    """Write a folder of `cases`: name to (channels `(Ci, *S)`, labels `(*S)`)."""
    for name, (images, label) in cases.items():
        for k, image in enumerate(images):
            save(folder / f"images{where}/{name}_{k:04d}{ending}", image, affine)
        save(folder / f"labels{where}/{name}{ending}", label, affine, np.uint8)
    channels = len(next(iter(cases.values()))[0])
    about = {
        "channel_names": {str(k): ("T1", "FLAIR", "T2")[k] for k in range(channels)},
        "labels": LABELS if labels is None else labels,
        "numTraining": len(cases),
        "file_ending": ending,
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


class Held:
    """Labelled data in memory: images `(Ci, *S)` and soft labels `(G, *S)`."""

    real = True

    def __init__(self, pairs, *, name="held", tissues=None, overlapping=False, spacing_mm=None):
        self.identity = {"held": name, "n": len(pairs)}
        self._pairs, self.name, self.overlapping = pairs, name, overlapping
        image, soft = pairs[0]
        self.spatial_dims = image.ndim - 1
        self.tissues = tissues or ("background", "csf", "gm", "wm")[: len(soft)]
        self.channels = tuple(f"c{k}" for k in range(len(image)))
        self.spacing_mm = spacing_mm or (1.0,) * self.spatial_dims
        self.subjects = (f"{name}/sub-1",)
        self.cases = tuple(
            LabelledCase(f"{name}-{k}", self.subjects[0], str(k), self.spacing_mm)
            for k in range(len(pairs))
        )
        self.loads = 0

    def load(self, index):
        self.loads += 1
        return self._pairs[index]
