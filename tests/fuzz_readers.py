"""The readers that a stranger's files reach, each with valid files to start from.

`attack` changes a copy of them and reads it. What comes back is "read" or the kind of the domain
error; anything else that is raised is a defect of the reader.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h5py
import numpy as np
import phantoms
import torch
from fuzz_mutations import change_file, fresh_copy
from made_up_labelled import hidiff_recipe, imgx_recipe, mixture
from made_up_vessels import recipe as vessel_recipe
from made_up_vessels import sources as vessel_sources
from PIL import Image
from raw_folders import write_raw
from safetensors.torch import save
from tiny_models import write_image_model, write_label_model
from toy_training import ToyStep

from synthgen.core.errors import SynthgenError
from synthgen.core.input_files import read_bytes
from synthgen.core.manifest import Manifest, canonical_json, file_digest
from synthgen.core.model_folder import RECORD
from synthgen.core.schema import BRAIN9
from synthgen.data import nifti, picture_files
from synthgen.data.label_tables import read_table
from synthgen.data.nnunet_raw import open_nnunet_raw
from synthgen.data.rows import open_source
from synthgen.data.shard_file import BLOCK, FORMAT, write_shard
from synthgen.data.shards import Shards, dataset_digest, shard_path
from synthgen.data.sources import discover
from synthgen.data.store import StoreWriter, TrainingStore
from synthgen.data.style_images import find_images, read_slices
from synthgen.data.tissue import quantize_pv
from synthgen.data.verify import verify
from synthgen.data.vessel_images import read_vessel_images
from synthgen.evaluate.cases import Frame
from synthgen.evaluate.foreign import open_set
from synthgen.evaluate.label_folders import cases_of, tables_of
from synthgen.export import export
from synthgen.export.options import ExportOptions
from synthgen.generate.redraw import Quarantine
from synthgen.images.angiogram.darl import AngiogramPipeline, DarlRecord
from synthgen.images.angiogram.sources import prepare
from synthgen.images.angiogram.train import build_parts
from synthgen.images.spade import SpadePipeline
from synthgen.images.workspace_styles import FORMAT as STYLE_FORMAT
from synthgen.images.workspace_styles import read_style
from synthgen.labels import load_label_generator
from synthgen.models.darl_networks import DarlUse
from synthgen.models.spectral import fold_spectral_norm
from synthgen.recipe import find_recipe, load_recipe
from synthgen.recipe.experiment import load_experiment
from synthgen.runtime import build_accelerator
from synthgen.segment import load_segmenter
from synthgen.segment.train_hidiff import train_hidiff
from synthgen.segment.train_imgx import train_imgx
from synthgen.training.checkpoint import CheckpointFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHAPE = (12, 16)
LINE = 4100
"""Characters of the longest message."""


@dataclass(frozen=True)
class Reader:
    """One way that files come in.

    Attributes:
        make: writes valid files into a folder.
        read: reads what was changed (paths that may be gone), and what hangs on it.
        targets: which of the files are changed.
        mend: makes checksums right again, so that what lies behind them is reached as well.
        share: of all fuzz inputs; slow readers get fewer.
    """

    make: Callable[[Path], None]
    read: Callable[[Path, list[Path]], object]
    targets: tuple[str, ...] = ("*",)
    mend: Callable[[Path], None] | None = None
    share: float = 1.0


def random_pv(n, seed=0):
    draws = np.random.default_rng(seed).dirichlet(np.ones(BRAIN9.channels), (n, *SHAPE))
    return np.stack([quantize_pv(np.moveaxis(one, -1, 0)) for one in draws])


# NIfTI -------------------------------------------------------------------------------------------


def make_nifti(folder):
    box = (8, 9, 7)
    phantoms.save(folder / "image.nii.gz", phantoms.image(box))
    phantoms.save(folder / "image.nii", phantoms.image(box))
    phantoms.save(folder / "labels.nii.gz", phantoms.labels(box))
    phantoms.save(folder / "maps.nii.gz", np.moveaxis(phantoms.maps(box)[0], 0, -1))


def read_nifti(_folder, changed):
    for path in changed:
        first(
            lambda path=path: nifti.read_geometry(path),
            lambda path=path: nifti.read_maps(path),
            lambda path=path: nifti.read_labels(path),
            lambda path=path: nifti.read_mask(path),
        )


def first(*reads):
    """Run all of several readings of one file; raise the first domain error when all are done."""
    errors = []
    for read in reads:
        try:
            read()
        except SynthgenError as error:
            errors.append(error)
    # A 4-D file is no image, and so on: what one of them reads is read.
    if len(errors) == len(reads):
        raise errors[0]


def make_style_images(folder):
    phantoms.save(folder / "sub-01_T1w.nii.gz", phantoms.image((24, 28, 12)))


def read_style_images(folder, _changed):
    for scan in find_images([folder], "own", "t1"):
        read_slices(scan, "t1", (32, 32))


def make_bids(folder):
    box = (12, 14, 10)
    phantoms.save(folder / "sub-01" / "anat" / "sub-01_T1w.nii.gz", phantoms.image(box))
    phantoms.save(folder / "sub-01" / "anat" / "sub-01_dseg.nii.gz", phantoms.labels(box))
    (folder / "participants.tsv").write_text("participant_id\tdataset\nsub-01\tmine\n")
    (folder / "dataset_description.json").write_text('{"Name": "Mine", "BIDSVersion": "1.8.0"}')
    names = {0: "background", 2: "WM", 3: "GM", 24: "CSF", 10: "Left-Thalamus", 16: "Brain-Stem",
             25: "wmh"}  # fmt: skip
    rows = [f"{index}\t{name}" for index, name in names.items()]
    (folder / "dseg.tsv").write_text("\n".join(["index\tname", *rows]))


def read_bids(folder, _changed):
    for scan in discover([str(folder)]).scans:
        if scan.table is not None:
            read_table(scan.table, BRAIN9)
        open_set(folder, Frame(BRAIN9, (16, 16), 1.0, ("t1",)))


# Pictures ----------------------------------------------------------------------------------------


def make_pictures(folder):
    rng = np.random.default_rng(0)
    grey = rng.integers(30, 226, (24, 32), dtype=np.uint8)
    colour = rng.integers(30, 226, (24, 32, 3), dtype=np.uint8)
    for name in ("a.png", "b.jpg", "c.tif", "d.gif", "e.bmp", "f.pgm"):
        save_picture(folder / "images" / name, grey if name < "b" or name > "c" else colour)
        save_picture(folder / "masks" / f"{name[0]}.png", (grey > 128).astype(np.uint8) * 255)
    save_picture(folder / "images" / "g.png", grey.astype(np.uint16) * 257)
    save_picture(folder / "masks" / "g.png", (grey > 128).astype(np.uint8) * 255)


def save_picture(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def read_pictures(folder, changed):
    for path in changed:
        first(
            lambda path=path: picture_files.read_picture(path, colour=True),
            lambda path=path: picture_files.read_label_map(path),
            lambda path=path: picture_files.read_drawn_mask(path),
        )
    others = {path.stem for path in (folder / "images").iterdir()} - {p.stem for p in changed}
    read_vessel_images(folder, exclude=sorted(others))


# Recipes and tables ------------------------------------------------------------------------------


def make_recipes(folder):
    (folder / "tiny_vessels.yaml").write_bytes(find_recipe("tiny_vessels").read_bytes())
    (folder / "overrides.txt").write_text("name=other\nschema=vessel\n")


def read_recipes(_folder, changed):
    for path in changed:
        if path.suffix == ".yaml":
            first(lambda path=path: load_recipe(path), lambda path=path: load_experiment(path))
        elif path.is_file() and not path.is_symlink():
            words = path.read_bytes().decode("utf-8", "replace").splitlines()
            first(lambda words=words: load_recipe("tiny_vessels", words))


def make_tables(folder):
    (folder / "a.json").write_text('{"0": "background", "2": "wm", "3": "gm", "24": "csf"}')
    entries = [{"id": 0, "tissue": 0}, {"id": 2, "tissue": 1}, {"id": 3, "name": "gm"}]
    (folder / "b.json").write_text(json.dumps({"labels": entries, "tissue": ["background", "wm"]}))
    (folder / "c.tsv").write_text("index\tname\n0\tbackground\n2\tWM\n3\tGM\n24\tCSF\n")
    (folder / "d.txt").write_text("0 Unknown 0 0 0 0\n2 Left-Cerebral-White-Matter 9 9 9 0\n")


def read_tables(_folder, changed):
    for path in changed:
        read_table(path, BRAIN9)


def make_raw(folder):
    rng = np.random.default_rng(1)
    cases = {
        name: ([rng.random((12, 14, 6))], rng.choice([0, 1, 5], (12, 14, 6))) for name in ("a", "b")
    }
    write_raw(folder, cases, ending=".nii.gz", synthgen={"real": True, "subjects": ["x/sub-1"]})
    rows = [{"case": name, "subject": f"x/{name}", "group": name, "split": s}
            for name, s in (("a", "train"), ("b", "val"))]  # fmt: skip
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def read_raw(folder, _changed):
    for split in ("train", "val"):
        data = open_nnunet_raw(
            folder, tissues=("csf", "wm"), split=split, modalities=(), exclude=()
        )
        for case in range(len(data.cases)):
            data.load(case)
    open_set(folder, Frame(BRAIN9, (16, 16), 1.0, ("t1",)))
    files = [*cases_of(folder / "labelsTr").values()]
    tables_of([folder / "labelsTr"] * 2, [files] * 2)


# Datasets and stores -----------------------------------------------------------------------------

IDENTITY = {"seed": 0, "shard_size": 4, "batch_size": 2, "styles": ["a_t1"], "per_label": 1}


def make_dataset(folder):
    Manifest("images", IDENTITY, 6, BRAIN9.to_json(), ("a/sub-1",), {"load": "{}"}).write(folder)
    (folder / "shards").mkdir()
    for shard, rows in enumerate((range(4), range(4, 6))):
        pv = random_pv(len(rows), shard)
        arrays = {
            "pv": pv,
            "images": np.where(pv[:, :1] > 127, 0, 0.5).astype(np.float16),
            "index": np.asarray(rows, dtype=np.int64),
            "label_index": np.asarray(rows, dtype=np.int64),
            "attempt": np.zeros(len(rows), dtype=np.int32),
            "condition": np.zeros((len(rows), 4), dtype=np.float32),
            "realised": np.zeros((len(rows), 3), dtype=np.float32),
        }
        attrs = {
            "schema": BRAIN9.fingerprint,
            "identity": dataset_digest("images", IDENTITY),
            "shard": shard,
            "condition_names": "wmh,tumour,oedema,position",
        }
        write_shard(shard_path(folder, shard), arrays, attrs)


def mend_dataset(folder):
    """Give every shard the size and checksum that its block should state."""
    for path in (folder / "shards").glob("*.h5"):
        if path.is_file() and not path.is_symlink():
            body = path.read_bytes()[BLOCK:]
            text = (
                f"{FORMAT}\nsha256={hashlib.sha256(body).hexdigest()}\nbytes={BLOCK + len(body)}\n"
            )
            path.write_bytes(text.encode().ljust(BLOCK, b"\0") + body)


def mend_manifest(folder):
    """Let the shards belong to the dataset that the manifest describes, which loses its seal."""
    try:
        raw = json.loads(read_bytes(folder / "manifest.json"))
        raw.pop("sha256", None)
        (folder / "manifest.json").write_text(json.dumps(raw))
        digest = dataset_digest(raw["kind"], raw["identity"])
        for path in (folder / "shards").glob("*.h5"):
            with h5py.File(path, "r+") as file:
                file.attrs["identity"] = digest
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    mend_dataset(folder)


def read_dataset(folder, _changed):
    problems = verify(folder)
    shards = Shards(folder)
    first(*(lambda index=index: shards[index] for index in range(min(len(shards), 6))))
    shards.close()
    source = open_source(folder)
    for entry in source.entries[:6]:
        source.pv(entry)
    for to in ("nnunet", "nifti"):
        out = folder.with_name("out")
        shutil.rmtree(out, ignore_errors=True)
        export(source, to, out, ExportOptions())
    if problems:
        return problems
    return None


def make_store(folder):
    with StoreWriter(folder / "store.h5", BRAIN9, SHAPE) as writer:
        for number, (subject, split) in enumerate((("a/sub-1", "train"), ("b/sub-1", "val"))):
            rows = writer.add_slices(
                subject, dataset=subject[0], split=split, z=[4, 5], position=[0, 1],
                pv=random_pv(2, number),
            )  # fmt: skip
            image = np.random.default_rng(number).random((2, 1, *SHAPE))
            writer.add_image(rows, "flair" if number else "t1", image)
        masks = np.full((2, *SHAPE), 51, np.uint8)
        writer.add_lesions("c/patient1", split="train", position=[0.25, 0.75], masks=masks)
        writer.commit()


def read_store(folder, _changed):
    with TrainingStore.open(folder) as store:
        for split in ("train", "val"):
            store.subjects(split)
            store.image_rows(split, "t1")
        first(
            *(lambda i=i: store.pv(i) for i in range(min(4, len(store.slices)))),
            *(lambda i=i: store.image(i) for i in range(min(4, len(store.image_modality)))),
            *(lambda i=i: store.lesion(i) for i in range(min(2, len(store.lesion_split)))),
        )
    source = open_source(folder)
    for entry in source.entries[:4]:
        source.pv(entry)


# Models ------------------------------------------------------------------------------------------


def make_style(folder):
    header = {"name": "own_t1", "dataset": "own", "modality": "t1", "model": "m" * 64,
              "subjects": ["own/sub-1"], "num_images": 1, "num_slices": 9}  # fmt: skip
    tensors = {"mean": torch.zeros(4), "factor": torch.eye(4)}
    content = save(tensors, {STYLE_FORMAT: canonical_json(header)})
    (folder / "own_t1.safetensors").write_bytes(content)


def make_darl(folder):
    section = vessel_recipe(folder.parent).angiograms
    data = prepare(section, vessel_sources())
    networks = build_parts(section).networks
    pipeline = AngiogramPipeline(
        fold_spectral_norm(networks.generator), networks.scheduler, networks.noise_predictor.eval()
    )
    use = DarlUse(render_t=50, segment="tiles", crop=32)
    pipeline.save(
        folder / "model", DarlRecord(use, data.shape, data.subjects, {}, ""), data.backgrounds
    )


def make_imgx(folder):
    train_imgx(imgx_recipe(train__steps=1), mixture(), folder / "model", folder.parent / "run")


def make_hidiff(folder):
    recipe = hidiff_recipe(folder.parent, train__steps=1, pretrain__steps=1)
    train_hidiff(recipe, mixture(), folder / "model", folder.parent / "run")


def mend_model(folder):
    """List the files' checksums as they are, without the seal of the list."""
    record = folder / "model" / RECORD
    try:
        raw = json.loads(read_bytes(record))
        for name in raw["files"]:
            path = record.parent / name
            if path.is_file() and not path.is_symlink():
                raw["files"][name] = file_digest(path)
        raw.pop("sha256", None)
        record.write_text(json.dumps(raw))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return


