"""The teacher's trajectories: where its own sampler leads from drawn noise and conditions.

A deterministic sampler is a function of noise and condition, so a student needs no training data:
it learns from draws of the teacher, computed once and cached. Conditions cover all that the
teacher was trained on.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from synthgen.core.rng import SampleKey, Stream
from synthgen.diffusion.sampling import guided, sample, seeded_noise
from synthgen.diffusion.schedule import build_sampler
from synthgen.labels import ConditionRange, LabelCondition
from synthgen.labels.cache import load_tensors, save_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from synthgen.labels.generator import DiffusionLabelGenerator
    from synthgen.recipe.distil import StudentRecipe

logger = logging.getLogger(__name__)
_CHUNK = 16
_FILE = 64


@dataclass(frozen=True)
class Trajectories:
    """N draws of a teacher at some of its states.

    Attributes:
        values: scaled conditions `(N, V)` float32.
        states: `(N, K, Z, X, Y)` float16, in the order of sampling.
    """

    values: torch.Tensor
    states: torch.Tensor


def draw_condition(known: ConditionRange, key: SampleKey, lesion_free: float) -> LabelCondition:
    """Draw a condition; a pure function of its key.

    Position and CSF rank are uniform. A lesion is absent with probability `lesion_free`; else its
    share is the largest one times the square of a uniform number, so that the scaled value is
    uniform and small lesions are not rare.
    """
    rng = key.numpy(Stream.CONDITION)
    position = float(rng.uniform(*known.position))
    csf = None if known.csf is None else float(rng.uniform(*known.csf))
    lesions = {}
    for name in sorted(known.lesions):
        absent, root = rng.random() < lesion_free, rng.random()
        lesions[name] = 0.0 if absent else float(known.lesions[name][1] * root**2)
    return LabelCondition(lesions, position, csf)


def draw_values(
    teacher: DiffusionLabelGenerator, keys: Sequence[SampleKey], lesion_free: float
) -> torch.Tensor:
    """Return the scaled conditions `(B, V)` of keys."""
    known = teacher.conditions
    return teacher.details.scale.encode([draw_condition(known, key, lesion_free) for key in keys])


def teacher_trajectories(
    teacher: DiffusionLabelGenerator,
    recipe: StudentRecipe,
    knots: Sequence[int],
    folder: Path,
    identity: str,
) -> Trajectories:
    """Return `recipe.trajectories` draws of the teacher, those that `folder` holds from there.

    Args:
        teacher: draws with its own sampler, steps and guidance.
        recipe: what to draw.
        knots: which states to keep.
        folder: written file by file, so that a killed run loses little.
        identity: digest of what decides the draws; files of another one are replaced.

    Raises:
        StoreError: a file cannot be written.
    """
    parts = []
    for start in range(0, recipe.trajectories, _FILE):
        count = min(_FILE, recipe.trajectories - start)
        keys = [SampleKey(recipe.train.seed, start + i) for i in range(count)]
        path = folder / f"{start // _FILE:05d}.safetensors"
        part = load_tensors(path, ("values", "states"), f"{identity}/{count}")
        if part is None:
            part = _drawn(teacher, recipe, knots, keys)
            save_tensors(path, part, f"{identity}/{count}")
            logger.info("teacher: %d of %d trajectories", start + count, recipe.trajectories)
        parts.append(part)
    return Trajectories(*(torch.cat([part[k] for part in parts]) for k in ("values", "states")))


def _drawn(
    teacher: DiffusionLabelGenerator,
    recipe: StudentRecipe,
    knots: Sequence[int],
    keys: Sequence[SampleKey],
) -> dict[str, torch.Tensor]:
    values = draw_values(teacher, keys, recipe.lesion_free)
    states = [
        follow(teacher, values[i : i + _CHUNK], keys[i : i + _CHUNK], knots)
        for i in range(0, len(keys), _CHUNK)
    ]
    return {"values": values, "states": torch.cat(states).half().cpu()}


@torch.inference_mode()
def follow(
    teacher: DiffusionLabelGenerator,
    values: torch.Tensor,
    keys: Sequence[SampleKey],
    knots: Sequence[int],
) -> torch.Tensor:
    """Draw latents and return the states `(B, K, Z, X, Y)` float32 at K steps `knots`.

    Args:
        teacher: draws with its own sampler, steps and guidance.
        values: scaled conditions `(B, V)`.
        keys: B keys; the noise is that of the teacher's own samples of these keys.
        knots: 0 is the noise, the number of steps the clean latents.
    """
    pipeline = teacher.pipeline
    config, unet = pipeline.config, pipeline.unet
    visited: list[torch.Tensor] = []
    denoise = guided(pipeline.predictor(values), pipeline.strength())

    def remembering(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        visited.append(x_t)
        return denoise(x_t, t)

    generators = [key.torch(Stream.NOISE) for key in keys]
    noise = seeded_noise(generators, (unet.config.out_channels, *config.latent_size), unet.device)
    sampler = build_sampler(config.sampler, pipeline.scheduler)
    visited.append(sample(remembering, sampler, config.num_inference_steps, noise, generators))
    return torch.stack([visited[knot] for knot in knots], dim=1)
