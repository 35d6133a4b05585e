"""The SPADE image generator as one model folder: load, check, render.

The networks are those of Fernandez et al. 2022 (arXiv:2209.08256): a SPADE generator paints a
soft label map with a style code. Codes come from a `StyleBank` fitted after training, so that no
real image is needed to render; each sample draws its code from its own key.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from synthgen.core.errors import RequestError, SchemaError
from synthgen.core.input_files import unusable
from synthgen.core.model_folder import (
    RECORD,
    REMEDY,
    read_card,
    read_model_folder,
    write_model_folder,
)
from synthgen.core.rng import SampleKey, Stream
from synthgen.images import Style
from synthgen.models.loading import load_network
from synthgen.models.spade import SPADEGenerator, draw_noise
from synthgen.models.style_bank import StyleBank
from synthgen.models.style_encoder import StyleEncoder
from synthgen.runtime import tensor_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from synthgen.core.schema import LabelSchema
    from synthgen.images.workspace_styles import WorkspaceStyle

KIND = "images"
_COMPONENTS = ("generator", "style_encoder", "style_bank")

_AT_ONCE = 8
"""Maps painted at once on a CPU: 4 take 69 ms each, 8 take 68, 16 take 74."""

DTypeName = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class SpadeRecord:
    """What a model folder says beside its weights (`synthgen.json`).

    Attributes:
        schema: label schema of the maps it paints.
        subjects: real subjects in its training data.
        training: steps, losses, recipe and store fingerprints, for people.
        card: text of `card.md`.
    """

    schema: LabelSchema
    subjects: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""


class SpadePipeline(DiffusionPipeline):  # type: ignore[misc]
    """Paint soft label maps in a fitted style.

    Args:
        generator: SPADE generator; its output lies in [-1, 1].
        style_encoder: image to style code, for adding styles later.
        style_bank: mean and covariance of the codes of each style.
    """

    generator: SPADEGenerator
    style_encoder: StyleEncoder
    style_bank: StyleBank

    def __init__(
        self, generator: SPADEGenerator, style_encoder: StyleEncoder, style_bank: StyleBank
    ) -> None:
        super().__init__()
        self.register_modules(
            generator=generator, style_encoder=style_encoder, style_bank=style_bank
        )
        self._record: SpadeRecord | None = None
        self._digest = ""
        self._own: Mapping[str, Style] = {}

    @property
    def record(self) -> SpadeRecord:
        """Schema, subjects and training facts.

        Raises:
            RequestError: the pipeline was loaded by `from_pretrained`, which does not read them.
        """
        if self._record is None:
            raise RequestError(
                "this pipeline has no label schema; load it with SpadePipeline.load(folder)"
            )
        return self._record

    @property
    def schema(self) -> LabelSchema:
        """The label schema of the maps it paints."""
        return self.record.schema

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects in its training data."""
        return self.record.subjects

    @property
    def shape(self) -> tuple[int, int]:
        """In-plane size (X, Y) of its images."""
        x, y = self.generator.config["shape"]
        return int(x), int(y)

    @property
    def styles(self) -> tuple[Style, ...]:
        """The styles of its bank, workspace styles included."""
        records = self.style_bank.config["styles"]
        return tuple(self._own.get(style["name"]) or Style(**style) for style in records)

    @property
    def digest(self) -> str:
        """Digest of the model's files, to which workspace styles are bound."""
        return self._digest

    def with_styles(self, styles: Sequence[WorkspaceStyle]) -> Self:
        """Return this pipeline, the same networks, with workspace styles in its bank.

        A style replaces one of the same name.

        Raises:
            RequestError: a style whose codes another model's encoder made.
        """
        bank = self.style_bank
        for style in styles:
            style.require_model(self._digest)
            bank = bank.with_gaussian(style.record, style.mean, style.factor)
        pipeline = type(self)(self.generator, self.style_encoder, bank)
        pipeline._record, pipeline._digest = self._record, self._digest
        pipeline._own = {**self._own, **{s.style.name: s.style for s in styles}}
        return pipeline

    @property
    def identity(self) -> Mapping[str, Any]:
        """Digest of the weights, and the precision.

        They and the workspace styles asked for (`Style.digest`) decide an image's bytes.
        """
        return {
            "model": self._digest,
            "dtype": str(self.generator.dtype).removeprefix("torch."),
            "schema": self.schema.fingerprint,
        }

    @torch.no_grad()
    def render(self, pv: Tensor, styles: Sequence[str], keys: Sequence[SampleKey]) -> Tensor:
        """Paint a batch; see `synthgen.images.ImageGenerator.render`.

        A key gives the same deviation from a style's mean whatever other styles are asked for; the
        grain of each style is its own, as in scans of one person.
        """
        self._check_request(pv, styles, keys)
        at_once = _AT_ONCE if self.generator.device.type == "cpu" else len(keys)
        painted = [
            self._painted(pv[start : start + at_once], styles, keys[start : start + at_once])
            for start in range(0, len(keys), at_once)
        ]
        images = torch.cat(painted).add(1).div(2).clamp(0, 1)  # (B, M, X, Y)
        return images.masked_fill(pv[:, :1].cpu() > 0.5, 0.0)

    def _painted(self, pv: Tensor, styles: Sequence[str], keys: Sequence[SampleKey]) -> Tensor:
        """Return images `(B, M, X, Y)` in [-1, 1] on the CPU, what the labels decide done once."""
        dtype, device = self.generator.dtype, self.generator.device
        takes = []
        for style in styles:
            codes = self.style_bank.draw(style, [key.torch(Stream.STYLE) for key in keys])
            noise = None
            if self.generator.grain_bands:
                draws = [_of_style(key, style).torch(Stream.TEXTURE) for key in keys]
                noise = draw_noise(draws, self.shape).to(device)
            takes.append((codes.to(device=device, dtype=dtype), noise))
        labels = pv.to(device).contiguous(memory_format=torch.channels_last)
        painted = [image for image, _ in self.generator.paint(labels, takes)]
        return torch.cat(painted, dim=1).float().cpu()

    def _check_request(self, pv: Tensor, styles: Sequence[str], keys: Sequence[SampleKey]) -> None:
        known = [style.name for style in self.styles]
        unknown = [style for style in styles if style not in known]
        if unknown or not styles:
            asked = f"unknown style '{unknown[0]}'" if unknown else "no style asked for"
            raise RequestError(f"{asked}; this model knows {', '.join(known)}")
        expected = (self.schema.channels, *self.shape)
        if pv.ndim != 4 or tuple(pv.shape[1:]) != expected:
            raise SchemaError(
                f"pv: expected (B, {', '.join(map(str, expected))}) for schema "
                f"'{self.schema.name}', got {tuple(pv.shape)}"
            )
        if len(keys) != pv.shape[0]:
            raise RequestError(f"expected one key per map, got {len(keys)} for {pv.shape[0]}")

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu", dtype: DTypeName = "float32") -> Self:
        """Load a model folder and check every file of it.

        Args:
            folder: what `save` wrote.
            device: where the networks run.
            dtype: "float32", or "bfloat16" (about twice as fast on recent CPUs; images of the
                shipped model differ by 0.2 % of their norm).

        Raises:
            StoreError: not such a folder, or a missing or damaged file, which is named.
        """
        model = read_model_folder(folder, KIND)
        raw = model.record
        with unusable(folder, REMEDY), tensor_files():
            parts: dict[str, Any] = {
                name: load_network(kind, folder / name)
                for name, kind in zip(
                    _COMPONENTS, (SPADEGenerator, StyleEncoder, StyleBank), strict=True
                )
            }
            # Module.to, for diffusers' `to` objects on stderr to any dtype at all.
            torch.nn.Module.to(parts["generator"], device=device, dtype=getattr(torch, dtype))
            parts["generator"].to(memory_format=torch.channels_last)
            parts["style_encoder"].to(device=device)
        pipeline = cls(**{name: part.eval() for name, part in parts.items()})
        with unusable(folder / RECORD, REMEDY):
            pipeline._record = SpadeRecord(
                model.schema, tuple(raw["subjects"]), raw["training"], read_card(folder)
            )
        pipeline._digest = model.digest
        return pipeline

    def save(self, folder: Path, record: SpadeRecord) -> None:
        """Write the model folder whole or not at all; an older one is replaced.

        Raises:
            StoreError: it cannot be written; an older folder stays.
        """
        write_model_folder(
            folder,
            tensor_files()(self.save_pretrained),
            kind=KIND,
            schema=record.schema,
            card=record.card,
            record={"subjects": list(record.subjects), "training": dict(record.training)},
        )


def _of_style(key: SampleKey, style: str) -> SampleKey:
    """Return the key of one style of a sample."""
    return replace(key, attempt=zlib.crc32(f"{key.attempt}/{style}".encode()))
