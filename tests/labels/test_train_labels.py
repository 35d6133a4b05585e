import json
import math
import shutil

import pytest
import torch
from interrupted import losses, power_failure, without_seconds
from safetensors.torch import load_file

from synthgen.core.errors import RecipeError, RequestError, SchemaError, StoreError
from synthgen.core.rng import SampleKey
from synthgen.data.loaders import LabelBatches
from synthgen.data.store import TrainingStore
from synthgen.labels import LabelCondition, load_label_generator
from synthgen.labels.build import build_autoencoder, condition_names
from synthgen.labels.condition import ConditionScale
from synthgen.labels.latents import (
    LatentBatches,
    LatentCache,
    encode_slices,
    load_cache,
    save_cache,
)
from synthgen.labels.train import (
    TrainPlan,
    build_pipeline,
    label_batches,
    preview_batch,
    train_labels,
)
from synthgen.labels.train_autoencoder import AutoencoderStep
from synthgen.labels.train_diffusion import DiffusionStep
from synthgen.recipe import load_recipe
from synthgen.runtime import build_accelerator


@pytest.fixture(scope="module")
def trained(store_path, label_recipe, tmp_path_factory):
    """Return the model and run folders of a training that nobody interrupted."""
    root = tmp_path_factory.mktemp("trained")
    recipe = label_recipe({"autoencoder.train.sheet_every": 6, "diffusion.train.sheet_every": 6})
    train_labels(recipe, store_path, root / "models" / "labels")
    return root / "models" / "labels", root / "runs" / "labels"


def test_training_writes_a_model_that_samples(trained, store_path):
    model, run_dir = trained
    generator = load_label_generator(model)
    pv = generator.sample(
        [SampleKey(0, i) for i in range(2)], [LabelCondition({"wmh": 0.01}, 0.5)] * 2
    )
    assert pv.shape == (2, 9, 32, 48)
    assert generator.subjects == ("a/s1", "a/s2")  # not the validation subject
    assert (run_dir / "autoencoder" / "sheets" / "step_0000006.png").is_file()
    assert (run_dir / "diffusion" / "sheets" / "step_0000006.png").is_file()
    card = (model / "card.md").read_text()
    assert "a/s1, a/s2" in card
    assert "8 slices of 2 subjects" in card
    details = json.loads((model / "synthgen.json").read_text())
    with TrainingStore.open(store_path) as store:
        assert details["training"]["store"] == store.fingerprint
    assert details["training"]["recipe"]["labels"]["diffusion"]["target"] == "v"
    assert details["training"]["autoencoder"]["steps"] == 6


def test_the_measured_scale_gives_latents_of_unit_variance(trained, store_path):
    model, run_dir = trained
    config = json.loads((model / "vae" / "config.json").read_text())
    identity = json.loads((run_dir / "autoencoder" / "result" / "done.json").read_text())
    assert identity["steps"] == 6
    mu = load_file(run_dir / "diffusion" / "latents.safetensors")["mu"].double()
    assert config["scaling_factor"] == pytest.approx(1 / float(mu.std(correction=0)), rel=1e-6)


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_an_interrupted_training_resumes_with_the_same_losses(
    trained, store_path, label_recipe, tmp_path, stage
):
    recipe = label_recipe({"autoencoder.train.sheet_every": 6, "diffusion.train.sheet_every": 6})
    kind = AutoencoderStep if stage == "autoencoder" else DiffusionStep
    out, run_dir = tmp_path / "model", tmp_path / "run"
    with power_failure(kind, 5):
        train_labels(recipe, store_path, out, run_dir)
    assert not out.exists()
    train_labels(recipe, store_path, out, run_dir, resume=True)
    for part in ("autoencoder", "diffusion"):
        assert losses(run_dir / part) == losses(trained[1] / part)
    for name in ("vae", "unet", "condition_embedding"):
        file = f"{name}/diffusion_pytorch_model.safetensors"
        assert (out / file).read_bytes() == (trained[0] / file).read_bytes()


def test_a_second_training_in_the_same_place_is_refused(trained, store_path, label_recipe):
    model, run_dir = trained
    recipe = label_recipe({"autoencoder.train.sheet_every": 6, "diffusion.train.sheet_every": 6})
    before = (model / "synthgen.json").read_bytes()
    with pytest.raises(RequestError, match="--resume"):
        train_labels(recipe, store_path, model, run_dir)
    assert (model / "synthgen.json").read_bytes() == before


