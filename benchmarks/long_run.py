"""Does a long run stay small, and does it say truly when it will be done?

Makes `--n` label maps with `synthgen labels` and paints them with `synthgen images --renderer
contrast`, each as one process of the real command line, and looks at that process in /proc every
few seconds: resident memory, open files, threads, CPU time. Samples made by then are counted in
finished shards. Slopes per 1000 samples are lines through the means of ten equal stretches, the
first tenth (imports, caches) left out; their errors come from how the stretches scatter. The time
left that the command prints is compared with the time it then took. At the end `synthgen verify`
checks every byte and row.

The label model is an untrained one of 64 x 96 pixels, one step a map and no second attempts: what
leaks does not depend on what was learned, and 20 000 maps then take minutes instead of hours. With
`--model FOLDER` it is that model, as the command takes it.

    python benchmarks/long_run.py --n 20000 --out /some/folder

Prints a table and writes `benchmarks/results/long_run-DATE.json`. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from timing import write_result

import synthgen.models  # noqa: F401 - hides a broken torchvision from diffusers

TESTS = Path(__file__).parents[1] / "tests"
STRETCHES = 10
PLACES = (0.25, 0.5, 0.75)
_LINE = re.compile(r"(\d+) of (\d+) samples, .*, (.+) left$")
_UNITS = {"h": 3600.0, "min": 60.0, "s": 1.0}


@dataclass(frozen=True)
class Look:
    """What /proc says of a process at one moment."""

    at_s: float
    samples: int
    rss_mib: float
    open_files: int
    threads: int
    cpu_s: float


@dataclass
class Watched:
    """A finished command: what was seen of it, and the times left that it printed."""

    seconds: float = 0.0
    looks: list[Look] = field(default_factory=list)
    told: list[tuple[float, int, float]] = field(default_factory=list)


def look(pid: int, began: float, shards: Path, shard_size: int) -> Look:
    """Look at a process.

    Raises:
        OSError: it has ended.
    """
    proc = Path(f"/proc/{pid}")
    status = dict(
        line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
    )
    if "VmRSS" not in status:
        raise OSError("the process has ended")
    ticks = (proc / "stat").read_text().rpartition(")")[2].split()[11:13]
    return Look(
        at_s=time.monotonic() - began,
        samples=shard_size * sum(1 for _ in shards.glob("[0-9]*.h5")),
        rss_mib=int(status["VmRSS"].split()[0]) / 1024,
        open_files=len(os.listdir(proc / "fd")),  # noqa: PTH208 - names only
        threads=int(status["Threads"]),
        cpu_s=sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"),
    )


def seconds(text: str) -> float:
    """Return the seconds of a time such as `2 h 05 min`.

    Examples:
        >>> seconds("2 h 05 min"), seconds("5.3 s")
        (7500.0, 5.3)
    """
    words = text.split()
    pairs = zip(words[::2], words[1::2], strict=True)
    return sum(float(count) * _UNITS[unit] for count, unit in pairs)


def watch(command: list[str], out: Path, shard_size: int, every_s: float) -> Watched:
    """Run a command of synthgen to its end and look at it all the while."""
    watched, began = Watched(), time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "synthgen", *command, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def listen() -> None:
        for line in process.stderr or ():
            found = _LINE.search(line.strip())
            if found:
                at = time.monotonic() - began
                watched.told.append((at, int(found[1]), seconds(found[3])))
            else:
                print(" ", line.rstrip(), file=sys.stderr)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    while process.poll() is None:
        try:
            watched.looks.append(look(process.pid, began, out / "shards", shard_size))
        except OSError:  # it ended while being looked at
            break
        time.sleep(every_s)
    code = process.wait()
    listener.join()
    watched.seconds = time.monotonic() - began
    if code:
        raise SystemExit(f"synthgen {' '.join(command)} ended with exit code {code}")
    return watched


def slope(looks: list[Look], name: str, total: int) -> dict[str, float]:
    """Return the change of a quantity in 1000 samples, its standard error, start and end."""
    edges = np.linspace(0.1 * total, total, STRETCHES + 1)
    means = []
    for low, high in pairwise(edges):
        inside = [look for look in looks if low <= look.samples <= high]
        if inside:
            x = np.mean([look.samples for look in inside]) / 1000
            means.append((x, np.mean([getattr(look, name) for look in inside])))
    x, y = np.asarray(means, dtype=np.float64).T
    if len(x) < 3:
        raise SystemExit("too few looks; make --n larger or --every smaller")
    centred = x - x.mean()
    rise = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - rise * centred
    error = float(np.sqrt((rest @ rest) / (len(x) - 2) / (centred @ centred)))
    values = [getattr(look, name) for look in looks]
    return {
        "per_1000_samples": rise,
        "standard_error": error,
        "first_stretch": float(y[0]),
        "last_stretch": float(y[-1]),
        "peak": float(max(values)),
    }


def judge(watched: Watched, total: int) -> dict[str, Any]:
    """Return slopes, rates and how true the printed times left were."""
    told = []
    for place in PLACES if watched.told else ():
        at, done, left = min(watched.told, key=lambda told: abs(told[1] - place * total))
        truth = watched.seconds - at
        told.append({"at": done / total, "said_s": left, "truth_s": truth, "ratio": left / truth})
    last = watched.looks[-1]
    return {
        "seconds": watched.seconds,
        "cpu_ms_per_sample": 1000 * last.cpu_s / total,
        "looks": len(watched.looks),
        "rss_mib": slope(watched.looks, "rss_mib", total),
        "open_files": slope(watched.looks, "open_files", total),
        "threads": slope(watched.looks, "threads", total),
        "time_left": told,
        "series": [
            [round(look.at_s), look.samples, round(look.rss_mib, 1), look.open_files, look.threads]
            for look in watched.looks[:: max(1, len(watched.looks) // 60)]
        ],
    }


def verified(folder: Path) -> dict[str, Any]:
    """Run `synthgen verify` and return its seconds and what it found."""
    began = time.monotonic()
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "synthgen", "verify", str(folder), "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    after = os.times()
    report = json.loads(done.stdout)
    return {
        "seconds": time.monotonic() - began,
        "cpu_s": after.children_user + after.children_system
        - before.children_user - before.children_system,
        "samples": report["n"],
        "problems": report["problems"],
        "mb": sum(path.stat().st_size for path in (folder / "shards").glob("*.h5")) / 1e6,
    }  # fmt: skip


def tiny_model(folder: Path) -> Path:
    """Write the untrained label model of the tests."""
    sys.path.insert(0, str(TESTS))
    from tiny_models import write_label_model  # noqa: PLC0415 - it lies among the tests

    return Path(write_label_model(folder))


def show(name: str, found: dict[str, Any], checked: dict[str, Any]) -> None:
    """Print what was found of one command."""
    print(
        f"{name}: {checked['samples']} samples in {found['seconds']:.0f} s "
        f"({found['cpu_ms_per_sample']:.1f} ms of CPU a sample), {checked['mb']:.0f} MB"
    )
    for what, unit in (("rss_mib", "MiB"), ("open_files", "files"), ("threads", "threads")):
        line = found[what]
        print(
            f"  {what:10} {line['per_1000_samples']:+.4f} ± {line['standard_error']:.4f} {unit} "
            f"in 1000 samples; {line['first_stretch']:.1f} after a tenth, "
            f"{line['last_stretch']:.1f} at the end, peak {line['peak']:.1f}"
        )
    for told in found["time_left"]:
        print(
            f"  at {told['at']:.0%} said {told['said_s']:.0f} s left, it took "
            f"{told['truth_s']:.0f} s (ratio {told['ratio']:.2f})"
        )
    print(
        f"  verify: {checked['seconds']:.0f} s ({checked['cpu_s']:.0f} s of CPU), "
        f"{len(checked['problems'])} problems"
    )


def main() -> None:
    """Run both commands, look, verify, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--out", type=Path, required=True, help="folder for the datasets; kept")
    parser.add_argument("--model", type=Path, help="label model; default: a tiny untrained one")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between looks")
    parser.add_argument("--shard-size", type=int, default=64)
    args = parser.parse_args()
    model = args.model or tiny_model(args.out / "model")
    labels, images = args.out / "labels", args.out / "images"
    if labels.exists() or images.exists():
        raise SystemExit(f"{args.out}: holds datasets of an earlier run; choose another folder")
    size = ["--shard-size", str(args.shard_size)]
    cheap = [] if args.model else ["--steps", "1", "--max-attempts", "1", "--batch-size", "64"]
    contrast = ["--renderer", "contrast", "--style", "oasis_t1"]
    commands = {
        "labels": (["labels", "--n", str(args.n), "--model", str(model), *cheap, *size], labels),
        "images": (["images", *contrast, "--labels", str(labels), *size], images),
    }
    result: dict[str, Any] = {
        "n": args.n,
        "model": "untrained, 64 x 96" if args.model is None else args.model.name,
        "commands": {},
    }
    for name, (command, folder) in commands.items():
        watched = watch(command, folder, args.shard_size, args.every)
        found, checked = judge(watched, args.n), verified(folder)
        show(name, found, checked)
        options = [word for word in command if "/" not in word]
        result["commands"][name] = {"options": options} | found | {"verify": checked}
    write_result("long_run", result)


if __name__ == "__main__":
    main()
