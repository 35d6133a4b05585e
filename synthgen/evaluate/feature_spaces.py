"""The feature spaces: classifier, label autoencoder, radial spectrum, and an encoder of the user's.

All run in float32 on the CPU, whatever the batch: a slice has the same features among any others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor
from torch.nn import functional

from synthgen.core.errors import RequestError, SchemaError, StoreError
from synthgen.core.input_files import read_json, unusable
from synthgen.core.manifest import file_digest
from synthgen.core.model_folder import REMEDY, read_model_folder, read_shape
from synthgen.evaluate.exported import load_exported, one_line
from synthgen.evaluate.features import (
    RADIAL_BINS,
    Features,
    What,
    radial_power_spectrum,
    require_features,
    require_images,
)
from synthgen.models import autoencoder
from synthgen.models.loading import load_network
from synthgen.runtime import tensor_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from synthgen.core.schema import LabelSchema
    from synthgen.evaluate.judges import Judges
    from synthgen.evaluate.sets import Floats
    from synthgen.models.autoencoder import Autoencoder

GRID = (3, 4)
"""Cells over which the latents of a label map are averaged."""

_BATCH = 16
_KINDS = {
    name: getattr(autoencoder, name)
    for name in ("AutoencoderKL", "BrainSpadeAutoencoder", "PatchAutoencoder")
}
_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class ClassifierSpace:
    """What the heads of the modality and dataset classifier see of an image.

    Attributes:
        judges: holds the classifier.
    """

    judges: Judges = field(repr=False)
    name: str = field(default="classifier", init=False)
    title: str = field(default="modality and dataset classifier", init=False)
    what: What = field(default="images", init=False)

    @property
    def facts(self) -> Mapping[str, str]:
        """Encoder and preprocessing."""
        settings = self.judges.settings
        return {
            "encoder": f"modality and dataset classifier {self.judges.identity[:16]}",
            "encoder sha256": self.judges.digest,
            "preprocessing": (
                f"images in [0, 1] averaged over {settings.classifier_pool} x "
                f"{settings.classifier_pool} pixels, scaled to [-1, 1]; last feature map, "
                "rectified and averaged over the slice"
            ),
        }

    def __call__(self, batch: Floats) -> Features:
        """Return features `(n, 4 * width)` of images `(n, 1, X, Y)` in [0, 1].

        Raises:
            RequestError: images of another shape, or not finite.
        """

        def pooled(images: Tensor) -> Tensor:
            last = self.judges.classifier.features(images)[-1]
            return functional.relu(last).mean(dim=(2, 3))

        return _encoded(pooled, self.judges.classifier_input(batch), self.title)


@dataclass(frozen=True)
class SpectrumSpace:
    """How much power an image has at each spatial frequency; see `radial_power_spectrum`.

    Examples:
        >>> import numpy as np
        >>> SpectrumSpace()(np.eye(64, dtype=np.float32)[None, None]).shape
        (1, 32)
    """

    name: str = field(default="spectrum", init=False)
    title: str = field(default="radial power spectrum", init=False)
    what: What = field(default="images", init=False)

    @property
    def facts(self) -> Mapping[str, str]:
        """Encoder and preprocessing."""
        return {
            "encoder": "radial power spectrum, no weights",
            "preprocessing": (
                "images in [0, 1] less their mean, Hann window; logarithm of the mean power in up "
                f"to {RADIAL_BINS} rings up to 0.5 cycles a pixel"
            ),
        }

    def __call__(self, batch: Floats) -> Features:
        """Return spectra `(n, 32)` of images `(n, 1, X, Y)`.

        Raises:
            RequestError: images of another shape, or not finite.
        """
        return radial_power_spectrum(batch)


@dataclass(frozen=True)
class AutoencoderSpace:
    """Where the autoencoder of a label model places a label map.

    Attributes:
        vae: in eval mode.
        schema: label schema of its maps.
        shape: size (X, Y) of its maps.
        scale: makes latents of unit variance over its training data.
        sha256: of its weights.
    """

    vae: Autoencoder = field(repr=False)
    schema: LabelSchema = field(repr=False)
    shape: tuple[int, int]
    scale: float
    sha256: str
    name: str = field(default="autoencoder", init=False)
    title: str = field(default="label autoencoder", init=False)
    what: What = field(default="labels", init=False)

    @classmethod
    def open(cls, model: Path) -> Self:
        """Load the autoencoder of a label model.

        Args:
            model: folder of the label model; each of its files is checked.

        Raises:
            StoreError: no label model there, or a damaged one.
        """
        folder = read_model_folder(model, "labels")
        with unusable(model, REMEDY), tensor_files():
            name = read_json(model / "vae" / "config.json")["_class_name"]
            if name not in _KINDS:
                raise StoreError(f"{model}: no autoencoder that is known here: {name!r:.60}")
            kind = _KINDS[name]
            sha256, shape = folder.files[_WEIGHTS], read_shape(folder.record)
            vae = load_network(kind, model / "vae")
            scale = float(vae.config.scaling_factor)
        return cls(vae.eval(), folder.schema, shape, scale, sha256)

    @property
    def facts(self) -> Mapping[str, str]:
        """Encoder and preprocessing."""
        return {
            "encoder": f"{type(self.vae).__name__} of a label model",
            "encoder sha256": self.sha256,
            "preprocessing": (
                "PV maps in [0, 1] as they are; mean of the posterior, scaled to unit variance "
                f"(x {self.scale:.6g}), averaged over {GRID[0]} x {GRID[1]} cells"
            ),
        }

    def __call__(self, batch: Floats) -> Features:
        """Return features `(n, Z * 12)` of PV maps `(n, C, X, Y)` in [0, 1].

        Raises:
            SchemaError: another number of channels.
            RequestError: another size, no maps, or values that are not finite.
        """
        expected = (self.schema.channels, *self.shape)
        if batch.ndim == 4 and batch.shape[1] != expected[0]:
            raise SchemaError(
                f"{self.title}: expected PV maps of {expected[0]} channels, got {batch.shape[1]}"
            )
        if batch.shape[1:] != expected or not len(batch):
            raise RequestError(
                f"{self.title}: expected PV maps (n, {expected[0]}, {expected[1]}, {expected[2]}), "
                f"got an array of {batch.shape}"
            )

        def pooled(pv: Tensor) -> Tensor:
            mean = self.vae.encode(pv).latent_dist.mean * self.scale
            return functional.adaptive_avg_pool2d(mean, GRID).flatten(1)

        return _encoded(pooled, torch.from_numpy(batch), self.title)


@dataclass(frozen=True)
class ModuleSpace:
    """An encoder of the user's own, a `torch.export` archive.

    Attributes:
        module: takes images `(n, 1, X, Y)` float32 in [0, 1], returns `(n, d)`.
        file: name of the archive.
        sha256: of the archive.
    """

    module: Callable[[Tensor], Tensor] = field(repr=False)
    file: str
    sha256: str
    name: str = field(default="encoder", init=False)
    what: What = field(default="images", init=False)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Load an archive that `torch.export.save` wrote; no pickle in it is read.

        Args:
            path: a `.pt2` file of a module with one input, `(n, 1, X, Y)` with dynamic n, and one
                output `(n, d)`.

        Raises:
            StoreError: no such file, or one that is not such an archive, see `load_exported`.
        """
        return cls(load_exported(path), path.name, file_digest(path))

    @property
    def title(self) -> str:
        """Names the file."""
        return f"encoder {self.file}"

    @property
    def facts(self) -> Mapping[str, str]:
        """Encoder and preprocessing."""
        return {
            "encoder": self.file,
            "encoder sha256": self.sha256,
            "preprocessing": "images in [0, 1] as they are",
        }

    def __call__(self, batch: Floats) -> Features:
        """Return features `(n, d)` of images `(n, 1, X, Y)` in [0, 1].

        Raises:
            RequestError: images of another shape or not finite, or the encoder does not take them,
                or returns what are no vectors of finite numbers.
        """
        require_images(batch)
        try:
            return _encoded(self._checked, torch.from_numpy(batch), self.title)
        except (RuntimeError, IndexError) as error:
            raise RequestError(
                f"{self.title} does not take images of {batch.shape[2]} x {batch.shape[3]} pixels "
                f"({one_line(error)}); export it for this size, with a dynamic batch size"
            ) from error

    def _checked(self, images: Tensor) -> Tensor:
        """Return the encoder's output, checked before batches are put together."""
        found: object = self.module(images)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise RequestError(
                f"{self.title}: expected features ({len(images)}, d) of {len(images)} slices, "
                f"got {got}"
            )
        return found


def _encoded(encode: Callable[[Tensor], Tensor], inputs: Tensor, encoder: str) -> Features:
    """Return the features of inputs `(n, C, X, Y)`, a few at a time."""
    with torch.inference_mode():
        parts = [
            encode(part.contiguous(memory_format=torch.channels_last)).double()
            for part in torch.split(inputs.float(), _BATCH)
        ]
    return require_features(torch.cat(parts).numpy(), len(inputs), encoder)
