"""Run the real command line in forked children of one process that has imported everything.

A fresh interpreter spends seconds on imports; a fork starts working at once, so that hundreds of
runs can be killed. Reads one JSON request a line, answers with one JSON line; see `driver.Driver`:

    {"runs": [RUN, ...], "timeout_s": ...}       -> {"results": [RESULT, ...]}, run side by side
    {"damage": {...}, "timeout_s": ...}          -> {"cases": [...]}, see `damage.try_cases`

A RUN has `argv` and may have `env`, `cwd`, `limit_bytes` (the size that no file may exceed: the
next write fails), and `signal` with `delay_s`, counted from the start, or from the first file in
the folder `watch`. It starts at once, or when a file stands in the folder `after`. A RESULT has
`code` (negative for a signal), `out`, `err`, `seconds`, `cpu_s`, `left` (files of `watch` at the
end), `timed_out`.
"""

import faulthandler
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

# All that the commands import, so that children do not; nothing that starts a thread.
import synthgen.benchmark.report
import synthgen.benchmark.run
import synthgen.data.prepare
import synthgen.data.preview
import synthgen.data.shards
import synthgen.evaluate.overview
import synthgen.export
import synthgen.generate
import synthgen.images.angiogram.physics
import synthgen.images.angiogram.train
import synthgen.images.contrast
import synthgen.images.train_spade
import synthgen.images.volumes
import synthgen.labels.generator
import synthgen.labels.train
import synthgen.runtime
import synthgen.segment.train_hidiff
import synthgen.segment.train_imgx  # noqa: F401
from faults.damage import try_cases
from synthgen.cli import build_app, main
from synthgen.core.rng import SampleKey
from synthgen.labels.vessels import VesselGenerator

STEP_S = 0.002


class Child:
    """One forked run of the command line."""

    def __init__(self, run):
        self.run, self.started = run, time.perf_counter()
        self.code, self.timed_out = None, False
        self._signalled, self._watched_since = False, None
        pipes = [os.pipe(), os.pipe()]
        self._pid = os.fork()
        if not self._pid:
            self._become_command([end for _, end in pipes])
        for _, end in pipes:
            os.close(end)
        # Not files: the limit would hold for them, too.
        self._streams = [os.fdopen(end, "rb", buffering=0) for end, _ in pipes]
        self._texts = [b"", b""]
        for stream in self._streams:
            os.set_blocking(stream.fileno(), False)

    def _become_command(self, ends):
        code = 1
        try:
            for number, end in enumerate(ends, start=1):
                os.dup2(end, number)
            os.environ.update(self.run.get("env", {}))
            os.chdir(self.run.get("cwd", "."))  # noqa: TID251 - a process of its own
            # A shell that starts the tests in the background makes them ignore it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if (limit := self.run.get("limit_bytes")) is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            faulthandler.enable()
            sys.argv = ["synthgen", *self.run["argv"]]
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except KeyboardInterrupt:  # before anybody listened
            code = 128 + signal.SIGINT
        except BaseException:  # noqa: BLE001 - told as Python would
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def look(self, timeout_s):
        """Send the signal if it is due, and notice the end."""
        done, status, used = os.wait4(self._pid, os.WNOHANG)
        now = time.perf_counter()
        self.seconds = now - self.started
        for i, stream in enumerate(self._streams):
            self._texts[i] += stream.read() or b""
        if done:
            self.code = os.waitstatus_to_exitcode(status)
            self.cpu_s = used.ru_utime + used.ru_stime
            return
        if not self._signalled and "signal" in self.run and self._is_due(now):
            os.kill(self._pid, self.run["signal"])
            self._signalled = True
        if self.seconds > timeout_s and not self.timed_out:
            os.kill(self._pid, signal.SIGABRT)  # says where every thread is
            self.timed_out = True

    def _is_due(self, now):
        if "watch" not in self.run:
            return now - self.started >= self.run["delay_s"]
        if self._watched_since is None and _holds_something(self.run["watch"]):
            self._watched_since = now
        return self._watched_since is not None and (
            now - self._watched_since >= self.run["delay_s"]
        )

    def result(self):
        for stream in self._streams:
            stream.close()
        out, err = (text.decode(errors="replace") for text in self._texts)
        left = _files(self.run["watch"]) if "watch" in self.run else []
        return {
            "code": self.code, "out": out, "err": err, "seconds": self.seconds, "cpu_s": self.cpu_s,
            "left": left, "timed_out": self.timed_out,
        }  # fmt: skip


def _holds_something(folder):
    return Path(folder).is_dir() and any(Path(folder).iterdir())


def _files(folder):
    root = Path(folder)
    return sorted(str(p.relative_to(root)) for p in root.rglob("*")) if root.is_dir() else []


def run_together(runs, timeout_s):
    """Start runs at once, or when there is a file in their `after`; return how all ended."""
    children = {}
    while len(children) < len(runs) or any(c.code is None for c in children.values()):
        for i, run in enumerate(runs):
            if i not in children and ("after" not in run or _holds_something(run["after"])):
                children[i] = Child(run)
            elif i in children and children[i].code is None:
                children[i].look(timeout_s)
        time.sleep(STEP_S)
    return [children[i].result() for i in range(len(runs))]


def serve():
    """Answer requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a child, before it is one
    build_app()
    VesselGenerator("coronary", (64, 64)).draw([SampleKey(0, 0)])  # compiles, if numba is there
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        if "damage" in request:
            answer = {"cases": try_cases(**request["damage"], timeout_s=request["timeout_s"])}
        else:
            answer = {"results": run_together(request["runs"], request["timeout_s"])}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
    os._exit(0)  # at once: nothing here needs torch to be taken down
