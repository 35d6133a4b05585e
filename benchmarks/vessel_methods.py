"""What `paper_darl.py` compares: ridge filters, DARL in one step, U-Nets on generated pictures.

No method sees a manual label. Backgrounds of the retina are photographs of the training children
with their vessels removed by rule; the test children's photographs are used for testing only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from synthgen.core.errors import LeakageError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import VESSEL
from synthgen.data.shards import Shards
from synthgen.data.vessel_images import read_vessel_images, scale_to
from synthgen.evaluate.ridges import frangi_mask, sato_mask
from synthgen.images.angiogram.fields import circle
from synthgen.images.angiogram.inpaint import fundus_background
from synthgen.images.angiogram.physics import PhysicsRenderer
from synthgen.labels.vessels import VesselGenerator
from synthgen.segment.crops import Augmentation, Crops
from synthgen.segment.unet import UNetTraining, train

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from synthgen.core.vessels import VesselMaps
    from synthgen.data.vessel_images import VesselImages
    from synthgen.images.angiogram.backgrounds import Background
    from synthgen.segment import Segmenter

    Floats = npt.NDArray[np.float32]
    Bools = npt.NDArray[np.bool_]

CHANNELS = (16, 16, 32, 64)
CROP, BATCH = 128, 12
AUGMENTATION = Augmentation(
    mirror=0.5,
    rotate_deg=180.0,
    scale=0.3,
    gain=0.5,
    shift=0.1,
    gamma=0.3,
    blur_px=1.0,
    noise=0.06,
)


@dataclass(frozen=True)
class Case:
    """One test picture.

    Attributes:
        name: of its file.
        subject: as manifests name it.
        image: `(X, Y)` in [0, 1].
        truth: the first observer's mask `(X, Y)`.
        field: `(X, Y)`, what the camera saw.
    """

    name: str
    subject: str
    image: Floats
    truth: Bools
    field: Bools


@dataclass(frozen=True)
class Task:
    """What is segmented.

    Attributes:
        name: "retina" or "coronary".
        preset: of the new masks, and the kind of the renderer.
        shape: of the training pictures.
        share: of the field of view that the ridge filters may mark, the mean of the published
            masks. It is prior knowledge that no other method gets.
        cases: test pictures.
        backgrounds: vessel-free real pictures for training; None for made-up ones.
    """

    name: str
    preset: str
    shape: tuple[int, int]
    share: float
    cases: tuple[Case, ...]
    backgrounds: tuple[Background, ...] | None


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: of the row.
        seeds: one function a training, from picture and field of view to the mask `(X, Y)`.
        identities: what decided each; empty for filters.
    """

    name: str
    seeds: tuple[Callable[[Floats, Bools], Bools], ...]
    identities: tuple[Mapping[str, Any], ...] = ()


def retina(folder: Path, training: Sequence[str], testing: Sequence[str]) -> Task:
    """CHASE_DB1 with a field of view of 540 px in diameter, as DRIVE's.

    Args:
        folder: of CHASE_DB1.
        training: children whose photographs are painted on; without any, backgrounds are made up.
        testing: children to test on.

    Raises:
        LeakageError: a child on both sides.
    """
    both = sorted({*training} & {*testing})
    if both:
        raise LeakageError(f"child {both[0]} is to train and to test; name it on one side only")
    pool = None
    if training:
        shown = scale_to(read_vessel_images(folder, "chase", subjects=training), field_diameter=540)
        pool = tuple(_background(shown, number) for number in range(len(shown)))
    held = scale_to(read_vessel_images(folder, "chase", subjects=testing), field_diameter=540)
    # Mean share of the field in the masks of all of CHASE_DB1's first observer.
    return Task("retina", "retina", (584, 565), 0.101, _cases(held), pool)


def coronary(folder: Path) -> Task:
    """The two test pictures of XCAD's public sample: a smoke test, no measurement."""
    held = read_vessel_images(folder, "xcad", role="test")
    # Mean share of the frame in the masks of XCAD's public sample.
    return Task("coronary", "coronary", (512, 512), 0.054, _cases(held), None)


def _background(shown: VesselImages, number: int) -> Background:
    field = circle(shown.circles[number])
    name, subject = shown.names[number], shown.identities[number]
    return fundus_background(shown.images[number], field, name, subject)


def _cases(held: VesselImages) -> tuple[Case, ...]:
    columns = (held.names, held.identities, held.images, held.masks["1st"], held.fields)
    return tuple(Case(*row) for row in zip(*columns, strict=True))


def ridges(task: Task) -> list[Method]:
    """The filters of Sato and Frangi, told how much to mark."""
    return [
        Method(name, (lambda image, field, find=find: find(image, field, task.share, task.preset),))
        for name, find in (("Sato filter", sato_mask), ("Frangi filter", frangi_mask))
    ]


def of_segmenters(name: str, segmenters: Sequence[Segmenter], task: Task) -> Method:
    """Mark where the probability of a vessel is above one half.

    Raises:
        LeakageError: a test subject was seen in training.
    """
    seen = sorted(
        {name for segmenter in segmenters for name in segmenter.subjects}
        & {case.subject for case in task.cases}
    )
    if seen:
        raise LeakageError(f"{name}: a model was trained on {seen[0]}, which is a test subject")

    def label(segmenter: Segmenter, image: Floats, _: Bools) -> Bools:
        p = segmenter.predict(torch.from_numpy(image)[None, None])
        found: Bools = (p[0, 1] > 0.5).numpy()
        return found

    return Method(
        name,
        tuple(partial(label, segmenter) for segmenter in segmenters),
        tuple(segmenter.identity for segmenter in segmenters),
    )


