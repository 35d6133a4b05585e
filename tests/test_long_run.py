"""A long run stays small: memory, open files and threads do not grow with what was made.

`benchmarks/long_run.py` measures the same over 20 000 samples of the real command line.
"""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from tiny_generators import TinyImages, TinyLabels

from synthgen.data.shards import Shards
from synthgen.generate import GenerationSettings, ImageJob, LabelJob, run

PROC = Path("/proc/self")
SETTINGS = GenerationSettings(batch_size=8, shard_size=16, threads=1)
N = 640
A_THIRD_OF_THE_MAPS_MIB = N / 3 * 4 * 9 * 24 * 32 / 2**20
"""What the maps of a third of the samples are as float32: 5.6 MiB."""

pytestmark = pytest.mark.skipif(not (PROC / "statm").exists(), reason="needs /proc")


class Watch:
    """Looks at this process whenever a batch is done."""

    def __init__(self):
        self.looks = []

    def __call__(self, done, total):
        resident = int((PROC / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        files = len(list((PROC / "fd").iterdir()))
        self.looks.append((resident / 2**20, files, threading.active_count()))

    @property
    def growth(self):
        """By how much the last third of a run has more than the middle one: MiB, files, threads."""
        _, middle, last = np.array_split(np.asarray(self.looks, dtype=float), 3)
        return last.mean(axis=0) - middle.mean(axis=0)


class Hoarder(TinyLabels):
    """Keeps what it drew, and a file a batch."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def sample(self, keys, conditions):
        pv = super().sample(keys, conditions)
        # Four times over: the process may have as much at hand, freed by what ran before.
        self.kept += [pv.repeat(4, 1, 1, 1), Path(os.devnull).open()]  # noqa: SIM115
        return pv


def grown(job, folder):
    watch = Watch()
    run(job, N, folder, progress=watch)
    assert len(watch.looks) == N // SETTINGS.batch_size
    return watch.growth


def test_labels_and_images_of_a_long_run_stay_small(tmp_path):
    conditions = TinyLabels().conditions
    run(LabelJob(TinyLabels(), conditions, SETTINGS), 16, tmp_path / "first")  # caches fill
    made = grown(LabelJob(TinyLabels(), conditions, SETTINGS), tmp_path / "labels")
    labels = Shards(tmp_path / "labels")
    painted = grown(
        ImageJob.of(TinyImages(), labels, ["a_t1", "a_t2"], settings=SETTINGS), tmp_path / "images"
    )
    for mib, files, threads in (made, painted):
        assert mib < A_THIRD_OF_THE_MAPS_MIB / 2
        assert files < 1  # the writer's own file is open at some looks
        assert threads <= 0


def test_a_generator_that_hoards_would_be_seen(tmp_path):
    hoarder = Hoarder()
    job = LabelJob(hoarder, hoarder.conditions, SETTINGS)
    mib, files, _ = grown(job, tmp_path)
    for item in hoarder.kept[1::2]:
        item.close()
    assert mib > A_THIRD_OF_THE_MAPS_MIB / 2
    assert files > N / 3 / SETTINGS.batch_size / 2
