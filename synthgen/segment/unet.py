"""A small U-Net that learns from soft labels, minutes on a CPU.

Loss: soft Dice plus cross-entropy against partial volumes. The network is MONAI's U-Net with
residual units (Kerfoot et al. 2019, doi:10.1007/978-3-030-12029-0_40). Training goes through the
toolkit's own loop, so a killed one resumes exactly.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional

from synthgen.core.errors import RequestError
from synthgen.core.manifest import digest
from synthgen.runtime import build_accelerator, place, seeded_init
from synthgen.training.loop import LoopSettings, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel
    from torch import Tensor, nn

    from synthgen.core.rng import SampleKey
    from synthgen.core.schema import LabelSchema

_POWER = 0.9
_CHECKPOINT_EVERY = 200
_OVERLAP = 0.5
_TILES = 8


class Batches(Protocol):
    """What a U-Net learns from."""

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return batch `number`, a pure function of it.

        Returns:
            Images `(B, 1, X, Y)` and soft labels `(B, C, X, Y)`, summing to 1 over C.
        """


@dataclass(frozen=True)
class UNetTraining:
    """How a U-Net is trained: AdamW, a falling rate, clipped gradients.

    Attributes:
        steps: optimiser steps.
        lr: first learning rate; it falls to 0 as in nnU-Net, by (1 - t) ** 0.9.
        weight_decay: AdamW's.
        clip_norm: largest norm of the gradient.
    """

    steps: int
    lr: float
    weight_decay: float
    clip_norm: float


def soft_dice_ce(logits: Tensor, soft: Tensor) -> Tensor:
    """Return soft Dice plus cross-entropy of logits `(B, G, X, Y)` against soft labels.

    Dice is that of the batch, over all groups but the background, as in nnU-Net:
    1 - 2 sum(p t) / (sum p + sum t); the cross-entropy -sum(t log p) is the mean over pixels.
    """
    logits, soft = logits.float(), soft.float()
    p = torch.softmax(logits, dim=1)
    axes = (0, 2, 3)
    overlap = 2 * (p * soft).sum(axes) + 1e-5
    dice = overlap / (p.sum(axes) + soft.sum(axes) + 1e-5)
    entropy = functional.cross_entropy(logits, soft)
    return entropy + 1 - dice[1:].mean()


def build_network(channels: tuple[int, ...], groups: int, *, first_stride: int = 2) -> nn.Module:
    """Build the U-Net: images `(B, 1, X, Y)` to logits `(B, groups, X, Y)`.

    Args:
        channels: of each level; each halves the resolution of the one before.
        groups: label channels.
        first_stride: 2 halves the image before the first level already; 1 keeps a level at full
            resolution, which vessels of one or two pixels need.
    """
    from monai.networks.nets import UNet  # noqa: PLC0415

    network: nn.Module = UNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=groups,
        channels=channels,
        strides=(first_stride, *(2,) * (len(channels) - 2)),
        num_res_units=2,
        norm="instance",
    )
    return network


def forward(network: nn.Module, image: Tensor, halvings: int) -> Tensor:
    """Return the logits of images whose sides the network cannot halve that many times."""
    factor = 2**halvings
    x, y = image.shape[2:]
    padded = functional.pad(image, (0, -y % factor, 0, -x % factor))
    logits: Tensor = network(padded)[..., :x, :y]
    return logits


