"""A folder of tiny real inputs, and every command that works on them in about a second."""

import json

import numpy as np
import phantoms
from discs import SUBJECTS, write_disc_dataset, write_disc_store
from PIL import Image
from tiny_models import write_image_model, write_label_model

from synthgen.data.shards import Shards

GENERATED = ("labels", "images", "vessels", "angiograms")
FORMATS = ("nnunet", "nifti", "hf")
SIZES = ("--shard-size", 2, "--batch-size", 2, "--threads", 1, "--device", "cpu")
SMALL = ("--size", 64, "--shard-size", 2, "--batch-size", 2)
N = 8

_TRAIN = {"steps": 6, "checkpoint_every": 2, "sheet_every": 3, "log_every": 1}
_OVERRIDES = {
    "labels": {
        "autoencoder.patch_size": 4,
        "autoencoder.block_out_channels": "[8, 8]",
        "autoencoder.norm_groups": 4,
        "autoencoder.latent_channels": 2,
        "autoencoder.train.batch_size": 2,
        "diffusion.block_out_channels": "[8, 16]",
        "diffusion.norm_groups": 4,
        "diffusion.head_dim": 8,
        "diffusion.condition.templates": 3,
        "diffusion.latent_copies": 1,
        "diffusion.train.batch_size": 2,
        "sampling.steps": 2,
        **{f"autoencoder.train.{k}": v for k, v in _TRAIN.items()},
        **{f"diffusion.train.{k}": v for k, v in _TRAIN.items()},
    },
    "images": {
        "generator.base_channels": 2,
        "generator.hidden": 8,
        "style_encoder.base_channels": 4,
        "discriminator.base_channels": 4,
        "classifier.steps": 2,
        "train.constant": 4,
        "train.decay": 2,
        "train.sheet_every": 3,
        "train.checkpoint_every": 2,
        "train.log_every": 1,
    },
    "imgx": {
        "network.channels": "[4, 8]",
        "validation_cases": 2,
        "train.warmup": 1,
        "train.batch_size": 2,
        **{f"train.{k}": v for k, v in _TRAIN.items()},
    },
}  # fmt: skip
_RECIPES = {"labels": "tiny", "images": "tiny", "imgx": "tiny_segmentation"}


def build(root, driver):
    """Fill `root` with models, a store, scans, label maps and images; return it."""
    write_label_model(root / "models" / "labels")
    write_image_model(root / "models" / "images")
    write_disc_store(root / "store", subjects=SUBJECTS[:3], zs=range(4, 8))
    phantoms.save_labels(root / "heads", "sub-0", spacing=2.0)
    phantoms.save(root / "scans" / "sub-01_FLAIR.nii.gz", phantoms.image())
    for stage in ("labels", "images"):
        driver.complete(*generate(root, stage), "--out", root / stage)
    return root


def generate(root, stage):
    """Return the command that makes a dataset of a stage, without `--out`."""
    models = root / "models"
    return {
        "labels": (
            "labels", "--model", models / "labels", "--n", N, "--lesion", "wmh=0.01:0.05",
            "--max-attempts", 2, "--steps", 2, *SIZES,
        ),
        "images": (
            "images", "--model", models / "images", "--labels", root / "labels", "--per-label", 2,
            "--style", "a_t1,a_flair", *SIZES,
        ),
        "vessels": ("vessels", "--with", "centreline,graph", "--n", N, *SMALL),
        "angiograms": ("angiograms", "--renderer", "physics", "--n", N, *SMALL),
    }[stage]  # fmt: skip


def train(root, stage):
    """Return the command that trains a model of a stage, without `--out`."""
    data = ("--data", root / "images") if stage == "imgx" else ("--store", root / "store")
    words = [word for k, v in _OVERRIDES[stage].items() for word in ("-o", f"{stage}.{k}={v}")]
    return ("train", stage, _RECIPES[stage], *data, *words)


