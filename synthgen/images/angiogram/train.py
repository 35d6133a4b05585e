"""Train DARL without manual labels: networks, joint training, model folder.

Source: Kim et al. 2023, arXiv:2209.14566; its settings are in `recipes/darl.yaml`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import nn

from synthgen.core.errors import RequestError
from synthgen.core.manifest import digest
from synthgen.core.rng import SampleKey, Stream
from synthgen.core.schema import VESSEL
from synthgen.core.workspace import default_run_dir
from synthgen.images.angiogram.darl import AngiogramPipeline, DarlRecord
from synthgen.images.angiogram.darl_card import write_card
from synthgen.images.angiogram.darl_parts import Critic, DarlParts
from synthgen.images.angiogram.darl_step import DarlStep
from synthgen.images.angiogram.sources import prepare
from synthgen.losses.vessels import soft_dice
from synthgen.models.darl import DarlGenerator, patch_discriminator
from synthgen.models.darl_networks import DarlNetworks, DarlUse, noise_schedule
from synthgen.models.darl_unet import NoisePredictor, library_noise_predictor
from synthgen.models.image_pool import ImagePool
from synthgen.models.spectral import fold_spectral_norm, initialise_weights
from synthgen.runtime import build_accelerator, seeded_init
from synthgen.training.loop import LoopSettings, made_ahead, run

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator

    from synthgen.images.angiogram.sources import AngiogramSources, TrainingData
    from synthgen.recipe import Recipe
    from synthgen.recipe.angiograms import AngiogramRecipe, NoisePredictorRecipe

Net = TypeVar("Net", bound=nn.Module)

_STD = 0.02
"""Standard deviation of initial weights that are normal."""
_CHECKED = 16


def train_angiograms(
    recipe: Recipe,
    sources: AngiogramSources,
    out: Path,
    run_dir: Path | None = None,
    *,
    resume: bool = False,
    max_minutes: float | None = None,
) -> Path:
    """Train a model that paints and segments angiograms, and write its model folder.

    Args:
        recipe: needs a section `angiograms`.
        sources: real pictures, and what draws vessel trees.
        out: model folder; replaced as a whole once training has ended.
        run_dir: checkpoints, losses, sheets; beside `models/` by default (`runs/<name>`).
        resume: continue a killed run of the same recipe and data.
        max_minutes: budget of this call; the model is written as it is when time is up.

    Returns:
        `out`.

    Raises:
        RequestError: no `angiograms` section, pools that do not fit it, or `run_dir` holds a run
            and `resume` is False.
        SchemaError: the recipe's label schema is not `vessel`.
        StoreError: a damaged checkpoint, a full disk.
    """
    started = time.monotonic()
    if recipe.angiograms is None:
        raise RequestError(f"recipe '{recipe.name}' has no section 'angiograms'")
    VESSEL.require_same(recipe.label_schema, f"recipe '{recipe.name}'")
    data = prepare(recipe.angiograms, sources)
    if max_minutes is not None:
        max_minutes -= (time.monotonic() - started) / 60
    run_dir = default_run_dir(out) if run_dir is None else run_dir
    trainer = _Trainer(recipe, recipe.angiograms, data, run_dir)
    trainer.train(out, resume=resume, max_minutes=max_minutes)
    return out


@dataclass(frozen=True)
class _Trainer:
    recipe: Recipe
    section: AngiogramRecipe
    data: TrainingData
    run_dir: Path

    def train(self, out: Path, *, resume: bool, max_minutes: float | None) -> None:
        """Train, then write the folder."""
        train = self.section.train
        accelerator = build_accelerator(
            train.precision, train.accumulation, train.trackers, self.run_dir
        )
        parts = build_parts(self.section)
        settings = self._settings(max_minutes)
        with made_ahead(self.data.pools, self.run_dir, accelerator, resume=resume) as ahead:
            step = DarlStep(
                self.section,
                ahead,
                parts,
                accelerator,
                pairs=self.data.pairs,
            )
            done = run(step, settings, self.run_dir, accelerator, resume)
        if accelerator.is_main_process:
            with step.averaged_weights():
                self._save(parts.networks, done, out, accelerator)
        accelerator.wait_for_everyone()

    def _settings(self, max_minutes: float | None) -> LoopSettings:
        train = self.section.train
        identity = {
            "recipe": self.section.model_dump(mode="json", exclude={"train": {"trackers"}}),
            "data": self.data.identity,
        }
        return LoopSettings.of(
            train, train.steps, identity=digest(identity)[:16], max_minutes=max_minutes
        )

    def _save(
        self, networks: DarlNetworks, steps: int, out: Path, accelerator: Accelerator
    ) -> None:
        """Fold the spectral norm, measure, write the folder."""
        section, data = self.section, self.data
        use = DarlUse(
            section.use.render_t,
            section.use.segment,
            section.data.crop,
            section.data.side,
            section.data.field_diameter,
            section.data.decimate,
            section.data.contrast,
            section.use.keep_background,
            data.share,
        )
        folded = DarlNetworks(
            fold_spectral_norm(networks.generator).to(accelerator.device),
            networks.scheduler,
            networks.noise_predictor,
            None
            if networks.painter is None
            else fold_spectral_norm(networks.painter).to(accelerator.device),
        )
        training: dict[str, Any] = {
            "steps": steps,
            "recipe": self.recipe.name,
            "recipe_fingerprint": self.recipe.fingerprint,
            "data": dict(data.identity),
            "masks": section.data.masks,
            "background": section.data.background,
            "cycle_dice": measure(folded, data, section.train.batch_size),
        }
        card = write_card(data, training, section)
        pipeline = AngiogramPipeline(
            folded.generator, folded.scheduler, folded.noise_predictor, folded.painter
        )
        record = DarlRecord(use, data.shape, data.subjects, training, card)
        pipeline.save(out, record, data.backgrounds)


def build_parts(recipe: AngiogramRecipe) -> DarlParts:
    """Build the networks that the recipe asks for, with seeded weights.

    Convolutions of discriminators start normal (0.02), those of the generator as the recipe says,
    those of the paper's own noise predictor orthogonal; biases start at 0.
    """
    g, schedule = recipe.generator, recipe.schedule

    def generator(number: int) -> nn.Module:
        with seeded_init(recipe.train.seed, number):
            built: nn.Module = DarlGenerator(
                base_channels=g.base_channels,
                spade_hidden=g.spade_hidden,
                num_blocks=g.num_blocks,
                label_resize=g.label_resize,
            )
        return _start(built, recipe.train.seed, number, g.init)

    networks = DarlNetworks(
        generator=generator(1),
        scheduler=noise_schedule(
            schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end
        ),
        noise_predictor=_noise_predictor(recipe.noise_predictor, recipe.train.seed),
        painter=None if g.shared else generator(3),
    )
    weights = recipe.losses
    return DarlParts(
        networks,
        _critic(recipe, 4) if weights.adversarial_mask else None,
        _critic(recipe, 5) if weights.adversarial_angiogram else None,
    )


def _noise_predictor(recipe: NoisePredictorRecipe | None, seed: int) -> nn.Module | None:
    if recipe is None:
        return None
    settings = recipe.model_dump(exclude={"kind"})
    with seeded_init(seed, 2):
        if recipe.kind == "library":
            library: nn.Module = library_noise_predictor(**settings)
            return library
        own: nn.Module = NoisePredictor(**settings)
    draws = SampleKey(seed, 2).torch(Stream.INIT)
    initialise_weights(own, draws, gain=1.0, scheme="orthogonal")
    return own


def _critic(recipe: AngiogramRecipe, number: int) -> Critic:
    seed, side = recipe.train.seed, recipe.data.crop
    with seeded_init(seed, number):
        network = patch_discriminator(recipe.discriminator.base_channels)
    pool = ImagePool((side, side), recipe.discriminator.pool_size)
    return Critic(_start(network, seed, number, "normal"), pool)


def _start(network: Net, seed: int, number: int, scheme: Literal["normal", "orthogonal"]) -> Net:
    draws = SampleKey(seed, number).torch(Stream.INIT)
    initialise_weights(network, draws, gain=_STD if scheme == "normal" else 1.0, scheme=scheme)
    return network


@torch.no_grad()
def measure(networks: DarlNetworks, data: TrainingData, batch_size: int) -> float:
    """Return the soft Dice of masks and what path A finds where path B painted them, at t = 0.

    Masks and backgrounds are drawn as in training, from keys that no step used.
    """
    device = next(networks.generator.parameters()).device
    scores = []
    last = 2**31 // batch_size
    for number in range(last, last + -(-_CHECKED // batch_size)):
        batch = data.pools.batch(number)
        masks, t = batch.masks.to(device), torch.zeros(batch_size, dtype=torch.long, device=device)
        painted, _ = networks.paint(batch.backgrounds.to(device), masks, t)
        found = networks.segment(painted, t).sign()
        scores.append(1 - float(soft_dice(found, masks)))
    return round(sum(scores) / len(scores), 4)