def test_a_time_budget_still_gives_a_model(store_path, label_recipe, tmp_path):
    train_labels(label_recipe(), store_path, tmp_path / "model", tmp_path / "run", max_minutes=0.0)
    generator = load_label_generator(tmp_path / "model")
    assert generator.sample([SampleKey(0, 0)], [LabelCondition({}, 0.5)]).shape == (1, 9, 32, 48)


@pytest.mark.parametrize("name", ["done.json", "diffusion_pytorch_model.safetensors"])
def test_a_damaged_autoencoder_is_named_when_a_run_resumes(
    trained, store_path, label_recipe, tmp_path, name
):
    run_dir = tmp_path / "run"
    shutil.copytree(trained[1], run_dir)
    result = run_dir / "autoencoder" / "result"
    (result / name).write_bytes((result / name).read_bytes()[:-40])
    recipe = label_recipe({"autoencoder.train.sheet_every": 6, "diffusion.train.sheet_every": 6})
    with pytest.raises(StoreError, match=rf"{result}.*: damaged.*delete the folder"):
        train_labels(recipe, store_path, tmp_path / "model", run_dir, resume=True)
    shutil.rmtree(result)
    train_labels(recipe, store_path, tmp_path / "model", run_dir, resume=True)
    file = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "model" / file).read_bytes() == (trained[0] / file).read_bytes()


def test_what_a_killed_run_left_is_no_part_of_the_autoencoder(
    trained, store_path, label_recipe, tmp_path
):
    run_dir = tmp_path / "run"
    shutil.copytree(trained[1], run_dir)
    done = run_dir / "autoencoder" / "result" / "done.json"
    done.rename(done.with_name(".done.json.7.tmp"))
    recipe = label_recipe({"autoencoder.train.sheet_every": 6, "diffusion.train.sheet_every": 6})
    train_labels(recipe, store_path, tmp_path / "model", run_dir, resume=True)
    assert not list(run_dir.rglob("*.tmp"))
    assert done.read_bytes() == (trained[1] / "autoencoder" / "result" / "done.json").read_bytes()


def test_trackers_get_the_losses_and_may_change_when_a_run_resumes(
    store_path, label_recipe, tmp_path, recorders
):
    run_dir = tmp_path / "run"
    tracked = {f"{stage}.train.trackers": "[tensorboard]" for stage in ("autoencoder", "diffusion")}
    train_labels(label_recipe(tracked), store_path, tmp_path / "m", run_dir)
    for tracker, stage in zip(recorders, ("autoencoder", "diffusion"), strict=True):
        assert (tracker.run_name, tracker.logging_dir) == (
            f"synthgen-{stage}",
            str(run_dir / stage),
        )
        assert without_seconds(tracker.rows) == losses(run_dir / stage)
        assert tracker.finished == 1
    train_labels(label_recipe(), store_path, tmp_path / "m", run_dir, resume=True)
    assert len(recorders) == 2


def test_a_recipe_without_labels_is_refused(store_path, label_recipe, tmp_path):
    recipe = label_recipe().model_copy(update={"labels": None})
    with pytest.raises(RecipeError, match="no section 'labels'"):
        train_labels(recipe, store_path, tmp_path / "model")


def test_a_store_of_another_schema_is_refused(store_path, label_recipe, tmp_path):
    two = '[{"name": "background", "value": 0}, {"name": "brain", "value": 1}]'
    recipe = load_recipe("tiny", [f"schema={two}"])
    with pytest.raises(SchemaError, match="expected label schema"):
        train_labels(recipe, store_path, tmp_path / "model")


def autoencoder_step(store, recipe, accelerator):
    plan = TrainPlan(recipe.labels, store, None, False, None)
    section = recipe.labels.autoencoder
    vae = build_autoencoder(section, 9, 0)
    batches = LabelBatches(store, "train", section.train.batch_size, 0, None)
    return AutoencoderStep(vae, section, store.schema, batches, preview_batch(plan), accelerator)


ALL_LOSSES = {
    "autoencoder.losses.multi_resolution": 0.1,
    "autoencoder.losses.feature_matching": 0.1,
    "autoencoder.losses.adversarial": 0.1,
    "autoencoder.discriminator.channels": 4,
    "autoencoder.discriminator.num_layers": 1,
}


