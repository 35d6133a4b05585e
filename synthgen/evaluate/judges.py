"""Judges: small networks, trained on real slices alone, that say what a generated image shows.

A classifier names modality and dataset of an image, a segmenter its tissues. Neither ever sees a
generated image in training, so that their agreement with what was asked for means something.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from synthgen.core.errors import RequestError, SchemaError, StoreError
from synthgen.core.input_files import read_json
from synthgen.core.manifest import canonical_json, digest, write_atomic
from synthgen.core.schema import LabelSchema
from synthgen.data.augment import ImageAugment, PvAugment
from synthgen.evaluate.judge_networks import (
    JudgeSettings,
    TissueSegmenter,
    autocast,
    build_networks,
    pooled_input,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from synthgen.core.rng import SampleKey
    from synthgen.evaluate.sets import Floats, SliceSet
    from synthgen.models.classifier import ModalityDatasetClassifier

FORMAT = "synthgen-judges/1"
RECORD, CLASSIFIER, SEGMENTER = "judges.json", "classifier.safetensors", "segmenter.safetensors"
_BATCH = 16
_SAMPLED = 8
_REMEDY = "delete the folder, the judges are then trained again"


@dataclass(frozen=True)
class Judges:
    """A trained classifier and a trained segmenter.

    Attributes:
        schema: label schema of the segmenter.
        modalities: classes of the classifier's first head; `UNKNOWN` where nobody named one.
        datasets: classes of its second head.
        subjects: real subjects that both saw in training.
        identity: of settings, seed and training data; equal identities give equal judges.
        settings: how they were trained.
        known: for each channel of the schema, whether the segmenter knows that tissue.
        classifier: takes `classifier_input`.
        segmenter: gives logits.
    """

    schema: LabelSchema
    modalities: tuple[str, ...]
    datasets: tuple[str, ...]
    subjects: tuple[str, ...]
    identity: str
    settings: JudgeSettings
    known: tuple[bool, ...]
    classifier: ModalityDatasetClassifier
    segmenter: TissueSegmenter

    @property
    def digest(self) -> str:
        """SHA-256 of all weights."""
        weights = (_weights(self.classifier), _weights(self.segmenter))
        return hashlib.sha256(b"".join(weights)).hexdigest()

    def classifier_input(self, images: Floats) -> Tensor:
        """Return images `(n, 1, X, Y)` in [0, 1] as the classifier wants them, in [-1, 1]."""
        _require_images(images)
        return pooled_input(torch.from_numpy(images), self.settings.classifier_pool)

    def classify(self, images: Floats) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the modality and the dataset of each image `(n, 1, X, Y)` in [0, 1].

        Raises:
            RequestError: the images have another shape or are not finite.
        """

        def classes(inputs: Tensor) -> Tensor:
            return torch.stack([head.argmax(dim=1) for head in self.classifier(inputs)])

        modality, dataset = self._run(classes, self.classifier_input(images), axis=1)
        return (
            tuple(self.modalities[int(i)] for i in modality),
            tuple(self.datasets[int(i)] for i in dataset),
        )

    def segment(self, images: Floats) -> Floats:
        """Return tissue probabilities `(n, C, X, Y)` of images `(n, 1, X, Y)` in [0, 1].

        Raises:
            RequestError: the images have another shape or are not finite.
        """
        _require_images(images)
        return self._run(lambda x: self.segmenter(x).softmax(dim=1), torch.from_numpy(images))

    def _run(
        self, forward: Callable[[Tensor], Tensor], inputs: Tensor, axis: int = 0
    ) -> npt.NDArray[Any]:
        with torch.inference_mode(), autocast(self.settings.precision):
            parts = [
                forward(batch.contiguous(memory_format=torch.channels_last))
                for batch in torch.split(inputs.float(), _BATCH)
            ]
        return torch.cat(parts, dim=axis).numpy()

    def save(self, folder: Path) -> None:
        """Write the judges into a folder; `judges.json` comes last, so that it is whole.

        Raises:
            StoreError: the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RECORD).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{folder}: cannot be written ({error}); choose another") from error
        files = {CLASSIFIER: _weights(self.classifier), SEGMENTER: _weights(self.segmenter)}
        for name, content in files.items():
            write_atomic(folder / name, content)
        body = {
            "format": FORMAT,
            "identity": self.identity,
            "schema": self.schema.to_json(),
            "modalities": self.modalities,
            "datasets": self.datasets,
            "subjects": self.subjects,
            "known": self.known,
            "settings": asdict(self.settings),
            "files": {name: hashlib.sha256(c).hexdigest() for name, c in files.items()},
        }
        write_atomic(folder / RECORD, json.dumps(body, indent=1, sort_keys=True).encode() + b"\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read judges that `save` wrote.

        Raises:
            StoreError: no judges there, or a file is missing, damaged or of another format.
        """
        record = read_record(folder)
        try:
            raw = record["settings"]
            settings = JudgeSettings(
                **{
                    **raw,
                    "segmenter_widths": tuple(raw["segmenter_widths"]),
                    "warp": PvAugment(**raw["warp"]),
                    "contrast": ImageAugment(**raw["contrast"]),
                }
            )
            modalities, datasets = tuple(record["modalities"]), tuple(record["datasets"])
            known = tuple(bool(k) for k in record["known"])
            classifier, segmenter = build_networks(settings, len(modalities), len(datasets), known)
            for net, name in ((classifier, CLASSIFIER), (segmenter, SEGMENTER)):
                _load_weights(net, folder / name, record["files"][name])
            schema = LabelSchema.from_json(record["schema"])
        except (KeyError, TypeError, RequestError, SchemaError) as error:
            raise StoreError(
                f"{folder / RECORD}: not the record of judges ({error}); {_REMEDY}"
            ) from error
        return cls(
            schema,
            modalities,
            datasets,
            tuple(record["subjects"]),
            str(record["identity"]),
            settings,
            known,
            classifier.eval(),
            segmenter.eval(),
        )


