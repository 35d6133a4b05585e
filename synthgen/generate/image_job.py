"""The job that paints label maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch

from synthgen.core.errors import RequestError, SchemaError
from synthgen.core.rng import SampleKey
from synthgen.data.shards import Arrays, Shards, dataset_digest
from synthgen.generate.jobs import GenerationSettings, common_identity
from synthgen.generate.label_job import require_complete_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from synthgen.core.schema import LabelSchema
    from synthgen.images import ImageGenerator, Style

WORKSPACE_STYLES = "workspace_styles"


@runtime_checkable
class _OpenStyles(Protocol):
    """An image generator that makes a style from any name of the right form."""

    def style(self, name: str) -> Style:
        """Return the style of a name, or raise RequestError."""


@dataclass(frozen=True)
class ImageJob:
    """Paint a dataset of labels: sample i is take `i % per_label` of label `i // per_label`.

    Attributes:
        generator: paints the maps.
        styles: style names, one image each.
        n: number of samples that have a label; indices past it only pad a batch.
        fetch: gives label rows, as stored, for label indices.
        labels: digest of the dataset of labels.
        condition_names: columns of the labels' `condition`.
        ancestors: real subjects behind the labels.
        per_label: images made from one label.
        settings: seed, sizes, threads, worker.
    """

    generator: ImageGenerator
    styles: Sequence[str]
    n: int
    fetch: Callable[[Sequence[int]], Arrays]
    labels: str
    condition_names: Sequence[str]
    ancestors: Sequence[str] = ()
    per_label: int = 1
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    kind: str = "images"

    def __post_init__(self) -> None:
        if not self.styles:
            known = ", ".join(style.name for style in self.generator.styles)
            raise RequestError(f"no style was asked for; there are {known}")
        for name in self.styles:
            _require_style(self.generator, name)
        if len(set(self.styles)) != len(self.styles):
            raise RequestError(f"a style stands twice: {', '.join(self.styles)}")
        if self.per_label < 1:
            raise RequestError(f"per-label must be at least 1, got {self.per_label}")

    @classmethod
    def of(
        cls,
        generator: ImageGenerator,
        labels: Shards,
        styles: Sequence[str],
        *,
        per_label: int = 1,
        settings: GenerationSettings | None = None,
    ) -> ImageJob:
        """Paint every map of a complete dataset of labels.

        Raises:
            StoreError: shards of the labels are missing.
            SchemaError: the generator paints maps of another schema.
            RequestError: no dataset of labels, an unknown style, a number below 1.
        """
        require_complete_labels(labels)
        generator.schema.require_same(labels.schema, str(labels.folder))
        return cls(
            generator,
            tuple(styles),
            len(labels) * per_label,
            labels.raw,
            dataset_digest("labels", labels.manifest.identity),
            labels.condition_names,
            tuple(labels.manifest.subjects),
            per_label,
            settings or GenerationSettings(),
        )

    @property
    def schema(self) -> LabelSchema:
        """Label schema of the generator."""
        return self.generator.schema

    @property
    def subjects(self) -> Sequence[str]:
        """Real subjects that the generator, its styles or the generator of the labels saw."""
        own = [subject for style in self._workspace_styles for subject in style.subjects]
        return sorted({*self.generator.subjects, *own, *self.ancestors})

    @property
    def identity(self) -> dict[str, Any]:
        """Settings, generator, styles (with the digest of workspace styles), labels."""
        own = {style.name: style.digest for style in self._workspace_styles}
        return common_identity(self.settings, self.schema, self.generator.identity) | {
            "styles": list(self.styles),
            **({WORKSPACE_STYLES: own} if own else {}),
            "per_label": self.per_label,
            "labels": self.labels,
        }

    @property
    def _workspace_styles(self) -> list[Style]:
        """The styles asked for that are not the model's own."""
        return [s for s in self.generator.styles if s.digest and s.name in self.styles]

    def rows(self, batch: range) -> Arrays:
        """Compute one full batch of images, with the label rows they show.

        Raises:
            SchemaError: the generator returned values out of range or outside the brain.
        """
        label_index = [min(index, self.n - 1) // self.per_label for index in batch]
        labels = self.fetch(label_index)
        pv = torch.from_numpy(labels["pv"].astype(np.float32) / np.float32(255))
        keys = [SampleKey(self.settings.seed, index) for index in batch]
        drawn = self.generator.render(pv, self.styles, keys).numpy()
        expected = (len(batch), len(self.styles), *pv.shape[2:])
        if drawn.shape != expected or not ((drawn >= 0) & (drawn <= 1)).all():
            raise SchemaError(
                f"image generator, samples from {batch.start}: expected finite values in [0, 1] "
                f"of shape {expected}, got {drawn.min():g} .. {drawn.max():g} of {drawn.shape}"
            )
        if drawn.max(axis=1, keepdims=True)[pv[:, :1].numpy() > 0.5].any():
            raise SchemaError(
                f"image generator, samples from {batch.start}: images are not exactly 0 where "
                "background exceeds one half"
            )
        return {
            "pv": labels["pv"],
            "images": drawn.astype(np.float16),
            "index": np.arange(batch.start, batch.stop, dtype=np.int64),
            "label_index": np.asarray(label_index, dtype=np.int64),
            "attempt": labels["attempt"],
            "condition": labels["condition"],
            "realised": labels["realised"],
        }


def _require_style(generator: ImageGenerator, name: str) -> None:
    if isinstance(generator, _OpenStyles):
        generator.style(name)
        return
    known = [style.name for style in generator.styles]
    if name not in known:
        raise RequestError(f"unknown style '{name}'; there are {', '.join(known)}")
