"""Time a labelled slice (label, image, shard) against the peer's way, in one process, in turn.

The peer's way (brainSPADE as released): the same networks in eager fp32, 1000 ancestral steps, one
slice at a time. Ours: bf16, channels_last, the recipe's sampler and steps, a batch. Each pair runs
ours, then the peer's, so that a drifting machine moves both; the figure to trust is the ratio.

    python benchmarks/speed_generation.py --labels work/models/labels --images work/models/images

Prints a table and writes `benchmarks/results/speed_generation-DATE.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from synthgen.core.manifest import provenance
from synthgen.core.rng import SampleKey
from synthgen.data.shard_file import write_shard
from synthgen.data.tissue import quantize_pv
from synthgen.images.spade import SpadePipeline
from synthgen.labels import ConditionRange
from synthgen.labels.generator import DiffusionLabelGenerator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RANGE = ConditionRange({}, (0.3, 0.7))


@dataclass
class Way:
    """One way to make labelled slices, and the seconds its stages took."""

    name: str
    labels: DiffusionLabelGenerator
    images: SpadePipeline
    style: str
    batch: int
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)

    def run(self, folder: Path, first: int) -> None:
        """Make `batch` labelled slices; record seconds per slice of each stage."""
        keys = [SampleKey(0, first + i) for i in range(self.batch)]
        conditions = [RANGE.draw(key) for key in keys]
        spent = {"u-net": 0.0}
        started, cpu = time.perf_counter(), time.process_time()
        with timed_forward(self.labels.unet, spent, "u-net"):
            pv = self.labels.sample(keys, conditions)
        labelled = time.perf_counter()
        images = self.images.render(pv, [self.style], keys)
        painted = time.perf_counter()
        stored = {
            "pv": np.stack([quantize_pv(row) for row in pv.numpy()]),
            "images": images.numpy().astype(np.float16),
        }
        write_shard(folder / "00000.h5", stored, {"kind": "images"})
        ended = time.perf_counter()
        self.wall.append((ended - started) / self.batch)
        self.cpu.append((time.process_time() - cpu) / self.batch)
        for stage, seconds in (
            ("u-net", spent["u-net"]),
            ("decoder and rest of the label", labelled - started - spent["u-net"]),
            ("spade", painted - labelled),
            ("quantise and write", ended - painted),
        ):
            self.stages.setdefault(stage, []).append(seconds / self.batch)

    def forget(self) -> None:
        """Drop what was measured so far."""
        self.wall.clear()
        self.cpu.clear()
        self.stages.clear()


@contextmanager
def timed_forward(module: nn.Module, spent: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds of every forward call of `module` to `spent[name]`."""
    began = [0.0]

    def before(*_: object) -> None:
        began[0] = time.perf_counter()

    def after(*_: object) -> None:
        spent[name] += time.perf_counter() - began[0]

    hooks = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def gflop(call: Callable[[], object]) -> float:
    """Return the GFLOP (multiply and add counted apart) of one call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def spread(values: list[float]) -> dict[str, float]:
    """Return median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "q25": float(low), "q75": float(high)}


def memory_by_n(labels: Path, sizes: list[int]) -> dict[int, float]:
    """Return the peak resident memory in MiB of `synthgen labels --n N`, each in a process."""
    peaks = {}
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "synthgen", "labels", "--n", str(n), "--steps", "1"]
            command += ["--model", str(labels), "--out", f"{folder}/d", "--shard-size", "8"]
            # The peak over children is kept by the process that waits, so each gets its own.
            code = (
                f"import resource, subprocess; subprocess.run({command!r}, check=True, "
                "capture_output=True); "
                "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
            )
            done = subprocess.run(
                [sys.executable, "-c", code], check=True, capture_output=True, text=True
            )
            peaks[n] = int(done.stdout) / 1024
    return peaks


def main() -> None:
    """Run the pairs and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=Path, required=True, help="trained label model folder")
    parser.add_argument("--images", type=Path, required=True, help="trained image model folder")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--peer-steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=int, nargs="*", default=[16, 128])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ours = Way(
        "ours",
        DiffusionLabelGenerator.load(args.labels, dtype="bf16"),
        SpadePipeline.load(args.images, dtype="bfloat16"),
        "",
        args.batch,
    )
    peer = Way(
        "peer",
        DiffusionLabelGenerator.load(
            args.labels, sampler="ddpm", steps=args.peer_steps, guidance=1.0, dtype="fp32"
        ),
        SpadePipeline.load(args.images, dtype="float32"),
        "",
        1,
    )
    ours.style = peer.style = ours.images.styles[0].name
    with tempfile.TemporaryDirectory() as folder:
        flops = gflop(lambda: ours.run(Path(folder), 0)) / ours.batch  # also warms up
        ours.forget()
        for pair in range(args.pairs):
            ours.run(Path(folder), pair * args.batch)
            peer.run(Path(folder), pair)
            print(
                f"pair {pair + 1}: ours {ours.wall[-1]:.3f} s, peer {peer.wall[-1]:.1f} s a slice"
            )
    report(ours, peer, flops, memory_by_n(args.labels, args.memory), args)


def report(
    ours: Way, peer: Way, flops: float, memory: dict[int, float], args: argparse.Namespace
) -> None:
    """Print the table and write the JSON."""
    ratio = [p / o for o, p in zip(ours.wall, peer.wall, strict=True)]
    cpu_ratio = [p / o for o, p in zip(ours.cpu, peer.cpu, strict=True)]
    result: dict[str, Any] = {
        "made_by": "benchmarks/speed_generation.py",
        "date": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "versions": provenance(),
        "threads": args.threads,
        "pairs": args.pairs,
        "batch": args.batch,
        "peer_steps": args.peer_steps,
        "ratio_wall": spread(ratio),
        "ratio_cpu": spread(cpu_ratio),
        "ours_s_per_slice": spread(ours.wall),
        "peer_s_per_slice": spread(peer.wall),
        "ours_gflop_per_slice": flops,
        "ours_gflop_per_s": flops / float(np.median(ours.wall)),
        "ours_stage_share": shares(ours),
        "peer_stage_share": shares(peer),
        "peak_memory_mib_by_n": memory,
    }
    for name in ("ratio_wall", "ratio_cpu", "ours_s_per_slice", "peer_s_per_slice"):
        value = result[name]
        print(f"{name:18} {value['median']:9.3f}  [{value['q25']:.3f}, {value['q75']:.3f}]")
    print(f"{flops:.0f} GFLOP a slice, {result['ours_gflop_per_s']:.0f} GFLOP/s")
    for stage, share in result["ours_stage_share"].items():
        print(f"  {stage:32} ours {share:6.1%}   peer {result['peer_stage_share'][stage]:6.1%}")
    print("peak memory (MiB) by --n:", {n: round(m) for n, m in memory.items()})
    day = datetime.now(tz=UTC).date().isoformat()
    target = Path(__file__).parent / "results" / f"speed_generation-{day}.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print("written:", target.relative_to(Path(__file__).parents[1]))


def shares(way: Way) -> dict[str, float]:
    """Return each stage's share of the wall time."""
    total = sum(sum(seconds) for seconds in way.stages.values())
    return {stage: sum(seconds) / total for stage, seconds in way.stages.items()}


if __name__ == "__main__":
    main()