def one_step(name: str, folders: Sequence[Path], task: Task) -> Method:
    """DARL's path A: one folder a training seed."""
    from synthgen.segment.onestep import OneStepSegmenter  # noqa: PLC0415

    return of_segmenters(name, [OneStepSegmenter.load(folder) for folder in folders], task)


@dataclass(frozen=True)
class Pool:
    """Labelled pictures to train on.

    Attributes:
        images: float16 `(n, X, Y)` in [0, 1].
        coverage: the same, share of the pixel that vessels cover.
        identity: all that decided them.
        subjects: real subjects whose pictures were painted on, or were seen by the painter.
    """

    images: torch.Tensor
    coverage: torch.Tensor
    identity: Mapping[str, Any]
    subjects: tuple[str, ...]


def rendered(task: Task, preset: str, count: int) -> Pool:
    """Draw masks of a preset and paint them with the physics renderer."""
    masks = VesselGenerator(preset, task.shape)
    renderer = PhysicsRenderer("retina" if task.name == "retina" else "coronary", task.backgrounds)
    images = np.empty((count, *task.shape), np.float16)
    coverage = np.empty_like(images)
    for number in range(count):
        keys = [SampleKey(0, number)]
        maps = masks.draw(keys)
        if task.name == "retina" and preset == "ssvs":
            maps = _in_view(maps)
        images[number] = renderer.render(maps, keys)[0, 0]
        coverage[number] = maps.coverage[0]
    identity = {"masks": masks.identity, "renderer": renderer.identity, "n": count}
    return Pool(torch.from_numpy(images), torch.from_numpy(coverage), identity, renderer.subjects)


def _in_view(maps: VesselMaps) -> VesselMaps:
    """Give masks that fill their frame the retina's field of view, so that only shapes differ."""
    x, y = maps.coverage.shape[1:]
    radius = min(x, y) * 270 / 565
    center = ((x - 1) / 2, (y - 1) / 2)
    rows, columns = np.ogrid[:x, :y]
    inside = (np.hypot(rows - center[0], columns - center[1]) < radius).astype(np.float32)
    names = ("coverage", "path_length", "hidden_path_length", "vein_path_length")
    field = np.asarray([[*center, radius]] * len(maps.coverage), np.float32)
    return replace(maps, field=field, **{name: getattr(maps, name) * inside for name in names})


def painted(folder: Path) -> Pool:
    """Read a dataset that `synthgen angiograms` wrote."""
    shards = Shards(folder)
    rows = [shards[number] for number in range(len(shards))]
    images = torch.stack([torch.from_numpy(np.asarray(row.images[0], np.float16)) for row in rows])
    coverage = torch.stack([torch.from_numpy(np.asarray(row.pv[1], np.float16)) for row in rows])
    manifest = shards.manifest
    return Pool(images, coverage, dict(manifest.identity), tuple(manifest.subjects))


def unet(
    name: str, pool: Pool, task: Task, work: Path, *, seeds: int, steps: int, minutes: float | None
) -> Method:
    """Train a small U-Net on a pool, once a seed."""
    segmenters = []
    for seed in range(seeds):
        crops = Crops(
            pool.images,
            pool.coverage,
            size=CROP,
            batch_size=BATCH,
            augmentation=AUGMENTATION,
            seed=seed,
        )
        segmenter = train(
            crops,
            CHANNELS,
            UNetTraining(steps, lr=4e-3, weight_decay=1e-4, clip_norm=1.0),
            work / f"{name.replace(' ', '_')}_seed{seed}",
            schema=VESSEL,
            identity={"pool": pool.identity, "augmentation": repr(AUGMENTATION), "crop": CROP},
            seed=seed,
            subjects=pool.subjects,
            tile=CROP,
            max_minutes=minutes,
        )
        segmenters.append(segmenter)
    return of_segmenters(name, segmenters, task)


def lazily(task: Task, options: Any, work: Path) -> dict[str, Callable[[], list[Method]]]:  # noqa: ANN401
    """Return what can be compared by short name; nothing is trained before it is called."""
    budget = {"seeds": options.seeds, "steps": options.steps, "minutes": options.minutes}

    def trained(name: str, pool: Callable[[], Pool]) -> list[Method]:
        return [unet(name, pool(), task, work, **budget)]

    made = {
        "new": (f"U-Net on {task.preset} masks", partial(rendered, task, task.preset)),
        "ssvs": ("U-Net on ssvs masks", partial(rendered, task, "ssvs")),
    }
    found: dict[str, Callable[[], list[Method]]] = {"ridges": partial(ridges, task)}
    for name, folders in options.darl:
        found[name] = partial(lambda *a: [one_step(*a)], f"One step, {name}", folders, task)
    for short, (name, pool) in made.items():
        found[short] = partial(trained, name, partial(pool, options.pool))
    for name, folders in options.dataset:
        found[name] = partial(trained, f"U-Net on {name}", partial(painted, folders[0]))
    return found