class UNetStep:
    """The training step; see `synthgen.training.loop.TrainStep`.

    Args:
        network: from `build_network`, on the accelerator's device.
        halvings: how many times it halves an image.
        batches: what it learns from.
        training: how.
        accelerator: from `runtime.build_accelerator`.
        on_step: called with the number of finished steps after each.
    """

    def __init__(
        self,
        network: nn.Module,
        halvings: int,
        batches: Batches,
        training: UNetTraining,
        *,
        accelerator: Accelerator,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self._halvings, self._batches, self._training = halvings, batches, training
        self._on_step = on_step
        adam = torch.optim.AdamW(
            network.parameters(), lr=training.lr, weight_decay=training.weight_decay
        )
        self.models: Mapping[str, nn.Module] = {"network": accelerator.prepare_model(network)}
        self.optimizers: Mapping[str, Any] = {"network": accelerator.prepare_optimizer(adam)}
        steps = training.steps
        falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda t: (1 - t / steps) ** _POWER)
        self.schedulers: Mapping[str, Any] = {"network": falling}
        self.ema: Mapping[str, EMAModel] = {}

    def step(self, accelerator: Accelerator, step: int) -> dict[str, float | Tensor]:
        """Make one optimiser step."""
        network, optimizer = self.models["network"].train(), self.optimizers["network"]
        image, soft = (a.to(accelerator.device) for a in self._batches.batch(step))
        with accelerator.accumulate(network):
            with accelerator.autocast():
                logits = forward(network, image, self._halvings)
            loss = soft_dice_ce(logits, soft)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), self._training.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        self.schedulers["network"].step()
        if self._on_step is not None:
            self._on_step(step + 1)
        return {"loss": loss.detach()}

    def sheet(self, step: int) -> None:
        """No sheet."""

    def state(self) -> dict[str, Any]:
        """Nothing beyond the network."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class UNetSegmenter:
    """A trained U-Net; see `synthgen.segment.Segmenter`. It draws nothing.

    Args:
        network: from `build_network`, with one level at full resolution.
        halvings: how many times it halves an image.
        schema: labels of its output channels.
        identity: all that decided its weights.
        subjects: real subjects that its training data came from.
        tile: side of the squares that images are labelled in, overlapping by one half and blended;
            None for the whole image at once. Instance norms see a square as they saw the training
            crops, and a whole image otherwise.
    """

    def __init__(
        self,
        network: nn.Module,
        halvings: int,
        schema: LabelSchema,
        *,
        identity: Mapping[str, Any],
        subjects: Sequence[str] = (),
        tile: int | None = None,
    ) -> None:
        if tile is not None and (tile < 1 or tile % 2**halvings):
            raise RequestError(
                f"tile: expected a multiple of {2**halvings}, which the network can halve "
                f"{halvings} times, got {tile}"
            )
        self._network, self._halvings, self._tile = network.eval(), halvings, tile
        self._device = next(network.parameters()).device
        self.schema = schema
        self.identity: Mapping[str, Any] = {**identity, "tile": tile}
        self.subjects = tuple(subjects)

    @torch.inference_mode()
    def predict(self, images: Tensor, keys: Sequence[SampleKey] = ()) -> Tensor:
        """Return probabilities, float32 `(B, C, X, Y)`.

        Args:
            images: float32 `(B, 1, X, Y)` in [0, 1], of any size.
            keys: not looked at.

        Raises:
            RequestError: images of several channels, or not in [0, 1].
        """
        low, high = (float(f) for f in images.aminmax()) if images.numel() else (0.0, 0.0)
        if images.ndim != 4 or images.shape[1] != 1 or low < 0 or high > 1:
            raise RequestError(
                "expected images (B, 1, X, Y) in [0, 1], got an array of shape "
                f"{tuple(images.shape)} in [{low:g}, {high:g}]; take one grey channel, and divide "
                "8-bit pictures by 255"
            )
        if self._tile is None:
            found = [self._probabilities(one[None].to(self._device)) for one in images]
            return torch.cat(found).cpu()
        from monai.inferers import sliding_window_inference  # noqa: PLC0415

        tiled: Tensor = sliding_window_inference(
            images.to(self._device),
            (self._tile, self._tile),
            _TILES,
            self._probabilities,
            overlap=_OVERLAP,
            mode="gaussian",
            padding_mode="replicate",
        )
        return tiled.cpu()

    def _probabilities(self, image: Tensor) -> Tensor:
        with torch.autocast(self._device.type, dtype=torch.bfloat16):
            logits = forward(self._network, image, self._halvings)
        return torch.softmax(logits.float(), 1)


def train(
    batches: Batches,
    channels: tuple[int, ...],
    training: UNetTraining,
    folder: Path,
    *,
    schema: LabelSchema,
    identity: Mapping[str, Any],
    seed: int,
    subjects: Sequence[str] = (),
    tile: int | None = None,
    max_minutes: float | None = None,
) -> UNetSegmenter:
    """Train a U-Net in bfloat16, from the last checkpoint in `folder` if there is one.

    Args:
        batches: what it learns from.
        channels: of its levels; the first one keeps the resolution, each other one halves it.
        training: how.
        folder: of the run: losses and checkpoints.
        schema: labels of the batches' channels.
        identity: all that decides the batches.
        seed: of the initial weights.
        subjects: real subjects that the batches came from.
        tile: see `UNetSegmenter`.
        max_minutes: training ends then, with the weights that it has.

    Raises:
        RequestError: `folder` holds a training with other data or settings.
        StoreError: a checkpoint is damaged or cannot be written.
    """
    facts = {
        "batches": dict(identity),
        "channels": list(channels),
        "training": asdict(training),
        "seed": seed,
    }
    accelerator, halvings = build_accelerator("bf16"), len(channels) - 2
    with seeded_init(seed, 0):
        network = build_network(channels, len(schema.tissues), first_stride=1)
    step = UNetStep(
        place(network, accelerator.device), halvings, batches, training, accelerator=accelerator
    )
    settings = LoopSettings(
        steps=training.steps,
        checkpoint_every=_CHECKPOINT_EVERY,
        keep=1,
        seed=seed,
        max_minutes=max_minutes,
        identity=digest(facts),
    )
    done = run(step, settings, folder, accelerator, resume=True)
    return UNetSegmenter(
        accelerator.unwrap_model(step.models["network"]),
        halvings,
        schema,
        identity={"unet": digest(facts), "steps": done},
        subjects=subjects,
        tile=tile,
    )
