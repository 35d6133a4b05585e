"""A trained label diffusion model as a `LabelGenerator`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from diffusers.utils import logging as diffusers_logging

from synthgen.core.errors import RequestError, StoreError, SynthgenError
from synthgen.core.input_files import one_line, unusable
from synthgen.core.model_folder import INDEX, REMEDY
from synthgen.core.rng import SampleKey, Stream
from synthgen.diffusion.schedule import Sampler, build_sampler
from synthgen.labels import ConditionRange, LabelCondition
from synthgen.labels.condition import CSF
from synthgen.labels.diffusion import LabelDiffusionPipeline
from synthgen.labels.folder import ModelDetails, read_details
from synthgen.models.instance_norm import with_fast_norms
from synthgen.models.loading import require_all_weights
from synthgen.runtime import tensor_files

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from diffusers import UNet2DModel

    from synthgen.core.schema import LabelSchema

_NETWORKS = ("vae", "unet", "condition_embedding")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class DiffusionLabelGenerator:
    """Draws label maps with a `LabelDiffusionPipeline`; see `load_label_generator`."""

    def __init__(
        self,
        pipeline: LabelDiffusionPipeline,
        details: ModelDetails,
        *,
        sampler: Sampler | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        dtype: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        self._pipeline, self._details = pipeline, details
        config = pipeline.config
        self._sampler: Sampler = sampler or config.sampler
        self._steps = config.num_inference_steps if steps is None else steps
        self._guidance = config.guidance if guidance is None else guidance
        self._dtype = dtype
        fitting = build_sampler(self._sampler, pipeline.scheduler)
        most = pipeline.scheduler.config.num_train_timesteps
        if not 1 <= self._steps <= most:
            raise RequestError(f"sampling steps must lie in 1 .. {most}, got {self._steps}")
        fitting.set_timesteps(self._steps)  # raises early if a distilled model has others
        if not 0 < pipeline.strength(self._guidance) < float("inf"):
            raise RequestError(f"guidance must be above 0 and finite, got {self._guidance:g}")
        if self._sampler == "distilled" and self._guidance != 1:
            raise RequestError(
                "this model was distilled with its guidance folded in: leave the guidance out, "
                f"got {self._guidance:g}"
            )

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        sampler: Sampler | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        device: str = "cpu",
        dtype: Literal["fp32", "bf16"] = "fp32",
    ) -> Self:
        """Load a model folder after checking each of its files; see `load_label_generator`."""
        details = read_details(folder)
        with _quiet_diffusers():
            with unusable(folder, REMEDY), tensor_files():
                pipeline = LabelDiffusionPipeline.from_pretrained(
                    folder, local_files_only=True, use_safetensors=True
                )
                for name in _NETWORKS:
                    require_all_weights(getattr(pipeline, name), folder / name)
            try:
                pipeline = pipeline.to(torch.device(device), _DTYPES[dtype])
            except (RuntimeError, AssertionError) as error:
                raise RequestError(f"device '{device}' cannot be used here ({error})") from error
        for net in (pipeline.vae, pipeline.unet):
            with_fast_norms(net).to(memory_format=torch.channels_last)
        try:
            return cls(
                pipeline, details, sampler=sampler, steps=steps, guidance=guidance, dtype=dtype
            )
        except SynthgenError:
            raise
        except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError) as error:
            raise StoreError(f"{folder / INDEX}: {one_line(error)}; {REMEDY}") from error

    @property
    def pipeline(self) -> LabelDiffusionPipeline:
        """The networks and their default sampling."""
        return self._pipeline

    @property
    def details(self) -> ModelDetails:
        """What the model folder holds beside the networks."""
        return self._details

    @property
    def unet(self) -> UNet2DModel:
        """The denoising network."""
        return self._pipeline.unet

    @property
    def network_calls(self) -> int:
        """How often a map asks the denoising network."""
        return self._steps * (1 if self._pipeline.strength(self._guidance) == 1 else 2)

    @property
    def schema(self) -> LabelSchema:
        """The label schema of the maps."""
        return self._details.schema

    @property
    def shape(self) -> tuple[int, int]:
        """Size (X, Y) of the maps."""
        return self._details.shape

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects that the model saw."""
        return self._details.subjects

    @property
    def conditions(self) -> ConditionRange:
        """What the training data held: lesion shares up to the largest one, slice positions."""
        scale = self._details.scale
        largest = dict(zip(scale.names, scale.maxima, strict=True))
        lesions = {
            name: (0.0, largest[name]) for name in self.schema.lesions if largest.get(name, 0.0) > 0
        }
        known = CSF in scale.names
        return ConditionRange(lesions, self._details.position, (0.0, 1.0) if known else None)

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the bytes of the maps."""
        return {
            "model": self._details.model,
            "sampler": self._sampler,
            "steps": self._steps,
            "guidance": self._guidance,
            "eta": self._pipeline.config.eta if self._sampler == "ddim" else 0.0,
            "dtype": self._dtype,
        }

    def sample(
        self, keys: Sequence[SampleKey], conditions: Sequence[LabelCondition]
    ) -> torch.Tensor:
        """Draw a batch; see `LabelGenerator.sample`."""
        if len(keys) != len(conditions):
            raise RequestError(f"got {len(keys)} keys but {len(conditions)} conditions")
        output = self._pipeline(
            self._details.scale.encode(conditions),
            [key.torch(Stream.NOISE) for key in keys],
            sampler=self._sampler,
            num_inference_steps=self._steps,
            guidance=self._guidance,
        )
        pv: torch.Tensor = output.pv
        return pv


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Keep diffusers' progress bar and its remarks on signatures and casts off the terminal."""
    shown, verbosity = (
        diffusers_logging.is_progress_bar_enabled(),
        diffusers_logging.get_verbosity(),
    )
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)
        if shown:
            diffusers_logging.enable_progress_bar()
