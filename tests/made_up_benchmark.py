"""A benchmark folder with scores, test volumes and predictions that nobody measured."""

import json

import nibabel as nib
import numpy as np

SUBJECTS = tuple(f"sub-{i:02d}" for i in range(1, 13))
TISSUES = ("csf", "gm", "wm")
EFFECTS = {"real": 0.0, "synthetic": -0.05, "hybrid": 0.02, "contrast": -0.12}
BASE = {"csf": 0.80, "gm": 0.86, "wm": 0.88}


def spec(**changes):
    arms = changes.pop("arms", [*EFFECTS])
    return {
        "format": "synthgen-benchmark/1",
        "arms": [{"name": arm, "stages": []} for arm in arms],
        "seeds": [0, 1, 2],
        "margin": 0.01,
        "trainer": "nnunet",
        "budget_name": "short",
        "tissues": ["background", *TISSUES],
        "test": [*SUBJECTS],
        "modalities": ["t1"],
        "ratio": {"hybrid": 1.0},
        "sources": {"real": {"name": "store.h5", "digest": "0" * 64, "ancestors": [], "n": 400}},
        "versions": {"nnunetv2": "2.8.1"},
    } | changes


def row(arm="real", seed=0, subject="sub-01", tissue="gm", dice=0.9, modality="t1", **changes):
    return {
        "arm": arm,
        "seed": seed,
        "subject": subject,
        "modality": modality,
        "tissue": tissue,
        "dice": dice,
        "hd95_mm": round(20 * (1 - dice), 3),
        "nsd": min(1.0, dice + 0.05),
        "precision": dice,
        "recall": dice,
        "n_ref": 1000,
        "n_pred": 1000,
        "slices": 20,
    } | changes


def absent(**changes):
    """Return a row whose tissue is neither there nor predicted."""
    names = ("dice", "hd95_mm", "nsd", "precision", "recall")
    return row(**changes) | dict.fromkeys(names) | {"n_ref": 0, "n_pred": 0}


def missed(**changes):
    """Return a row whose tissue is there and was never predicted."""
    scores = {"dice": 0.0, "hd95_mm": None, "nsd": 0.0, "precision": None, "recall": 0.0}
    return row(**changes) | scores | {"n_pred": 0}


def rows_of(arm, seed, *, subjects=SUBJECTS, tissues=TISSUES, effects=EFFECTS, seed_sd=0.002):
    """Return scores with subject, pairing and seed noise; the same for the same arguments."""
    shared = np.random.Generator(np.random.Philox(1))
    own = np.random.Generator(np.random.Philox([[*effects].index(arm), seed]))
    shift = own.normal(0, seed_sd)
    rows = []
    for subject in subjects:
        subject_level = shared.normal(0, 0.02)
        for tissue in tissues:
            dice = BASE.get(tissue, 0.6) + effects[arm] + subject_level + shift
            dice = float(np.clip(dice + own.normal(0, 0.008), 0, 1))
            rows.append(row(arm, seed, subject, tissue, dice))
    return rows


def write_run(out, arm, seed, rows):
    folder = out / "runs" / arm / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(rows))
    (folder / "done.json").write_text("{}")


def write_benchmark(out, *, change=lambda row: row, subjects=SUBJECTS, effects=EFFECTS, **changes):
    """Write spec and rows; `change` may alter each row."""
    out.mkdir(parents=True, exist_ok=True)
    document = spec(arms=[*effects], **changes)
    (out / "spec.json").write_text(json.dumps(document))
    for arm in effects:
        for seed in document["seeds"]:
            rows = rows_of(
                arm, seed, subjects=subjects, tissues=document["tissues"][1:], effects=effects
            )
            write_run(out, arm, seed, [change(row) for row in rows])
    return out


def brain(shift=0, shape=(6, 48, 64)):
    """Return a label map `(Z, X, Y)`: concentric rings, moved by some pixels along X."""
    x, y = np.meshgrid(np.arange(shape[1]) - shift, np.arange(shape[2]), indexing="ij")
    radius = np.hypot(x - shape[1] / 2, y - shape[2] / 2)
    flat = np.select([radius < 8, radius < 14, radius < 18], [3, 2, 1], 0).astype(np.uint8)
    labels = np.repeat(flat[None], shape[0], axis=0)
    labels[-1] = 0
    return labels


def write_volumes(out, arms=tuple(EFFECTS), seeds=(0, 1, 2), subjects=SUBJECTS, modality="t1"):
    """Write test volumes and predictions that are worse in the second slice."""
    (out / "test").mkdir(parents=True, exist_ok=True)
    labels = brain()
    image = np.choose(labels, [0.0, -0.5, 0.6, 1.2]).astype(np.float32)
    for subject in subjects:
        np.savez_compressed(out / "test" / f"{subject}_{modality}.npz", image=image, label=labels)
    for number, arm in enumerate(arms):
        predicted = brain(shift=number)
        predicted[1] = brain(shift=number + 4)[1]
        for seed in seeds:
            folder = out / "preds" / arm / f"seed{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            for subject in subjects:
                volume = nib.Nifti1Image(predicted.transpose(1, 2, 0), np.eye(4))
                nib.save(volume, folder / f"{subject}_{modality}.nii.gz")
