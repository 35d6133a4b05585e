"""ImgX and HiDiff as trainers of a benchmark."""

import json
from dataclasses import replace

import numpy as np
import pytest
from discs import tiny_recipe

from synthgen.benchmark.arms import Part
from synthgen.benchmark.cases import recordings, write_stores
from synthgen.benchmark.job import Job
from synthgen.benchmark.segmenters import ArmData, recipe_of
from synthgen.benchmark.spec import Spec
from synthgen.benchmark.worker import train_and_test
from synthgen.core.errors import RequestError
from synthgen.recipe import load_recipe

KINDS = ("imgx", "hidiff")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("segmenters")


@pytest.fixture
def job(plan, out):
    def made(trainer, arm, *, steps=3, seed=1):
        recipe = load_recipe("tiny_segmentation")
        spec, sources = plan(
            "hybrid", "few", few=2, trainer=trainer, recipe=tiny_recipe(2, steps), network=recipe
        )
        folder = out / trainer
        folder.mkdir(exist_ok=True)
        spec.write(folder)
        write_stores(folder, recordings(spec, sources))
        return Job(folder, Spec.read(folder), spec.arm(arm), seed)

    return made


def test_cases_are_scaled_as_the_product_scales_images(job):
    data = ArmData(job("imgx", "hybrid"), Part("real"))
    assert (data.real, data.tissues) == (True, ("background", "csf", "gm", "wm"))
    assert data.subjects == ("a/sub-1", "a/sub-2")
    assert len(data.cases) == 24
    image, soft = data.load(0)
    assert (image.shape, soft.shape) == ((1, 64, 64), (4, 64, 64))
    assert (float(image.min()), float(image.max())) == (0, 1)
    assert np.allclose(soft.sum(axis=0), 1)
    assert not image[0][soft[0] == 1].any()


def test_generated_cases_descend_from_their_ancestors_and_few_are_few(job):
    made = ArmData(job("imgx", "hybrid"), Part("synthetic"))
    assert (made.real, made.subjects) == (False, ("a/sub-1",))
    few = ArmData(job("imgx", "few-2"), Part("real", few=2))
    assert len(few.cases) == 4
    assert few.identity != ArmData(job("imgx", "few-2"), Part("real")).identity


@pytest.mark.parametrize("trainer", KINDS)
def test_steps_and_seed_are_the_benchmarks(trainer, job):
    section = getattr(recipe_of(job(trainer, "real", steps=30)), trainer)
    stages = [section.train] + ([section.pretrain] if trainer == "hidiff" else [])
    assert sum(stage.steps for stage in stages) == 60
    assert {stage.seed for stage in stages} == {1}
    assert {stage.checkpoint_every for stage in stages} == {30}
    assert section.data.tissues == ("csf", "gm", "wm")


@pytest.mark.parametrize("trainer", KINDS)
def test_a_training_leaves_its_rows(trainer, job):
    one = job(trainer, "hybrid")
    train_and_test(one)
    done = json.loads((one.folder / "done.json").read_text())
    assert (done["trainer"], done["hash"]) == (trainer, one.hash)
    assert np.isfinite(done["losses"]["train_losses"]).all()
    rows = json.loads((one.folder / "cases.json").read_text())
    assert len(rows) == 2 * 2 * 3
    assert {row["subject"] for row in rows} == {"a_sub-3", "b_sub-1"}
    assert len(list(one.predictions.glob("*.nii.gz"))) == 4
    assert one.is_done()
    record = json.loads((one.folder / trainer / "model/synthgen.json").read_text())
    assert record["subjects"] == ["a/sub-1", "a/sub-2"]


def test_settings_decide_the_benchmark(job):
    spec = job("imgx", "real").spec
    other = replace(spec, settings={**spec.settings, "strategy": "standard"})
    assert spec.run_hash(spec.arms[0], 0) != other.run_hash(spec.arms[0], 0)
    with pytest.raises(RequestError, match="the trainer's settings"):
        spec.require_same(other, job("imgx", "real").out)


@pytest.mark.parametrize(
    ("arms", "recipe", "message"),
    [
        (("pretrain",), "tiny_segmentation", "one mixture of cases from first to last"),
        (("real",), "imgx3d_small", "a section 'imgx' for 2-D images"),
        (("real",), "tiny", "a section 'imgx' for 2-D images"),
    ],
)
def test_what_a_segmenter_cannot_do_is_refused(arms, recipe, message, plan):
    with pytest.raises(RequestError, match=message):
        plan(*arms, trainer="imgx", recipe=tiny_recipe(), network=load_recipe(recipe))
