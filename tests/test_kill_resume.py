"""Killed, resumed and shared runs of the real command line give the bytes of one quiet run."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from file_digests import digests
from tiny_models import write_image_model, write_label_model

from synthgen.data.shards import Shards
from synthgen.data.verify import verify

pytestmark = [pytest.mark.multiprocess]

KILLS = 20
SIZES = ("--shard-size", "4", "--batch-size", "2", "--threads", "1", "--device", "cpu")
N = 16
COMMANDS = ("labels", "images", "vessels", "angiograms")


class Driver:
    """A process that forks runs of the command line."""

    def __init__(self):
        self._process = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, str(Path(__file__).parent / "generation_driver.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request):
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the driver died"
        return json.loads(answer)

    def run(self, *argv, **env):
        answer = self.ask(do="run", argv=[str(word) for word in argv], env=env)
        assert answer["code"] == 0
        return answer["seconds"]

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=120)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def driver():
    process = Driver()
    yield process
    process.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_label_model(root / "labels")
    write_image_model(root / "images")
    return root


@pytest.fixture(scope="module")
def commands(models, driver, tmp_path_factory):
    """The commands, each without `--out`; the labels that images are made of are whole."""
    labels = tmp_path_factory.mktemp("labels") / "labels"
    draw = ["labels", "--model", models / "labels", "--n", N, "--lesion", "wmh=0.01:0.05", *SIZES]
    paint = ["images", "--model", models / "images", "--labels", labels, "--per-label", 2]
    driver.run(*draw, "--out", labels)
    small = ["--n", N, "--size", 64, "--shard-size", 4, "--batch-size", 2]
    return {
        "labels": draw,
        "images": [*paint, "--style", "a_t1,a_flair", *SIZES],
        "vessels": ["vessels", "--with", "centreline,graph", *small],
        "angiograms": ["angiograms", "--renderer", "physics", *small],
    }


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_moments_and_resumed(command, driver, commands, tmp_path):
    argv = [str(word) for word in commands[command]]
    driver.run(*argv, "--out", tmp_path / "warm")
    # From the first file to the end of an uninterrupted run.
    quiet = tmp_path / "quiet"
    answer = driver.ask(do="run", argv=[*argv, "--out", str(quiet)])
    assert answer["code"] == 0
    shards = sorted((quiet / "shards").iterdir())
    first, last = ((quiet / "manifest.json").stat(), shards[-1].stat())
    span = (last.st_mtime_ns - first.st_mtime_ns) / 1e9
    assert span > 0
    expected = digests(quiet)
    assert len(expected) == len(shards) + 1
    rng = np.random.default_rng(0)
    found = []
    for trial in range(KILLS):
        out = tmp_path / f"killed-{trial}"
        delay = float(rng.uniform(0, span))
        answer = driver.ask(
            do="kill", argv=[*argv, "--out", str(out)], watch=str(out), delay_s=delay
        )
        # Every shard that stands there is whole already.
        for path in (out / "shards").glob("0*.h5"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == expected[f"shards/{path.name}"]
        found.append((answer["code"], sum("shards/0" in name for name in answer["left"])))
        driver.run(*argv, "--out", out)
        assert digests(out) == expected
    # The kills hit runs under way, at different moments.
    killed = [shards for code, shards in found if code == -signal.SIGKILL]
    assert len(killed) >= KILLS // 2, found
    assert len(set(killed)) >= 3, found
    assert verify(quiet) == []


@pytest.mark.slow
def test_killed_again_and_again_in_one_folder(driver, commands, tmp_path):
    argv = [str(word) for word in commands["labels"]]
    seconds = driver.run(*argv, "--out", tmp_path / "quiet")
    rng = np.random.default_rng(1)
    out = tmp_path / "killed"
    for _ in range(6):
        driver.ask(
            do="kill",
            argv=[*argv, "--out", str(out)],
            watch=str(out),
            delay_s=float(rng.uniform(0, seconds / 3)),
        )
    driver.run(*argv, "--out", out)
    assert digests(out) == digests(tmp_path / "quiet")


def workers(argv, out, count, *, launched):
    """Return the runs of so many workers, those of a launcher or of a job array."""
    runs = []
    for k in range(count):
        env = {"RANK": str(k), "WORLD_SIZE": str(count)} if launched else {}
        which = [] if launched else ["--worker", f"{k + 1}/{count}"]
        argument = [str(word) for word in (*argv, "--out", out, *which)]
        runs.append({"argv": argument, "env": {"OMP_NUM_THREADS": "1", **env}})
    return runs


@pytest.mark.parametrize("command", COMMANDS)
def test_several_workers_make_the_bytes_of_one(command, driver, commands, tmp_path):
    driver.run(*commands[command], "--out", tmp_path / "one")
    for count, launched in ((3, True), (2, False), (3, False)):
        out = tmp_path / f"{count}-{launched}"
        runs = workers(commands[command], out, count, launched=launched)
        assert driver.ask(do="together", runs=runs)["codes"] == [0] * count
        assert digests(out) == digests(tmp_path / "one")
    assert len(Shards(tmp_path / "one")) == (2 * N if command == "images" else N)


@pytest.mark.parametrize("command", ["labels", "angiograms"])
def test_others_make_what_a_killed_worker_leaves(command, driver, commands, tmp_path):
    argv = [*commands[command], "--n", 3 * N]
    driver.run(*argv, "--out", tmp_path / "one")
    out = tmp_path / "shared"
    runs = workers(argv, out, 3, launched=False)
    answer = driver.ask(do="together", runs=runs, kill=1, watch=str(out / "shards"))
    assert answer["codes"] == [0, -signal.SIGKILL, 0]
    assert digests(out) == digests(tmp_path / "one")


def test_a_worker_makes_what_one_left_that_was_killed_before_it_came(driver, commands, tmp_path):
    driver.run(*commands["labels"], "--out", tmp_path / "one")
    out = tmp_path / "shared"
    first, second = workers(commands["labels"], out, 2, launched=False)
    answer = driver.ask(do="kill", argv=first["argv"], watch=str(out / "shards"), delay_s=0.0)
    assert answer["code"] == -signal.SIGKILL
    driver.run(*second["argv"])
    assert digests(out) == digests(tmp_path / "one")
    driver.run(*first["argv"])
    assert digests(out) == digests(tmp_path / "one")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_whole_shards_alone(number, code, driver, commands, tmp_path):
    argv = [str(word) for word in commands["labels"]]
    driver.run(*argv, "--out", tmp_path / "quiet")
    # Started with more samples than it could make before the signal comes.
    out = tmp_path / "cut"
    answer = driver.ask(
        do="kill",
        argv=[*argv, "--n", "100000", "--out", str(out)],
        watch=str(out / "shards"),
        delay_s=0.0,
        signal=number,
    )
    assert answer["code"] == code
    assert answer["left"]
    assert all(len(name) == len("00000.h5") for name in answer["left"])
    # Neither a temporary file nor a lock is left.
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "shards"]
    driver.run(*argv, "--n", 4 * len(answer["left"]), "--out", out)
    assert verify(out) == []
    expected = digests(tmp_path / "quiet")
    shared = [name for name in digests(out) if name.startswith("shards") and name in expected]
    assert "shards/00000.h5" in shared
    assert all(digests(out)[name] == expected[name] for name in shared)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m", "--"],
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_launchers_start_workers_on_a_cpu(launcher, driver, commands, tmp_path):
    argv = [str(word) for word in commands["labels"]]
    driver.run(*argv, "--out", tmp_path / "one")
    done = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, "-m", *launcher, "synthgen", *argv, "--out", tmp_path / "two"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count = 3 if "--standalone" in launcher else 2
    assert all(f"[worker {k + 1} of {count}]" in done.stdout for k in range(count))
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
