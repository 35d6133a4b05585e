"""Time writing, reading, checking and exporting of generated datasets, and reading of a store.

Rows of a real generated dataset are written again in four formats, in turn in each round: as
synthgen does (gzip-1, a row a chunk, compressed outside HDF5), uncompressed, with HDF5's lzf, and
in chunks of 16 rows. Reading is by h5py from the page cache, so it is the cost of decoding, not of
a disk. `ShardWriter` compresses in a thread of its own beside the computing.

    python benchmarks/speed_io.py --images work/images/oasis_t1 [--store work/store]

Prints tables and writes `benchmarks/results/speed_io-DATE.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from timing import alternate, cell, gain, spread, write_result

from synthgen.core.manifest import write_atomic
from synthgen.data.rows import open_source
from synthgen.data.shard_file import encode_shard, write_shard
from synthgen.data.shards import Shards
from synthgen.data.store import TrainingStore
from synthgen.data.verify import verify
from synthgen.export import ExportOptions, export

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from timing import Spent

Arrays = dict[str, "npt.NDArray[Any]"]
ROWS = 64
AT_ONCE = 16
USUAL = 20_000

FORMATS: dict[str, dict[str, Any]] = {
    "raw": {"chunk": 1},
    "lzf": {"chunk": 1, "compression": "lzf", "shuffle": True},
    "gzip-1, chunks of 16": {
        "chunk": 16,
        "compression": "gzip",
        "compression_opts": 1,
        "shuffle": True,
    },
}
NOW = "gzip-1, as synthgen"


def write_plain(path: Path, arrays: Arrays, options: dict[str, Any]) -> None:
    """Write a shard's arrays with HDF5's own filters, then sync."""
    chunk = options["chunk"]
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        for name, array in arrays.items():
            how = {key: value for key, value in options.items() if key != "chunk"}
            if array.ndim > 2:
                file.create_dataset(name, data=array, chunks=(chunk, *array.shape[1:]), **how)
            else:
                file.create_dataset(name, data=array)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def writing(arrays: Arrays, folder: Path, rounds: int) -> tuple[dict[str, Spent], dict[str, float]]:
    """Return the time of writing one shard in each format, and kB a slice."""
    paths = {name: folder / f"{number}.h5" for number, name in enumerate((NOW, *FORMATS))}
    calls: dict[str, Callable[[], object]] = {
        NOW: lambda: write_shard(paths[NOW], arrays, {"kind": "images"})
    }
    for name, options in FORMATS.items():
        calls[name] = lambda p=paths[name], o=options: write_plain(p, arrays, o)
    spent = alternate(calls, rounds)
    size = {name: path.stat().st_size / ROWS / 1000 for name, path in paths.items()}
    return spent, size


def reading(folder: Path, rounds: int) -> tuple[dict[str, Spent], dict[str, Spent]]:
    """Return the time of reading all rows of a file of each format, at random and in order."""
    order = np.random.default_rng(0).permutation(ROWS).tolist()
    files = {
        name: h5py.File(folder / f"{number}.h5", "r") for number, name in enumerate((NOW, *FORMATS))
    }

    def read(file: h5py.File, rows: list[int]) -> None:
        for row in rows:
            file["pv"][row], file["images"][row]

    def read_all(file: h5py.File) -> None:
        for start in range(0, ROWS, AT_ONCE):
            file["pv"][start : start + AT_ONCE], file["images"][start : start + AT_ONCE]

    at_random = alternate({n: lambda f=f: read(f, order) for n, f in files.items()}, rounds)
    in_order = alternate({n: lambda f=f: read_all(f) for n, f in files.items()}, rounds)
    for file in files.values():
        file.close()
    return at_random, in_order


def writing_steps(arrays: Arrays, folder: Path, rounds: int) -> dict[str, Spent]:
    """Return the time of the steps of writing a shard, and of the same write without a sync."""
    body = encode_shard(arrays, {"kind": "images"})
    path = folder / "step.bin"

    def unsynced() -> None:
        temporary = folder / "step.tmp"
        temporary.write_bytes(body)
        temporary.replace(path)

    return alternate(
        {
            "compress and lay out": lambda: encode_shard(arrays, {"kind": "images"}),
            "sha256": lambda: hashlib.sha256(body).hexdigest(),
            "write, sync, rename": lambda: write_atomic(path, body),
            "write, rename, no sync": unsynced,
        },
        rounds,
    )


def dataset_reading(shards: Shards, rounds: int, count: int) -> dict[str, Spent]:
    """Return the time of reading `count` samples of a dataset through `Shards`."""
    rng = np.random.default_rng(0)
    anywhere = rng.permutation(len(shards))[:count].tolist()
    start = int(rng.integers(max(1, len(shards) - count)))
    return alternate(
        {
            "at random": lambda: [shards[index] for index in anywhere],
            "in order": lambda: [shards[index] for index in range(start, start + count)],
            "at random, as stored": lambda: [shards.raw([index]) for index in anywhere],
        },
        rounds,
    )


def checking(folder: Path, rounds: int) -> dict[str, Spent]:
    """Return the time of `verify`."""
    problems: list[str] = []
    spent = alternate({"verify": lambda: problems.extend(verify(folder))}, rounds)
    if problems:
        raise SystemExit(problems[0])
    return spent


def exporting(folder: Path, out: Path) -> dict[str, float]:
    """Export the whole dataset to nnU-Net once and return rates: its thread encodes and writes."""
    wall, cpu = time.perf_counter(), time.process_time()
    done = export(open_source(folder), "nnunet", out, ExportOptions())
    return {
        "cases": done.count,
        "files": done.files,
        "kb_per_case": done.bytes / done.count / 1000,
        "wall_ms_per_case": 1000 * (time.perf_counter() - wall) / done.count,
        "cpu_ms_per_case": 1000 * (time.process_time() - cpu) / done.count,
    }


def store_reading(path: Path, rounds: int, count: int) -> dict[str, Spent]:
    """Return the time of reading `count` rows of a training store at random."""
    with TrainingStore.open(path) as store:
        rng = np.random.default_rng(0)
        slices = rng.permutation(len(store.slices.subject))[:count].tolist()
        images = rng.permutation(len(store.image_pv_index))[:count].tolist()
        return alternate(
            {
                "label map": lambda: [store.pv(index) for index in slices],
                "image": lambda: [store.image(row) for row in images],
            },
            rounds,
        )


def per_slice(spent: dict[str, Spent], count: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return milliseconds a slice."""
    return {
        name: {"cpu_ms": spread(s.cpu, 1000 / count), "wall_ms": spread(s.wall, 1000 / count)}
        for name, s in spent.items()
    }


