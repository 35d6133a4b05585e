"""What the benchmarks share: rounds in turn, spread, the machine and its peak, result files.

The machines are shared. So every round runs all variants once, gains are taken within a round,
and beside the time on the wall stands the CPU time of the thread, which a busy neighbour moves
less.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from synthgen.core.manifest import provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

RESULTS = Path(__file__).parent / "results"
FORMATS = {"bf16": torch.bfloat16, "fp32": torch.float32}
FLAGS = ("amx_tile", "amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx2")


@dataclass
class Spent:
    """Seconds of every round, on the wall and of the CPU."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def alternate(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    unseen: int = 1,
    *,
    of_process: bool = False,
) -> dict[str, Spent]:
    """Time every call once a round; the first `unseen` rounds do not count.

    CPU time is that of this thread, with `of_process` that of all threads.
    """
    cpu_clock = time.process_time if of_process else time.thread_time
    spent = {name: Spent() for name in calls}
    for number in range(unseen + rounds):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), cpu_clock()
            call()
            taken = time.perf_counter() - wall, cpu_clock() - cpu
            if number >= unseen:
                spent[name].wall.append(taken[0])
                spent[name].cpu.append(taken[1])
    return spent


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Return median and quartiles, times `scale`."""
    low, middle, high = np.percentile(np.asarray(values) * scale, [25, 50, 75])
    return {"median": float(middle), "q25": float(low), "q75": float(high)}


def gain(slow: Spent, fast: Spent, clock: Literal["cpu", "wall"] = "cpu") -> dict[str, float]:
    """Return how many times faster `fast` is, round by round."""
    pairs = zip(getattr(slow, clock), getattr(fast, clock), strict=True)
    return spread([a / b for a, b in pairs])


def cell(found: Mapping[str, float], digits: int = 2, scale: float = 1.0) -> str:
    """Return `median [q25, q75]`, times `scale`."""
    middle, low, high = (f"{scale * found[k]:.{digits}f}" for k in ("median", "q25", "q75"))
    return f"{middle} [{low}, {high}]"


def gflop(call: Callable[[], object]) -> float:
    """Return the GFLOP (multiply and add counted apart) of one call, backward included."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops()) / 1e9


def ceilings() -> dict[str, Callable[[], object]]:
    """Return large products and convolutions by name and format, such as `matmul 2048 bf16`.

    A matrix product of 2048 and a 3 x 3 convolution of 256 channels at 48 x 64, batch 4,
    channels-last: the best this machine is seen to do, not what its maker promises.
    """
    calls: dict[str, Callable[[], object]] = {}
    for kind, dtype in FORMATS.items():
        a, b = torch.ones(2, 2048, 2048, dtype=dtype)
        maps = torch.ones(4, 256, 48, 64, dtype=dtype).to(memory_format=torch.channels_last)
        weights = torch.ones(256, 256, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        calls[f"matmul 2048 {kind}"] = partial(torch.matmul, a, b)
        calls[f"conv3x3 256 {kind}"] = partial(functional.conv2d, maps, weights, padding=1)
    return calls


def peaks(rounds: int = 7) -> dict[str, float]:
    """Return the most GFLOP/s of CPU time that a ceiling reaches, by format."""
    calls = ceilings()
    with torch.inference_mode():
        work = {name: gflop(call) for name, call in calls.items()}
        spent = alternate(calls, rounds)
    rates = {name: work[name] / float(np.median(spent[name].cpu)) for name in calls}
    return {kind: max(v for k, v in rates.items() if k.endswith(kind)) for kind in FORMATS}


def machine() -> dict[str, object]:
    """Return what this machine is."""
    facts: dict[str, str] = {}
    source = Path("/proc/cpuinfo")
    for line in source.read_text().splitlines() if source.is_file() else ():
        name, colon, value = line.partition(":")
        if colon:
            facts.setdefault(name.strip(), value.strip())
    flags = facts.get("flags", "").split()
    return {
        "cpu": facts.get("model name", platform.processor()),
        "family_model": f"{facts.get('cpu family', '?')}/{facts.get('model', '?')}",
        "flags": [flag for flag in FLAGS if flag in flags],
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def head(script: str) -> dict[str, object]:
    """Return what a result file begins with: script, time, versions and machine."""
    return {
        "made_by": f"benchmarks/{script}.py",
        "date": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "versions": provenance(),
        "machine": machine(),
    }


def result_file(name: str, folder: Path = RESULTS) -> Path:
    """Return the path of `NAME-DATE.json`, of today."""
    return folder / f"{name}-{datetime.now(tz=UTC).date().isoformat()}.json"


def save_result(
    name: str, result: Mapping[str, Any], script: str = "", folder: Path = RESULTS
) -> Path:
    """Write `NAME-DATE.json` behind the head of `script`, by default `name`; return its path."""
    target = result_file(name, folder)
    folder.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(head(script or name) | dict(result), indent=1) + "\n")
    return target


def write_result(name: str, result: Mapping[str, Any]) -> None:
    """Write `results/NAME-DATE.json` behind its head, and say where."""
    print("written:", save_result(name, result).relative_to(RESULTS.parents[1]))


def read_result(name: str) -> dict[str, Any]:
    """Return what `write_result` wrote today, `{}` if nothing."""
    target = result_file(name)
    return dict(json.loads(target.read_text())) if target.exists() else {}
