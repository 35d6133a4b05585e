"""What a mask's denoiser is shown in training: the truth with noise, or its own predictions.

Fu et al. 2023: `recycle_next` is section 3 of arXiv:2303.06040, `recycle_start` that of
arXiv:2308.16355 (MELBA 2023:016); `self_condition` is Chen et al. 2022, arXiv:2208.04202. A mask
with probabilities p has the state x = 2 p - 1; the network predicts the clean state.

Deliberate deviation: steps t are drawn from the whole chain, with t' = min(t + 1, T - 1), as in
the first paper's code. The second one leaves T - 1 out of the loss; a network that knows the time
would then meet the first step of inference untrained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, assert_never

import torch
from torch import Tensor

from synthgen.diffusion.resample import log_snr
from synthgen.diffusion.sampling import sample, seeded_noise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import SchedulerMixin

Strategy = Literal["standard", "recycle_next", "recycle_start", "self_condition"]
Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`(network input (B, M, *S), steps (B,)) -> logits (B, G, *S)`; the image is bound already."""

_SELF_CONDITIONED = 0.5
"""Share of samples that see their own first prediction (Chen et al. 2022, section 3.2)."""


class Draws(NamedTuple):
    """What is drawn for a training batch.

    Attributes:
        t: steps `(B,)`.
        noise: standard normal `(B, G, *S)` of the pass that has a loss.
        first_noise: another one, of the pass before.
        conditioned: `(B,)`, whether a sample sees its first prediction (`self_condition`).
    """

    t: Tensor
    noise: Tensor
    first_noise: Tensor
    conditioned: Tensor

    @classmethod
    def of(cls, generators: Sequence[torch.Generator], steps: int, shape: Sequence[int]) -> Draws:
        """Draw for each sample from its own CPU generator.

        Args:
            generators: one per sample.
            steps: t is drawn below.
            shape: `(G, *S)`.
        """
        rows = []
        for generator in generators:
            t = torch.randint(steps, (), generator=generator)
            share = torch.rand((), generator=generator)
            noises = [torch.randn(tuple(shape), generator=generator) for _ in range(2)]
            rows.append((t, *noises, share < _SELF_CONDITIONED))
        return cls(*(torch.stack(column) for column in zip(*rows, strict=True)))

    def to(self, device: torch.device) -> Draws:
        """Move them to a device."""
        return Draws(*(tensor.to(device) for tensor in self))


@dataclass(frozen=True)
class MaskProcess:
    """The chain of noisy masks, and how a network sees them.

    Attributes:
        alphas_cumprod: `(T,)`.
        exclusive: tissues exclude one another (softmax), else sigmoid.
        clip: the network sees states cut off at [-1, 1].
    """

    alphas_cumprod: Tensor
    exclusive: bool
    clip: bool

    @property
    def last(self) -> int:
        """The noisiest step, T - 1."""
        return len(self.alphas_cumprod) - 1

    def noised(self, x_start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return `x_t = sqrt(abar_t) x_start + sqrt(1 - abar_t) noise`, `(B, G, *S)`."""
        shape = (-1, *[1] * (x_start.ndim - 1))
        abar = self.alphas_cumprod.to(x_start.device)[t].view(shape)
        return abar.sqrt() * x_start + (1 - abar).sqrt() * noise

    def log_snr(self, t: Tensor) -> Tensor:
        """Return log(abar / (1 - abar)) of steps, `(B,)`."""
        return log_snr(self.alphas_cumprod).to(t.device)[t]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities `(B, G, *S)`, float32."""
        return logits.float().softmax(dim=1) if self.exclusive else logits.float().sigmoid()

    def seen(self, x_t: Tensor) -> Tensor:
        """Return what a network sees of states, on the scale of probabilities."""
        return ((x_t.clamp(-1, 1) if self.clip else x_t) + 1) / 2


def noisy_input(
    strategy: Strategy, process: MaskProcess, denoise: Denoiser, soft: Tensor, draws: Draws
) -> Tensor:
    """Return the network input `(B, M, *S)` of the pass that has the loss, at steps `draws.t`.

    All but `standard` ask the network once before; no gradient passes through that answer.

    Args:
        strategy: which.
        process: the chain.
        denoise: the network that is trained.
        soft: true probabilities `(B, G, *S)`.
        draws: of this batch.
    """
    x_start = 2 * soft - 1
    match strategy:
        case "standard":
            return process.seen(process.noised(x_start, draws.noise, draws.t))
        case "recycle_next":
            earlier = (draws.t + 1).clamp(max=process.last)
            return _recycled(process, denoise, x_start, draws, earlier)
        case "recycle_start":
            start = torch.full_like(draws.t, process.last)
            return _recycled(process, denoise, x_start, draws, start)
        case "self_condition":
            seen = process.seen(process.noised(x_start, draws.noise, draws.t))
            found = _answer(process, denoise, with_estimate(seen, None), draws.t)
            shown = draws.conditioned.view(-1, *[1] * (soft.ndim - 1))
            return with_estimate(seen, found * shown)
        case _:
            assert_never(strategy)


def with_estimate(seen: Tensor, estimate: Tensor | None) -> Tensor:
    """Return the input of a self-conditioned network: noisy mask, and an estimate or zeros."""
    return torch.cat([seen, torch.zeros_like(seen) if estimate is None else estimate], dim=1)


def _recycled(
    process: MaskProcess, denoise: Denoiser, x_start: Tensor, draws: Draws, earlier: Tensor
) -> Tensor:
    """Noise what the network makes of an earlier, noisier step."""
    first = process.seen(process.noised(x_start, draws.first_noise, earlier))
    found = 2 * _answer(process, denoise, first, earlier) - 1
    return process.seen(process.noised(found, draws.noise, draws.t))


@torch.no_grad()
def _answer(process: MaskProcess, denoise: Denoiser, seen: Tensor, t: Tensor) -> Tensor:
    """Return probabilities `(B, G, *S)` without a gradient."""
    return process.probabilities(denoise(seen, t))


def sample_masks(
    find: Denoiser,
    process: MaskProcess,
    scheduler: SchedulerMixin,
    generators: Sequence[torch.Generator],
    shape: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    self_conditioned: bool = False,
) -> Tensor:
    """Find masks step by step, from noise.

    Args:
        find: `(network input (B, M, *S), steps (B,)) -> probabilities (B, G, *S)`.
        process: the chain of `scheduler`.
        scheduler: from `synthgen.diffusion.resample.imgx_scheduler`.
        generators: B CPU generators.
        shape: `(G, *S)`.
        device: of the network.
        self_conditioned: the network also sees what it found in the step before.

    Returns:
        What is found at each step, `(K, B, G, *S)` float32.
    """
    found: list[Tensor] = []

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        seen = process.seen(x_t)
        if self_conditioned:
            seen = with_estimate(seen, found[-1] if found else None)
        found.append(find(seen, t))
        return 2 * found[-1] - 1

    noise = seeded_noise(generators, shape, device)
    sample(denoise, scheduler, scheduler.config.num_train_timesteps, noise, generators)
    return torch.stack(found)
