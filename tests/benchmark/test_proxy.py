import json

import numpy as np
import pytest
import torch
from discs import tiny_recipe

from synthgen.benchmark import proxy
from synthgen.benchmark.arm_store import CaseStore, store_path
from synthgen.benchmark.cases import recordings, write_stores
from synthgen.benchmark.job import Job
from synthgen.benchmark.worker import train_and_test
from synthgen.core.rng import SampleKey, Stream
from synthgen.segment.unet import UNetStep

STEPS = {"epochs": 2, "steps": 15, "lr": 0.02, "channels": [8, 16]}


def moved(**changed):
    still = {"rotate_deg": 0.0, "scale": 0.0, "shift_px": 0.0, "flip_probability": 0.0}
    recipe = tiny_recipe(**{**still, "gain": 0.0, "noise": 0.0, **changed}).proxy
    rng = np.random.default_rng(0)
    image = torch.zeros(2, 1, 16, 24)
    image[:, :, 3:9, 4:20] = torch.as_tensor(rng.normal(size=(2, 1, 6, 16))).float()
    soft = torch.zeros(2, 2, 16, 24)
    soft[:, 1] = (image[:, 0] != 0).float()
    soft[:, 0] = 1 - soft[:, 1]
    key = SampleKey(0, 0).torch(Stream.AUGMENT)
    return image, soft, *proxy.augment(image, soft, recipe, key)


def test_without_changes_augmentation_is_the_identity():
    image, soft, same, labels = moved()
    assert torch.allclose(same, image, atol=1e-5)
    assert torch.allclose(labels, soft, atol=1e-5)


def test_mirroring_is_along_the_first_axis_only():
    image, soft, mirrored, labels = moved(flip_probability=1.0)
    assert torch.allclose(mirrored, image.flip(2), atol=1e-5)
    assert torch.allclose(labels, soft.flip(2), atol=1e-5)


def test_a_rotation_keeps_areas_in_slices_that_are_not_square():
    _, soft, _, labels = moved(rotate_deg=15.0)
    assert labels[:, 1].sum() == pytest.approx(float(soft[:, 1].sum()), rel=0.02)


def test_background_stays_exactly_zero_and_labels_sum_to_one():
    image, _, changed, labels = moved(gain=0.3, noise=0.5, shift_px=3.0, rotate_deg=20.0)
    assert torch.allclose(labels.sum(1), torch.ones(2, 16, 24))
    assert not changed[labels[:, :1] == 1].any()
    assert not torch.allclose(changed, image)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("proxy")


@pytest.fixture
def job(plan, out):
    def made(kind, folder=out, seed=0):
        spec, sources = plan("pretrain", trainer="proxy", recipe=tiny_recipe(**STEPS))
        folder.mkdir(exist_ok=True)
        spec.write(folder)
        write_stores(folder, recordings(spec, sources))
        return Job(folder, spec, spec.arm(kind), seed)

    return made


def test_pretraining_changes_its_data_half_way(job):
    cases = proxy._Cases(job("pretrain"))
    spec = job("pretrain").spec
    synthetic, real = (
        len(CaseStore(store_path(job("real").out, n))) for n in ("synthetic", "real")
    )
    assert [len(d) for d in cases._draws] == [synthetic, real]
    seen = []
    cases._case = lambda place, number: seen.append(place) or (torch.zeros(1, 8, 8), soft)
    soft = torch.zeros(4, 8, 8)
    for step in (0, spec.budget.steps // 2 - 1, spec.budget.steps // 2, spec.budget.steps - 1):
        cases.batch(step)
    assert seen == [0] * 16 + [1] * 16


def test_a_training_learns_and_leaves_its_rows(job):
    one = job("real")
    train_and_test(one)
    done = json.loads((one.folder / "done.json").read_text())
    assert done["hash"] == one.hash
    assert done["losses"]["train_losses"][-1] < done["losses"]["train_losses"][0]
    rows = json.loads((one.folder / "cases.json").read_text())
    assert len(rows) == 2 * 2 * 3
    assert {r["subject"] for r in rows} == {"a_sub-3", "b_sub-1"}
    assert set(rows[0]) == {
        "arm", "seed", "subject", "modality", "tissue", "dice", "hd95_mm", "nsd", "precision",
        "recall", "n_ref", "n_pred", "slices",
    }  # fmt: skip
    assert np.mean([r["dice"] for r in rows]) > 0.4
    assert len(list(one.predictions.glob("*.nii.gz"))) == 4
    assert one.is_done()
    assert not job("real", seed=1).is_done()


def test_a_training_that_was_killed_goes_on_exactly(job, tmp_path, monkeypatch):
    whole, killed = job("pretrain"), job("pretrain", tmp_path)
    proxy.train(whole, whole.folder / "proxy")
    step = UNetStep.step

    def die(self, accelerator, number):
        if number == 20:
            raise MemoryError
        return step(self, accelerator, number)

    monkeypatch.setattr(UNetStep, "step", die)
    with pytest.raises(MemoryError):
        proxy.train(killed, killed.folder / "proxy")
    monkeypatch.setattr(UNetStep, "step", step)
    proxy.train(killed, killed.folder / "proxy")
    lines = [
        (j.folder / "proxy" / "losses.jsonl").read_text().splitlines() for j in (whole, killed)
    ]
    losses = [[json.loads(line)["loss"] for line in run] for run in lines]
    assert losses[0] == losses[1]
