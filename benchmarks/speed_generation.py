"""Time a labelled slice (label, image, shard) of the shipped models against the peer's networks.

One process, one thread, all in turn: each round measures the machine's ceilings, one step and the
other parts of the peer (`generation_peer.py`; a slice is its steps times one step), and a batch of
labelled slices of each of our settings. CPU time of the thread stands beside wall time; on a
shared machine the former is the one to trust, and ratios before all.

    python benchmarks/speed_generation.py
    python benchmarks/speed_generation.py --curve --real work/store/store.h5

Prints a table and writes `benchmarks/results/speed_generation-DATE.json`. `--curve` measures
quality against time instead, see `generation_curve.py`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import generation_curve
import numpy as np
import numpy.typing as npt
import torch
from generation_peer import STEPS, peer_seconds, peer_stages
from timing import alternate, ceilings, gain, gflop, head, result_file, spread, write_result

from synthgen.core.rng import SampleKey
from synthgen.data.shard_file import write_shard
from synthgen.data.tissue import quantize_batch
from synthgen.generate import GenerationSettings, ImageJob, run
from synthgen.images.spade import SpadePipeline
from synthgen.labels import ConditionRange, LabelCondition
from synthgen.labels.generator import DiffusionLabelGenerator
from synthgen.starter import FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RANGE = ConditionRange({"wmh": (0.005, 0.03)}, (0.4, 0.85), (0.0, 1.0))
FAST = "bf16, distilled to 4 steps"
SETTINGS = {
    "bf16, 20 steps": ("bf16", 20),
    FAST: ("bf16", 4),
    "bf16, 10 steps": ("bf16", 10),
    "fp32, 20 steps": ("fp32", 20),
}
MAIN = "bf16, 20 steps"
TORCH_NAMES = {"bf16": "bfloat16", "fp32": "float32"}
NETWORKS, WRITING = ("u-net", "decoder", "spade"), "quantise and write"
Clock = dict[str, list[float]]


@dataclass
class Way:
    """One setting of ours and the CPU and wall seconds a slice of its stages, by round."""

    labels: DiffusionLabelGenerator
    images: SpadePipeline
    batch: int
    cpu: Clock = field(default_factory=dict)
    wall: Clock = field(default_factory=dict)
    gflop: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, labels: Path, images: Path, setting: tuple[str, int], batch: int) -> Way:
        """Load both models in the precision and with the steps of a setting."""
        precision, steps = setting
        return cls(
            DiffusionLabelGenerator.load(labels, dtype=precision, steps=steps),
            SpadePipeline.load(images, dtype=TORCH_NAMES[precision]),
            batch,
        )

    def run(self, folder: Path) -> None:
        """Make a batch of labelled slices and write it; record every stage.

        It is the same batch every time: how much of a map repeats decides the GFLOP of its image.
        """
        keys, wanted = self.requests()
        spent: dict[str, list[float]] = {}
        style = self.images.styles[0].name
        started = clocks()
        with self.timed(spent):
            pv = self.labels.sample(keys, wanted).numpy()
            stored = stopwatch(quantize_batch, spent, WRITING)(pv)
            images = self.images.render(as_painted(stored), [style], keys)
        arrays = {"pv": stored, "images": images.numpy().astype(np.float16)}
        stopwatch(write_shard, spent, WRITING)(folder / "00000.h5", arrays, {"kind": "images"})
        total = between(started, clocks())
        rest = [t - sum(s[c] for s in spent.values()) for c, t in enumerate(total)]
        spent |= {"rest (noise, warp, head, grain)": rest, "all": total}
        for stage, (wall, cpu) in spent.items():
            self.wall.setdefault(stage, []).append(wall / self.batch)
            self.cpu.setdefault(stage, []).append(cpu / self.batch)

    def requests(self) -> tuple[list[SampleKey], list[LabelCondition]]:
        """Return the keys of a batch and what is asked of its maps."""
        keys = [SampleKey(0, i) for i in range(self.batch)]
        return keys, [RANGE.draw(key) for key in keys]

    @contextmanager
    def timed(self, spent: dict[str, list[float]]) -> Iterator[None]:
        """Add the seconds of each network's calls to `spent`."""
        owners = (
            ("u-net", self.labels.unet, "forward"),
            ("decoder", self.labels.pipeline.vae, "decode"),
            ("spade", self.images.generator, "paint"),
        )
        for stage, owner, name in owners:
            setattr(owner, name, stopwatch(getattr(owner, name), spent, stage))
        try:
            yield
        finally:
            for _, owner, name in owners:
                delattr(owner, name)

    def count(self, folder: Path) -> None:
        """Count the GFLOP a slice of each network (multiply and add apart); also warms up."""
        (keys, wanted), style = self.requests(), self.images.styles[0].name
        drawn: list[torch.Tensor] = []
        labels = gflop(lambda: drawn.append(self.labels.sample(keys, wanted)))
        decoder = gflop(lambda: self.labels.pipeline.vae.decode(self.latents()))
        pv = as_painted(quantize_batch(drawn[0].numpy()))
        spade = gflop(lambda: self.images.render(pv, [style], keys))
        totals = zip(NETWORKS, (labels - decoder, decoder, spade), strict=True)
        self.gflop = {name: total / self.batch for name, total in totals}
        self.run(folder)
        self.cpu.clear()
        self.wall.clear()

    def latents(self) -> torch.Tensor:
        """Return latents as the decoder takes them."""
        size = self.labels.pipeline.config.latent_size
        z = torch.zeros(self.batch, self.labels.unet.config.out_channels, *size)
        dtype = self.labels.unet.dtype
        return z.to(dtype, memory_format=torch.channels_last)


