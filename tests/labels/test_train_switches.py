"""Switches of the label training: what each loss adds, which data it needs, what a rerun does."""

import json

import numpy as np
import pytest
import torch

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9
from synthgen.data.loaders import LabelBatches
from synthgen.data.store import StoreWriter
from synthgen.labels import LabelCondition, load_label_generator
from synthgen.labels.build import build_autoencoder
from synthgen.labels.train import TrainPlan, preview_batch, train_labels
from synthgen.labels.train_autoencoder import AutoencoderStep
from synthgen.labels.train_diffusion import DiffusionStep
from synthgen.runtime import build_accelerator
from synthgen.training.log import read_losses

SHORT = {"autoencoder.train.steps": 2, "diffusion.train.steps": 2}
SMALL_DISCRIMINATOR = {
    "autoencoder.discriminator.channels": 4,
    "autoencoder.discriminator.num_layers": 1,
}
NO_WARMUP = {"autoencoder.train.lr_warmup": 0}
PLAIN = {"kl", "cross_entropy", "l1", "pv_error", "latent_std"}


def losses_of(store, recipe, steps=2):
    """Return the losses of the autoencoder's first steps, and the names of its networks."""
    plan = TrainPlan(recipe.labels, store, None, False, None)
    section = recipe.labels.autoencoder
    accelerator = build_accelerator("fp32")
    vae = build_autoencoder(section, 9, 0)
    batches = LabelBatches(store, "train", section.train.batch_size, 0, None, lesion_share=0.5)
    step = AutoencoderStep(vae, section, store.schema, batches, preview_batch(plan), accelerator)
    rows = [{k: float(v) for k, v in step.step(accelerator, i).items()} for i in range(steps)]
    return rows, set(step.models)


@pytest.mark.parametrize(
    ("loss", "discriminator"),
    [("multi_resolution", False), ("feature_matching", True), ("adversarial", True)],
)
def test_each_loss_runs_when_switched_on(store, label_recipe, loss, discriminator):
    overrides = NO_WARMUP | SMALL_DISCRIMINATOR | {f"autoencoder.losses.{loss}": 0.1}
    rows, models = losses_of(store, label_recipe(overrides))
    plain, plain_models = losses_of(store, label_recipe(NO_WARMUP))
    assert plain_models == {"vae"}
    assert models == ({"vae", "discriminator"} if discriminator else {"vae"})
    for row in rows:
        assert set(row) == PLAIN | {loss} | ({"discriminator"} if discriminator else set())
        assert np.isfinite(list(row.values())).all()
    # The first forward pass is the same; from then on the loss has its say.
    assert rows[0]["pv_error"] == plain[0]["pv_error"]
    assert rows[1]["pv_error"] != plain[1]["pv_error"]


def test_a_loss_is_proportional_to_its_weight(store, label_recipe):
    one, three = (
        losses_of(store, label_recipe({"autoencoder.losses.multi_resolution": weight}), 1)[0][0]
        for weight in (0.1, 0.3)
    )
    assert three["multi_resolution"] == pytest.approx(3 * one["multi_resolution"], rel=1e-6)
    assert three["l1"] == one["l1"]


def test_lesion_weight_raises_the_loss_of_lesions_alone(store, label_recipe):
    values = {}
    for weight in (1.0, 2.0, 4.0):
        recipe = label_recipe({"autoencoder.losses.lesion_weight": weight})
        values[weight] = losses_of(store, recipe, 1)[0][0]
    assert values[1.0]["pv_error"] == values[4.0]["pv_error"]
    for name in ("l1", "cross_entropy"):
        first, second, fourth = (values[weight][name] for weight in (1.0, 2.0, 4.0))
        # Linear in the weight: a part that has it, and one that has not.
        assert second - first > 0
        assert fourth - first == pytest.approx(3 * (second - first), rel=1e-3)


def test_a_finished_run_is_exported_again_without_training(
    store_path, label_recipe, tmp_path, monkeypatch
):
    recipe, run_dir = label_recipe(SHORT), tmp_path / "run"
    train_labels(recipe, store_path, tmp_path / "one", run_dir)
    logs = [run_dir / stage / "losses.jsonl" for stage in ("autoencoder", "diffusion")]
    before = [log.read_bytes() for log in logs]

    def refuse(*_args):
        raise AssertionError("a finished training was continued")

    monkeypatch.setattr(AutoencoderStep, "step", refuse)
    monkeypatch.setattr(DiffusionStep, "step", refuse)
    train_labels(recipe, store_path, tmp_path / "two", run_dir, resume=True)
    assert [log.read_bytes() for log in logs] == before
    one, two = (
        json.loads((tmp_path / name / "synthgen.json").read_text())["files"]
        for name in ("one", "two")
    )
    assert one == two
    for config in (tmp_path / "two").rglob("*.json"):
        assert str(tmp_path) not in config.read_text(), config


