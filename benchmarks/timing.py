"""What the speed benchmarks share: rounds in turn, spread, the machine and its peak, result files.

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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from synthgen.core.manifest import provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

FLAGS = ("amx_tile", "amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx2")


@dataclass
class Spent:
    """Seconds of every round, on the wall and of the thread."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def alternate(
    calls: Mapping[str, Callable[[], object]], rounds: int, unseen: int = 1
) -> dict[str, Spent]:
    """Time every call once a round; the first `unseen` rounds do not count."""
    spent = {name: Spent() for name in calls}
    for number in range(unseen + rounds):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.thread_time()
            call()
            taken = time.perf_counter() - wall, time.thread_time() - cpu
            if number >= unseen:
                spent[name].wall.append(taken[0])
                spent[name].cpu.append(taken[1])
    return spent


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Return median and quartiles, times `scale`."""
    low, middle, high = np.percentile(np.asarray(values) * scale, [25, 50, 75])
    return {"median": float(middle), "q25": float(low), "q75": float(high)}


def gain(slow: Spent, fast: Spent) -> dict[str, float]:
    """Return how many times faster `fast` is in CPU time, round by round."""
    return spread([a / b for a, b in zip(slow.cpu, fast.cpu, strict=True)])


def cell(found: Mapping[str, float], digits: int = 2) -> str:
    """Return `median [q25, q75]`."""
    return f"{found['median']:.{digits}f} [{found['q25']:.{digits}f}, {found['q75']:.{digits}f}]"


def gflop(call: Callable[[], object]) -> float:
    """Return the GFLOP (multiply and add counted apart) of one call, backward included."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops()) / 1e9


def peaks(rounds: int = 7) -> dict[str, float]:
    """Return the GFLOP/s of CPU time that large products and convolutions reach, by format.

    The largest of a matrix product of 2048 and a 3 x 3 convolution of 256 channels at 48 x 64,
    channels-last: the best this machine was seen to do, not what its maker promises.
    """
    best = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        square = torch.ones(2048, 2048, dtype=dtype)
        maps = torch.ones(4, 256, 48, 64, dtype=dtype).to(memory_format=torch.channels_last)
        weights = torch.ones(256, 256, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        calls = {
            "product": lambda a=square: a @ a,
            "convolution": lambda x=maps, w=weights: torch.nn.functional.conv2d(x, w, padding=1),
        }
        with torch.inference_mode():
            work = {kind: gflop(call) for kind, call in calls.items()}
            spent = alternate(calls, rounds)
        best[name] = max(work[kind] / float(np.median(spent[kind].cpu)) for kind in calls)
    return best


def machine() -> dict[str, object]:
    """Return what this machine is."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
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


def write_result(name: str, result: Mapping[str, Any]) -> None:
    """Write `results/NAME-DATE.json` with versions and machine, and say where."""
    head = {
        "made_by": f"benchmarks/{name}.py",
        "date": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "versions": provenance(),
        "machine": machine(),
    }
    target = _result_file(name)
    target.write_text(json.dumps(head | dict(result), indent=1) + "\n")
    print("written:", target.relative_to(Path(__file__).parents[1]))


def read_result(name: str) -> dict[str, Any]:
    """Return what `write_result` wrote today, `{}` if nothing."""
    target = _result_file(name)
    return dict(json.loads(target.read_text())) if target.exists() else {}


def _result_file(name: str) -> Path:
    day = datetime.now(tz=UTC).date().isoformat()
    return Path(__file__).parent / "results" / f"{name}-{day}.json"
