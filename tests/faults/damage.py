"""Damage a file in many ways, read it in a forked child, and judge what the reader made of it."""

import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

from faults.readers import READERS
from synthgen.core.errors import SynthgenError

SECTOR = 512
_REMEDY = re.compile(
    r"\b(again|delete|run|copy|make|made|train|choose|free|restore|expected|add)\b", re.IGNORECASE
)


def flipped(data, rng):
    """Return the bytes with one bit flipped."""
    place = int(rng.integers(len(data)))
    return _with(data, place, bytes([data[place] ^ (1 << int(rng.integers(8)))]))


def cut(data, rng):
    """Return the first bytes."""
    return data[: int(rng.integers(len(data)))]


def blanked(data, rng):
    """Return the bytes with a sector of zeros, as a disk leaves one that was never written."""
    place = int(rng.integers(len(data)))
    return _with(data, place, bytes(min(SECTOR, len(data) - place)))


def lengthened(data, rng):
    """Return the bytes with others behind them."""
    return data + rng.bytes(int(rng.integers(1, 64)))


def scrambled(data, rng):
    """Return the bytes with some of them replaced by others."""
    place = int(rng.integers(len(data)))
    return _with(data, place, rng.bytes(min(16, len(data) - place)))


MODES = {f.__name__: f for f in (flipped, cut, blanked, lengthened, scrambled)}
GOOD = ("refused", "same")


def _with(data, place, part):
    return data[:place] + part + data[place + len(part) :]


def try_cases(reader, folder, target, damages, timeout_s):
    """Damage `folder/target` in many ways, each a mode and a seed, and read the folder.

    Returns:
        For each damage a dict: `verdict` is "refused" (an error of synthgen), "same" (the damage is
        in bytes that mean nothing), "WRONG" (other values were taken for good), "traceback",
        "vague" (a message that does not name the file, or no remedy), "crash" or "hang"; `text`
        says more.
    """
    path = Path(folder) / target
    data = path.read_bytes()
    with tempfile.TemporaryFile("w+") as notes:
        done = 0
        cases = []
        while done < len(damages):
            child = os.fork()
            if not child:
                _read_damaged(reader, path, Path(folder), damages[done:], notes)
            status = _wait(child, timeout_s)
            path.write_bytes(data)
            notes.seek(0)
            cases = [json.loads(line) for line in notes.read().splitlines()]
            done = len(cases)
            if status and done < len(damages):
                kind = "hang" if status == -signal.SIGKILL else "crash"
                cases.append({"verdict": kind, "text": f"the reader ended with {status}"})
                notes.write(json.dumps(cases[-1]) + "\n")
                notes.flush()
                done += 1
    return [
        {"damage": damage, "target": target} | case
        for damage, case in zip(damages, cases, strict=True)
    ]


def _wait(child, timeout_s):
    """Return a child's exit code; kill it when it takes too long."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _read_damaged(reader, path, folder, damages, notes):
    """Judge every damage in this process, which ends afterwards."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        data = path.read_bytes()
        good = READERS[reader](folder)
        for mode, seed in damages:
            changed = MODES[mode](data, np.random.default_rng(seed))
            path.write_bytes(changed)
            case = {"verdict": "same", "text": ""}
            if changed != data:
                case = _judge(READERS[reader], folder, path, good)
            notes.write(json.dumps(case) + "\n")
            notes.flush()
        code = 0
    except BaseException:  # noqa: BLE001 - the harness itself is broken
        notes.write(json.dumps({"verdict": "harness", "text": traceback.format_exc()}) + "\n")
        notes.flush()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _judge(read, folder, path, good):
    try:
        found = read(folder)
    except SynthgenError as error:
        text = str(error)
        clear = path.name in text and "\n" not in text and _REMEDY.search(text)
        return {"verdict": "refused" if clear else "vague", "text": text}
    except Exception:  # noqa: BLE001 - that is what is looked for
        return {"verdict": "traceback", "text": traceback.format_exc()}
    return {"verdict": "same" if found == good else "WRONG", "text": ""}
