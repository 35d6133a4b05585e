"""The folder convention: where stores, models, runs and datasets live."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synthgen.core.errors import RequestError


@dataclass(frozen=True)
class Workspace:
    """A workspace folder, `work/` by default. Nothing is created until something is written."""

    root: Path = Path("work")

    @property
    def store(self) -> Path:
        """Folder of the training store (`store.h5`)."""
        return self.root / "store"

    @property
    def labels(self) -> Path:
        """Default folder of generated labels."""
        return self.root / "labels"

    @property
    def styles(self) -> Path:
        """Folder of styles that were fitted on the user's own images."""
        return self.root / "styles"

    @property
    def reports(self) -> Path:
        """Folder of evaluation reports."""
        return self.root / "reports"

    @property
    def vessels(self) -> Path:
        """Default folder of generated vessel trees."""
        return self.root / "vessels"

    @property
    def angiograms(self) -> Path:
        """Default folder of generated angiograms."""
        return self.root / "angiograms"

    @property
    def volumes(self) -> Path:
        """Default folder of labelled volumes."""
        return self.root / "volumes"

    def benchmark(self, name: str) -> Path:
        """Folder of a benchmark: stores of cases, trainings, predictions, report."""
        return self.root / "benchmarks" / safe_name(name)

    def model(self, name: str) -> Path:
        """Folder of a trained model: `labels`, `images`, ..."""
        return self.root / "models" / safe_name(name)

    def run(self, name: str) -> Path:
        """Folder of a training run: checkpoints, logs, sample sheets."""
        return self.root / "runs" / safe_name(name)

    def images(self, styles: str) -> Path:
        """Default folder of images in one style (or several, joined by `+`)."""
        return self.root / "images" / safe_name(styles)


def safe_name(name: str) -> str:
    """Return `name` if it is a plain folder name.

    Raises:
        RequestError: it is empty, hidden, or would leave its parent folder.
    """
    if not name or name.startswith(".") or any(c in name for c in "/\\\0") or len(name) > 200:
        raise RequestError(
            f"not a usable name: {name!r}; expected a plain folder name without '/' "
            "or a leading '.'"
        )
    return name


def default_run_dir(out: Path) -> Path:
    """Return where the run of a model folder keeps its checkpoints: `runs/` beside `models/`."""
    if out.parent.name == "models":
        return out.parent.parent / "runs" / out.name
    return out.with_name(f"{out.name}-run")
