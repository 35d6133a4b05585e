"""Distillation: a student learns where its teacher's many steps lead."""

import json

import pytest
import torch
from interrupted import losses, power_failure
from safetensors.torch import load_file

from synthgen.core.errors import RecipeError, RequestError, SchemaError, StoreError
from synthgen.core.rng import SampleKey
from synthgen.labels import ConditionRange, LabelCondition, load_label_generator
from synthgen.labels.distil import distil_labels
from synthgen.labels.generator import DiffusionLabelGenerator
from synthgen.labels.students import DistillationStep
from synthgen.labels.trajectories import draw_condition, follow, teacher_trajectories
from synthgen.recipe import load_recipe

WEIGHTS = "diffusion_pytorch_model.safetensors"
SHORT = {
    "knots": "[0, 3, 6]",
    "trajectories": 6,
    "teacher_states": 3,
    "train.steps": 6,
    "train.checkpoint_every": 2,
    "train.sheet_every": 6,
    "train.log_every": 1,
}
KEYS = [SampleKey(9, i) for i in range(4)]
CONDITIONS = [LabelCondition({"wmh": 0.02 * i}, 0.1 + 0.2 * i) for i in range(4)]


@pytest.fixture(scope="module")
def distil_recipe():
    """Return a function: overrides of the short recipe, by their path below `distil`."""

    def build(overrides=None):
        merged = SHORT | (overrides or {})
        return load_recipe(
            "tiny_distil", [f"distil.{key}={value}" for key, value in merged.items()]
        )

    return build


@pytest.fixture(scope="module")
def teacher(written):
    return written(sampling__steps=6, sampling__guidance=1.5)


@pytest.fixture(scope="module")
def distilled(teacher, distil_recipe, tmp_path_factory):
    """Return the model and run folders of a distillation that nobody interrupted."""
    root = tmp_path_factory.mktemp("distilled")
    distil_labels(distil_recipe(), teacher, root / "models" / "fast")
    return root / "models" / "fast", root / "runs" / "fast"


def test_a_student_is_an_ordinary_label_model_of_few_steps(distilled, teacher):
    model, run_dir = distilled
    student, taught = load_label_generator(model), load_label_generator(teacher)
    assert {k: v for k, v in student.identity.items() if k != "model"} == {
        "sampler": "distilled", "steps": 2, "guidance": 1.0, "eta": 0.0, "dtype": "fp32",
    }  # fmt: skip
    assert (student.subjects, student.conditions) == (taught.subjects, taught.conditions)
    assert student.sample(KEYS, CONDITIONS).shape == taught.sample(KEYS, CONDITIONS).shape
    card = (model / "card.md").read_text()
    assert f"Distilled from the model {taught.identity['model'][:16]}" in card
    assert "6 steps of 'dpm' with guidance 1.5" in card
    assert "distillation: 6 steps" in card
    record = json.loads((model / "synthgen.json").read_text())["training"]
    assert record["teacher"] == taught.identity
    assert record["recipe"]["distil"]["knots"] == [0, 3, 6]
    assert (run_dir / "distil" / "sheets" / "step_0000006.png").is_file()


def test_two_network_calls_draw_a_map(distilled):
    student = load_label_generator(distilled[0])
    calls = []
    hook = student.unet.register_forward_hook(lambda _net, args, _out: calls.append(len(args[0])))
    student.sample(KEYS, CONDITIONS)
    hook.remove()
    assert calls == [4, 4]  # no second half for guidance


def test_a_student_refuses_what_it_was_not_distilled_to(distilled):
    for settings, message in (
        ({"steps": 3}, r"distilled to 2 step\(s\), got 3"),
        ({"sampler": "dpm"}, "leave the sampler out"),
        ({"guidance": 1.5}, "guidance folded in"),
    ):
        with pytest.raises(RequestError, match=message):
            load_label_generator(distilled[0], **settings)


def test_a_sample_depends_on_its_key_alone(distilled, untouched_rng):
    student = load_label_generator(distilled[0])
    maps = student.sample(KEYS, CONDITIONS)
    order = [2, 0, 3, 1]
    again = student.sample([KEYS[i] for i in order], [CONDITIONS[i] for i in order])
    assert torch.equal(again, maps[order])


def test_an_interrupted_distillation_resumes_with_the_same_losses(
    distilled, teacher, distil_recipe, tmp_path
):
    out, run_dir = tmp_path / "model", tmp_path / "run"
    with power_failure(DistillationStep, 5):
        distil_labels(distil_recipe(), teacher, out, run_dir)
    assert not out.exists()
    with pytest.raises(RequestError, match="--resume"):
        distil_labels(distil_recipe(), teacher, out, run_dir)
    distil_labels(distil_recipe(), teacher, out, run_dir, resume=True)
    assert losses(run_dir / "distil") == losses(distilled[1] / "distil")
    for name in ("unet", "condition_embedding"):
        expected = (distilled[0] / name / WEIGHTS).read_bytes()
        assert (out / name / WEIGHTS).read_bytes() == expected


def test_trajectories_are_the_teachers_own_samples(teacher, distil_recipe, distilled):
    generator = DiffusionLabelGenerator.load(teacher)
    pipeline = generator.pipeline
    held = load_file(distilled[1] / "trajectories" / "00000.safetensors")
    keys = [SampleKey(0, i) for i in range(6)]
    states = follow(generator, held["values"], keys, range(7))
    assert torch.equal(states[:, [0, 3, 6]].half(), held["states"])
    z = states[:, -1] / pipeline.vae.config.scaling_factor
    with torch.no_grad():
        expected = pipeline.vae.decode(z).sample.softmax(dim=1)
    conditions = [draw_condition(generator.conditions, key, 0.4) for key in keys]
    # Layout and batch differ from the pipeline's.
    torch.testing.assert_close(generator.sample(keys, conditions), expected, atol=1e-4, rtol=0)


