"""What reads each kind of file: a digest of all that a user of it would see."""

import hashlib
import json

import numpy as np
import torch
from toy_training import ToyStep

from synthgen.core.errors import StoreError
from synthgen.core.model_folder import read_model_folder
from synthgen.data.labelled import open_labelled
from synthgen.data.nifti import read_labels
from synthgen.data.shards import Shards
from synthgen.data.store import TrainingStore
from synthgen.data.verify import verify
from synthgen.images.spade import SpadePipeline
from synthgen.images.workspace_styles import read_style
from synthgen.labels import load_label_generator
from synthgen.runtime import build_accelerator
from synthgen.training.checkpoint import CheckpointFolder


def _digest(*values):
    total = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            total.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).data)
        elif isinstance(value, torch.Tensor):
            total.update(_digest(value.detach().cpu().float().numpy()).encode())
        else:
            total.update(json.dumps(value, sort_keys=True, default=str).encode())
    return total.hexdigest()


def _state(*nets):
    return [tensor for net in nets for _, tensor in sorted(net.state_dict().items())]


def dataset(folder):
    """All rows, columns and facts of a generated dataset."""
    shards = Shards(folder)
    rows = shards.raw(range(len(shards)))
    manifest = shards.manifest
    facts = manifest.kind, manifest.identity, manifest.n, manifest.schema, manifest.subjects
    more = manifest.provenance, shards.column("condition"), shards.condition_names
    shards.close()
    return _digest(*facts, *more, *(rows[name] for name in sorted(rows)))


def verified(folder):
    """What `synthgen verify` accepts."""
    if problems := verify(folder):
        raise StoreError(problems[0])
    return dataset(folder)


def label_model(folder):
    """Networks and facts of a label model."""

    model = load_label_generator(folder)
    nets = model._pipeline
    parts = nets.vae, nets.unet, nets.condition_embedding
    return _digest(*_state(*parts), dict(model.identity), model.subjects, str(model.conditions))


def image_model(folder):
    """Networks and facts of an image model."""

    model = SpadePipeline.load(folder)
    nets = model.generator, model.style_encoder, model.style_bank
    facts = dict(model.identity), model.subjects, [str(style) for style in model.styles]
    return _digest(*_state(*nets), *facts, model.record.training)


def model_folder(folder):
    """The record of any model folder."""
    model = read_model_folder(folder)
    return _digest(dict(model.record), model.schema.to_json())


def store(folder):
    """All tables and pixels of a training store."""
    with TrainingStore.open(folder) as opened:
        table = opened.slices
        facts = [
            opened.schema.to_json(), opened.fingerprint, opened.spacing_mm, opened.shape,
            table.subject, table.dataset, table.split, table.z, table.position, table.fractions,
            opened.image_pv_index, opened.image_modality, opened.lesion_subject,
            opened.lesion_position, opened.lesion_split,
        ]  # fmt: skip
        pixels = [opened.pv(i) for i in range(len(table))]
        pixels += [opened.image(i) for i in range(len(opened.image_modality))]
        pixels += [opened.lesion(i) for i in range(len(opened.lesion_subject))]
    return _digest(*facts, *pixels)


def style(folder):
    """A style of the workspace, the only file of its folder."""

    read = read_style(next(folder.iterdir()))
    facts = read.style.name, read.style.dataset, read.style.modality, read.style.subjects
    return _digest(*facts, read.model, read.num_images, read.num_slices, read.mean, read.factor)


def checkpoint(folder):
    """The state of a training, from the newest of its checkpoints."""

    accelerator = build_accelerator("fp32")
    step = ToyStep(accelerator)
    checkpoints = CheckpointFolder(folder)
    at = checkpoints.load(checkpoints.latest(), step, accelerator, "toy")
    nets = [accelerator.unwrap_model(net) for net in step.models.values()]
    optimizers = [str(o.state_dict()) for o in step.optimizers.values()]
    schedulers = [str(s.state_dict()) for s in step.schedulers.values()]
    averages = [shadow for ema in step.ema.values() for shadow in ema.shadow_params]
    decays = [str({**ema.state_dict(), "shadow_params": None}) for ema in step.ema.values()]
    return _digest(at, *_state(*nets), optimizers, schedulers, *averages, decays, step.state())


def volume(folder):
    """The label map that is the only file of its folder."""
    read = read_labels(next(folder.iterdir()))
    return _digest(read.data, read.grid.affine)


def nnunet(folder):
    """The cases of an exported nnU-Net folder, as trainings read them."""

    data = open_labelled(folder, tissues=("csf", "gm", "wm"))
    read = [array for i in range(len(data.cases)) for array in data.load(i)]
    cases = [str(case) for case in data.cases]
    return _digest(cases, data.tissues, data.subjects, data.spacing_mm, data.real, *read)


READERS = {
    "dataset": dataset,
    "verified": verified,
    "label_model": label_model,
    "image_model": image_model,
    "model_folder": model_folder,
    "store": store,
    "style": style,
    "checkpoint": checkpoint,
    "volume": volume,
    "nnunet": nnunet,
}
