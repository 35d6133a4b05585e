"""The card of a trained segmenter: what it is, what it saw, its Dice by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from synthgen.segment.use import SegmenterUse

_HEADS = {
    "imgx": """# Segmenter by diffusion over masks (ImgX)

Finds {tissues} in {spatial_dims}-D images ({channels}) of {spacing} mm. Method: Fu et al. 2023,
Importance of aligning training strategy with evaluation for diffusion models in 3D multiclass
segmentation (arXiv:2303.06040), and A recycling training strategy for medical image segmentation
with diffusion denoising models (arXiv:2308.16355); please cite them.""",
    "hidiff": """# Segmenter with a mask that diffusion refines (HiDiff)

Finds {tissues} in {spatial_dims}-D images ({channels}) of {spacing} mm: a segmentor, and a
Bernoulli diffusion that starts from its mask. Method: Chen et al. 2024, HiDiff: Hybrid diffusion
framework for medical image segmentation (IEEE TMI, arXiv:2407.03548); please cite them.""",
}
_REST = """

## Use
`synthgen segment {kind} IMAGES`; images are seen in windows of {window} voxels.

## Training
{training}

## Validation
{validation}

## Real subjects in the training data ({num_subjects})
{subjects}

Do not evaluate on these subjects. "Synthetic" does not mean "private". Not a medical device.
"""


def write_card(
    kind: str, use: SegmenterUse, training: Mapping[str, Any], subjects: Sequence[str]
) -> str:
    """Return the Markdown text of `card.md` of a model of kind "imgx" or "hidiff"."""
    facts = {name: value for name, value in training.items() if name != "validation"}
    names = use.tissues if use.overlapping else use.tissues[1:]
    return (_HEADS[kind] + _REST).format(
        kind=kind,
        tissues=", ".join(names),
        spatial_dims=use.spatial_dims,
        channels=", ".join(use.channels),
        spacing=" x ".join(f"{s:g}" for s in use.spacing_mm),
        window=" x ".join(str(w) for w in use.window),
        training="\n".join(f"- {name}: {value}" for name, value in facts.items()),
        validation=_validation(training.get("validation")),
        subjects="\n".join(f"- {subject}" for subject in subjects),
        num_subjects=len(subjects),
    )


def _validation(scores: Mapping[str, Any] | None) -> str:
    """Return the table of Dice: the segmentor alone or the steps first, the twin below."""
    if scores is None:
        return "Not validated."
    rows, step = {}, "step"
    if "segmentor_dice" in scores:
        rows["segmentor alone"], step = scores["segmentor_dice"], "refined, step"
    rows |= {f"{step} {i}": dice for i, dice in enumerate(scores["dice"], 1)}
    if "twin_dice" in scores:
        rows["supervised twin"] = scores["twin_dice"]
    names = list(scores["dice"][0])
    kind = "real" if scores["real"] else "synthetic"
    lines = [
        f"Dice on {scores['cases']} cases of {scores['data']} ({kind}):",
        "",
        f"| | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row, dice in rows.items():
        cells = ["-" if dice[n] is None else f"{dice[n]:.4f}" for n in names]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)