def test_the_autoencoder_learns(store, label_recipe):
    recipe = label_recipe(
        {"autoencoder.train.lr": 1e-2, "autoencoder.train.lr_schedule": "constant"}
    )
    accelerator = build_accelerator("fp32")
    step = autoencoder_step(store, recipe, accelerator)
    errors = [float(step.step(accelerator, i)["pv_error"]) for i in range(30)]
    assert sum(errors[-4:]) < 0.5 * sum(errors[:4])


def test_every_loss_has_a_weight_and_every_parameter_a_gradient(store, label_recipe):
    accelerator = build_accelerator("fp32")
    step = autoencoder_step(store, label_recipe(ALL_LOSSES), accelerator)
    weights = {k: [p.detach().clone() for p in m.parameters()] for k, m in step.models.items()}
    for i in range(3):
        out = step.step(accelerator, i)
    assert set(out) == {
        "kl", "cross_entropy", "l1", "multi_resolution", "adversarial", "feature_matching",
        "discriminator", "pv_error", "latent_std",
    }  # fmt: skip
    assert all(math.isfinite(v) for v in out.values())
    for name, model in step.models.items():
        moved = zip(weights[name], model.parameters(), strict=True)
        assert all(not torch.equal(a, b) for a, b in moved)
        assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("loss", ["l1", "cross_entropy", "kl", "multi_resolution", "adversarial"])
def test_a_weight_of_zero_leaves_a_loss_out(store, label_recipe, loss):
    accelerator = build_accelerator("fp32")
    recipe = label_recipe(ALL_LOSSES | {f"autoencoder.losses.{loss}": 0.0})
    out = autoencoder_step(store, recipe, accelerator).step(accelerator, 0)
    assert out.get(loss, 0) == 0


def test_both_optimisers_step_once_an_iteration_with_accumulation(store, label_recipe):
    accelerator = build_accelerator("fp32", 3)
    recipe = label_recipe(ALL_LOSSES | {"autoencoder.train.accumulation": 3})
    step = autoencoder_step(store, recipe, accelerator)
    counts = dict.fromkeys(step.optimizers, 0)
    for name, optimizer in step.optimizers.items():

        def count(*_args, name=name):
            counts[name] += 1

        optimizer.optimizer.register_step_post_hook(count)
    for i in range(4):
        step.step(accelerator, i)
    assert counts == {"vae": 4, "discriminator": 4}


