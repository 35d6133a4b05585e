"""Noise schedules: the training scheduler that a model is saved with, and samplers made from it.

The paper's betas (Fernandez et al. 2022, arXiv:2209.08256, released code) are
`linspace(sqrt(0.0015), sqrt(0.0195), 1000) ** 2`, which diffusers calls "scaled_linear".
"""

from __future__ import annotations

from typing import Literal, assert_never

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from synthgen.core.errors import RequestError
from synthgen.diffusion.few_step import FewStepScheduler

Target = Literal["epsilon", "v", "flow"]
Sampler = Literal["dpm", "ddim", "unipc", "ddpm", "euler", "distilled"]
BetaSchedule = Literal["scaled_linear", "linear", "squaredcos_cap_v2"]

_PREDICTION = {"epsilon": "epsilon", "v": "v_prediction", "flow": "flow_prediction"}


def build_training_scheduler(
    target: Target,
    num_train_timesteps: int,
    beta_schedule: BetaSchedule,
    beta_start: float,
    beta_end: float,
) -> SchedulerMixin:
    """Build the scheduler that defines the forward process and the prediction.

    Latents are not bounded, so nothing is ever clipped (diffusers clips to 1 by default).
    """
    if target == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=num_train_timesteps, shift=1.0)
    return DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_schedule=beta_schedule,
        beta_start=beta_start,
        beta_end=beta_end,
        prediction_type=_PREDICTION[target],
        clip_sample=False,
    )


def target_of(scheduler: SchedulerMixin) -> Target:
    """Return what a model trained under `scheduler` predicts."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return "flow"
    return "v" if scheduler.config.prediction_type == "v_prediction" else "epsilon"


def build_sampler(name: Sampler, training: SchedulerMixin) -> SchedulerMixin:
    """Build a sampler for a model trained under `training`.

    Args:
        name: "dpm" is DPM-Solver++ 2M (Lu et al. 2022, arXiv:2211.01095), on Karras sigmas unless
            the model predicts a flow; "ddim" (Song et al. 2021) visits 1, 21, ..., 981 for 50
            steps, as the paper's sampler; "unipc"; "ddpm", ancestral; "euler", for flows;
            "distilled", the one of a distilled model.
        training: from `build_training_scheduler`, or the `FewStepScheduler` of a distilled model.

    Raises:
        RequestError: the sampler does not fit what the model predicts.
    """
    if isinstance(training, FewStepScheduler) or name == "distilled":
        return _own_sampler(name, training)
    target = target_of(training)
    if (target == "flow") != (name == "euler") and name != "dpm":
        fitting = "dpm, euler" if target == "flow" else "dpm, ddim, unipc, ddpm"
        raise RequestError(
            f"sampler '{name}' does not fit a model that predicts '{target}'; choose {fitting}"
        )
    config = training.config
    match name:
        case "dpm":
            return _dpm(training)
        case "unipc":
            # Explicit: a scheduler read from a file would pass on "leading", DDPM's default, and
            # sampling would start far from pure noise.
            return UniPCMultistepScheduler.from_config(config, timestep_spacing="linspace")
        case "ddim":
            return DDIMScheduler.from_config(
                config,
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
                timestep_spacing="leading",
            )
        case "ddpm":
            return DDPMScheduler.from_config(config, clip_sample=False)
        case "euler":
            return FlowMatchEulerDiscreteScheduler.from_config(config)
        case _:
            assert_never(name)


def _dpm(training: SchedulerMixin) -> DPMSolverMultistepScheduler:
    config = training.config
    if target_of(training) == "flow":
        return DPMSolverMultistepScheduler(
            num_train_timesteps=config.num_train_timesteps,
            algorithm_type="dpmsolver++",
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=1.0,
        )
    return DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="dpmsolver++", solver_order=2, use_karras_sigmas=True
    )


def _own_sampler(name: Sampler, training: SchedulerMixin) -> FewStepScheduler:
    """Return the one sampler of a distilled model; it fits no other, and no other fits it."""
    if not isinstance(training, FewStepScheduler):
        raise RequestError(f"sampler '{name}' fits distilled models only; leave the sampler out")
    if name != "distilled":
        raise RequestError(
            f"sampler '{name}' does not fit a distilled model, which has one of its own; leave the "
            "sampler out"
        )
    sampler: FewStepScheduler = FewStepScheduler.from_config(training.config)
    return sampler