def test_a_run_of_another_recipe_is_not_continued(store_path, label_recipe, tmp_path):
    train_labels(label_recipe(SHORT), store_path, tmp_path / "model", tmp_path / "run")
    other = label_recipe(SHORT | {"diffusion.train.lr": 1e-4})
    with pytest.raises(RequestError, match="another recipe"):
        train_labels(other, store_path, tmp_path / "model", tmp_path / "run", resume=True)
    # The first stage is the same one: it was taken, not refused.
    assert len(read_losses(tmp_path / "run" / "autoencoder" / "losses.jsonl")) == 2


@pytest.mark.parametrize(
    "switches",
    [
        {"diffusion.latents": "posterior", "diffusion.latent_scaling": "false"},
        {"diffusion.condition.coordinates": 0, "diffusion.condition.templates": 0},
        {"diffusion.condition.position": "false", "diffusion.condition.templates": 0},
        {"diffusion.loss": "l1", "diffusion.target": "flow", "sampling.sampler": "euler"},
        {"autoencoder.head": "linear", "autoencoder.losses.cross_entropy": 0.0},
        {"lesion_share": 0.0, "diffusion.latent_copies": 2},
    ],
    ids=["posterior", "no planes", "no position", "flow", "linear head", "copies"],
)
def test_each_switch_trains_a_model_that_samples(store_path, label_recipe, tmp_path, switches):
    train_labels(label_recipe(SHORT | switches), store_path, tmp_path / "model", tmp_path / "run")
    generator = load_label_generator(tmp_path / "model")
    pv = generator.sample([SampleKey(0, 0)], [LabelCondition({}, 0.5)])
    assert (pv.sum(dim=1) - 1).abs().max() < 1e-5
    assert generator.subjects == ("a/s1", "a/s2")
    config = json.loads((tmp_path / "model" / "vae" / "config.json").read_text())
    scaled = switches.get("diffusion.latent_scaling") != "false"
    assert (config["scaling_factor"] != 1.0) == scaled


def test_a_store_without_lesions_trains_and_makes_none(label_recipe, tmp_path):
    """One subject, no validation split, no lesion: the smallest store there is."""
    labels = np.zeros((3, 32, 48), np.uint8)
    labels[:, 8:24, 12:36] = 3
    pv = (np.arange(9)[None, :, None, None] == labels[:, None]).astype(np.uint8) * 255
    with StoreWriter(tmp_path / "store.h5", BRAIN9, (32, 48)) as writer:
        writer.add_slices(
            "a/s1", dataset="a", split="train", z=range(3), position=[0.2, 0.5, 0.6], pv=pv
        )
        writer.commit()
    train_labels(label_recipe(SHORT), tmp_path / "store.h5", tmp_path / "model", tmp_path / "run")
    generator = load_label_generator(tmp_path / "model")
    assert generator.conditions.lesions == {}
    assert generator.conditions.position == (0.2, 0.6)
    with pytest.raises(RequestError, match=r"saw no 'wmh'.*no lesions"):
        generator.sample([SampleKey(0, 0)], [LabelCondition({"wmh": 0.01}, 0.5)])


def test_training_does_not_touch_the_global_generators(
    store_path, label_recipe, tmp_path, untouched_rng
):
    recipe = label_recipe(SHORT | SMALL_DISCRIMINATOR | {"autoencoder.losses.adversarial": 0.1})
    train_labels(recipe, store_path, tmp_path / "model", tmp_path / "run")


def test_equal_trainings_give_equal_weights_and_another_seed_others(
    store_path, label_recipe, tmp_path
):
    models = {}
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        torch.default_generator.manual_seed(len(name) + 7 * seed + len(models))  # must not matter
        recipe = label_recipe(SHORT | {"diffusion.train.seed": seed})
        train_labels(recipe, store_path, tmp_path / name, tmp_path / "run" / name)
        models[name] = load_label_generator(tmp_path / name).identity["model"]
    assert models["one"] == models["two"] != models["other"]
