"""Guidance distillation: one network call a step where the teacher takes two."""

import json
import subprocess
import sys

import pytest
import torch
from interrupted import losses, power_failure
from safetensors.torch import load_file

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey
from synthgen.diffusion.sampling import guided
from synthgen.labels import LabelCondition, load_label_generator
from synthgen.labels.distil import distil_labels, folded_student
from synthgen.labels.generator import DiffusionLabelGenerator
from synthgen.labels.students import DistillationStep, GuidanceStep
from synthgen.labels.trajectories import draw_condition, teacher_trajectories
from synthgen.recipe import load_recipe
from synthgen.runtime import build_accelerator

WEIGHTS = "diffusion_pytorch_model.safetensors"
SHORT = {
    "trajectories": 6,
    "train.steps": 6,
    "train.batch_size": 4,
    "train.precision": "fp32",
    "train.checkpoint_every": 2,
    "train.sheet_every": 6,
    "train.log_every": 1,
}
KEYS = [SampleKey(9, i) for i in range(4)]
CONDITIONS = [LabelCondition({"wmh": 0.02 * i}, 0.1 + 0.2 * i) for i in range(4)]


def overrides(changes=None):
    return [f"distil.{key}={value}" for key, value in (SHORT | (changes or {})).items()]


def short_recipe(changes=None):
    return load_recipe("starter_labels_guidance", overrides(changes))


@pytest.fixture(scope="module")
def teacher(written):
    return written(sampling__steps=6, sampling__guidance=1.5)


@pytest.fixture(scope="module")
def folded(teacher, tmp_path_factory):
    """Return the model and run folders of a distillation that nobody interrupted."""
    root = tmp_path_factory.mktemp("folded")
    distil_labels(short_recipe(), teacher, root / "models" / "folded")
    return root / "models" / "folded", root / "runs" / "folded"


def batches_asked(generator):
    """Return the batch size of every network call of one draw of four maps."""
    calls = []
    hook = generator.unet.register_forward_hook(lambda _net, args, _out: calls.append(len(args[0])))
    generator.sample(KEYS, CONDITIONS)
    hook.remove()
    return calls


def test_a_student_samples_as_its_teacher_does_in_half_the_calls(folded, teacher):
    student, taught = load_label_generator(folded[0]), load_label_generator(teacher)
    own, its = student.identity, taught.identity
    assert {k: v for k, v in own.items() if k != "model"} == {
        "sampler": "dpm", "steps": 6, "guidance": 1.5, "eta": 0.0, "dtype": "fp32",
    }  # fmt: skip
    assert {**own, "model": ""} == {**its, "model": ""}
    assert (student.subjects, student.conditions) == (taught.subjects, taught.conditions)
    assert (batches_asked(taught), taught.network_calls) == ([8] * 6, 12)
    assert (batches_asked(student), student.network_calls) == ([4] * 6, 6)


def test_other_guidance_steps_and_samplers_stay_possible(folded):
    for guidance, calls in ((1.5, [4] * 3), (1.0, [8] * 3), (3.0, [8] * 3)):
        other = load_label_generator(folded[0], sampler="ddim", steps=3, guidance=guidance)
        assert batches_asked(other) == calls
        assert other.identity["guidance"] == guidance
    with pytest.raises(RequestError, match="guidance must be above 0"):
        load_label_generator(folded[0], guidance=0.0)


@pytest.mark.parametrize("guidance", [0.5, 1.0, 1.5, 4.0])
def test_what_a_perfect_student_predicts_is_the_teachers_guidance(guidance, folded, teacher):
    conditional, null = torch.tensor(2.0), torch.tensor(-1.0)

    def plain(x_t, _t, keep):
        return torch.where(keep == 1, conditional, null).expand_as(x_t)

    def perfect(x_t, _t, keep):
        return torch.where(keep == 1, null + 1.5 * (conditional - null), null).expand_as(x_t)

    x_t, t = torch.zeros(3), torch.zeros(3)
    strengths = [load_label_generator(m).pipeline.strength(guidance) for m in (teacher, folded[0])]
    assert strengths[0] == guidance
    expected = guided(plain, strengths[0])(x_t, t)
    torch.testing.assert_close(guided(perfect, strengths[1])(x_t, t), expected)


