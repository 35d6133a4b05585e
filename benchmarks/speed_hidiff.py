"""Time one step of HiDiff's refiner on one core: real and binary, simulated and deployed, in turn.

Each round runs every variant once, so that a drifting machine moves all of them; gains are taken
within a round. Times are given on the wall and of the process: on a shared machine the latter is
the steadier one. A step is `refine`, whose inputs `prepare` has made once per picture. Weights are
random, which changes no time; every binary block is compared with its simulation on the maps that
the simulation gives it.

    python benchmarks/speed_hidiff.py

Prints a table and writes `benchmarks/results/speed_hidiff-DATE.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
from typing import TYPE_CHECKING, Any, Literal

import torch
from timing import alternate, cell, gain, gflop, spread, write_result

from synthgen.models.hidiff import HiDiffRefiner
from synthgen.models.hidiff_binary import BinaryBlock, BinaryConvNd
from synthgen.models.hidiff_deploy import Backend, DeployedRefiner

if TYPE_CHECKING:
    from collections.abc import Callable

    from timing import Spent

CLASSES, STEPS, AT = 9, 10, 3
FEATURES = (96, 192, 384, 768)
PAPER = {"refinement": 22, "whole inference": 10}
"""Chen et al. 2024, arXiv:2407.03548: how many times fewer operations, not how much faster."""
BACKENDS: tuple[Backend, ...] = ("reference", "int8", "popcount")

Step = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def refiner(width: int, size: int, *, binary: bool) -> HiDiffRefiner:
    """Return the published layout, with `width` channels at full size, and made-up weights."""
    model = HiDiffRefiner(
        spatial_dims=2,
        in_channels=1,
        out_channels=CLASSES,
        channels=tuple(width * factor for factor in (1, 1, 2, 2, 4, 4)),
        strides=((2, 2),) * 5,
        feature_channels=FEATURES,
        feature_levels=(2, 3, 4, 5),
        num_heads=4,
        binary=binary,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in model.parameters():  # some start at 0, and would compare too well
            drawn = torch.randn(values.shape, generator=generator)
            if values.ndim > 1:
                values.copy_(0.5 * drawn / values[0].numel() ** 0.5)
            else:
                values.add_(0.1 * drawn)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # statistics of one pass: maps of a few units, as after training
    step, maps = inputs(size)
    model.train()(*step, maps)
    return model.eval()


def inputs(size: int) -> tuple[Step, list[torch.Tensor]]:
    """Return the arguments of one step and the segmenter's feature maps."""
    generator = torch.Generator().manual_seed(1)

    def draw(channels: int, side: int) -> torch.Tensor:
        return torch.rand(1, channels, side, side, generator=generator)

    noisy = (draw(CLASSES, size) > 0.5).float()
    maps = [draw(width, size // 2 ** (2 + i)) for i, width in enumerate(FEATURES)]
    return (draw(1, size), noisy, draw(CLASSES, size), torch.tensor([AT])), maps


def variants(
    width: int, size: int, *, compiled: bool
) -> tuple[dict[str, Callable[[], torch.Tensor]], HiDiffRefiner, HiDiffRefiner]:
    """Return what is timed, by name, and the real and the binary refiner."""
    step, maps = inputs(size)
    real, binary = refiner(width, size, binary=False), refiner(width, size, binary=True)
    found: dict[str, Callable[[], torch.Tensor]] = {}

    def add(name: str, model: HiDiffRefiner | DeployedRefiner, *, also_compiled: bool) -> None:
        trunks = model.prepare(maps, (size, size))
        found[name] = lambda: model.refine(*step, trunks)
        if compiled and also_compiled:
            call = torch.compile(model.refine)
            found[f"{name}, compiled"] = lambda: call(*step, trunks)

    add("real fp32", real, also_compiled=False)
    half = refiner(width, size, binary=False).to(torch.bfloat16, memory_format=torch.channels_last)
    maps = [feature.contiguous(memory_format=torch.channels_last) for feature in maps]
    add("real bf16", half, also_compiled=True)
    add("binary fp32, simulated", binary, also_compiled=False)
    add("binary int8", DeployedRefiner(binary, STEPS, backend="int8"), also_compiled=True)
    for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        ready = DeployedRefiner(binary, STEPS, backend="popcount", dtype=dtype)
        add(f"binary popcount, real parts {kind}", ready, also_compiled=False)
    return found, real, binary


def largest_errors(binary: HiDiffRefiner, size: int) -> dict[str, dict[str, float]]:
    """Return for each backend the largest differences of any block, and of the logits."""
    step, maps = inputs(size)
    deployed = {backend: DeployedRefiner(binary, STEPS, backend=backend) for backend in BACKENDS}
    worst = {backend: {"block": 0.0, "block relative": 0.0} for backend in BACKENDS}

    def compare(name: str) -> Callable[..., None]:
        def hook(_: object, given: tuple[torch.Tensor], result: torch.Tensor) -> None:
            for backend, ready in deployed.items():
                got = ready.net.get_submodule(name)(given[0], step[3])
                error = float((got - result).abs().max())
                relative = error / float(result.abs().max())
                for key, value in (("block", error), ("block relative", relative)):
                    worst[backend][key] = max(worst[backend][key], value)

        return hook

    handles = [
        module.register_forward_hook(compare(name))
        for name, module in binary.named_modules()
        if isinstance(module, BinaryBlock)
    ]
    logits = binary(*step, maps)
    for handle in handles:
        handle.remove()
    for backend, ready in deployed.items():
        apart = (ready(*step, maps) - logits).abs()
        worst[backend] |= {"logits median": float(apart.median()), "logits": float(apart.max())}
    return worst


def operations(real: HiDiffRefiner, binary: HiDiffRefiner, size: int) -> dict[str, float]:
    """Return multiply-adds of a step in units of 1e9, and bytes of weights."""
    step, maps = inputs(size)
    counted = {}
    for name, model in (("real", real), ("binary", binary)):
        trunks = model.prepare(maps, (size, size))
        counted[name] = gflop(lambda model=model, trunks=trunks: model.refine(*step, trunks)) / 2
    two_valued = [0.0]

    def count(module: BinaryConvNd, _: object, result: torch.Tensor) -> None:
        two_valued[0] += module.weight[0].numel() * result.numel() / 1e9

    convolutions = [m for m in binary.modules() if isinstance(m, BinaryConvNd)]
    handles = [m.register_forward_hook(count) for m in convolutions]
    binary.refine(*step, binary.prepare(maps, (size, size)))
    for handle in handles:
        handle.remove()
    rest = counted["binary"] - two_valued[0]
    bits = sum(m.weight.numel() for m in convolutions)
    return {
        "real_gmac": counted["real"],
        "binary_gmac": two_valued[0],
        "binary_refiners_real_gmac": rest,
        "ratio_of_operations_64_bits": counted["real"] / (two_valued[0] / 64 + rest),
        "real_fp32_bytes": 4 * sum(p.numel() for p in real.parameters()),
        "packed_binary_weight_bytes": bits / 8,
        "binary_refiners_other_fp32_bytes": 4
        * (sum(p.numel() for p in binary.parameters()) - bits),
    }


def gains(spent: dict[str, Spent], clock: Literal["cpu", "wall"]) -> dict[str, dict[str, Any]]:
    """Return by how much each deployed refiner beats each real one, round by round."""
    return {
        fast: {
            slow: gain(spent[slow], spent[fast], clock)
            for slow in spent
            if slow.startswith("real") or slow.endswith("simulated")
        }
        for fast in spent
        if fast.startswith("binary") and not fast.endswith("simulated")
    }


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"{'one step':34} {'CPU ms':>24} {'wall ms':>24}")
    for name, clocks in result["seconds"].items():
        cpu, wall = (cell(clocks[clock], 0, scale=1e3) for clock in ("cpu", "wall"))
        print(f"{name:34} {cpu:>24} {wall:>24}")
    print("\ngain in CPU time, median of rounds [quartiles]")
    for fast, over in result["gain_cpu"].items():
        for slow, g in over.items():
            print(f"{fast:34} over {slow:22} {g['median']:6.2f} [{g['q25']:.2f}, {g['q75']:.2f}]")
    print("\nlargest differences from the simulation:", json.dumps(result["errors"]))
    print("operations and bytes:", json.dumps(result["operations"]))
    print("paper's claims, counts of operations:", json.dumps(PAPER))


@torch.no_grad()
def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--width", type=int, default=128, help="channels at full size")
    parser.add_argument("--size", type=int, default=256, help="side of the picture")
    parser.add_argument("--no-compile", action="store_true", help="leave out what is compiled")
    args = parser.parse_args()
    torch.set_num_threads(1)
    calls, real, binary = variants(args.width, args.size, compiled=not args.no_compile)
    spent = alternate(calls, args.rounds, unseen=2, of_process=True)
    result: dict[str, Any] = {
        "threads": 1,
        "rounds": args.rounds,
        "width": args.width,
        "size": args.size,
        "seconds": {
            name: {"wall": spread(taken.wall), "cpu": spread(taken.cpu)}
            for name, taken in spent.items()
        },
        "gain_cpu": gains(spent, "cpu"),
        "gain_wall": gains(spent, "wall"),
        "errors": largest_errors(binary, args.size),
        "operations": operations(real, binary, args.size),
        "paper_operation_counts": PAPER,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    show(result)
    write_result("speed_hidiff", result)


if __name__ == "__main__":
    main()
