"""The quality report: labels, fidelity, agreement, style and diversity of a generated set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from synthgen.core.errors import RequestError
from synthgen.core.input_files import unusable
from synthgen.core.manifest import provenance
from synthgen.core.model_folder import REMEDY, read_model_folder
from synthgen.core.rng import SampleKey
from synthgen.evaluate.agreement import agreement_section
from synthgen.evaluate.diversity import diversity_section
from synthgen.evaluate.feature_spaces import (
    AutoencoderSpace,
    ClassifierSpace,
    ModuleSpace,
    SpectrumSpace,
)
from synthgen.evaluate.fidelity_section import fidelity_section
from synthgen.evaluate.judge_training import judges_for
from synthgen.evaluate.label_section import labels_section
from synthgen.evaluate.metric import Section
from synthgen.evaluate.plots import contact_sheets
from synthgen.evaluate.report import Report, facts_of_metrics
from synthgen.evaluate.selection import REAL_SHARE, draw, require_disjoint, require_evaluable
from synthgen.evaluate.sets import joined
from synthgen.evaluate.style_section import StyleCodes, style_section
from synthgen.models.loading import load_network
from synthgen.models.style_encoder import StyleEncoder
from synthgen.runtime import tensor_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from synthgen.core.schema import LabelSchema
    from synthgen.evaluate.features import FeatureSpace
    from synthgen.evaluate.judge_networks import JudgeSettings
    from synthgen.evaluate.judges import Judges
    from synthgen.evaluate.sets import SliceSet

N_MAX = 2000
"""Most generated slices that are measured."""

_LABELS, _FIDELITY, _AGREEMENT, _STYLE, _DIVERSITY, _JUDGES, _SHEETS = range(10, 17)
_BATCH = 32
_NOTHING = "Nothing could be measured."


@dataclass(frozen=True)
class QualitySettings:
    """How to evaluate.

    Attributes:
        seed: decides which slices are drawn, how subjects are split, and the judges.
        n_max: most generated slices; of the real ones a quarter as many.
        judges: folder where judges are kept between runs.
        judge_settings: how they are trained.
        label_model: label model whose autoencoder gives features, if there is one.
        image_model: image model whose style codes are probed, if there is one.
        encoder: a feature encoder of the user's own, a `torch.export` file.
    """

    judges: Path
    seed: int = 0
    n_max: int = N_MAX
    judge_settings: JudgeSettings | None = None
    label_model: Path | None = None
    image_model: Path | None = None
    encoder: Path | None = None

    def __post_init__(self) -> None:
        if self.n_max < REAL_SHARE:
            raise RequestError(f"n_max must be at least {REAL_SHARE}, got {self.n_max}")


def evaluate_quality(
    synthetic: SliceSet,
    real: SliceSet,
    holdout: SliceSet | None,
    settings: QualitySettings,
    *,
    facts: Sequence[tuple[str, str]] = (),
    progress: Callable[[str], None] = lambda _line: None,
) -> Report:
    """Compare a generated set with real data.

    Args:
        synthetic: the generated set, of labels or with images.
        real: real slices, usually those that the models were trained on. The judges are trained
            on their images.
        holdout: real slices of other subjects, on which the judges are tested.
        settings: how.
        facts: provenance of the sets, for the report.
        progress: called with what is being done.

    Raises:
        RequestError: an empty set, or no modality in common.
        SchemaError: different label schemas.
        GeometryError: different slice sizes.
        LeakageError: `holdout` shares subjects with `real` or the models behind `synthetic`.
        StoreError: a label model or encoder of the settings cannot be read.
    """
    require_evaluable(synthetic, real)
    if holdout is not None:
        require_evaluable(synthetic, holdout)
        require_disjoint(real, holdout, [synthetic])
    work = _Work.of(synthetic, real, holdout, settings, progress)
    sections = []
    for name, title, build in work.plan():
        progress(title)
        try:
            sections.append(build())
        except RequestError as error:
            sections.append(Section(name, title, _NOTHING, refused=(f"{title}: {error}",)))
    progress("Contact sheets")
    sheets = contact_sheets(work.synthetic, work.painted or work.real, work.key(_SHEETS))
    metrics = [metric for section in sections for metric in section.metrics]
    return Report(
        "quality",
        f"Quality of {synthetic.name}",
        tuple(sections),
        sheets,
        (
            *facts,
            ("measured", work.measured()),
            ("seed of the evaluation", str(settings.seed)),
            *facts_of_metrics(metrics),
            *provenance().items(),
        ),
        tuple(work.notes()),
    )


@dataclass
class _Work:
    """The sets as they are measured, and the judges once they are needed.

    Attributes:
        synthetic: the generated slices that are measured.
        real: real slices of all people, held out or not, with or without images.
        painted: the same, but each slice has an image; None if there are none.
        held: holdout slices with images; None if there are none.
        source: the real slices that are not held out, all of them, to train judges on.
        total: number of generated slices there are.
        encoders: feature spaces of the settings' files, opened before anything is measured.
    """

    synthetic: SliceSet
    real: SliceSet
    painted: SliceSet | None
    held: SliceSet | None
    source: SliceSet
    total: int
    encoders: tuple[FeatureSpace, ...]
    settings: QualitySettings
    progress: Callable[[str], None]

    @classmethod
    def of(
        cls,
        synthetic: SliceSet,
        real: SliceSet,
        holdout: SliceSet | None,
        settings: QualitySettings,
        progress: Callable[[str], None],
    ) -> Self:
        """Draw what is measured."""
        few = settings.n_max // REAL_SHARE
        people = real if holdout is None else joined(real, holdout)

        def drawn(whole: SliceSet, count: int, number: int, *, imaged: bool) -> SliceSet:
            return whole.take(draw(whole, count, SampleKey(settings.seed, number), imaged=imaged))

        return cls(
            drawn(synthetic, settings.n_max, 0, imaged=False),
            drawn(people, few, 1, imaged=False),
            drawn(people, few, 2, imaged=True) if len(people.images.slices) else None,
            drawn(holdout, few, 3, imaged=True)
            if holdout is not None and len(holdout.images.slices)
            else None,
            real,
            len(synthetic),
            _encoders(settings, synthetic.schema),
            settings,
            progress,
        )

    def key(self, number: int) -> SampleKey:
        """Return the key of one step."""
        return SampleKey(self.settings.seed, number)

    def plan(self) -> list[tuple[str, str, Callable[[], Section]]]:
        """Return name, title and function of each section."""
        sections: list[tuple[str, str, Callable[[], Section]]] = [
            ("labels", "Label maps", self._labels)
        ]
        if self._has_images or any(space.what == "labels" for space in self.encoders):
            sections.append(("fidelity", "Fidelity", self._fidelity))
        if self._has_images:
            sections += [
                ("agreement", "Agreement of image and label", self._agreement),
                ("style", "Style", self._style),
            ]
        return [*sections, ("diversity", "Diversity", self._diversity)]

    @property
    def _has_images(self) -> bool:
        return len(self.synthetic.images.slices) > 0 and self.painted is not None

    @cached_property
    def judges(self) -> Judges:
        """Trained on all real images, or as an earlier run left them."""
        self.progress("Judges: trained on the real images unless an earlier run left them")
        return judges_for(
            self.source, self.settings.judges, self.key(_JUDGES), self.settings.judge_settings
        )

    def measured(self) -> str:
        """Return what was measured, in words."""
        text = f"{len(self.synthetic)} of {self.total} generated slices, {len(self.real)} real ones"
        if self.painted is not None:
            text += f", {len(self.painted)} real ones with images"
        if self.held is not None:
            text += f", {len(self.held)} of the holdout"
        return text

    def notes(self) -> list[str]:
        """Return remarks for the top of the report."""
        notes = []
        if len(self.synthetic) < self.total:
            notes.append(
                f"{len(self.synthetic)} of {self.total} generated slices were drawn and measured."
            )
        if not len(self.synthetic.images.slices):
            notes.append("The dataset has no images: only its label maps were measured.")
        elif self.painted is None:
            notes.append("The real data have no images: only label maps were measured.")
        alone = [
            style
            for style, modality in sorted(
                {*zip(self.synthetic.images.style, self.synthetic.images.modality, strict=True)}
            )
            if self.painted is not None and modality not in self.painted.modalities
        ]
        if alone:
            notes.append(f"No real images of the modality of {', '.join(alone)}: not measured.")
        label_model = self.settings.label_model
        if label_model and not any(isinstance(e, AutoencoderSpace) for e in self.encoders):
            notes.append(
                f"{label_model} is a label model of another schema: its features were not measured."
            )
        return notes

    def _labels(self) -> Section:
        return labels_section(self.synthetic, self.real, key=self.key(_LABELS))

    def _fidelity(self) -> Section:
        """Compare images with painted slices, and label maps with all of them."""
        key, parts = self.key(_FIDELITY), []
        for what, real in (("images", self.painted), ("labels", self.real)):
            spaces = [space for space in self.encoders if space.what == what]
            if what == "images" and self._has_images:
                spaces = [ClassifierSpace(self.judges), SpectrumSpace(), *spaces]
            if real is not None and (self._has_images or what == "labels"):
                parts.append(fidelity_section(self.synthetic, real, spaces=spaces, key=key))
        return replace(
            parts[0],
            metrics=tuple(metric for part in parts for metric in part.metrics),
            figures=tuple(figure for part in parts for figure in part.figures),
            refused=tuple(line for part in parts for line in part.refused),
        )

    def _agreement(self) -> Section:
        if self.held is None:
            raise RequestError(
                "needs real images of subjects that the judge never saw; name some with --holdout"
            )
        return agreement_section(
            self.synthetic, self.held, segmenter=self.judges, key=self.key(_AGREEMENT)
        )

    def _style(self) -> Section:
        model = self.settings.image_model
        return style_section(
            self.synthetic,
            self._painted(),
            key=self.key(_STYLE),
            classifier=self.judges.classify if self.held is not None else None,
            holdout=self.held,
            codes=None if model is None else style_codes(model, self._painted()),
        )

    def _diversity(self) -> Section:
        return diversity_section(self.synthetic, self.real, key=self.key(_DIVERSITY))

    def _painted(self) -> SliceSet:
        if self.painted is None:
            raise RequestError("the real data have no images")
        return self.painted


def _encoders(settings: QualitySettings, schema: LabelSchema) -> tuple[FeatureSpace, ...]:
    """Open the settings' encoders; a label model of another schema is left out, see `notes`."""
    spaces: list[FeatureSpace] = []
    if settings.label_model is not None:
        autoencoder = AutoencoderSpace.open(settings.label_model)
        if autoencoder.schema.fingerprint == schema.fingerprint:
            spaces.append(autoencoder)
    if settings.encoder is not None:
        spaces.append(ModuleSpace.open(settings.encoder))
    return tuple(spaces)


def style_codes(model: Path, real: SliceSet) -> StyleCodes:
    """Return the codes that an image model's style encoder gives real images.

    Args:
        model: folder of the image model.
        real: real slices with images.

    Raises:
        StoreError: no image model there, or a damaged one.
    """
    read_model_folder(model, "images")
    with unusable(model, REMEDY), tensor_files():
        encoder = load_network(StyleEncoder, model / "style_encoder").eval()
    rows = np.arange(len(real.images.slices))
    with torch.inference_mode():
        codes = [
            encoder(2 * torch.from_numpy(real.image(rows[start : start + _BATCH])) - 1).mu
            for start in range(0, len(rows), _BATCH)
        ]
    return StyleCodes(
        torch.cat(codes).double().numpy(),
        real.image_subjects(),
        real.table.position[real.images.slices],
        real.images.style,
    )
