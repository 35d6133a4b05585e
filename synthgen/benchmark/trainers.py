"""Trainers of a benchmark that read a section of a recipe: ImgX and HiDiff."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.benchmark.arms import Arm
    from synthgen.benchmark.spec import Request

SEGMENTERS = ("imgx", "hidiff")


def trainer_settings(request: Request, arms: Sequence[Arm]) -> dict[str, Any]:
    """Return the section of the recipe that a segmenter is trained by, as plain data.

    Its tissues are the benchmark's. Other trainers have none: {}.

    Raises:
        RequestError: a recipe without that section, or for volumes; or an arm that changes its
            data on the way.
    """
    trainer = request.trainer
    if trainer not in SEGMENTERS:
        return {}
    staged = [arm.name for arm in arms if len(arm.stages) > 1]
    if staged:
        raise RequestError(
            f"--train {staged[0]}: --trainer {trainer} sees one mixture of cases from first to "
            "last; take nnunet or proxy"
        )
    section = getattr(request.recipe, trainer, None)
    if section is None or section.data.spatial_dims != 2:
        raise RequestError(
            f"--trainer {trainer}: expected a recipe with a section '{trainer}' for 2-D images"
        )
    settings: dict[str, Any] = section.model_dump(mode="json")
    settings["data"] |= {"tissues": list(request.tissues), "modalities": []}
    return settings