def show(title: str, found: dict[str, Any]) -> None:
    """Print one table."""
    print(f"\n{title:34} {'CPU ms a slice':>26} {'wall ms a slice':>26}")
    for name, times in found.items():
        more = f"{times['kb']:8.1f} kB" if "kb" in times else ""
        print(f"{name:34} {cell(times['cpu_ms'], 3):>26} {cell(times['wall_ms'], 3):>26} {more}")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="a dataset of images")
    parser.add_argument("--store", type=Path, help="a training store")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    shards = Shards(args.images)
    arrays = shards.raw(range(ROWS))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wrote, size = writing(arrays, folder, args.rounds)
        at_random, in_order = reading(folder, args.rounds)
        steps = writing_steps(arrays, folder, args.rounds)
        exported = exporting(args.images, folder / "export")
    result: dict[str, Any] = {
        "rounds": args.rounds,
        "samples": len(shards),
        "images_per_sample": len(shards.styles),
        "shape": list(shards[0].pv.shape),
        "write": per_slice(wrote, ROWS),
        "read_at_random": per_slice(at_random, ROWS),
        "read_in_order": per_slice(in_order, ROWS),
        "writing_steps": per_slice(steps, ROWS),
        "dataset": per_slice(dataset_reading(shards, args.rounds, 128), 128),
        "verify": per_slice(checking(args.images, 5), len(shards)),
        "export_nnunet": exported,
    }
    for form in wrote:
        result["write"][form]["kb"] = size[form]
        result["write"][form]["times_as_fast_as_now"] = gain(wrote[NOW], wrote[form])
    if args.store:
        result["store"] = per_slice(store_reading(args.store, args.rounds, 128), 128)
    cpu = result["verify"]["verify"]["cpu_ms"]["median"]
    result["verify_cpu_minutes_of_20000"] = USUAL * cpu / 60_000
    for key in ("write", "read_at_random", "read_in_order", "writing_steps", "dataset", "verify"):
        show(key.replace("_", " "), result[key])
    if args.store:
        show("training store", result["store"])
    print(f"\nverify of {USUAL}: {result['verify_cpu_minutes_of_20000']:.2f} minutes of CPU")
    print("export to nnU-Net:", {name: round(value, 2) for name, value in exported.items()})
    write_result("speed_io", result)


if __name__ == "__main__":
    main()