def mend_checkpoint(folder):
    """List the files' checksums as they are, without the seal of the list."""
    for state in folder.glob("run/**/state.json"):
        try:
            raw = json.loads(read_bytes(state))
            raw.pop("sha256", None)
            for name in raw["files"]:
                path = state.parent / name
                if path.is_file() and not path.is_symlink():
                    raw["files"][name] = file_digest(path)
            state.write_text(json.dumps(raw))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue


def make_checkpoint(folder):
    accelerator = build_accelerator("fp32")
    step = ToyStep(accelerator)
    step.step(accelerator, 0)
    CheckpointFolder(folder / "run").save(1, step, accelerator, "toy")


def read_checkpoint(folder, _changed):
    accelerator = build_accelerator("fp32")
    checkpoints = CheckpointFolder(folder / "run")
    if (step := checkpoints.latest()) is not None:
        checkpoints.load(step, ToyStep(accelerator), accelerator, "toy")


def make_lists(folder):
    (folder / "flagged.json").write_text('{"dataset": "work/labels", "total": 9, "flagged": [1]}')


MODEL = ("model/**/*",)
READERS = {
    "nifti": Reader(make_nifti, read_nifti, share=2.0),
    "style images": Reader(make_style_images, read_style_images, share=0.7),
    "bids folder": Reader(make_bids, read_bids, ("**/*",)),
    "pictures": Reader(make_pictures, read_pictures, ("**/*",), share=2.0),
    "recipes": Reader(make_recipes, read_recipes, share=0.7),
    "label tables": Reader(make_tables, read_tables, share=2.0),
    "nnU-Net raw folder": Reader(make_raw, read_raw, ("**/*",), share=1.5),
    "manifest": Reader(make_dataset, read_dataset, ("manifest.json",), mend_manifest),
    "shards": Reader(make_dataset, read_dataset, ("shards/*",), mend_dataset, share=2.0),
    "training store": Reader(make_store, read_store, share=2.0),
    "style file": Reader(
        make_style, lambda folder, _: read_style(folder / "own_t1.safetensors"), share=1.5
    ),
    "label model": Reader(
        lambda folder: write_label_model(folder / "model") and None,
        lambda folder, _: load_label_generator(folder / "model"), MODEL, mend_model, share=0.3,
    ),
    "image model": Reader(
        lambda folder: write_image_model(folder / "model") and None,
        lambda folder, _: SpadePipeline.load(folder / "model"), MODEL, mend_model, share=0.5,
    ),
    "imgx model": Reader(
        make_imgx, lambda folder, _: load_segmenter(folder / "model"), MODEL, mend_model, share=0.5
    ),
    "hidiff model": Reader(
        make_hidiff, lambda folder, _: load_segmenter(folder / "model"), MODEL, mend_model,
        share=0.5,
    ),
    "angiogram model": Reader(
        make_darl, lambda folder, _: AngiogramPipeline.load(folder / "model"), MODEL, mend_model,
        share=0.5,
    ),
    "checkpoint": Reader(
        make_checkpoint, read_checkpoint, ("run/**/*",), mend_checkpoint, share=0.7
    ),
    "list of flagged samples": Reader(
        make_lists, lambda folder, _: Quarantine.read(folder / "flagged.json"), share=0.5
    ),
}  # fmt: skip