def test_damaged_trajectories_are_drawn_again(teacher, distil_recipe, tmp_path, caplog):
    generator, section = DiffusionLabelGenerator.load(teacher), distil_recipe().distil
    first = teacher_trajectories(generator, section, section.knots, tmp_path, "a")
    path = tmp_path / "00000.safetensors"
    held = path.read_bytes()
    path.write_bytes(held[:-9] + bytes([held[-9] ^ 1]) + held[-8:])
    again = teacher_trajectories(generator, section, section.knots, tmp_path, "a")
    assert "checksum is wrong" in caplog.text
    assert torch.equal(again.states, first.states)
    assert path.read_bytes() == held
    teacher_trajectories(generator, section, section.knots, tmp_path, "b")
    assert path.read_bytes() != held  # of another identity


def test_conditions_cover_what_the_teacher_knows():
    known = ConditionRange({"wmh": (0.0, 0.2), "tumour": (0.0, 0.4)}, (0.2, 0.8), (0.0, 1.0))
    drawn = [draw_condition(known, SampleKey(0, i), 0.4) for i in range(400)]
    shares = torch.tensor([c.lesions["wmh"] for c in drawn])
    assert 0.3 < (shares == 0).float().mean() < 0.5
    scaled = (shares[shares > 0] / 0.2).sqrt()
    assert scaled.mean() == pytest.approx(0.5, abs=0.08)
    assert max(c.lesions["tumour"] for c in drawn) > 0.35
    assert {0.2 <= c.position <= 0.8 for c in drawn} == {True}
    assert draw_condition(known, SampleKey(0, 3), 0.4) == drawn[3]


def test_a_student_comes_near_its_teacher(teacher, distil_recipe, tmp_path):
    """On noise that it never learnt from, nearer than the teacher in as few network calls."""
    longer = {
        "trajectories": 48, "teacher_states": 50, "train.steps": 90, "train.batch_size": 8,
        "train.lr": 3e-3, "train.sheet_every": 0, "train.ema_decay": 0.9,
        "train.checkpoint_every": 90,
    }  # fmt: skip
    run_dir = tmp_path / "run"
    distil_labels(distil_recipe(longer), teacher, tmp_path / "fast", run_dir)
    rows = [row["l2"] for row in losses(run_dir / "distil")]
    assert sum(rows[40:50]) < 0.5 * sum(rows[:10])
    keys = [SampleKey(0, 48 + i) for i in range(8)]
    goal, student = load_label_generator(teacher), load_label_generator(tmp_path / "fast")
    hasty = load_label_generator(teacher, steps=2, guidance=1.0)
    conditions = [draw_condition(goal.conditions, key, 0.4) for key in keys]
    wanted, learnt, skipped = (g.sample(keys, conditions) for g in (goal, student, hasty))
    assert (learnt - wanted).abs().mean() < 0.5 * (skipped - wanted).abs().mean()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sampling__steps": 8}, r"end at the teacher's 8 steps, got \[0, 3, 6\]"),
        ({"sampling__sampler": "ddpm"}, "samples with 'ddpm'"),
        ({"diffusion__target": "epsilon"}, "predicts 'epsilon'"),
    ],
)
def test_a_teacher_that_cannot_be_one_is_refused(
    overrides, message, written, distil_recipe, tmp_path
):
    folder = written(**{"sampling__steps": 6} | overrides)
    with pytest.raises((RequestError, RecipeError), match=message):
        distil_labels(distil_recipe(), folder, tmp_path / "fast")
    assert not (tmp_path / "fast").exists()


def test_students_and_strangers_are_no_teachers(distilled, teacher, distil_recipe, tmp_path):
    with pytest.raises(RequestError, match="distilled already"):
        distil_labels(distil_recipe(), distilled[0], tmp_path / "fast")
    with pytest.raises(StoreError, match="no such file"):
        distil_labels(distil_recipe(), tmp_path, tmp_path / "fast")
    two = '[{"name": "background", "value": 0}, {"name": "brain", "value": 1}]'
    with pytest.raises(SchemaError, match="schema"):
        distil_labels(load_recipe("tiny_distil", [f"schema={two}"]), teacher, tmp_path / "fast")
    with pytest.raises(RecipeError, match="no section 'distil'"):
        distil_labels(load_recipe("small"), teacher, tmp_path / "fast")


@pytest.mark.parametrize("knots", ["[0, 3, 3, 6]", "[1, 6]", "[0]"])
def test_knots_must_rise_from_0(knots, distil_recipe):
    with pytest.raises(RecipeError, match="knots"):
        distil_recipe({"knots": knots})


def test_every_parameter_of_a_student_is_trained(distilled, teacher):
    """All but the null token, which only guidance asks for."""
    for name in ("unet", "condition_embedding"):
        before, after = (load_file(folder / name / WEIGHTS) for folder in (teacher, distilled[0]))
        same = {key for key in before if torch.equal(before[key], after[key])}
        assert same <= {"null", "template"}
    vae = [(folder / "vae" / WEIGHTS).read_bytes() for folder in (teacher, distilled[0])]
    assert vae[0] == vae[1]
