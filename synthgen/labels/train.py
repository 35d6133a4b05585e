"""Train the label generator: autoencoder, latent cache, latent diffusion, saved pipeline."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file

from synthgen.core.errors import RecipeError, StoreError
from synthgen.core.input_files import read_json
from synthgen.core.manifest import (
    digest,
    file_digest,
    require_digest,
    sealed,
    sweep,
    unsealed,
    write_atomic,
)
from synthgen.core.workspace import default_run_dir
from synthgen.data.augment import PvAugment
from synthgen.data.loaders import LabelBatch, LabelBatches
from synthgen.data.store import TrainingStore
from synthgen.diffusion.schedule import build_training_scheduler
from synthgen.labels.build import (
    build_autoencoder,
    build_condition,
    build_unet,
    condition_names,
    num_parameters,
)
from synthgen.labels.condition import CSF, ConditionScale
from synthgen.labels.diffusion import LabelDiffusionPipeline
from synthgen.labels.folder import ModelDetails, write_model
from synthgen.labels.latents import (
    LatentBatches,
    LatentCache,
    encode_slices,
    load_cache,
    save_cache,
)
from synthgen.labels.train_autoencoder import AutoencoderStep
from synthgen.labels.train_diffusion import DiffusionStep
from synthgen.runtime import build_accelerator, place, tensor_files, worker
from synthgen.training.log import read_losses
from synthgen.training.loop import LoopSettings, made_ahead, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from accelerate import Accelerator
    from diffusers import ModelMixin

    from synthgen.core.schema import LabelSchema
    from synthgen.recipe import Recipe
    from synthgen.recipe.labels import LabelRecipe, TrainRecipe

logger = logging.getLogger(__name__)
PREVIEW = 8
AUTOENCODER_SHARE = 0.45
REPORT_WINDOW = 50
_DONE = "done.json"


@dataclass(frozen=True)
class TrainPlan:
    """What stays the same over both trainings of one label generator."""

    recipe: LabelRecipe
    store: TrainingStore
    run_dir: Path
    resume: bool
    max_minutes: float | None

    def identity(self, stage: Literal["autoencoder", "diffusion"]) -> str:
        """Return the digest of what decides a stage's losses."""
        free = {"train": {"trackers"}}
        recipe = self.recipe.model_dump(
            mode="json", exclude={"autoencoder": free, "diffusion": free}
        )
        keys = ["autoencoder", "augment", "lesion_share"]
        keys += ["diffusion"] if stage == "diffusion" else []
        return digest({"data": self.store.fingerprint} | {k: recipe[k] for k in keys})[:16]


@dataclass(frozen=True)
class TrainedDiffusion:
    """A trained pipeline, its condition scale, and how many steps it took."""

    pipeline: LabelDiffusionPipeline
    scale: ConditionScale
    steps: int


def train_autoencoder(plan: TrainPlan) -> ModelMixin:
    """Train the autoencoder and return it with its moving-average weights, in eval mode.

    The result is kept in `autoencoder/result`; a resumed run takes it from there.
    """
    recipe, train = plan.recipe.autoencoder, plan.recipe.autoencoder.train
    run_dir = plan.run_dir / "autoencoder"
    vae = build_autoencoder(recipe, plan.store.schema.channels, train.seed)
    result, identity = run_dir / "result", plan.identity("autoencoder")
    if plan.resume and _restore(vae, result, identity):
        return vae.eval().requires_grad_(False)
    accelerator = build_accelerator(train.precision, train.accumulation, train.trackers, run_dir)
    batches = label_batches(plan, train)
    with made_ahead(batches, run_dir, accelerator, resume=plan.resume) as ahead:
        step = AutoencoderStep(
            vae, recipe, plan.store.schema, ahead, preview_batch(plan), accelerator
        )
        settings = LoopSettings.of(
            train, train.steps, identity=identity, max_minutes=plan.max_minutes
        )
        steps = run(step, settings, run_dir, accelerator, plan.resume)
    step.ema["vae"].copy_to(vae.parameters())
    vae = vae.eval().requires_grad_(False).cpu()
    if accelerator.is_main_process:
        _keep(vae, result, {"identity": identity, "steps": steps})
    accelerator.wait_for_everyone()
    return vae


