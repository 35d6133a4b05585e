"""What a training run writes for people: loss log, progress, sample sheets."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import StoreError
from synthgen.core.manifest import write_atomic
from synthgen.core.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from io import FileIO
    from pathlib import Path
    from types import TracebackType

    import torch
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

PALETTE: tuple[tuple[int, int, int], ...] = (
    (0, 0, 0),
    (70, 110, 200),
    (150, 150, 150),
    (235, 235, 235),
    (120, 190, 120),
    (170, 130, 90),
    (255, 220, 60),
    (220, 50, 50),
    (240, 140, 40),
    (150, 80, 200),
)
"""Colours of label channels in sheets; further channels repeat the last ones."""


class LossLog:
    """`losses.jsonl`: one line per iteration with step, seconds and losses.

    Lines of steps after `first_step` are dropped on opening: a resumed run computes them anew.
    """

    def __init__(self, path: Path, first_step: int = 0, *, enabled: bool = True) -> None:
        self._path = path
        self._enabled = enabled
        self._pending: list[tuple[int, float, Mapping[str, float | torch.Tensor]]] = []
        self._window: list[dict[str, float]] = []
        self._stream: FileIO | None = None
        self._last = time.perf_counter()
        self._first = first_step

    def __enter__(self) -> Self:
        if self._enabled:
            kept = [r for r in read_losses(self._path) if r["step"] <= self._first]
            text = "".join(json.dumps(r) + "\n" for r in kept)
            write_atomic(self._path, text.encode())
            # Unbuffered: what a full disk refuses must not come back when the file is closed.
            self._stream = self._path.open("ab", buffering=0)
        self._last = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def add(self, step: int, losses: Mapping[str, float | torch.Tensor]) -> None:
        """Remember the losses of one iteration; tensors are read at the next `flush`."""
        now = time.perf_counter()
        self._pending.append((step, now - self._last, losses))
        self._last = now

    def means(self) -> dict[str, float]:
        """Write what is pending and return the means since the last call (`{}` without any)."""
        self.flush()
        rows, self._window = self._window, []
        keys = [k for k in rows[-1] if k != "step"] if rows else []
        return {k: float(np.mean([row[k] for row in rows if k in row])) for k in keys}

    def flush(self) -> None:
        """Write what is pending.

        Raises:
            StoreError: the disk is full.
        """
        rows = [
            {"step": step, "s": round(seconds, 4)} | {k: float(v) for k, v in losses.items()}
            for step, seconds, losses in self._pending
        ]
        self._pending.clear()
        if self._stream is not None:
            data = "".join(json.dumps(row) + "\n" for row in rows).encode()
            try:
                while data:
                    data = data[self._stream.write(data) :]
            except OSError as error:
                raise StoreError(
                    f"{self._path}: could not be written ({error.strerror or error}); "
                    "free space, then run again with --resume"
                ) from error
        self._window += rows


def read_losses(path: Path) -> list[dict[str, Any]]:
    """Read `losses.jsonl`; a last line cut by a crash is left out; no file gives `[]`.

    Raises:
        StoreError: a line other than the last is no JSON.
    """
    if not path.is_file():
        return []
    lines = path.read_text().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise StoreError(f"{path}: line {number} is not JSON ({error})") from error
    return rows


@contextmanager
def tracked(accelerator: Accelerator, name: str, facts: Mapping[str, object]) -> Iterator[None]:
    """Run the accelerator's trackers for one training, as project `synthgen-NAME`."""
    accelerator.trackers = []  # those of an earlier training have ended
    accelerator.init_trackers(f"synthgen-{name}", dict(facts))
    try:
        yield
    finally:
        # Not `end_training`: it would end the workers' process group too.
        for tracker in accelerator.trackers:
            tracker.finish()


class Progress:
    """A line that updates itself on a terminal, else a log line per 30 seconds."""

    def __init__(self, name: str, first: int, total: int, *, enabled: bool = True) -> None:
        self._name, self._total = name, total
        self._enabled = enabled
        self._tty = sys.stderr.isatty()
        self._pace = Pace()
        self._pace.mark(time.monotonic(), first)
        self._shown = -1e9

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._enabled and self._tty:
            sys.stderr.write("\n")

    def show(self, step: int, losses: Mapping[str, float]) -> None:
        """Show the step, the mean losses, and the time that is left."""
        now = time.monotonic()
        self._pace.mark(now, step)
        due = now - self._shown >= (0.5 if self._tty else 30) or step == self._total
        if not self._enabled or not due:
            return
        self._shown = now
        left_s = self._pace.left_s(self._total)
        left = "" if left_s is None else f" {left_s / 60:.1f} min left"
        values = " ".join(f"{k}={v:.4g}" for k, v in losses.items())
        line = f"{self._name} {step}/{self._total} {values}{left}"
        if self._tty:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        else:
            logger.info("%s", line)


def colour_labels(pv: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Colour each pixel by its PV: `(N, C, X, Y)` to RGB `(N, X, Y, 3)` in [0, 1]."""
    colours = np.asarray(PALETTE, dtype=np.float32) / 255
    index = np.minimum(np.arange(pv.shape[1]), len(colours) - 1)
    rgb: npt.NDArray[np.float32] = np.einsum("ncxy,ck->nxyk", pv.astype(np.float32), colours[index])
    return rgb


def colour_argmax(pv: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Colour each pixel by its largest PV: `(N, C, X, Y)` to RGB `(N, X, Y, 3)`."""
    colours = np.asarray(PALETTE, dtype=np.float32) / 255
    rgb: npt.NDArray[np.float32] = colours[np.minimum(pv.argmax(axis=1), len(colours) - 1)]
    return rgb


def stack_rows(
    rows: Sequence[npt.NDArray[np.float32]],
) -> npt.NDArray[np.float32]:
    """Stack rows of pictures `(columns, X, Y[, 3])` to one sheet `(rows, columns, X, Y[, 3])`."""
    return np.stack([np.asarray(row, dtype=np.float32) for row in rows])


def write_sheet(path: Path, sheet: npt.NDArray[np.float32]) -> None:
    """Write a sheet `(rows, columns, X, Y)` or `(..., 3)` in [0, 1] as PNG.

    Slices are shown upright: left of the array at the left, anterior up.

    Raises:
        StoreError: the file cannot be written.
    """
    # matplotlib takes a second to import, and most training steps write no sheet.
    from matplotlib import image as png  # noqa: PLC0415

    rgb = sheet if sheet.ndim == 5 else np.repeat(sheet[..., None], 3, axis=-1)
    upright = np.flip(np.swapaxes(rgb, 2, 3), axis=2)  # (rows, columns, Y, X, 3)
    rows, columns, height, width, _ = upright.shape
    picture = upright.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    stream = io.BytesIO()
    png.imsave(stream, np.ascontiguousarray(np.clip(picture, 0, 1)), format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, stream.getvalue())
