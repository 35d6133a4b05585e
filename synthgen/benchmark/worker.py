"""The process of one training: `python -m synthgen.benchmark.worker OUT plan|ARM [SEED]`.

nnU-Net reads its folders from the environment and draws from global generators, and a crash of it
must not take the others along: so each training has a process of its own. It ends when its parent
does, which holds the other end of its standard input.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from synthgen.benchmark.arm_store import CaseStore, plain, store_path, volumes
from synthgen.benchmark.cases import TEST, stacked
from synthgen.benchmark.job import CASES, DONE, PLAN, Job, write_json
from synthgen.benchmark.metrics import volume_rows
from synthgen.benchmark.spec import Spec
from synthgen.benchmark.trainers import SEGMENTERS
from synthgen.core.input_files import read_json
from synthgen.torchvision_guard import hide_broken_torchvision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from synthgen.benchmark.arm_store import Volume

    Predict = Callable[[CaseStore, Volume], npt.NDArray[np.uint8]]

logger = logging.getLogger(__name__)

PLANNING = "plan"


def make_plan(out: Path) -> None:
    """Write nnU-Net's plan of a benchmark."""
    from synthgen.benchmark import nnunet_plan  # noqa: PLC0415 - nnU-Net takes seconds

    raw, preprocessed = (Path(os.environ[f"nnUNet_{name}"]) for name in ("raw", "preprocessed"))
    plans = nnunet_plan.make_plan(out, Spec.read(out), raw, preprocessed)
    write_json(out / PLAN, plans)


def train_and_test(job: Job) -> None:
    """Train, label the test volumes, measure them, and leave `cases.json`, then `done.json`."""
    started = time.monotonic()
    job.report(job.steps_done(), job.spec.budget.steps)
    predict, losses = _trained(job)
    trained = time.monotonic()
    write_json(job.folder / CASES, _test(job, predict))
    body = {
        "hash": job.hash,
        "arm": job.arm.name,
        "seed": job.seed,
        "trainer": job.spec.trainer,
        "steps": job.spec.budget.steps,
        "seconds": {"training": trained - started, "testing": time.monotonic() - trained},
        "losses": losses,
    }
    write_json(job.folder / DONE, body)


def _trained(job: Job) -> tuple[Predict, dict[str, Any]]:
    mirror = job.spec.budget.mirror
    if job.spec.trainer == "proxy":
        from synthgen.benchmark import proxy  # noqa: PLC0415

        network = proxy.train(job, job.folder / "proxy")
        losses = proxy.losses(job.folder / "proxy")
        return proxy.Predictor(network, job.spec.proxy, mirror=mirror), losses
    if job.spec.trainer in SEGMENTERS:
        from synthgen.benchmark import segmenters  # noqa: PLC0415

        model = segmenters.train(job, job.folder / job.spec.trainer)
        losses = segmenters.losses(job, job.folder / job.spec.trainer)
        return segmenters.Predictor(model, job.seed, mirror=mirror), losses
    from synthgen.benchmark import nnunet_train  # noqa: PLC0415 - nnU-Net takes seconds

    losses = nnunet_train.train(job, read_json(job.out / PLAN))
    return nnunet_train.Predictor(mirror=mirror), losses


def _test(job: Job, predict: Predict) -> list[dict[str, object]]:
    """Return one row for each test volume and tissue; keep the predicted volumes."""
    store, spec = CaseStore(store_path(job.out, TEST)), job.spec
    job.predictions.mkdir(parents=True, exist_ok=True)
    rows = []
    for volume in volumes(store):
        predicted = predict(store, volume)
        reference = np.moveaxis(stacked(store, volume)[1], 0, -1)
        image = nib.Nifti1Image(predicted, volume.affine)  # type: ignore[no-untyped-call]
        nib.save(image, job.predictions / f"{volume.name}.nii.gz")
        name = {"arm": job.arm.name, "seed": job.seed, "subject": plain(volume.subject)}
        rows += [
            {**name, "modality": volume.modality, **row}
            for row in volume_rows(
                predicted, reference, spec.tissues, volume.spacing_mm, spec.nsd_tolerance_mm
            )
        ]
        logger.info("%s: %s labelled", job.name, volume.name)
    return rows


def _end_with_parent() -> None:
    """End this process when standard input closes: the parent is gone, perhaps killed."""

    def wait() -> None:
        # Not through sys.stdin, whose lock would abort the interpreter when it exits.
        os.read(0, 1)
        os._exit(130)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: Sequence[str]) -> None:
    """Run what `arguments` say."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    hide_broken_torchvision()
    _end_with_parent()
    out = Path(arguments[0])
    if arguments[1] == PLANNING:
        make_plan(out)
        return
    spec = Spec.read(out)
    train_and_test(Job(out, spec, spec.arm(arguments[1]), int(arguments[2])))


if __name__ == "__main__":
    main(sys.argv[1:])