def _keep(vae: ModelMixin, result: Path, done: Mapping[str, Any]) -> None:
    """Write the weights of a finished training, then the file that says so."""
    sweep(result, ".*.tmp")
    try:
        with tensor_files():
            vae.save_pretrained(result)
    except OSError as error:
        raise StoreError(
            f"{result}: could not be written ({error}); free space, then run again with --resume"
        ) from error
    files = {
        path.name: file_digest(path) for path in sorted(result.iterdir()) if path.name != _DONE
    }
    write_atomic(result / _DONE, json.dumps(sealed({**done, "files": files})).encode())


def _restore(vae: ModelMixin, result: Path, identity: str) -> bool:
    """Load the weights of a finished training; tell whether there were any of this identity.

    Raises:
        StoreError: the folder is damaged.
    """
    if not (result / _DONE).is_file():
        return False
    remedy = f"delete the folder {result}, then run again with --resume"
    try:
        done = unsealed(read_json(result / _DONE))
        if done["identity"] != identity:
            return False
        for name, expected in done.get("files", {}).items():
            require_digest(result / name, expected, remedy)
        with tensor_files():
            vae.load_state_dict(load_file(result / SAFETENSORS_WEIGHTS_NAME))
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise StoreError(f"{result}: damaged ({reason}); {remedy}") from error
    return True


def train_diffusion(plan: TrainPlan, vae: ModelMixin) -> TrainedDiffusion:
    """Encode the training slices, train the denoiser, and return the pipeline with EMA weights."""
    recipe, train = plan.recipe.diffusion, plan.recipe.diffusion.train
    schema, run_dir = plan.store.schema, plan.run_dir / "diffusion"
    accelerator = build_accelerator(train.precision, train.accumulation, train.trackers, run_dir)
    place(vae, accelerator.device)
    cache = latent_cache(plan, vae, accelerator)
    factor = cache.measured_scale(recipe.latents) if recipe.latent_scaling else 1.0
    vae.register_to_config(scaling_factor=factor)
    scale = ConditionScale.measure(
        condition_names(recipe, schema), cache.fractions, cache.position, cache.csf
    )
    pipeline = build_pipeline(plan.recipe, vae, schema, cache.mu.shape[1:])
    if recipe.condition.templates:
        pipeline.condition_embedding.template.copy_(
            factor * cache.templates(recipe.condition.templates)
        )
    batches = LatentBatches(
        cache.to(accelerator.device),
        train.batch_size,
        train.seed,
        latents=recipe.latents,
        lesion_share=plan.recipe.lesion_share,
    )
    step = DiffusionStep(pipeline, recipe, batches, scale, preview_batch(plan), accelerator)
    settings = LoopSettings.of(
        train, train.steps, identity=plan.identity("diffusion"), max_minutes=plan.max_minutes
    )
    steps = run(step, settings, run_dir, accelerator, plan.resume)
    step.finish()
    return TrainedDiffusion(pipeline, scale, steps)


def latent_cache(plan: TrainPlan, vae: ModelMixin, accelerator: Accelerator) -> LatentCache:
    """Return the cached posteriors of all training slices, from the run folder if it has them."""
    recipe, train = plan.recipe.diffusion, plan.recipe.diffusion.train
    path = plan.run_dir / "diffusion" / "latents.safetensors"
    weights = plan.run_dir / "autoencoder" / "result" / _DONE
    identity = f"{plan.identity('diffusion')}/{file_digest(weights)[:16]}"
    cache = load_cache(path, identity) if plan.resume else None
    if cache is None:
        indices = [int(i) for i in plan.store.slice_indices("train")]
        batches = label_batches(plan, train)
        copies = recipe.latent_copies
        cache = encode_slices(vae, batches, indices, copies, train.seed, accelerator)
        if accelerator.is_main_process:
            save_cache(path, cache, identity)
    return cache


def build_pipeline(
    recipe: LabelRecipe, vae: ModelMixin, schema: LabelSchema, latent_shape: Sequence[int]
) -> LabelDiffusionPipeline:
    """Build the pipeline around an autoencoder, its denoiser with initial weights."""
    diffusion, seed = recipe.diffusion, recipe.diffusion.train.seed
    condition = build_condition(diffusion, schema, latent_shape, seed)
    return LabelDiffusionPipeline(
        vae=vae,
        unet=build_unet(
            diffusion, recipe.autoencoder.latent_channels, condition.config.num_values, seed
        ),
        condition_embedding=condition,
        scheduler=build_training_scheduler(
            diffusion.target,
            diffusion.num_train_timesteps,
            diffusion.beta_schedule,
            diffusion.beta_start,
            diffusion.beta_end,
        ),
        latent_size=tuple(latent_shape[1:]),
        head=recipe.autoencoder.head,
        background_threshold=recipe.sampling.background_threshold,
        temperature=recipe.sampling.temperature,
        warp=None if recipe.sampling.warp is None else recipe.sampling.warp.model_dump(),
        sampler=recipe.sampling.sampler,
        num_inference_steps=recipe.sampling.steps,
        guidance=recipe.sampling.guidance,
        eta=recipe.sampling.eta,
    )


