"""Tiny heads as NIfTI: an ellipsoid of white matter, a shell of grey matter, a rim of CSF."""

import json

import nibabel as nib
import numpy as np

SHAPE = (40, 48, 24)
FINE_NAMES = ("CSF", "CGM", "CWM", "DGM", "BS", "CBGM", "CBWM")


def affine(spacing=1.0, origin=(-20.0, -24.0, -12.0)):
    matrix = np.diag([spacing, spacing, spacing, 1.0])
    matrix[:3, 3] = origin
    return matrix


def radius(shape=SHAPE, center=None):
    """Normalised distance from the middle: the brain is where it is below 1."""
    middle = [s / 2 - 0.5 for s in shape] if center is None else center
    axes = np.meshgrid(*(np.arange(s) for s in shape), indexing="ij")
    return np.sqrt(
        sum(((a - m) / (0.42 * s)) ** 2 for a, m, s in zip(axes, middle, shape, strict=True))
    )


def labels(shape=SHAPE):
    """FreeSurfer ids: 24 CSF, 3 cortex, 2 white matter, 10 thalamus, 16 brainstem, 25 lesion."""
    r = radius(shape)
    ids = np.zeros(shape, dtype=np.uint8)
    ids[r < 1] = 24
    ids[r < 0.9] = 3
    ids[r < 0.65] = 2
    ids[r < 0.3] = 10
    ids[18:22, 18:22, 4:8] = 16
    ids[26:29, 26:29, 10:14] = 25
    return ids


def maps(shape=SHAPE):
    """The seven fine maps, hard, the lesion cut out; and the lesion mask."""
    ids = labels(shape)
    hard = np.stack([ids == i for i in (24, 3, 2, 10, 16)]).astype(np.float32)
    return np.concatenate([hard, np.zeros((2, *shape), np.float32)]), ids == 25


def image(shape=SHAPE, levels=(0.2, 0.5, 0.8), scale=700.0):
    """A T1-like image, 0 outside the brain."""
    r = radius(shape)
    noise = np.random.default_rng(3).normal(0, 0.02, shape)
    values = np.select([r < 0.65, r < 0.9, r < 1], [levels[2], levels[1], levels[0]], 0.0)
    return np.where(r < 1, np.clip(values + noise, 0.01, None) * scale, 0).astype(np.float32)


def save(path, data, matrix=None, dtype=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.asarray(data)
    data = data.astype(np.uint8) if data.dtype == bool else data
    picture = nib.Nifti1Image(data if dtype is None else data.astype(dtype), _or(matrix))
    picture.header.set_xyzt_units("mm")
    nib.save(picture, path)
    return path


def save_maps(root, subject, *, names=("T1w", "FLAIR"), matrix=None, lesion="label-lesion_mask"):
    """One subject with images, fine maps, a lesion mask and a brain mask; return its folder."""
    fine, mask = maps()
    anat = root / subject / "anat"
    tissue = root / "derivatives" / "tissue" / subject / "anat"
    for number, name in enumerate(names):
        levels = (0.2, 0.5, 0.8) if number == 0 else (0.1, 0.7, 0.5)
        save(anat / f"{subject}_{name}.nii.gz", image(levels=levels), matrix)
    stacked = np.moveaxis(np.rint(255 * fine), 0, -1).astype(np.uint8)
    picture = nib.Nifti1Image(stacked, _or(matrix))
    picture.header.set_slope_inter(1 / 255, 0)
    tissue.mkdir(parents=True, exist_ok=True)
    nib.save(picture, tissue / f"{subject}_desc-fine_probseg.nii.gz")
    save(tissue / f"{subject}_{lesion}.nii.gz", mask, matrix)
    save(tissue / f"{subject}_desc-brain_mask.nii.gz", radius() < 1, matrix)
    return tissue


def save_labels(root, subject, *, spacing=1.0):
    return save(root / f"{subject}_dseg.nii.gz", labels(), affine(spacing))


def save_table(root, entries):
    path = root / "labels.json"
    listed = [{"id": i, "name": name} for i, name in entries.items()]
    path.write_text(json.dumps({"labels": listed}))
    return path


def _or(matrix):
    return affine() if matrix is None else matrix