def attack(name, random, template, folder):
    """Change a copy of a reader's valid files and read it.

    Args:
        name: of the reader.
        random: what decides the changes.
        template: folder of the valid files.
        folder: where the copy goes.

    Returns:
        "read", or the name of the domain error.

    Raises:
        AssertionError: a domain error that is not one line, or does not name the file.
    """
    reader = READERS[name]
    fresh_copy(template, folder)
    files = sorted({p for t in reader.targets for p in folder.glob(t) if p.is_file()})
    changed = [random.choice(files) for _ in range(random.choice((1, 1, 1, 2)))]
    for path in changed:
        if path.is_file() and not path.is_symlink():
            change_file(random, path)
    if reader.mend is not None and random.random() < 0.7:
        reader.mend(folder)
    return outcome(lambda: reader.read(folder, changed), folder)


def outcome(read, folder):
    """Return "read" or the name of the domain error that reading raises, its message checked."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except SynthgenError as error:
        text = str(error)
        assert text.isprintable(), f"not one plain line: {text!r}"
        assert len(text) <= LINE, f"{len(text)} characters: {text[:200]}"
        # Overrides are put into a recipe that comes with synthgen.
        named = ("-o ", "tiny_vessels.yaml", folder.parent.name)
        assert any(name in text for name in named), f"names no file: {text}"
        return type(error).__name__
    finally:
        logging.disable(logging.NOTSET)
    return "read"
