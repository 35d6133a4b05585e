"""Kill runs at random moments, run them again, and count what was lost, doubled or changed."""

import json
import shutil
import signal
from collections import Counter
from dataclasses import dataclass, field

from safetensors import safe_open

from faults import world
from synthgen.core.errors import SynthgenError
from synthgen.core.manifest import MANIFEST
from synthgen.core.model_folder import read_model_folder
from synthgen.data.shards import Shards, shard_path
from synthgen.data.verify import verify

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
DATASETS = ("labels", "images", "vessels", "angiograms")
TRAININGS = ("labels", "images", "imgx")
_MOST = 4
"""Kills of one folder before its run is left alone."""


@dataclass
class Tally:
    """What the kills of one stage did. All but `kills` and `seconds` have to stay empty.

    Attributes:
        kills: how often each signal hit a run that was under way.
        found: kills by the number of finished files that stood there at that moment.
        lost: samples of the undisturbed run that the resumed one has not.
        duplicated: samples that stand twice.
        differing: files whose bytes differ from the undisturbed run's.
        broken: what stood there after a kill and was not whole.
        untidy: exit codes and messages that no interrupted run should have.
        folders: folders that were killed and completed.
    """

    kills: Counter = field(default_factory=Counter)
    found: Counter = field(default_factory=Counter)
    lost: int = 0
    duplicated: int = 0
    differing: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    untidy: list[str] = field(default_factory=list)
    folders: int = 0

    @property
    def clean(self):
        """Whether nothing went wrong."""
        return not (self.lost or self.duplicated or self.differing or self.broken or self.untidy)


class Killed:
    """Runs of one command, killed and resumed; `tally` says what came of it.

    Args:
        driver: starts the runs.
        root: the world.
        stage: one of `DATASETS`, or of `TRAININGS` with `training`.
        place: folder for the runs.
        rng: draws moments and signals.
        training: whether a model is trained, and not a dataset made.
    """

    def __init__(self, driver, root, stage, place, rng, *, training=False):
        self.tally = Tally()
        self._driver, self._place, self._rng, self._training = driver, place, rng, training
        self._argv = world.train(root, stage) if training else world.generate(root, stage)
        quiet = self._out("quiet")
        done = driver.complete(*self._argv, "--out", quiet)
        self._files, self._span = self._read(quiet), done.seconds
        if training:
            self._argv = (*self._argv, "--resume")
        else:
            self._samples = Counter(_samples(quiet))

    def fall(self, count):
        """Kill runs until `count` of them were hit under way; complete each and compare."""
        until = sum(self.tally.kills.values()) + count
        while (left := until - sum(self.tally.kills.values())) > 0:
            name = f"killed-{self.tally.folders}"
            out = self._out(name)
            for _ in range(min(left, int(self._rng.integers(1, _MOST + 1)))):
                self._kill(out)
            done = self._driver.run(*self._argv, "--out", out)
            self.tally.folders += 1
            self._span = max(done.seconds, 0.5 * self._span)
            if done.code or done.timed_out:
                self.tally.broken.append(f"not completed: {done.code} {done.err[-300:]}")
            else:
                self._compare(out)
            shutil.rmtree(self._place / name)

    def _out(self, name):
        place = self._place / name
        return place / "models" / "out" if self._training else place / "out"

    def _read(self, out):
        return world.training_files(out) if self._training else world.files(out)

    def _kill(self, out):
        number = SIGNALS[int(self._rng.integers(len(SIGNALS)))]
        delay_s = float(self._rng.uniform(0, self._span))
        done = self._driver.kill(*self._argv, "--out", out, delay_s=delay_s, number=number)
        if done.code == 0:
            return  # it had ended before
        self.tally.kills[number.name] += 1
        # Ended in order, or before anybody listened.
        allowed = {-number} if number is signal.SIGKILL else {-number, 128 + number}
        if done.code not in allowed or "Traceback" in done.err or done.timed_out:
            told = done.err.partition("Extension modules:")[0]
            self.tally.untidy.append(f"{number.name}: {done.code} {told[-3000:]}")
        whole = _whole_training(out) if self._training else self._whole_dataset(out)
        self.tally.found[whole] += 1

    def _whole_dataset(self, out):
        """Note what is not whole; return how many shards there are."""
        shards = 0
        for path in sorted(out.rglob("*")):
            name = str(path.relative_to(out))
            if not path.is_file() or world.is_passing(path):
                continue
            shards += name.startswith("shards/")
            if path.read_bytes() != self._files.get(name):
                self.tally.broken.append(f"{name} after a kill")
        if (out / MANIFEST).is_file():
            opened = Shards(out)
            absent = {str(shard_path(out, shard)) for shard in opened.missing()}
            opened.close()
            problems = [p for p in verify(out) if p.partition(": ")[0] not in absent]
            self.tally.broken += problems
        return shards

    def _compare(self, out):
        found = self._read(out)
        names = {*found} ^ {*self._files}
        names |= {name for name in found if found[name] != self._files.get(name)}
        self.tally.differing += sorted(names)
        if not self._training:
            samples = Counter(_samples(out))
            self.tally.lost += (self._samples - samples).total()
            self.tally.duplicated += (samples - self._samples).total()
            self.tally.broken += verify(out)


def _samples(out):
    """Return index and label map of every row that stands in a shard."""
    shards = Shards(out)
    rows = []
    for shard in range(len(list((out / "shards").glob("[0-9]*.h5")))):
        arrays = shards.arrays(shard)
        rows += [
            (int(i), pv.tobytes()) for i, pv in zip(arrays["index"], arrays["pv"], strict=True)
        ]
    return rows


def _whole_training(out):
    """Return how many checkpoints and models there are.

    Raises:
        SynthgenError: the model is not whole.
    """
    runs = out.parent.parent / "runs"
    states = sorted(runs.rglob("step_*/state.json"))
    folders = [path for path in runs.rglob("step_*") if path.is_dir()]
    if len(states) != len(folders):
        raise SynthgenError(f"{runs}: a checkpoint without its state")
    for state in states:
        json.loads(state.read_bytes())
        for tensors in state.parent.glob("*.safetensors"):
            with safe_open(tensors, "pt") as file:
                file.keys()
    if out.exists():
        read_model_folder(out)
    return len(states) + out.exists()
