"""Bernoulli diffusion between a mask and a segmenter's mask, as a diffusers scheduler.

Source: Chen et al. 2024 (HiDiff), arXiv:2407.03548, section III, after Sohl-Dickstein et al. 2015,
arXiv:1503.03585; the categorical kernel is Austin et al. 2021 (D3PM), arXiv:2107.03006, with the
prior in place of the uniform distribution. With y0 the mask, f the segmenter's probabilities and
abar_t the product of the alphas = 1 - betas, for every pixel

    q(y_t | y_{t-1}) = B(alpha_t y_{t-1} + (1 - alpha_t) f)
    q(y_t | y0)      = B(abar_t y0 + (1 - abar_t) f)

so that masks drift from the truth towards the segmenter's.

Deviations: the network predicts the logits of y0, not of the flips |y_t - y0| (`flips`): both tell
the same probabilities, but flips are an exclusive or of y_t and y0, which a network learns five to
ten times as slowly; or it predicts a `correction` of the logits of f, so that the segmenter's mask
stays as it is until something is learnt; f is mixed with a little of the uniform distribution, for
the posterior of a contradicted prior of 0 or 1 is 0 / 0; a chain of fewer steps always starts at
the last step; `posterior="mixture"` weights the posteriors of all values of y0, where the published
one puts the probabilities of y0 into the formula. The sampler `mode` draws nothing: draws are
independent from pixel to pixel, and a speckled mask has a lower Dice than the likeliest one.
Uniform noise is given, not drawn, so that windows of one picture can share one field of it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, assert_never

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

BernoulliSchedule = Literal["cosine2", "cosine"]
Kernel = Literal["bernoulli", "categorical"]
Posterior = Literal["plugin", "mixture"]
Prediction = Literal["mask", "correction", "flips"]
BernoulliSampler = Literal["ancestral", "ddim", "mode"]

_OFFSET = 0.008
_MAX_BETA = 0.999
_MAX_FLOOR = 0.05


class BernoulliStep(NamedTuple):
    """One step back, each `(B, K, *S)` float32.

    Attributes:
        prev_sample: the mask one step earlier, 0 or 1; the probabilities of y0 behind step 0.
        pred_original_sample: the predicted probabilities of y0.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


def cosine_betas(num_steps: int, schedule: BernoulliSchedule) -> Tensor:
    """Return betas `(T,)`: min(1 - F((i + 1) / T) / F(i / T), 0.999).

    F(u) is cos((u + 0.008) / 1.008 pi / 2), squared for `cosine2` (Nichol & Dhariwal 2021,
    arXiv:2102.09672).

    Examples:
        >>> cosine_betas(10, "cosine2")[:3].mul(1e4).round().int().tolist()
        [279, 755, 1244]
    """
    power = {"cosine2": 2, "cosine": 1}[schedule]

    def remaining(u: float) -> float:
        return math.cos((u + _OFFSET) / (1 + _OFFSET) * math.pi / 2) ** power

    ratios = [remaining((i + 1) / num_steps) / remaining(i / num_steps) for i in range(num_steps)]
    return torch.tensor([min(1 - ratio, _MAX_BETA) for ratio in ratios], dtype=torch.float32)


def prior_probabilities(logits: Tensor, *, exclusive: bool) -> Tensor:
    """Return the segmenter's mask f `(B, K, *S)` in (0, 1), float32.

    Args:
        logits: `(B, K, *S)`.
        exclusive: classes that exclude one another, background included: softmax. A single
            channel and overlapping regions: sigmoid (a softmax over one channel is 1 everywhere).
    """
    if exclusive and logits.shape[1] > 1:
        return torch.softmax(logits.float(), dim=1)
    return torch.sigmoid(logits.float())