def test_the_generator_side_leaves_no_gradient_in_the_discriminator(store, label_recipe):
    """While gradients accumulate, nothing would clear them."""
    gradients = []
    for adversarial in (0.1, 50.0):
        accelerator = build_accelerator("fp32", 2)
        overrides = ALL_LOSSES | {
            "autoencoder.losses.adversarial": adversarial, "autoencoder.train.accumulation": 2,
            "autoencoder.train.clip_norm": 0.0,
        }  # fmt: skip
        step = autoencoder_step(store, label_recipe(overrides), accelerator)
        with accelerator.accumulate(*step.models.values()):
            step._micro_step(accelerator, 0)  # first of two: nothing is stepped yet
        gradients.append([p.grad.clone() for p in step.models["discriminator"].parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


TARGETS = [("epsilon", "dpm"), ("v", "ddim"), ("flow", "euler")]


def diffusion_step(store, recipe, accelerator):
    plan = TrainPlan(recipe.labels, store, None, False, None)
    section = recipe.labels.diffusion
    vae = build_autoencoder(recipe.labels.autoencoder, 9, 0).eval().requires_grad_(False)
    indices = [int(i) for i in store.slice_indices("train")]
    batches = label_batches(plan, section.train)
    cache = encode_slices(vae, batches, indices, 1, 0, accelerator)
    vae.register_to_config(scaling_factor=cache.measured_scale(section.latents))
    scale = ConditionScale.measure(
        condition_names(section, store.schema), cache.fractions, cache.position, cache.csf
    )
    pipeline = build_pipeline(recipe.labels, vae, store.schema, cache.mu.shape[1:])
    latents = LatentBatches(cache, section.train.batch_size, 0, latents=section.latents)
    return DiffusionStep(pipeline, section, latents, scale, preview_batch(plan), accelerator)


@pytest.mark.parametrize(("target", "sampler"), TARGETS)
@pytest.mark.parametrize("mode", ["class", "concat", "none"])
def test_the_denoiser_learns(store, label_recipe, target, sampler, mode):
    recipe = label_recipe(
        {
            "diffusion.target": target, "sampling.sampler": sampler,
            "diffusion.condition.mode": mode, "diffusion.train.lr": 5e-3,
            "diffusion.train.lr_schedule": "constant", "diffusion.train.lr_warmup": 0,
        }
    )  # fmt: skip
    accelerator = build_accelerator("fp32")
    step = diffusion_step(store, recipe, accelerator)
    errors = [float(step.step(accelerator, i)["l2"]) for i in range(30)]
    assert sum(errors[-5:]) < 0.9 * sum(errors[:5])
    sheet = step.sheet(30)
    assert sheet.shape == (4, 8, 32, 48, 3)


def test_the_autoencoder_stays_frozen_while_the_denoiser_learns(store, label_recipe):
    accelerator = build_accelerator("fp32")
    # Half the conditions dropped, so that the null token is used.
    recipe = label_recipe({"diffusion.condition.dropout": 0.5})
    step = diffusion_step(store, recipe, accelerator)
    frozen = [p.clone() for p in step._pipeline.vae.parameters()]
    denoiser = dict(step.models["denoiser"].named_parameters())
    before = {name: p.detach().clone() for name, p in denoiser.items()}
    for i in range(4):
        step.step(accelerator, i)
    vae = step._pipeline.vae.parameters()
    assert all(torch.equal(a, b) for a, b in zip(frozen, vae, strict=True))
    # A bias of all keys shifts every attention logit of a query alike: softmax ignores it.
    still = [name for name, p in denoiser.items() if torch.equal(before[name], p)]
    assert all(name.endswith("to_k.bias") for name in still), still


def test_latents_are_draws_from_the_cached_posteriors_or_their_means():
    mu = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    sigma = 0.5
    logvar = torch.full_like(mu, math.log(sigma**2))
    cache = LatentCache(mu, logvar, torch.zeros(2, 1), torch.tensor([0.0, 1.0]), torch.zeros(2))

    def ordered(batches, step):
        batch = batches.batch(step)
        return batch.z[batch.position.argsort()]

    drawn = LatentBatches(cache, 2, 0, latents="posterior")
    assert torch.equal(ordered(drawn, 1), ordered(drawn, 1))
    many = torch.stack([ordered(drawn, step) for step in range(400)])
    torch.testing.assert_close(many.mean(dim=0), mu.float(), atol=5 * sigma / 20, rtol=0)
    assert many.std(dim=0).mean() == pytest.approx(sigma, rel=0.02)
    means = LatentBatches(cache, 2, 0, latents="mean")
    assert torch.equal(ordered(means, 3), mu.float())
    # Var(z) = Var(mu) + sigma^2.
    variance = float(mu.double().var(correction=0))
    assert cache.measured_scale("mean") == pytest.approx(variance**-0.5)
    expected = (variance + sigma**2) ** -0.5
    assert cache.measured_scale("posterior") == pytest.approx(expected, rel=1e-3)  # float16 logvar


def test_the_latent_cache_is_kept_for_the_same_data_only(tmp_path):
    cache = LatentCache(*(torch.rand(3, 2) for _ in range(5)))
    path = tmp_path / "latents.safetensors"
    save_cache(path, cache, "one")
    assert torch.equal(load_cache(path, "one").mu, cache.mu)
    assert load_cache(path, "two") is None
    path.write_bytes(path.read_bytes()[:20])
    assert load_cache(path, "one") is None
    assert load_cache(tmp_path / "absent", "one") is None


def test_templates_are_mean_latents_of_near_slices():
    position = torch.tensor([0.0, 0.02, 0.5, 1.0])
    mu = torch.tensor([1.0, 3.0, 8.0, 20.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    cache = LatentCache(
        mu.half(), torch.zeros_like(mu), torch.zeros(4, 1), position, torch.zeros(4)
    )
    table = cache.templates(3)
    assert table.shape == (3, 1, 2, 2)
    weights = torch.exp(-0.5 * ((position[None] - torch.tensor([[0.0], [0.5], [1.0]])) * 2) ** 2)
    expected = (weights * torch.tensor([1.0, 3.0, 8.0, 20.0])).sum(1) / weights.sum(1)
    torch.testing.assert_close(table[:, 0, 0, 0], expected, atol=0.05, rtol=0)