def set_fingerprint(subset: SliceSet) -> str:
    """Return a hash that tells sets apart without reading all of their pixels.

    It covers schema, shape, subject of each slice, slice, modality and dataset of each image, and
    the pixels of 8 images and 8 label maps, evenly spread. Name and place of the set do not count.

    Args:
        subset: the set.
    """
    images = subset.images
    tables = {
        "schema": subset.schema.fingerprint,
        "shape": list(subset.shape),
        "subject": list(subset.table.subject),
        "slices": images.slices.tolist(),
        "modality": list(images.modality),
        "dataset": list(images.dataset),
    }
    seen = hashlib.sha256(canonical_json(tables).encode())
    for count, read in ((len(subset), subset.read_pv), (len(images.slices), subset.read_image)):
        for index in sorted({i * count // _SAMPLED for i in range(_SAMPLED)} if count else ()):
            seen.update(np.ascontiguousarray(read(index), dtype="<f4").tobytes())
    return seen.hexdigest()


def judge_identity(fingerprint: str, key: SampleKey, settings: JudgeSettings) -> str:
    """Return the hash of all that decides judges, the number of threads excepted."""
    return digest(
        {
            "format": FORMAT,
            "real": fingerprint,
            "key": [key.seed, key.index, key.attempt],
            "settings": asdict(settings),
        }
    )


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of a judge folder's `judges.json`.

    Raises:
        StoreError: no such file, unreadable, or of another format.
    """
    path = folder / RECORD
    try:
        record = read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{path}: no such file; {folder} holds no judges") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not readable as JSON ({error}); {_REMEDY}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise StoreError(f"{path}: expected format '{FORMAT}', got {found!r}; {_REMEDY}")
    return record


def _require_images(images: Floats) -> None:
    if images.ndim != 4 or images.shape[1] != 1 or not len(images):
        raise RequestError(f"judges take images (n, 1, X, Y), got an array of {images.shape}")
    if not np.isfinite(images).all():
        raise RequestError("judges take finite images, got NaN or infinite values")


def _weights(net: nn.Module) -> bytes:
    state = {name: value.detach().contiguous() for name, value in net.state_dict().items()}
    content: bytes = safetensors.torch.save(state)
    return content


def _load_weights(net: nn.Module, path: Path, expected: str) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error}); {_REMEDY}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise StoreError(
            f"{path}: damaged, its SHA-256 is {found[:12]}... and not {expected[:12]}... as "
            f"{RECORD} says; {_REMEDY}"
        )
    try:
        net.load_state_dict(safetensors.torch.load(content))
    except (SafetensorError, RuntimeError) as error:
        raise StoreError(f"{path}: weights of another network ({error}); {_REMEDY}") from error
