"""The card of a trained image generator: what it is, what it saw, how well it fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from synthgen.recipe.images import ImageRecipe

_TEMPLATE = """# Image generator (SPADE)

Paints soft brain label maps in a fitted style. Method: Fernandez et al. 2022 (arXiv:2209.08256),
with the losses of Fernandez et al. 2024 (doi:10.1016/j.media.2024.103278); please cite them.

## Styles
{styles}

Style codes are drawn from a Gaussian fitted to the codes of the training images. For a simulated
style these were moved to the protocol named above by the MR signal equations: it has the tissue
contrast of that data set as physics predicts it, but nothing else of its scanner. Replace it with
one fitted on images: `synthgen styles add`.

## Training
{training}

Losses and weights: {losses}.

## Real subjects in the training data ({num_subjects})
{subjects}

Do not evaluate on these subjects. Images are drawn from a model of few real people: "synthetic"
does not mean "private". Not a medical device.
"""


def write_card(
    styles: Sequence[Mapping[str, str]],
    subjects: Sequence[str],
    training: Mapping[str, Any],
    recipe: ImageRecipe,
) -> str:
    """Return the Markdown text of `card.md`."""
    losses = {k: v for k, v in recipe.losses.model_dump().items() if v}
    losses.pop("slice_consistency_from", None)
    told = {protocol.style: f": {protocol.source}" for protocol in recipe.protocol_styles}
    return _TEMPLATE.format(
        styles="\n".join(
            f"- `{s['name']}` ({s['source']}{told.get(s['name'], '')})" for s in styles
        ),
        training="\n".join(f"- {name}: {value}" for name, value in training.items()),
        losses=", ".join(f"{name} {weight:g}" for name, weight in losses.items()),
        subjects="\n".join(f"- {subject}" for subject in subjects),
        num_subjects=len(subjects),
    )