def test_the_goal_is_the_guided_prediction_or_the_null_one(teacher, tmp_path):
    drawing, section = DiffusionLabelGenerator.load(teacher), short_recipe().distil
    held = teacher_trajectories(drawing, section, (6,), tmp_path, "a")
    student = folded_student(drawing.pipeline)
    step = GuidanceStep(student, drawing, section, held, build_accelerator("fp32"))
    x_t, t, values = held.states[:4, -1].float(), torch.tensor([1, 300, 600, 999]), held.values[:4]
    predict, keep = drawing.pipeline.predictor(values), torch.tensor([1.0, 0.0, 1.0, 0.0])
    with torch.no_grad():
        goal = step._taught_prediction(x_t, t, values, keep)
        with_guidance = guided(predict, 1.5)(x_t, t)
        without_condition = predict(x_t, t, torch.zeros(4))
    # A batch of eight and one of four sum in another order.
    torch.testing.assert_close(goal[[0, 2]], with_guidance[[0, 2]], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(goal[[1, 3]], without_condition[[1, 3]], atol=1e-5, rtol=1e-4)
    assert (with_guidance - without_condition).abs().mean() > 1e-3


def test_the_card_and_the_record_tell_of_the_teacher(folded, teacher):
    model, run_dir = folded
    card = (model / "card.md").read_text()
    name = load_label_generator(teacher).identity["model"]
    assert f"Guidance of 1.5 folded in from the model {name[:16]}" in card
    record = json.loads((model / "synthgen.json").read_text())["training"]
    assert record["teacher"]["model"] == name
    assert record["recipe"]["distil"]["null_share"] == 0.1
    assert (run_dir / "distil" / "sheets" / "step_0000006.png").is_file()


def test_an_interrupted_distillation_resumes_with_the_same_losses(folded, teacher, tmp_path):
    out, run_dir = tmp_path / "model", tmp_path / "run"
    with power_failure(DistillationStep, 5):
        distil_labels(short_recipe(), teacher, out, run_dir)
    assert not out.exists()
    distil_labels(short_recipe(), teacher, out, run_dir, resume=True)
    assert losses(run_dir / "distil") == losses(folded[1] / "distil")
    for name in ("unet", "condition_embedding"):
        expected = (folded[0] / name / WEIGHTS).read_bytes()
        assert (out / name / WEIGHTS).read_bytes() == expected


def test_a_student_comes_near_its_teacher(written, tmp_path):
    """On noise that it never learnt from, nearer than the teacher without guidance."""
    longer = {
        "trajectories": 48, "train.steps": 150, "train.batch_size": 8, "train.lr": 1e-3,
        "train.sheet_every": 0, "train.ema_decay": 0.9, "train.checkpoint_every": 150,
    }  # fmt: skip
    teacher = written(sampling__steps=6, sampling__guidance=4.0)
    distil_labels(short_recipe(longer), teacher, tmp_path / "folded", tmp_path / "run")
    rows = [row["l2"] for row in losses(tmp_path / "run" / "distil")]
    assert sum(rows[-10:]) < 0.5 * sum(rows[:10])
    keys = [SampleKey(0, 48 + i) for i in range(8)]
    goal, student = load_label_generator(teacher), load_label_generator(tmp_path / "folded")
    plain = load_label_generator(teacher, guidance=1.0)
    conditions = [draw_condition(goal.conditions, key, 0.4) for key in keys]
    wanted, learnt, unguided = (g.sample(keys, conditions) for g in (goal, student, plain))
    assert (learnt - wanted).abs().mean() < 0.75 * (unguided - wanted).abs().mean()


def test_a_teacher_that_takes_one_call_a_step_is_refused(written, folded, tmp_path):
    for model in (written(sampling__guidance=1.0), folded[0]):
        with pytest.raises(RequestError, match="nothing to fold in"):
            distil_labels(short_recipe(), model, tmp_path / "folded")
    assert not (tmp_path / "folded").exists()


def test_a_folded_model_teaches_few_steps(folded, tmp_path):
    """Its own guidance, which takes one call a step, is what the next student learns."""
    changes = {
        "knots": "[0, 3, 6]", "trajectories": 2, "teacher_states": 1, "train.steps": 2,
        "train.batch_size": 2, "train.sheet_every": 0,
    }  # fmt: skip
    recipe = load_recipe("tiny_distil", [f"distil.{k}={v}" for k, v in changes.items()])
    distil_labels(recipe, folded[0], tmp_path / "fast")
    fast = load_label_generator(tmp_path / "fast")
    assert batches_asked(fast) == [4, 4]
    assert (fast.identity["guidance"], fast.network_calls) == (1.0, 2)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_share_the_draws_and_write_one_model(teacher, folded, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "--", "synthgen", "train", "distil", "starter_labels_guidance"]
    command += [word for change in overrides() for word in ("-o", change)]
    command += ["--teacher", str(teacher), "--out", str(tmp_path / "models" / "two")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    assert found.stderr.count("teacher: 6 of 6 trajectories") <= 1
    run_dir = tmp_path / "runs" / "two"
    held = [load_file(d / "trajectories" / "00000.safetensors") for d in (run_dir, folded[1])]
    assert torch.equal(held[0]["states"], held[1]["states"])
    assert [row["step"] for row in losses(run_dir / "distil")] == list(range(1, 7))
    assert load_label_generator(tmp_path / "models" / "two").sample(KEYS, CONDITIONS).shape[0] == 4