def train_labels(
    recipe: Recipe,
    store: Path,
    out: Path,
    run_dir: Path | None = None,
    *,
    resume: bool = False,
    max_minutes: float | None = None,
) -> None:
    """Train a label generator and write its model folder.

    Args:
        recipe: needs a `labels` section.
        store: the training store or its folder.
        out: the model folder; an older model there is replaced at the end.
        run_dir: checkpoints, logs and sheets; beside the models by default, in `runs/`.
        resume: continue an interrupted run.
        max_minutes: wall-clock budget of this call; the autoencoder gets at most its share.

    Raises:
        RecipeError: no `labels` section.
        RequestError: the run folder holds a run, and `resume` is False.
        StoreError: the store is unusable, or something cannot be written.
        SchemaError: the store has another label schema than the recipe.
    """
    if recipe.labels is None:
        raise RecipeError(f"recipe '{recipe.name}' has no section 'labels'")
    if recipe.labels.diffusion.condition.csf and CSF not in recipe.label_schema.names:
        raise RecipeError(
            f"recipe '{recipe.name}': labels.diffusion.condition.csf needs a tissue '{CSF}', which "
            f"schema '{recipe.label_schema.name}' lacks"
        )
    run_dir = run_dir or default_run_dir(out)
    start = time.monotonic()
    share = None if max_minutes is None else AUTOENCODER_SHARE * max_minutes
    with TrainingStore.open(store, recipe.label_schema) as opened:
        plan = TrainPlan(recipe.labels, opened, run_dir, resume, share)
        vae = train_autoencoder(plan)
        if max_minutes is not None:
            spent = (time.monotonic() - start) / 60
            plan = replace(plan, max_minutes=max(0.0, max_minutes - spent))
        trained = train_diffusion(plan, vae)
        if worker()[0] == 0:
            export(plan, recipe, trained, out)


def export(plan: TrainPlan, recipe: Recipe, trained: TrainedDiffusion, out: Path) -> None:
    """Write the model folder of a finished training."""
    store, pipeline = plan.store, trained.pipeline
    subjects = tuple(sorted({*store.subjects("train")}))
    positions = store.slices.position[store.slice_indices("train")]
    details = ModelDetails(
        store.schema,
        store.shape,
        trained.scale,
        subjects,
        position=(float(positions.min()), float(positions.max())),
    )
    training = {
        "recipe": recipe.model_dump(mode="json", by_alias=True, include={"name", "labels"}),
        "store": store.fingerprint,
        "num_slices": int(store.slice_indices("train").size),
        "autoencoder": report(plan.run_dir / "autoencoder", pipeline.vae),
        "diffusion": report(plan.run_dir / "diffusion", pipeline.unet),
    }
    write_model(pipeline, out, details, training=training)
    logger.info("%s: model written", out)


def report(run_dir: Path, model: torch.nn.Module) -> dict[str, Any]:
    """Return what the card tells of one training: steps, parameters, its last losses."""
    rows = read_losses(run_dir / "losses.jsonl")
    last = rows[-REPORT_WINDOW:]
    keys = [k for k in last[-1] if k not in ("step", "s")] if last else []
    return {
        "steps": rows[-1]["step"] if rows else 0,
        "parameters": num_parameters(model),
        "losses": {k: sum(r[k] for r in last) / len(last) for k in keys},
    }


def label_batches(plan: TrainPlan, train: TrainRecipe) -> LabelBatches:
    """Return the augmented training batches."""
    return LabelBatches(
        plan.store,
        "train",
        train.batch_size,
        train.seed,
        PvAugment(**plan.recipe.augment.model_dump()),
        lesion_share=plan.recipe.lesion_share,
    )


def preview_batch(plan: TrainPlan) -> LabelBatch:
    """Return some slices for sheets: validation ones where there are any."""
    split = "val" if plan.store.slice_indices("val").size else "train"
    return LabelBatches(plan.store, split, PREVIEW, 0, None, lesion_share=0.25).batch(0)
