"""The card of a trained DARL model: what it is, what it saw, how to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from synthgen.images.angiogram.sources import TrainingData
    from synthgen.recipe.angiograms import AngiogramRecipe

_TEMPLATE = """# Angiogram generator and one-step segmenter (DARL)

Paints drawn vessel trees on vessel-free pictures, and finds vessels in angiograms in one forward
pass. Trained without manual labels. Method: Kim et al. 2023, Diffusion adversarial representation
learning for self-supervised vessel segmentation (arXiv:2209.14566); please cite them.

## Use
- paints {shape[0]} x {shape[1]} pixels: `synthgen angiograms --renderer darl`
- finds vessels: `synthgen segment darl IMAGES`; pictures {scale}, seen as {segment}

## Training
{training}

Losses and weights: {losses}.

## What is inside
Weights, and {num_backgrounds} pictures without vessels, {origin}, on which it paints. They show
real people, named below; a photograph of the fundus can identify its owner.

## Real subjects in the training data ({num_subjects})
{subjects}

Do not evaluate on these subjects. "Synthetic" does not mean "private". Not a medical device.
"""

_ORIGIN = {
    "pool": "taken before contrast agent or chosen as free of vessels",
    "self": "made from angiograms by removing their vessels",
    "inpainted": "made from angiograms by removing their vessels",
}


def write_card(data: TrainingData, training: Mapping[str, Any], recipe: AngiogramRecipe) -> str:
    """Return the Markdown text of `card.md`."""
    losses = {
        name: weight
        for name, weight in recipe.losses.model_dump().items()
        if name not in ("cldice_iterations", "ramp_from", "ramp", "background_margin")
        and name not in ("cycle_kind", "pair_pictures")
        and weight
    }
    source = recipe.data
    scale = "at their own scale"
    if source.side is not None:
        scale = f"with their longer side shrunk to {source.side} px"
    if source.field_diameter is not None:
        scale = f"with their round field of view shrunk to {source.field_diameter:g} px"
    return _TEMPLATE.format(
        shape=data.shape,
        scale=scale,
        segment=f"{recipe.use.segment} (trained on squares of {source.crop} px)",
        training="\n".join(f"- {name}: {value}" for name, value in training.items()),
        losses=", ".join(f"{name} {weight:g}" for name, weight in losses.items()),
        num_backgrounds=len(data.backgrounds),
        origin=_ORIGIN[source.background],
        subjects="\n".join(f"- {subject}" for subject in data.subjects),
        num_subjects=len(data.subjects),
    )