def writers(root):
    """Return the commands that write, by name; each writes below its working directory alone."""
    models, images = root / "models", root / "images"
    proxy = {"budgets.smoke.epochs": 1, "budgets.smoke.steps_per_epoch": 2,
             "budgets.smoke.batch_size": 2, "proxy.channels": "[4, 8]"}  # fmt: skip
    flags = [word for k, v in proxy.items() for word in ("-o", f"benchmark.{k}={v}")]
    return {
        "prepare": ("prepare", root / "heads", "--out", "store", "--step", 6),
        **{
            f"train {stage}": (*train(root, stage), "--out", f"models/{stage}", "--resume")
            for stage in _RECIPES
        },
        **{stage: (*generate(root, stage), "--out", stage) for stage in GENERATED},
        "volumes": (
            "volumes", root / "heads", "--n", 3, "--style", "t1", "--spacing-mm", 4, "--crop",
            "--out", "Dataset001_Heads",
        ),
        **{f"export {to}": ("export", images, "--to", to, "--out", to) for to in FORMATS},
        "styles add": ("styles", "add", "my_flair", root / "scans", "--model", models / "images"),
        "preview": ("preview", images, "--n", 4, "--out", "preview.png"),
        "segment": (
            "segment", models / "imgx", root / "slices", "--out", "masks", "--device", "cpu",
        ),
        "evaluate overview": ("evaluate", "overview", images, "--out", "overview"),
        "evaluate segmentation": (
            "evaluate", "segmentation", root / "masks", root / "masks", "--out", "scores",
        ),
        "redraw": ("redraw", root / "flagged.json", "--out", "redrawn", "--device", "cpu"),
        "benchmark": (
            "benchmark", "nnunet", "--train", "synthetic", "--trainer", "proxy", "--real",
            root / "store", "--synthetic", root / "discs" / "images", "--modality", "t1,flair",
            "--out", "arms", *flags,
        ),
    }  # fmt: skip


def build_more(root, driver):
    """Add to a world what the other commands of `writers` read."""
    write_disc_dataset(root / "discs")
    driver.complete(*train(root, "imgx"), "--out", root / "models" / "imgx")
    rows = Shards(root / "images").raw(range(3))["images"]
    (root / "slices").mkdir()
    for number, image in enumerate(rows[:, 0]):
        picture = np.rint(255 * image.astype(np.float32)).astype(np.uint8)
        Image.fromarray(picture).save(root / "slices" / f"{number}.png")
    segment = writers(root)["segment"]
    driver.complete(*segment, cwd=root)
    flagged = {"dataset": str(root / "labels"), "total": N, "flagged": [1, 4]}
    (root / "flagged.json").write_text(json.dumps(flagged))
    return root


def is_passing(path):
    """Whether a file stands there only during a run, or after one was killed."""
    return path.name.startswith(".") and (path.name.endswith(".tmp") or ".lock" in path.name)


def files(folder):
    """Return the bytes of every file in a folder, a lock apart."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".lock" not in path.name
    }


def training_files(out):
    """Return what a training decides: the files of its model and run, times apart.

    Of checkpoints the last one alone: a run that was interrupted wrote one more on the way.
    """
    folder = out.parent.parent
    found = {}
    for root in (out, folder / "runs" / out.name):
        last = {path.parent: path.name for path in sorted(root.rglob("checkpoints/step_*"))}
        for name, data in files(root).items():
            step = next((p for p in (root / name).parents if p.parent.name == "checkpoints"), None)
            if step is not None and step.name != last[step.parent]:
                continue
            told = _without_times(data) if name.endswith("losses.jsonl") else data
            found[f"{root.relative_to(folder)}/{name}"] = told
    return found


def _without_times(losses):
    rows = [json.loads(line) for line in losses.splitlines()]
    return json.dumps([{k: v for k, v in row.items() if k != "s"} for row in rows])
