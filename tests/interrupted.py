"""Trainings that break off, and the losses by which they are held against those that do not."""

import json
from contextlib import contextmanager

import pytest


@contextmanager
def power_failure(kind, at):
    """Let a class of training steps fail when step `at` is due, and expect that to be seen."""
    plain = kind.step

    def crash(self, accelerator, step):
        if step == at:
            raise RuntimeError("power failure")
        return plain(self, accelerator, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "step", crash)
        with pytest.raises(RuntimeError, match="power failure"):
            yield


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "s"} for row in rows]


def losses(folder):
    """Return the losses of every step, without the seconds."""
    return without_seconds(map(json.loads, (folder / "losses.jsonl").read_text().splitlines()))
