"""Train the SPADE image generator: classifier, VAE-GAN, style bank, model folder.

Source: Fernandez et al. 2022, arXiv:2209.08256; settings of Fernandez et al. 2024,
doi:10.1016/j.media.2024.103278, in `recipes/brainspade2d.yaml`.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from synthgen.core.errors import RequestError
from synthgen.core.manifest import digest
from synthgen.core.rng import SampleKey, Stream
from synthgen.core.workspace import default_run_dir
from synthgen.data.acquisition import AcquisitionAugment
from synthgen.data.augment import ImageAugment, PvAugment
from synthgen.data.image_loader import ImageBatches
from synthgen.data.store import TrainingStore
from synthgen.images.classifier_step import ClassifierStep
from synthgen.images.fit_styles import fit_style_bank
from synthgen.images.spade import SpadePipeline, SpadeRecord
from synthgen.images.spade_card import write_card
from synthgen.images.spade_sheet import SheetPlan, paint_in_batches
from synthgen.images.spade_step import SpadeNetworks, SpadeStep
from synthgen.models.classifier import ModalityDatasetClassifier
from synthgen.models.discriminators import PyramidPatchDiscriminator
from synthgen.models.spade import SPADEGenerator
from synthgen.models.spectral import fold_spectral_norm, initialise_weights
from synthgen.models.style_encoder import StyleEncoder
from synthgen.runtime import build_accelerator, seeded_init
from synthgen.training.loop import LoopSettings, made_ahead, run

if TYPE_CHECKING:
    from pathlib import Path

    from synthgen.core.acquisition import Acquisition
    from synthgen.recipe import Recipe
    from synthgen.recipe.images import ImageRecipe

logger = logging.getLogger(__name__)

_CHECKED_IMAGES = 32


def train_images(
    recipe: Recipe,
    store_path: Path,
    out: Path,
    run_dir: Path | None = None,
    *,
    resume: bool = False,
    max_minutes: float | None = None,
) -> Path:
    """Train an image generator and write its model folder.

    Args:
        recipe: needs a section `images`.
        store_path: training store, or its folder.
        out: model folder; replaced as a whole once training has ended.
        run_dir: checkpoints, losses, sheets; beside `models/` by default (`runs/<name>`).
        resume: continue a killed run of the same recipe and store.
        max_minutes: budget of this call; the model is written as it is when time is up.

    Returns:
        `out`.

    Raises:
        RequestError: no `images` section, or `run_dir` holds a run and `resume` is False.
        SchemaError: the store has another label schema than the recipe.
        StoreError: no training images, a damaged store or checkpoint, a full disk.
    """
    if recipe.images is None:
        raise RequestError(f"recipe '{recipe.name}' has no section 'images'")
    run_dir = default_run_dir(out) if run_dir is None else run_dir
    store = TrainingStore.open(store_path, recipe.label_schema)
    with store:
        trainer = _Trainer(recipe, recipe.images, store, run_dir, resume, _Budget(max_minutes))
        trainer.train(out)
    return out


class _Budget:
    """The minutes that are left of a call."""

    def __init__(self, minutes: float | None) -> None:
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def minutes_left(self) -> float | None:
        return None if self._deadline is None else (self._deadline - time.monotonic()) / 60


@dataclass
class _Trainer:
    recipe: Recipe
    images: ImageRecipe
    store: TrainingStore
    run_dir: Path
    resume: bool
    budget: _Budget

    def train(self, out: Path) -> None:
        """Run the three stages."""
        train = self.images.train
        self.accelerator = build_accelerator(
            train.precision, train.accumulation, train.trackers, self.run_dir
        )
        self.batches = self._batches("train", train.batch_size)
        self.val = self._val_batches()
        classifier = self._train_classifier() if self.images.losses.need_classifier else None
        networks = build_networks(self.images, self.store, classifier)
        total = (train.constant + train.decay) * self.steps_per_unit
        sheet = SheetPlan.choose(self.batches, self.val)
        with made_ahead(self.batches, self.run_dir, self.accelerator, resume=self.resume) as ahead:
            step = SpadeStep(
                self.images,
                ahead,
                networks,
                self.accelerator,
                modalities=len(self.batches.modalities),
                steps_per_unit=self.steps_per_unit,
                sheet=sheet,
            )
            done = run(step, self._settings(total), self.run_dir, self.accelerator, self.resume)
        if self.accelerator.is_main_process:
            with step.averaged_weights():
                self._save(networks, done, out)
        self.accelerator.wait_for_everyone()

    @property
    def steps_per_unit(self) -> int:
        """Optimiser steps of one unit of the recipe's lengths."""
        train = self.images.train
        if train.unit == "step":
            return 1
        workers = int(self.accelerator.num_processes)
        return -(-len(self.batches) // (train.batch_size * train.accumulation * workers))

    def _batches(self, split: str, batch_size: int) -> ImageBatches:
        pair, contrast = self.images.pair_augment, self.images.contrast_augment
        return ImageBatches(
            self.store,
            split,
            batch_size,
            self.images.train.seed,
            PvAugment(**pair.model_dump()),
            ImageAugment(**contrast.model_dump(exclude={"acquisition"})),
            acquisition_augment(self.images),
            lesion_probability=self.images.sampling.lesion_probability,
        )

    def _val_batches(self) -> ImageBatches | None:
        if not self.store.image_rows("val").size:
            return None
        return self._batches("val", self.images.train.batch_size)

    def _settings(self, steps: int, *, sheets: bool = True) -> LoopSettings:
        train = self.images.train
        identity = {
            "recipe": self.images.model_dump(mode="json", exclude={"train": {"trackers"}}),
            "schema": self.store.schema.fingerprint,
            "store": self.store.fingerprint,
        }
        settings = LoopSettings.of(
            train, steps, identity=digest(identity)[:16], max_minutes=self.budget.minutes_left
        )
        return settings if sheets else replace(settings, sheet_every=0)

    def _train_classifier(self) -> ModalityDatasetClassifier:
        """Stage 1."""
        settings = self.images.classifier
        batches = self._batches("train", settings.batch_size)
        sizes = len(batches.modalities), len(batches.datasets)
        if sizes == (1, 1):
            logger.warning(
                "one modality of one data set: the classifier has nothing to learn, so its "
                "perceptual features are those of a random network"
            )
        with seeded_init(self.images.train.seed, 0):
            classifier: ModalityDatasetClassifier = ModalityDatasetClassifier(
                *sizes, settings.arch, settings.width
            )
        if self.images.train.init == "kaiming" and settings.arch == "small":
            start_kaiming(classifier, SampleKey(self.images.train.seed, 6).torch(Stream.INIT))
        limits, run_dir = self._settings(settings.steps, sheets=False), self.run_dir / "classifier"
        with made_ahead(batches, run_dir, self.accelerator, resume=self.resume) as ahead:
            step = ClassifierStep(settings, ahead, classifier, self.accelerator)
            run(step, limits, run_dir, self.accelerator, self.resume)
        return classifier

    def _save(self, networks: SpadeNetworks, steps: int, out: Path) -> None:
        """Stage 3: fit the style bank, fold the spectral norm, write the folder."""
        generator = fold_spectral_norm(networks.generator).cpu()
        encoder = fold_spectral_norm(networks.style_encoder).cpu()
        bank = fit_style_bank(
            encoder, self.batches, networks.code_head, self.images.protocol_styles
        )
        subjects = self.batches.subjects
        checked = self.val if self.val is not None else self.batches
        training: dict[str, Any] = {
            "steps": steps,
            "recipe": self.recipe.name,
            "recipe_fingerprint": self.recipe.fingerprint,
            "store_fingerprint": self.store.fingerprint,
            "images": len(self.batches),
            "checked_on": "val" if self.val is not None else "train",
            **measure(generator, encoder, checked),
        }
        card = write_card(bank.records(), subjects, training, self.images)
        pipeline = SpadePipeline(generator, encoder, bank)
        pipeline.save(out, SpadeRecord(self.store.schema, subjects, training, card))


def acquisition_augment(recipe: ImageRecipe) -> AcquisitionAugment:
    """Return which images can move to another MR acquisition, where to and how often."""
    protocols: dict[str, list[Acquisition]] = {}
    for entry in (*recipe.acquisitions, *recipe.protocol_styles):
        protocols.setdefault(entry.modality, []).append(entry.acquisition)
    return AcquisitionAugment(
        known={(e.dataset, e.modality): e.acquisition for e in recipe.acquisitions},
        protocols={modality: tuple(found) for modality, found in protocols.items()},
        **recipe.contrast_augment.acquisition.model_dump(),
    )


def build_networks(
    recipe: ImageRecipe, store: TrainingStore, classifier: ModalityDatasetClassifier | None
) -> SpadeNetworks:
    """Build the networks that the recipe's losses ask for, with seeded weights."""
    train, g, d = recipe.train, recipe.generator, recipe.discriminator
    seed = train.seed
    with seeded_init(seed, 1):
        generator = SPADEGenerator(
            store.schema.channels,
            store.shape,
            base_channels=g.base_channels,
            latent_dim=g.latent_dim,
            hidden=g.hidden,
            norm=g.norm,
            style_in_norm=g.style_in_norm,
            pv_resize=g.pv_resize,
            upsample=g.upsample,
            grain_bands=g.grain_bands,
        )
    with seeded_init(seed, 2):
        encoder = StyleEncoder(
            recipe.style_encoder.base_channels, g.latent_dim, recipe.style_encoder.faithful
        )
    discriminator = code_head = None
    if recipe.losses.need_discriminator:
        planes = store.schema.channels + 1
        planes += len(store.modalities) if d.modality_planes else 0
        with seeded_init(seed, 3):
            discriminator = PyramidPatchDiscriminator(
                planes, d.base_channels, d.num_scales, d.num_layers
            )
    if recipe.losses.code_class:
        with seeded_init(seed, 4):
            code_head = nn.Linear(g.latent_dim, len(store.modalities) + len(store.datasets))
    draws = SampleKey(seed, 5).torch(Stream.INIT)
    if train.init == "xavier":
        for network in (generator, encoder, discriminator):
            if network is not None:
                initialise_weights(network, draws)
    else:
        start_kaiming(encoder, draws)
    return SpadeNetworks(generator, encoder, discriminator, classifier, code_head)


def start_kaiming(model: nn.Module, generator: torch.Generator) -> None:
    """Draw convolutions Kaiming-normal for leaky ReLU, so that activations keep their size."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.kaiming_normal_(module.weight, a=0.2, generator=generator)
            nn.init.zeros_(module.bias)


@torch.no_grad()
def measure(
    generator: SPADEGenerator, encoder: StyleEncoder, batches: ImageBatches
) -> dict[str, float]:
    """Return mean absolute error inside the brain ([0, 1] scale), each slice in its own style."""
    rows = batches.rows[:: max(1, len(batches) // _CHECKED_IMAGES)][:_CHECKED_IMAGES]
    batch = batches.fixed(rows.tolist())
    fake = paint_in_batches(generator, batch.pv, encoder(batch.style_image).mu)
    inside = (batch.pv[:, :1] <= 0.5).float()
    error: Tensor = ((fake - batch.image).abs() / 2 * inside).sum() / inside.sum().clamp_min(1)
    return {"l1_inside_brain": round(float(error), 5)}
