"""Run the real command line in forked children of one process that has imported everything.

A fresh interpreter spends seconds on imports; a fork starts generating at once, so that a test
can afford to kill it many times. Reads one JSON request a line, answers with one JSON line:

    {"do": "run", "argv": [...], "env": {...}}            -> {"code": ..., "seconds": ...}
    {"do": "kill", "argv": [...], "watch": DIR, "delay_s": ...} -> {"code": ..., "left": [...]}
    {"do": "together", "runs": [{"argv": ..., "env": ...}, ...]} -> {"codes": [...]}

"kill" waits for the first file in DIR, then `delay_s`, then sends SIGKILL, or `signal` if given.
"together" kills its run number `kill`, if given, when there is a file in the folder `watch`.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

# All that the commands import, so that children do not; nothing that starts a thread.
import synthgen.data.shards
import synthgen.generate
import synthgen.images.angiogram.physics
import synthgen.images.contrast
import synthgen.images.spade
import synthgen.labels.generator
import synthgen.runtime  # noqa: F401
from synthgen.cli import build_app, main
from synthgen.core.rng import SampleKey
from synthgen.labels.vessels import VesselGenerator


def start(argv, env):
    """Fork a child that runs the command line; return its process id."""
    child = os.fork()
    if child:
        return child
    os.environ.update(env)
    # A shell that starts the tests in the background makes them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["synthgen", *argv]
    # The protocol keeps the real stdout.
    os.dup2(2, 1)
    code = 1
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child):
    """Return a child's exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(argv, watch, delay_s, number=signal.SIGKILL):
    """Start a run, stop it some time after its first file, and tell what it left."""
    folder = Path(watch)
    child = start(argv, {})
    while not (folder.is_dir() and any(folder.iterdir())):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return {"code": os.waitstatus_to_exitcode(status), "left": []}
        time.sleep(0.0005)
    time.sleep(delay_s)
    os.kill(child, number)
    code = wait(child)
    return {"code": code, "left": sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))}


def serve():
    """Answer requests until the input ends."""
    build_app()
    VesselGenerator("coronary", (64, 64)).draw([SampleKey(0, 0)])  # compiles, if numba is there
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        match request["do"]:
            case "run":
                answer = {"code": wait(start(request["argv"], request.get("env", {})))}
            case "kill":
                number = request.get("signal", signal.SIGKILL)
                answer = kill(request["argv"], request["watch"], request["delay_s"], number)
            case "together":
                children = [start(run["argv"], run["env"]) for run in request["runs"]]
                if "kill" in request:
                    folder = Path(request["watch"])
                    while not (folder.is_dir() and any(folder.iterdir())):
                        time.sleep(0.0005)
                    os.kill(children[request["kill"]], signal.SIGKILL)
                answer = {"codes": [wait(child) for child in children]}
        answer["seconds"] = time.perf_counter() - started
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
    os._exit(0)  # at once: nothing here needs torch to be taken down
