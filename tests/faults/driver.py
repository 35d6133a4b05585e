"""The client of `server.py`: runs of the command line that are killed, starved or side by side."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 120.0
"""After this long a run counts as hanging."""


@dataclass(frozen=True)
class Run:
    """How a run of the command line ended; see `server.py`."""

    code: int
    out: str
    err: str
    seconds: float
    cpu_s: float
    left: list[str]
    timed_out: bool


class Driver:
    """A process that forks runs of the command line. Use as a context manager."""

    def __init__(self):
        self._process = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(timeout=120)
        self._process.stdout.close()

    def ask(self, **request):
        """Send a request, return the answer."""
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the server died"
        return json.loads(answer)

    def together(self, *runs, timeout_s=TIMEOUT_S):
        """Start runs, such as `dict(argv=..., env=..., cwd=...)`, at once; return how they end."""
        plain = [
            {k: str(v) if k in ("cwd", "watch", "after") else v for k, v in run.items()}
            | {"argv": [str(word) for word in run["argv"]]}
            for run in runs
        ]
        results = self.ask(runs=plain, timeout_s=timeout_s)["results"]
        return [Run(**result) for result in results]

    def run(self, *argv, **how):
        """Run a command to its end, whatever that is."""
        return self.together({"argv": argv, **how})[0]

    def complete(self, *argv, **how):
        """Run a command that has to succeed."""
        done = self.run(*argv, **how)
        assert done.code == 0, done.err
        return done

    def kill(self, *argv, delay_s, number=signal.SIGKILL, **how):
        """Send a signal to a run some time after its start, or after its first file in `watch`."""
        return self.run(*argv, delay_s=delay_s, signal=int(number), **how)
