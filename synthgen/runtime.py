"""The one place that knows device, precision, workers, initial weights and weight files."""

from __future__ import annotations

import atexit
import gc
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker, get_available_trackers
from accelerate.utils import ProjectConfiguration
from safetensors import SafetensorError
from torch import nn

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Net = TypeVar("Net", bound=nn.Module)
Precision = Literal["fp32", "bf16", "fp16"]


def worker(asked: str | None = None) -> tuple[int, int]:
    """Return which worker this is, from 0, and how many there are.

    Args:
        asked: `K/N`, worker K of 1 .. N; None for what a launcher set (RANK and WORLD_SIZE), or
            `(0, 1)` when started alone.

    Raises:
        RequestError: no such worker, or the launcher's RANK and WORLD_SIZE are no integers or
            disagree, or both say who this is.
    """
    if asked is not None:
        number, slash, count = asked.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal()) or not (
            1 <= int(number) <= int(count)
        ):
            raise RequestError(
                f"--worker: expected K/N with K from 1 to N, such as 3/16, got '{asked}'"
            )
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise RequestError(
                f"--worker {asked}: a launcher has started these processes and set WORLD_SIZE="
                f"{os.environ['WORLD_SIZE']}; leave --worker out, or the launcher"
            )
        return int(number) - 1, int(count)
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise RequestError(
            f"expected 0 <= RANK < WORLD_SIZE in the environment, got RANK={rank!r} and "
            f"WORLD_SIZE={world!r}; start workers with `accelerate launch` or unset both"
        )
    return int(rank), int(world)


def place(net: Net, device: torch.device) -> Net:
    """Move a network to a device, that of slices in channels-last layout, for bf16 convolutions.

    Volumes keep torch's layout, in which narrow networks train faster.
    """
    net.to(device)
    if not any(parameter.ndim == 5 for parameter in net.parameters()):
        # torch's stubs leave out `memory_format`.
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def build_accelerator(
    precision: Precision,
    accumulation: int = 1,
    trackers: Sequence[str | GeneralTracker] = (),
    run_dir: Path | None = None,
) -> Accelerator:
    """Build an accelerator for training.

    Args:
        precision: "fp32", or autocast to "bf16" (CPU and GPU) or "fp16" (GPU only).
        accumulation: micro-batches per optimiser step.
        trackers: accelerate's trackers, by name ("tensorboard") or made already.
        run_dir: folder where trackers write; needed with trackers.

    Raises:
        RequestError: fp16 without a GPU, or a tracker that is not installed.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise RequestError("precision 'fp16' needs a CUDA device; use 'bf16' or 'fp32' on a CPU")
    installed = {str(name) for name in get_available_trackers()}
    absent = [t for t in trackers if not isinstance(t, GeneralTracker) and t not in installed]
    if absent:
        raise RequestError(
            f"tracker '{absent[0]}' is not installed; `pip install {absent[0]}`, or take it out of "
            "the recipe's `trackers`"
        )
    mixed = "no" if precision == "fp32" else precision
    # accelerate keeps its state per process and refuses a second precision; a process may train
    # one stage in bf16 and the next in fp32.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state(reset_partial_state=False)
    project = ProjectConfiguration(str(run_dir)) if run_dir else None
    return Accelerator(
        # Without it, accelerate lets each CPU worker of a launcher train alone.
        cpu=worker()[1] > 1 and not torch.cuda.is_available(),
        mixed_precision=mixed,
        gradient_accumulation_steps=accumulation,
        log_with=list(trackers) or None,
        project_config=project,
    )


@atexit.register
def _leave_group() -> None:
    """End the process group of the workers, and with it the threads of gloo.

    A thread that still lets go of a tensor while the interpreter ends aborts the process, one exit
    in ten. The group joins its threads when nothing refers to it any more, not even garbage.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()


@contextmanager
def seeded_init(seed: int, network: int) -> Iterator[None]:
    """Draw initial weights from a seed and leave the caller's global generator as it was.

    Args:
        seed: seed of the training.
        network: which of its networks is built inside.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SampleKey(seed, network).seed32(Stream.INIT))
        yield


@contextmanager
def tensor_files() -> Iterator[None]:
    """Raise safetensors' own error (a full disk, a damaged file) as the OSError that it is."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error
