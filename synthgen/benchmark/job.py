"""One training of a benchmark: an arm with a seed, and what it leaves on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synthgen.core.input_files import read_json
from synthgen.core.manifest import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from synthgen.benchmark.arms import Arm
    from synthgen.benchmark.spec import Spec

DONE = "done.json"
CASES = "cases.json"
FAILED = "failed.json"
PROGRESS = "progress.json"
PLAN = "plan.json"
LOG = "log.txt"


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        out: folder of the benchmark.
        spec: what is benchmarked.
        arm: the arm.
        seed: the training seed.
    """

    out: Path
    spec: Spec
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.arm.name} seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.out / "runs" / self.arm.name / f"seed{self.seed}"

    @property
    def predictions(self) -> Path:
        """Folder of its predicted volumes."""
        return self.out / "preds" / self.arm.name / f"seed{self.seed}"

    @property
    def hash(self) -> str:
        """Digest of all that decides it."""
        return self.spec.run_hash(self.arm, self.seed)

    def is_done(self) -> bool:
        """Whether it is finished, with the settings of now."""
        done = _read(self.folder / DONE)
        return done.get("hash") == self.hash and (self.folder / CASES).is_file()

    def is_of_other_settings(self) -> bool:
        """Whether the folder holds a training that must not be continued."""
        return self.folder.is_dir() and _read(self.folder / PROGRESS).get("hash") != self.hash

    def report(self, done: int, total: int) -> None:
        """Say how many optimiser steps are done."""
        write_json(self.folder / PROGRESS, {"hash": self.hash, "done": done, "total": total})

    def steps_done(self) -> int:
        """Return the optimiser steps that are done."""
        return int(_read(self.folder / PROGRESS).get("done", 0))


def tree_of(folder: Path) -> dict[str, str]:
    """Return nnU-Net's environment for a private tree: nobody's own folders or ids matter."""
    names = ("raw", "preprocessed", "results")
    return {f"nnUNet_{name}": str((folder / "nn" / name).absolute()) for name in names}


def write_json(path: Path, body: object) -> None:
    """Write a JSON file, atomically; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(body, indent=1).encode() + b"\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        body = read_json(path)
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}