def seeded_uniform(
    generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Draw uniform noise `(B, *shape)` in [0, 1), each sample from its own CPU generator."""
    drawn = [torch.rand(tuple(shape), generator=generator) for generator in generators]
    return torch.stack(drawn).to(device)


class BernoulliScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """The chain between masks and the segmenter's masks.

    Masks, priors and noise are `(B, K, *S)`; steps t are `(B,)` whole numbers in [0, T). All that
    is returned is float32.

    Args:
        num_train_timesteps: T.
        schedule: of the betas; see `cosine_betas`.
        kernel: `bernoulli`, every channel a coin of its own; `categorical`, channels that exclude
            one another, every state one-hot, the prior summing to 1.
        posterior: how predicted probabilities of y0 enter the posterior.
        prediction: what the network's logits are of: `mask`, y0 (softmax under the categorical
            kernel, else sigmoid); `correction`, y0 too, added to the logits of f; or `flips`,
            |y_t - y0|, as published (Bernoulli kernel only).
        sampler: `ancestral` draws from the posterior, `mode` takes its likeliest mask; `ddim`
            keeps y_t with probability (1 - abar_{t-1}) / (1 - abar_t), and else draws from the
            predicted y0.
        prior_floor: delta, up to 0.05; no value of a mask has a prior below. 1e-4 only avoids
            0 / 0; 0.02 lets the chain leave a prior that is sure and wrong.

    Examples:
        >>> scheduler = BernoulliScheduler(prior_floor=0.02)
        >>> scheduler.set_timesteps(4)
        >>> scheduler.timesteps.tolist()
        [9, 6, 3, 0]
    """

    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 10,
        schedule: BernoulliSchedule = "cosine2",
        kernel: Kernel = "bernoulli",
        posterior: Posterior = "plugin",
        prediction: Prediction = "mask",
        sampler: BernoulliSampler = "ancestral",
        prior_floor: float = 1e-4,
    ) -> None:
        if num_train_timesteps < 1:
            raise RequestError(
                f"BernoulliScheduler: expected 1 step or more, got {num_train_timesteps}"
            )
        if not 0 < prior_floor <= _MAX_FLOOR:
            raise RequestError(
                f"BernoulliScheduler: prior_floor must be above 0 and at most {_MAX_FLOOR},"
                f" got {prior_floor}"
            )
        if prediction == "flips" and kernel == "categorical":
            raise RequestError(
                "BernoulliScheduler: the categorical kernel has no flips; take prediction 'mask'"
            )
        self.betas = cosine_betas(num_train_timesteps, schedule)
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0)
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self.init_noise_sigma = 1.0
        self._kernel, self._posterior, self._sampler = kernel, posterior, sampler
        self._prediction, self._floor = prediction, prior_floor

    def __len__(self) -> int:
        """Return the number of training steps T."""
        return len(self.betas)

    @property
    def exclusive(self) -> bool:
        """Whether the channels exclude one another: the categorical kernel."""
        return self._kernel == "categorical"

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None
    ) -> None:
        """Choose the steps of a chain, evenly: T - 1 first, and 0 last if there are two or more.

        Raises:
            RequestError: fewer than 1 step, or more than T.
        """
        if not 1 <= num_inference_steps <= len(self):
            raise RequestError(
                f"sampling steps must lie in 1 .. {len(self)}, got {num_inference_steps}"
            )
        even = torch.linspace(len(self) - 1, 0, num_inference_steps)
        self.timesteps = even.round().long().to(device)

    def soft_prior(self, f: Tensor) -> Tensor:
        """Return f mixed with the uniform distribution: f + delta (1 - n f), n values a pixel."""
        f = f.float()
        values = f.shape[1] if self.exclusive else 2
        mixed: Tensor = f + self._floor * (1 - values * f)
        return mixed

    def draw(self, probabilities: Tensor, noise: Tensor) -> Tensor:
        """Return masks of 0 and 1 with these probabilities.

        Args:
            probabilities: `(B, K, *S)`.
            noise: uniform in [0, 1), of the same shape; the categorical kernel uses its first
                channel.
        """
        if not self.exclusive:
            return (noise < probabilities).float()
        # The first class whose cumulative probability exceeds u; rounding may leave none.
        reached = noise[:, :1] < probabilities.cumsum(1)
        reached = torch.cat([reached[:, :-1], torch.ones_like(reached[:, :1])], 1).float()
        return reached.diff(dim=1, prepend=torch.zeros_like(reached[:, :1]))

    def initial(self, f: Tensor, noise: Tensor) -> Tensor:
        """Return the start of the reverse chain: y_T ~ B(f), or under `mode` the likeliest."""
        return self.settle(self.soft_prior(f), noise)

    def settle(self, probabilities: Tensor, noise: Tensor) -> Tensor:
        """Return masks of the reverse chain; arguments as for `draw`."""
        if self._sampler != "mode":
            return self.draw(probabilities, noise)
        if not self.exclusive:
            return (probabilities >= 0.5).float()
        best = probabilities.argmax(1, keepdim=True)
        return torch.zeros_like(probabilities).scatter_(1, best, 1.0)

    def add_noise(self, y0: Tensor, f: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return y_t ~ B(abar_t y0 + (1 - abar_t) f).

        Args:
            y0: the true masks, 0 or 1.
            f: the segmenter's masks in [0, 1].
            t: steps.
            noise: uniform in [0, 1), as for `draw`.
        """
        return self.draw(self.marginal(y0, f, t), noise)

    def marginal(self, y0: Tensor, f: Tensor, t: Tensor) -> Tensor:
        """Return q(y_t = 1 | y0); t = -1 is before the first step, y0 itself."""
        kept = self._abar(t, y0)
        return kept * y0.float() + (1 - kept) * self.soft_prior(f)

    def target(self, y_t: Tensor, y0: Tensor) -> Tensor:
        """Return what the network predicts, 0 or 1: the mask y0, or the flips |y_t - y0|."""
        return (y_t - y0).abs() if self._prediction == "flips" else y0

    def complete(self, output: Tensor, f: Tensor) -> Tensor:
        """Return the logits of what is predicted, of a network's output `(B, K, *S)`."""
        output = output.float()
        if self._prediction != "correction":
            return output
        f = self.soft_prior(f)
        return output + (f.log() if self.exclusive else torch.logit(f))

    def calibrate(self, logits: Tensor, y_t: Tensor) -> Tensor:
        """Return the predicted probabilities of y0; of flips they are |y_t - sigmoid(logits)|."""
        logits = logits.float()
        if self.exclusive:
            return torch.softmax(logits, dim=1)
        return torch.sigmoid(
            logits * (1 - 2 * y_t.float()) if self._prediction == "flips" else logits
        )

    def posterior(
        self, y_t: Tensor, y0: Tensor, f: Tensor, t: Tensor, t_prev: Tensor | None = None
    ) -> Tensor:
        """Return q(y_prev = 1 | y_t, y0), by Bayes' rule.

        Args:
            y_t: masks of 0 and 1.
            y0: the true masks, or predicted probabilities of them.
            f: the segmenter's masks.
            t: steps of y_t.
            t_prev: the earlier steps, t - 1 by default; -1 is before the first.
        """
        t_prev = t - 1 if t_prev is None else t_prev
        f, y0, y_t = self.soft_prior(f), y0.float(), y_t.float()
        kept = self._abar(t_prev, y0)
        alpha = self._abar(t, y0) / kept
        if self.exclusive:
            likelihood = alpha * y_t + (1 - alpha) * (f * y_t).sum(1, keepdim=True)
            return self._categorical(likelihood, y0, f, kept)
        chance = (1 - alpha) * (y_t * f + (1 - y_t) * (1 - f))
        likelihoods = alpha * (1 - y_t) + chance, alpha * y_t + chance
        return self._binary(likelihoods, y0, f, kept)

    def _binary(
        self, likelihoods: tuple[Tensor, Tensor], y0: Tensor, f: Tensor, kept: Tensor
    ) -> Tensor:
        """Return the posterior of 1, from the likelihoods of y_prev = 0 and 1."""
        of_0, of_1 = likelihoods

        def of(start: Tensor | float) -> Tensor:
            joint_1 = of_1 * (kept * start + (1 - kept) * f)
            joint_0 = of_0 * (kept * (1 - start) + (1 - kept) * (1 - f))
            return joint_1 / (joint_0 + joint_1)

        match self._posterior:
            case "plugin":
                return of(y0)
            case "mixture":
                return y0 * of(1.0) + (1 - y0) * of(0.0)
            case _:
                assert_never(self._posterior)

    def _categorical(self, likelihood: Tensor, y0: Tensor, f: Tensor, kept: Tensor) -> Tensor:
        """Return the posterior of every class, from the likelihood of y_prev being that class."""
        match self._posterior:
            case "plugin":
                joint = likelihood * (kept * y0 + (1 - kept) * f)
                return joint / joint.sum(1, keepdim=True)
            case "mixture":
                chance = (likelihood * f).sum(1, keepdim=True)
                share = y0 / (kept * likelihood + (1 - kept) * chance)
                return likelihood * (kept * share + (1 - kept) * f * share.sum(1, keepdim=True))
            case _:
                assert_never(self._posterior)

    def interpolated(self, y_t: Tensor, y0: Tensor, t: Tensor, t_prev: Tensor) -> Tensor:
        """Return the probabilities of the DDIM-like step: sigma y_t + (1 - sigma) y0.

        With sigma = (1 - abar_prev) / (1 - abar_t), which leaves the prior no weight of its own
        (Song et al. 2021, arXiv:2010.02502, appendix A).

        Args:
            y_t: masks of 0 and 1.
            y0: predicted probabilities.
            t: steps of y_t.
            t_prev: the earlier steps; -1 is before the first.
        """
        sigma = (1 - self._abar(t_prev, y0)) / (1 - self._abar(t, y0))
        return sigma * y_t.float() + (1 - sigma) * y0.float()

    def step(
        self, output: Tensor, t: int | Tensor, y_t: Tensor, f: Tensor, noise: Tensor
    ) -> BernoulliStep:
        """Go one step back along `timesteps`.

        Args:
            output: of the network.
            t: a value of `timesteps`, one for all samples.
            y_t: masks of 0 and 1.
            f: the segmenter's masks.
            noise: uniform in [0, 1), as for `draw`; unused in the last step.

        Raises:
            RequestError: t is no step of this chain.
        """
        now = torch.as_tensor(t, device="cpu").long().reshape(1)
        later = self.timesteps.cpu() < now
        if not bool((self.timesteps.cpu() == now).any()):
            raise RequestError(
                f"BernoulliScheduler: step {int(now)} is none of {self.timesteps.tolist()}"
            )
        y0 = self.calibrate(self.complete(output, f), y_t)
        if not bool(later.any()):
            return BernoulliStep(y0, y0)
        before = self.timesteps.cpu()[later][:1]
        match self._sampler:
            case "ancestral" | "mode":
                mean = self.posterior(y_t, y0, f, now, before)
            case "ddim":
                mean = self.interpolated(y_t, y0, now, before)
            case _:
                assert_never(self._sampler)
        return BernoulliStep(self.settle(mean, noise), y0)

    def _abar(self, t: Tensor, like: Tensor) -> Tensor:
        """Return abar `(B or 1, 1, *1)` on the device of `like`; 1 for t = -1."""
        table = torch.cat([torch.ones(1), self.alphas_cumprod]).to(like.device)
        return table[t.to(like.device) + 1].reshape(-1, *(1,) * (like.ndim - 1))
