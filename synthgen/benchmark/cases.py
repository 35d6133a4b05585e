"""Which cases each store of a benchmark holds, and the stores themselves."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch

from synthgen.benchmark.arm_store import (
    Case,
    CaseStore,
    Recording,
    plain,
    store_path,
    volumes,
    write_cases,
)
from synthgen.benchmark.arms import REFERENCE
from synthgen.benchmark.spec import listed, training_entries
from synthgen.core.errors import RequestError, StoreError
from synthgen.core.manifest import digest, write_atomic
from synthgen.core.rng import SampleKey, Stream
from synthgen.images.contrast import ContrastRenderer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from synthgen.benchmark.arm_store import Paint, Volume
    from synthgen.benchmark.spec import Sources, Spec
    from synthgen.data.rows import Entry, Pixels, Pv, Source

TEST = "test"
CASE_BYTES = 60_000
"""Of one case of 192 x 256 with four groups: measured 47 to 53 kB."""


def recordings(spec: Spec, sources: Sources) -> dict[str, Recording]:
    """Return what to write into each store that the arms need, and into `test`.

    Raises:
        RequestError: a store would be empty, or holds maps that no renderer paints.
    """
    real = sources.real
    train = _pictured(training_entries(real, spec.test), spec.modalities)
    test = _pictured([e for e in real.entries if e.subject in spec.test], spec.modalities)
    painted = _painted(real)
    chosen = {REFERENCE: (real, _capped(train, spec), painted), TEST: (real, test, painted)}
    if sources.synthetic is not None:
        made = sources.synthetic
        pictured = _pictured(made.entries, spec.modalities)
        chosen["synthetic"] = (made, _capped(pictured, spec), _painted(made))
        bare = [Case(entry, -1, m) for entry in made.entries for m in spec.modalities]
        maps = _capped(pictured or bare, spec)
        if "contrast" in spec.stores:
            chosen["contrast"] = (made, maps, _rendered(made))
    found = {}
    for name in (*spec.stores, TEST):
        source, cases, paint = chosen[name]
        if not cases:
            raise RequestError(
                f"{source.name}: no {name} cases of modality {', '.join(spec.modalities)}"
            )
        found[name] = Recording(source, cases, paint, sources.groups, _identity(spec, name, source))
    return found


def write_stores(
    out: Path,
    made: dict[str, Recording],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the stores that are not there yet, and the test volumes for whoever looks at them.

    Raises:
        StoreError: damaged data, or a test volume that is blank.
    """
    total, before = sum(len(r.cases) for r in made.values()), 0
    for name, recording in made.items():
        start = before

        def shown(done: int, _: int, start: int = start) -> None:
            if progress is not None:
                progress(start + done, total)

        fresh = write_cases(store_path(out, name), recording, shown)
        before += len(recording.cases)
        if name == TEST:
            _require_volumes(CaseStore(store_path(out, TEST)), recording.cases)
            _write_volumes(out, fresh=fresh)


def stacked(store: CaseStore, volume: Volume) -> tuple[Pixels, npt.NDArray[np.uint8]]:
    """Return the normalised image and the label map `(Z, X, Y)` of a volume."""
    images = np.stack([store.image(case) for case in volume.cases])
    labels = np.stack([store.labels(case) for case in volume.cases])
    return images, labels.clip(0).astype(np.uint8)


def _write_volumes(out: Path, *, fresh: bool) -> None:
    """Write `test/SUBJECT_MODALITY.npz` with `image` and `label` `(Z, X, Y)`."""
    store = CaseStore(store_path(out, TEST))
    for volume in volumes(store):
        path = out / TEST / f"{volume.name}.npz"
        if fresh or not path.is_file():
            image, label = stacked(store, volume)
            buffer = io.BytesIO()
            np.savez_compressed(buffer, image=image.astype(np.float16), label=label)
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, buffer.getvalue())


def _require_volumes(store: CaseStore, cases: Sequence[Case]) -> None:
    wanted = {f"{plain(case.entry.subject)}_{case.modality}" for case in cases}
    blank = sorted(wanted - {volume.name for volume in volumes(store)})
    if blank:
        raise StoreError(f"blank test volumes: {listed(blank)}; test on other subjects with --test")


def _identity(spec: Spec, name: str, source: Source) -> str:
    return digest(
        {
            "store": name,
            "source": dict(source.identity),
            "groups": [spec.tissues, spec.groups],
            "test": spec.test,
            "modalities": spec.modalities,
            "max_cases": spec.budget.max_cases,
        }
    )


def _pictured(entries: Sequence[Entry], modalities: Sequence[str]) -> list[Case]:
    return [
        Case(entry, place, picture.modality)
        for entry in entries
        for place, picture in enumerate(entry.pictures)
        if picture.modality in modalities
    ]


def _capped(cases: list[Case], spec: Spec) -> list[Case]:
    """Return at most `max_cases` cases; the same ones whatever the arms and seeds."""
    most = spec.budget.max_cases
    if most is None or len(cases) <= most:
        return cases
    rng = SampleKey(0, 0).numpy(Stream.SPLIT)
    return [cases[i] for i in np.sort(rng.choice(len(cases), most, replace=False))]


def _painted(source: Source) -> Paint:
    return lambda case, pv: source.image(case.entry, case.picture, pv)


def _rendered(source: Source) -> Paint:
    """Return the training-free renderer, without any data set's name: one invented scanner."""
    renderer = ContrastRenderer(source.schema)

    def paint(case: Case, pv: Pv) -> Pixels:
        maps = torch.from_numpy(pv[None].astype(np.float32) / np.float32(255))
        key = SampleKey(0, case.entry.index)
        image: Pixels = renderer.render(maps, [case.modality], [key])[0, 0].numpy()
        return image

    return paint
