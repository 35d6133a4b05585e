"""Ten thousand hostile files: what each reader makes of them, in what time and memory.

Valid files of every kind that synthgen reads are changed (bytes flipped, inserted, deleted,
spliced, cut off; values of JSON, YAML and tables replaced by others; header fields set to absurd
numbers; files replaced by pipes, links and folders) and read; so are decompression bombs and the
like. An input passes if it is read, or refused by a domain error of one line that names the file.
Each reader runs in a process of its own, which may set aside no more than a stated number of bytes
and compute no longer than a stated time for one input; a process that dies or hangs is counted,
and the next one goes on behind that input. Input i of a reader depends on its name and i alone.

    python benchmarks/fuzz.py [--inputs 10000] [--only READER]

Prints a table and writes `benchmarks/results/fuzz-DATE.json`.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random  # noqa: TID251 - a generator of its own for each input
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from synthgen.torchvision_guard import hide_broken_torchvision  # noqa: E402

hide_broken_torchvision()

from fuzz_bombs import BOMBS, MEMORY, SECONDS  # noqa: E402
from fuzz_readers import READERS, attack, outcome  # noqa: E402
from timing import RESULTS, save_result  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BOMB = "bombs"
SILENCE_S = 300
"""Wall seconds after which an input counts as hung, on a machine however busy."""


MEASURES = ("wall_s", "cpu_s", "peak")


def memory(key: str) -> int:
    """Return one size of this process in bytes, such as VmRSS."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def too_long(_signal: int, _frame: object) -> None:
    """Stop an input that computes for too long."""
    raise TimeoutError(f"computed for {SECONDS} s")


def one(run: Callable[[], str]) -> dict[str, Any]:
    """Run one input and return what became of it."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before, started, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        result = {"outcome": run()}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
        last = traceback.extract_tb(error.__traceback__)[-1]
        result = {
            "outcome": "DEFECT",
            "what": f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:"
            f"{last.lineno})",
        }
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    took = time.process_time() - cpu
    if took > SECONDS and result["outcome"] != "DEFECT":  # the reader caught the time-out
        result = {"outcome": "DEFECT", "what": f"computed for {SECONDS} s"}
    return result | {
        "wall_s": time.perf_counter() - started,
        "cpu_s": took,
        "peak": max(0, memory("VmHWM") - before),
    }


def work(name: str, first: int, count: int, out: int) -> None:
    """Read inputs `first` to `count` of a reader and write a JSON line about each."""
    signal.signal(signal.SIGVTALRM, too_long)
    with tempfile.TemporaryDirectory(prefix="synthgen-fuzz-") as place, os.fdopen(out, "w") as pipe:
        root, names = Path(place), [*BOMBS]
        template = root / "valid" / "in"
        template.mkdir(parents=True)
        if name != BOMB:
            READERS[name].make(template)
        limit = memory("VmSize") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        for index in range(first, count):
            print(json.dumps({"begin": index}), file=pipe, flush=True)
            folder = root / str(index) / "in"
            folder.parent.mkdir()
            if name == BOMB:
                folder.mkdir()
                what, run = names[index], BOMBS[names[index]]
                result = one(lambda run=run, folder=folder: outcome(lambda: run(folder), folder))
                if result["outcome"] == "read":
                    result |= {"outcome": "DEFECT", "what": f"{what}: accepted"}
            else:
                draws = random.Random(f"{name}/{index}")  # noqa: S311 - no secret
                result = one(lambda draws=draws, to=folder: attack(name, draws, template, to))
            print(json.dumps({"index": index} | result), file=pipe, flush=True)


def rows(name: str, count: int) -> Iterator[dict[str, Any]]:
    """Yield what became of each input of a reader; a process that dies is followed by another."""
    first = 0
    while first < count:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            code = 1
            try:
                work(name, first, count, writing)
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        begun, done, hung = first - 1, first, False
        buffer = b""
        while True:
            hung = not select.select([reading], [], [], SILENCE_S)[0]
            part = b"" if hung else os.read(reading, 2**16)
            if not part:
                break
            *lines, buffer = (buffer + part).split(b"\n")
            for row in map(json.loads, lines):
                begun = row.get("begin", begun)
                if "index" in row:
                    done = row["index"] + 1
                    yield row
        os.close(reading)
        if hung:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if done == count and status == 0:
            return
        if begun < first:
            raise RuntimeError(f"{name}: could not begin, exit code {status}")
        what = "hung" if hung else f"the process died, exit code {status}"
        yield {"index": begun, "outcome": "DEFECT", "what": what} | dict.fromkeys(MEASURES, 0)
        first = begun + 1


def summary(name: str, count: int) -> dict[str, Any]:
    """Read all inputs of one reader and return counts, peak and slowest input."""
    found = list(rows(name, count))
    slowest = max(found, key=lambda row: row["cpu_s"])
    largest = max(found, key=lambda row: row["peak"])
    return {
        "inputs": len(found),
        "outcomes": dict(collections.Counter(row["outcome"] for row in found).most_common()),
        "peak_mib": round(largest["peak"] / 2**20, 1),
        "peak_input": largest["index"],
        "slowest_cpu_s": round(slowest["cpu_s"], 3),
        "slowest_input": slowest["index"],
        "wall_s": round(sum(row["wall_s"] for row in found), 1),
        "defects": [
            {"input": row["index"], "what": row["what"]}
            for row in found
            if row["outcome"] == "DEFECT"
        ],
    }


def main() -> None:
    """Run all readers, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--only", default="", help="readers with this in their name")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    total = sum(reader.share for reader in READERS.values())
    counts = {
        name: -(-options.inputs * reader.share // total) for name, reader in READERS.items()
    } | {BOMB: len(BOMBS)}
    started, result = time.perf_counter(), {}
    print("reader                     inputs   read  refused  defects    MiB   CPU s")
    for name, count in counts.items():
        if options.only not in name:
            continue
        row = result[name] = summary(name, int(count))
        read, bad = row["outcomes"].get("read", 0), len(row["defects"])
        print(
            f"{name:26}{row['inputs']:7}{read:7}{row['inputs'] - read - bad:9}{bad:9}"
            f"{row['peak_mib']:7.0f}{row['slowest_cpu_s']:8.2f}",
            flush=True,
        )
        for defect in row["defects"][:5]:
            print("   ", defect, flush=True)
    body = {
        "bounds": {"memory_mib": MEMORY // 2**20, "cpu_s": SECONDS, "hang_wall_s": SILENCE_S},
        "inputs": sum(row["inputs"] for row in result.values()),
        "defects": sum(len(row["defects"]) for row in result.values()),
        "peak_mib": max(row["peak_mib"] for row in result.values()),
        "slowest_cpu_s": max(row["slowest_cpu_s"] for row in result.values()),
        "wall_s": round(time.perf_counter() - started, 1),
        "readers": result,
    }
    print(f"{body['inputs']} inputs, {body['defects']} defects, {body['wall_s']:.0f} s")
    if not options.only:
        print("written:", save_result("fuzz", body, folder=options.out))


if __name__ == "__main__":
    main()
