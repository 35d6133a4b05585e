"""Styles of the workspace: Gaussians of style codes, fitted on the user's own images.

One safetensors file each, some kilobytes: `mean`, `factor`, and in its header what the style is
and the digest of the image model whose encoder made the codes. Codes of another model mean
nothing, so a style is refused there. Equal images give equal bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.input_files import is_list_of, parse_json, read_bytes
from synthgen.core.manifest import canonical_json, sealed, unsealed, write_atomic
from synthgen.data.sources import slug
from synthgen.data.style_images import find_images, read_slices
from synthgen.images import Style
from synthgen.models.style_bank import fit_gaussian

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from synthgen.images.spade import SpadePipeline

FORMAT = "synthgen-style/1"
SUFFIX = ".safetensors"

MAX_BYTES = 2**24
"""Largest file of a style: a code of 2000 numbers."""

_BATCH = 16
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError)


@dataclass(frozen=True, eq=False)
class WorkspaceStyle:
    """A style that was fitted on the user's own images.

    Attributes:
        style: its name, data set, modality, subjects, and the digest of its bytes.
        model: digest of the image model that it belongs to.
        num_images: images that it was fitted on.
        num_slices: slices of them that were encoded.
        mean: float32 `(Z,)`.
        factor: float32 `(Z, Z)`, lower Cholesky factor of the covariance.
    """

    style: Style
    model: str
    num_images: int
    num_slices: int
    mean: Tensor
    factor: Tensor

    @property
    def record(self) -> dict[str, str]:
        """Its record in a `StyleBank`."""
        style = self.style
        return {
            "name": style.name,
            "dataset": style.dataset,
            "modality": style.modality,
            "source": style.source,
        }

    def require_model(self, digest: str) -> None:
        """Refuse to work with another image model.

        Raises:
            RequestError: its codes were made by another model's encoder.
        """
        if self.model != digest:
            name = self.style.name
            raise RequestError(
                f"the workspace's style '{name}' was encoded by another image model "
                f"({self.model[:12]}..., this one is {digest[:12]}...); encode it again: "
                f"`synthgen styles add {name} IMAGES... --force`"
            )


def add_style(
    folder: Path,
    pipeline: SpadePipeline,
    name: str,
    images: Sequence[Path],
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> WorkspaceStyle:
    """Encode images, fit a style and write its file, `folder/NAME.safetensors`.

    Args:
        folder: the workspace's folder of styles; created when absent.
        pipeline: the image model, in float32.
        name: `{dataset}_{modality}` in lower case.
        images: NIfTI files and folders of skull-stripped images; see `find_images`.
        force: replace a workspace style of that name.
        progress: called with (images encoded, images in all).

    Raises:
        RequestError: a name of another form, a modality that the model does not know, a style
            that the model has fitted itself, or that stands in `folder` while `force` is False.
        StoreError: unreadable images, images with their skull, or a file that cannot be written.
        GeometryError: volumes that do not fit the model's grid.
    """
    dataset, modality = _parts(name, pipeline.styles)
    path = folder / f"{name}{SUFFIX}"
    if path.exists() and not force:
        raise RequestError(f"{path}: there is this style already; --force replaces it")
    scans = find_images(images, dataset, modality)
    codes: list[Tensor] = []
    for number, scan in enumerate(scans, start=1):
        slices = torch.from_numpy(read_slices(scan, modality, pipeline.shape))
        codes += [encode(pipeline, part) for part in torch.split(slices, _BATCH)]
        if progress:
            progress(number, len(scans))
    stacked = torch.cat(codes)
    mean, factor = fit_gaussian(stacked, name, stacked.shape[1])
    header = {
        "name": name,
        "dataset": dataset,
        "modality": modality,
        "model": pipeline.digest,
        "subjects": sorted({scan.id for scan in scans}),
        "num_images": len(scans),
        "num_slices": len(stacked),
    }
    tensors = {"mean": mean, "factor": factor.contiguous()}
    document = sealed({**header, "values": _digest(tensors)})
    # One key: safetensors writes several in no fixed order.
    content = save(tensors, {FORMAT: canonical_json(document)})
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be created ({error.strerror or error})") from error
    write_atomic(path, content)
    return read_style(path)


@torch.no_grad()
def encode(pipeline: SpadePipeline, slices: Tensor) -> Tensor:
    """Return the mean codes `(N, Z)` of slices `(N, 1, X, Y)` in [-1, 1], on the CPU."""
    encoder = pipeline.style_encoder
    mu: Tensor = encoder(slices.to(device=encoder.device, dtype=encoder.dtype)).mu
    return mu.float().cpu()


def _parts(name: str, styles: Sequence[Style]) -> tuple[str, str]:
    """Return data set and modality of a new style's name."""
    dataset, _, modality = name.rpartition("_")
    if not dataset or dataset != slug(dataset):
        raise RequestError(
            "expected a style name DATASET_MODALITY of lower-case letters, digits and hyphens, "
            f"such as oasis_flair, got '{name}'"
        )
    known = sorted({style.modality for style in styles})
    if modality not in known:
        raise RequestError(
            f"style '{name}': the model knows no modality '{modality}'; there are "
            f"{', '.join(known)}"
        )
    if any(s.name == name and s.source == "fitted" and not s.digest for s in styles):
        raise RequestError(
            f"style '{name}' was fitted in the training of the model itself and stays; "
            "choose another data set's name"
        )
    return dataset, modality


def read_style(path: Path) -> WorkspaceStyle:
    """Read a style's file.

    Raises:
        StoreError: absent, damaged or foreign.
    """
    try:
        return _parse(read_bytes(path, MAX_BYTES), path.name.removesuffix(SUFFIX))
    except (*_DAMAGE, SafetensorError) as error:
        raise StoreError(
            f"{path}: not a style that `synthgen styles add` wrote, or damaged ({error}); "
            "add it again"
        ) from error


def _parse(raw: bytes, name: str) -> WorkspaceStyle:
    size = int.from_bytes(raw[:8], "little")
    header = unsealed(parse_json(parse_json(raw[8 : 8 + size])["__metadata__"][FORMAT]))
    tensors = load(raw)
    if header.get("values", _digest(tensors)) != _digest(tensors):
        raise ValueError("the checksum of its values differs")
    mean, factor = tensors["mean"], tensors["factor"]
    words = [header["dataset"], header["modality"], header["model"], header["subjects"]]
    if not is_list_of(words[:3], str) or not is_list_of(words[3], str):
        raise ValueError("its header holds other values than names")
    if mean.ndim != 1 or factor.shape != 2 * mean.shape or mean.dtype != factor.dtype:
        raise ValueError(f"its tensors have the shapes {(*mean.shape,)} and {(*factor.shape,)}")
    if header["name"] != name:
        raise ValueError(f"it holds the style '{header['name']}'")
    if not bool(torch.isfinite(mean).all() and torch.isfinite(factor).all()):
        raise ValueError("its values are not finite")
    digest, subjects = hashlib.sha256(raw).hexdigest(), tuple(header["subjects"])
    style = Style(name, header["dataset"], header["modality"], "fitted", digest, subjects)
    counts = int(header["num_images"]), int(header["num_slices"])
    return WorkspaceStyle(style, header["model"], *counts, mean, factor)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 hex digest of names, shapes and values."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()
