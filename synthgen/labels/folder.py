"""What the model folder of a label generator holds beside its networks, and its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from synthgen.core.input_files import unusable
from synthgen.core.manifest import digest
from synthgen.core.model_folder import (
    RECORD,
    REMEDY,
    read_model_folder,
    read_shape,
    write_model_folder,
)
from synthgen.labels.condition import CSF, POSITION, ConditionScale
from synthgen.runtime import tensor_files

if TYPE_CHECKING:
    from pathlib import Path

    from synthgen.core.schema import LabelSchema

KIND = "labels"


@dataclass(frozen=True)
class ModelDetails:
    """What a label model is, besides its networks.

    Attributes:
        schema: its label schema.
        shape: size (X, Y) of its maps.
        scale: its conditions.
        subjects: real subjects that it saw in training.
        model: digest of weights and configuration.
        position: lowest and highest slice position in the training data.
    """

    schema: LabelSchema
    shape: tuple[int, int]
    scale: ConditionScale
    subjects: tuple[str, ...]
    model: str = ""
    position: tuple[float, float] = (0.0, 1.0)


def write_model(
    pipeline: Any,  # noqa: ANN401 - a DiffusionPipeline, untyped
    folder: Path,
    details: ModelDetails,
    *,
    training: Mapping[str, Any],
) -> None:
    """Write the model folder; see `write_model_folder`.

    Args:
        pipeline: networks in float32 on the CPU.
        folder: where; an older model there is replaced at the end.
        details: schema, conditions, subjects.
        training: what the card tells of the training, JSON-able.

    Raises:
        StoreError: the folder cannot be written; an older model stays.
    """
    record = {
        "shape": list(details.shape),
        "condition": asdict(details.scale),
        "position": list(details.position),
        "subjects": list(details.subjects),
        "training": dict(training),
    }

    write_model_folder(
        folder,
        tensor_files()(pipeline.save_pretrained),
        kind=KIND,
        schema=details.schema,
        card=_card(details, training),
        record=record,
    )


def read_details(folder: Path) -> ModelDetails:
    """Check a model folder file by file and return its details.

    Raises:
        StoreError: it is no label model, or a file is missing or differs from what was saved.
    """
    model = read_model_folder(folder, KIND)
    raw = model.record
    with unusable(folder / RECORD, REMEDY):
        condition = raw["condition"]
        return ModelDetails(
            schema=model.schema,
            shape=read_shape(raw),
            scale=ConditionScale(
                tuple(condition["names"]),
                tuple(condition["maxima"]),
                tuple(tuple(float(v) for v in curve) for curve in condition.get("csf", ())),
            ),
            subjects=tuple(raw["subjects"]),
            model=digest(
                {"files": dict(model.files), "condition": condition, "shape": raw["shape"]}
            ),
            position=(float(raw["position"][0]), float(raw["position"][1])),
        )


def _card(details: ModelDetails, training: Mapping[str, Any]) -> str:
    """Return the model card: what it makes, from what, and what it must not be used for."""
    seen = [
        f"- {name}: up to {maximum:.4g} of the brain in a slice"
        for name, maximum in zip(details.scale.names, details.scale.maxima, strict=True)
        if name in details.schema.lesions
    ]
    lines = [
        f"# Label generator `{training.get('recipe', {}).get('name', 'labels')}`",
        "",
        (f"Draws axial partial-volume maps of {details.shape[0]} x {details.shape[1]} pixels with "
        f"{details.schema.channels} tissues: {', '.join(details.schema.names)}."),
        "Method: latent diffusion after Fernandez et al. 2022, arXiv:2209.08256.",
        *_distilled(training),
        "",
        "## Conditions",
        *(seen or ["- no lesions"]),
        *(["- CSF: rank of its share of the brain at that slice position, 0 least, 1 most"]
          if CSF in details.scale.names else []),
        *(["- slice position, 0 at the foot of the brain, 1 at its top"]
          if POSITION in details.scale.names else []),
        "",
        "## Training data",
        (f"{training.get('num_slices', '?')} slices of {len(details.subjects)} subjects. These "
        "subjects must not be test subjects of anything trained on this model's output:"),
        "",
        ", ".join(details.subjects),
        "",
        "## Training",
        *_losses("autoencoder", training),
        *_losses("diffusion", training),
        *_losses("distillation", training),
        "",
        "## Limits",
        ("Synthetic is not a synonym of private: a diffusion model can memorise training anatomy. "
        "Not for diagnosis."),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _distilled(training: Mapping[str, Any]) -> Sequence[str]:
    teacher = training.get("teacher")
    if not isinstance(teacher, Mapping):
        return []
    model, guidance = str(teacher["model"])[:16], f"{teacher['guidance']:g}"
    if training["recipe"]["distil"]["kind"] == "guidance":
        return [
            (
                f"Guidance of {guidance} folded in from the model {model} (Meng et al. 2023, "
                "arXiv:2210.03142): one network call a step; any other guidance takes two. What "
                "follows tells of both."
            )
        ]
    return [
        (
            f"Distilled from the model {model}: it jumps to where {teacher['steps']} steps of "
            f"'{teacher['sampler']}' with guidance {guidance} lead; other samplers, steps and "
            "guidance are refused. What follows tells of both."
        )
    ]


def _losses(stage: str, training: Mapping[str, Any]) -> Sequence[str]:
    report = training.get(stage)
    if not isinstance(report, Mapping):
        return []
    values = ", ".join(f"{k} {v:.4g}" for k, v in report.get("losses", {}).items())
    return [
        (
            f"- {stage}: {report.get('steps')} steps, {report.get('parameters')} parameters; "
            f"last losses: {values}"
        )
    ]