def as_painted(stored: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return the maps of a shard as `synthgen images` hands them to its generator."""
    return torch.from_numpy(stored.astype(np.float32) / np.float32(255))


def clocks() -> tuple[float, float]:
    """Return wall and CPU seconds of this thread."""
    return time.perf_counter(), time.thread_time()


def between(start: tuple[float, float], end: tuple[float, float]) -> list[float]:
    """Return wall and CPU seconds between two moments."""
    return [late - early for early, late in zip(start, end, strict=True)]


def stopwatch(
    call: Callable[..., Any], spent: dict[str, list[float]], stage: str
) -> Callable[..., Any]:
    """Return a function that adds its seconds to `spent[stage]`."""

    def timed(*args: object, **settings: object) -> object:
        started = clocks()
        result = call(*args, **settings)
        taken = between(started, clocks())
        spent[stage] = [a + b for a, b in zip(spent.get(stage, [0.0, 0.0]), taken, strict=True)]
        return result

    return timed


@torch.no_grad()
def measure(ways: dict[str, Way], rounds: int) -> tuple[Clock, Clock]:
    """Run all rounds; return GFLOP/s of the ceilings and CPU seconds of the peer's calls."""
    peer, tops = peer_stages(), ceilings()
    calls = tops | {f"peer {name}": call for name, call in peer.items()}
    spent: Clock = {name: [] for name in calls}
    with tempfile.TemporaryDirectory() as folder:
        for way in ways.values():
            way.count(Path(folder))
        alternate(calls, 0)  # warms up
        for done in range(rounds):
            for name, taken in alternate(calls, 1, unseen=0).items():
                spent[name] += taken.cpu
            for name, way in ways.items():
                way.run(Path(folder))
                print(f"round {done + 1}: {name}: {way.cpu['all'][-1]:.3f} CPU s a slice")
    rates = {name: [gflop(call) / s for s in spent[name]] for name, call in tops.items()}
    return rates, {name: spent[f"peer {name}"] for name in peer}


def overlap(way: Way, rounds: int, batches: int) -> dict[str, Any]:
    """Time painting with the engine's writer thread against painting alone, wall time, in turn."""
    maps = quantize_batch(way.labels.sample(*way.requests()).numpy())
    row = {"attempt": 0, "condition": np.zeros(4), "realised": np.zeros(3)}

    def fetch(indices: list[int]) -> dict[str, Any]:
        rows = {name: np.stack([value] * len(indices)) for name, value in row.items()}
        return rows | {"pv": maps[[index % way.batch for index in indices]]}

    names = ("wmh", "tumour", "oedema", "position")
    settings = GenerationSettings(batch_size=way.batch, shard_size=way.batch)
    n = batches * way.batch
    job = ImageJob(way.images, (way.images.styles[0].name,), n, fetch, "", names, settings=settings)
    waited = []

    def alone() -> None:
        for batch in range(batches):
            job.rows(range(batch * way.batch, (batch + 1) * way.batch))

    def writing() -> None:
        with tempfile.TemporaryDirectory() as folder:
            outcome = run(job, n, Path(folder) / "d")
        waited.append(outcome.blocked_s / outcome.seconds)

    spent = alternate({"alone": alone, "writing": writing}, rounds)
    ratio = gain(spent["writing"], spent["alone"], "wall")
    return {"wall_over_compute": ratio, "waited_for_disk": spread(waited)}


def worker(models: tuple[Path, Path], batches: int, barrier: Any, queue: Any) -> None:  # noqa: ANN401
    """Make some batches once all workers are ready; report the wall seconds."""
    torch.set_num_threads(1)
    way = Way.load(*models, ("bf16", 2), 8)
    with tempfile.TemporaryDirectory() as folder:
        way.run(Path(folder))
        barrier.wait()
        started = time.perf_counter()
        for _ in range(batches):
            way.run(Path(folder))
    queue.put(time.perf_counter() - started)


def scaling(models: tuple[Path, Path], rounds: int, batches: int) -> dict[str, Any]:
    """Return how many times the slices of one process two make in the same wall time."""
    context = multiprocessing.get_context("spawn")
    gains = []
    for _ in range(rounds):
        seconds = []
        for count in (1, 2):
            barrier, queue = context.Barrier(count), context.Queue()
            crew = [
                context.Process(target=worker, args=(models, batches, barrier, queue))
                for _ in range(count)
            ]
            for process in crew:
                process.start()
            seconds.append(max(queue.get() for _ in crew))
            for process in crew:
                process.join()
        gains.append(2 * seconds[0] / seconds[1])
    return {"two_processes_over_one": spread(gains), "vcpus": multiprocessing.cpu_count()}


def summary(ways: dict[str, Way], tops: Clock, peer: Clock) -> dict[str, Any]:
    """Return medians, quartiles, ratios to the peer and shares of the ceilings."""
    found: dict[str, Any] = {
        "ceilings_gflop_per_s": {name: spread(rates) for name, rates in tops.items()},
        "peer_cpu_s": {name: spread(seconds) for name, seconds in peer.items()},
        "ours": {},
    }
    rows = [dict(zip(peer, row, strict=True)) for row in zip(*peer.values(), strict=True)]
    for name, way in ways.items():
        kind = name.split(",")[0]
        ratios = {
            label: spread(
                [peer_seconds(r, steps) / own for r, own in zip(rows, way.cpu["all"], strict=True)]
            )
            for label, steps in STEPS.items()
        }
        networks = {}
        for stage in NETWORKS:
            rates = [way.gflop[stage] / s for s in way.cpu[stage]]
            shares = {
                f"share of {top}": spread(
                    [a / b for a, b in zip(rates, tops[f"{top} {kind}"], strict=True)]
                )
                for top in ("matmul 2048", "conv3x3 256")
            }
            networks[stage] = {
                "gflop": way.gflop[stage], "gflop_per_s": spread(rates), **shares
            }  # fmt: skip
        found["ours"][name] = {
            "cpu_s_per_slice": {stage: spread(s) for stage, s in way.cpu.items()},
            "wall_s_per_slice": spread(way.wall["all"]),
            "times_the_peers": ratios,
            "networks": networks,
        }
    return found


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    print(
        "ceilings, GFLOP/s:",
        {k: round(v["median"]) for k, v in result["ceilings_gflop_per_s"].items()},
    )
    print("peer, CPU s:", {k: round(v["median"], 2) for k, v in result["peer_cpu_s"].items()})
    for name, ours in result["ours"].items():
        cpu = ours["cpu_s_per_slice"]
        print(f"\n{name}: {cpu['all']['median']:.3f} CPU s a slice")
        for label, ratio in ours["times_the_peers"].items():
            print(
                f"  {ratio['median']:7.0f} times the peer's {label} "
                f"[{ratio['q25']:.0f}, {ratio['q75']:.0f}]"
            )
        for stage, seconds in cpu.items():
            line = f"  {stage:32} {1e3 * seconds['median']:8.1f} ms"
            if stage in ours["networks"]:
                net = ours["networks"][stage]
                line += f" {net['gflop']:7.1f} GFLOP {net['gflop_per_s']['median']:6.0f} GFLOP/s"
                for key, share in net.items():
                    if key.startswith("share"):
                        line += f", {share['median']:.0%} of {key.removeprefix('share of ')}"
            print(line)
    print({key: result[key] for key in ("overlap", "scaling")})


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=Path, default=FOLDER / "labels")
    parser.add_argument("--fast-labels", type=Path, default=FOLDER / "labels_fast")
    parser.add_argument("--images", type=Path, default=FOLDER / "images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    generation_curve.add_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.curve:
        about = head("speed_generation") | {"threads": 1}
        generation_curve.measure(args, about, result_file("generation_curve"))
        return
    ways = {
        name: Way.load(
            args.fast_labels if name == FAST else args.labels, args.images, setting, args.batch
        )
        for name, setting in SETTINGS.items()
    }
    tops, peer = measure(ways, args.rounds)
    result = {"threads": 1, "rounds": args.rounds, "batch": args.batch}
    result |= summary(ways, tops, peer)
    result["overlap"] = overlap(ways[MAIN], 2 * args.rounds, 6)
    result["scaling"] = scaling((args.labels, args.images), args.rounds, 3)
    show(result)
    write_result("speed_generation", result)


if __name__ == "__main__":
    main()
