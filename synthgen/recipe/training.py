"""What every training of a recipe says, whatever it trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from synthgen.recipe.base import Count, Probability, Steps, Strict, Weight

Tracker = Literal[
    "aim",
    "clearml",
    "comet_ml",
    "dvclive",
    "mlflow",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
]
"""accelerate's names of experiment trackers."""


class TrainingRecipe(Strict):
    """Batches, Adam, precision and bookkeeping.

    `trackers` says where else losses go, beside `losses.jsonl`; it may change when a run resumes.
    """

    batch_size: Count
    accumulation: Count
    betas: tuple[Probability, Probability]
    clip_norm: Weight
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    precision: Literal["fp32", "bf16", "fp16"]
    log_every: Count
    sheet_every: Steps
    checkpoint_every: Count
    keep: Count
    trackers: tuple[Tracker, ...]
    seed: Annotated[int, Field(ge=0)]
