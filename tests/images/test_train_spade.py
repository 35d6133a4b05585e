"""Training the image generator: it learns, resumes exactly, and each loss can be left out."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from images.conftest import write_store
from interrupted import losses, without_seconds

from synthgen.core.errors import RequestError, SchemaError
from synthgen.core.rng import SampleKey, Stream
from synthgen.core.schema import LabelSchema, Tissue
from synthgen.core.workspace import default_run_dir
from synthgen.data.image_loader import ImageBatches
from synthgen.data.store import TrainingStore
from synthgen.images.fit_styles import fit_style_bank
from synthgen.images.spade import SpadePipeline
from synthgen.images.spade_sheet import SheetPlan
from synthgen.images.spade_step import SpadeStep, perceptual_weights
from synthgen.images.train_spade import (
    acquisition_augment,
    build_networks,
    train_images,
)
from synthgen.losses.texture import band_energy
from synthgen.models.classifier import ModalityDatasetClassifier
from synthgen.models.spade import draw_noise
from synthgen.runtime import build_accelerator, seeded_init

ALL_LOSSES = {
    "losses__perceptual": 1.0,
    "losses__modality": 0.75,
    "losses__dataset": 0.3,
    "losses__contrastive": 1.5,
    "losses__second_style": 1.5,
    "losses__slice_consistency": 1.0,
}
NAMES = {
    "adversarial", "feature_matching", "perceptual", "kl", "modality", "dataset", "contrastive",
    "second_style", "slice_consistency", "code_class", "paired_l1", "discriminator",
}  # fmt: skip


def make_step(recipe, store, *, accumulation=1, sheet=False):
    """Return a step over the training split and its accelerator."""
    images = recipe.images
    accelerator = build_accelerator(images.train.precision, accumulation)
    batches = ImageBatches(store, "train", images.train.batch_size, 0, None, None)
    classifier = None
    if images.losses.need_classifier:
        with seeded_init(0, 9):
            classifier = ModalityDatasetClassifier(2, 2, arch="small", width=8)
    networks = build_networks(images, store, classifier)
    plan = SheetPlan.choose(batches, None, rows=2) if sheet else None
    step = SpadeStep(
        images,
        batches,
        networks,
        accelerator,
        modalities=len(batches.modalities),
        sheet=plan,
    )
    return step, accelerator


def weights_of(folder):
    """Return the bytes of the generator's weights."""
    return (folder / "generator" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_a_tiny_model_learns_in_thirty_steps(store, tiny_recipe):
    recipe = tiny_recipe(
        generator__base_channels=4,
        train__batch_size=4,
        train__lr_generator=0.005,
        train__constant=100,
    )
    step, accelerator = make_step(recipe, store)
    l1 = [float(step.step(accelerator, i)["paired_l1"]) for i in range(30)]
    assert np.mean(l1[-4:]) < 0.6 * np.mean(l1[:4])


def test_grain_becomes_as_strong_as_what_the_plain_image_misses(store, tiny_recipe):
    recipe = tiny_recipe(
        generator__base_channels=4,
        generator__grain_bands=2,
        losses__texture=5.0,
        train__batch_size=4,
        train__lr_generator=0.005,
        train__constant=100,
    )
    step, accelerator = make_step(recipe, store)
    batch = step._batches.fixed(step._batches.rows[:8].tolist())

    def distance():
        """Log ratio of grain and of what is missed, of either sign, inside the tissues."""
        draws = [SampleKey(0, i).torch(Stream.TEXTURE) for i in range(8)]
        with torch.no_grad():
            z = step.models["style_encoder"](batch.style_image).mu
            image, plain = step.models["generator"](batch.pv, z, draw_noise(draws, (64, 64)))
        return float(band_energy(image - plain, batch.image - plain, batch.pv))

    for number in range(5):
        step.step(accelerator, number)
    before = distance()
    for number in range(5, 60):
        step.step(accelerator, number)
    assert distance() < 0.5 * before
    assert distance() < 0.4


def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one(store, tiny_recipe):
    step, accelerator = make_step(tiny_recipe(**ALL_LOSSES), store)
    before = {
        f"{name}.{key}": value.clone()
        for name, model in step.models.items()
        for key, value in model.named_parameters()
    }
    frozen = {k: v.clone() for k, v in step._classifier.state_dict().items()}
    losses = step.step(accelerator, 0)
    assert set(losses) == NAMES
    assert all(np.isfinite(float(value)) for value in losses.values())
    still = {
        f"{name}.{key}"
        for name, model in step.models.items()
        for key, value in model.named_parameters()
        if torch.equal(value, before[f"{name}.{key}"])
    }
    # A convolution in front of instance norm may have a bias without effect; nothing else.
    assert {name for name in still if not name.endswith("bias")} == set()
    assert all(torch.equal(v, frozen[k]) for k, v in step._classifier.state_dict().items())


@pytest.mark.parametrize("left_out", sorted(NAMES - {"discriminator"}))
def test_each_loss_can_be_left_out(store, tiny_recipe, left_out):
    recipe = tiny_recipe(**(ALL_LOSSES | {f"losses__{left_out}": 0.0}))
    step, accelerator = make_step(recipe, store)
    assert set(step.step(accelerator, 0)) == NAMES - {left_out}


def test_no_discriminator_and_no_classifier_unless_a_loss_asks_for_them(store, tiny_recipe):
    recipe = tiny_recipe(
        losses__adversarial=0.0, losses__feature_matching=0.0, losses__code_class=0.0
    )
    step, accelerator = make_step(recipe, store)
    assert set(step.models) == {"generator", "style_encoder"}
    assert set(step.optimizers) == {"generator"}
    assert set(step.step(accelerator, 0)) == {"kl", "contrastive", "paired_l1"}


def test_slice_consistency_starts_when_told(store, tiny_recipe):
    recipe = tiny_recipe(losses__slice_consistency=1.0, losses__slice_consistency_from=2)
    step, accelerator = make_step(recipe, store)
    seen = ["slice_consistency" in step.step(accelerator, i) for i in range(3)]
    assert seen == [False, False, True]


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_each_optimiser_steps_once_an_iteration(store, tiny_recipe, accumulation):
    step, accelerator = make_step(tiny_recipe(), store, accumulation=accumulation)
    for i in range(4):
        step.step(accelerator, i)
    assert set(step.optimizers) == {"generator", "discriminator"}
    for optimizer in step.optimizers.values():
        assert {int(state["step"]) for state in optimizer.state.values()} == {4}
        assert all(p.grad is None for group in optimizer.param_groups for p in group["params"])


def test_learning_rate_falls_linearly_to_the_end(store, tiny_recipe):
    recipe = tiny_recipe(train__constant=2, train__decay=3, train__lr_generator=0.4)
    step, accelerator = make_step(recipe, store)
    rates = []
    for i in range(5):
        rates.append(step.optimizers["generator"].param_groups[0]["lr"])
        step.step(accelerator, i)
    assert rates == pytest.approx([0.4, 0.4, 0.3, 0.2, 0.1])


def test_averaged_weights_are_lent_and_taken_back(store, tiny_recipe):
    step, accelerator = make_step(tiny_recipe(), store)
    for i in range(3):
        step.step(accelerator, i)
    model = step.models["generator"]
    live = [p.clone() for p in model.parameters()]
    with step.averaged_weights():
        lent = [p.clone() for p in model.parameters()]
        assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(live, model.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(live, lent, strict=True))


def test_a_sheet_shows_label_real_own_style_and_each_style(store, tiny_recipe):
    step, _ = make_step(tiny_recipe(), store, sheet=True)
    sheet = step.sheet(0)
    assert sheet.shape == (2, 3 + 4, 64, 64, 3)
    assert sheet.min() >= 0
    assert sheet.max() <= 1
    corner = sheet[:, :, 0, 0]
    assert (corner == 0).all()


def test_perceptual_weights_are_the_papers():
    assert perceptual_weights(5) == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1]
    assert perceptual_weights(4) == [1 / 16, 1 / 8, 1 / 4, 1]


def test_a_step_does_not_touch_the_global_generator(store, tiny_recipe, untouched_rng):
    step, accelerator = make_step(tiny_recipe(**ALL_LOSSES), store)
    step.step(accelerator, 0)


def test_training_ends_in_a_model_folder(store_path, tiny_recipe, tmp_path):
    recipe = tiny_recipe(losses__modality=0.5, train__sheet_every=3)
    out = train_images(recipe, store_path, tmp_path / "models" / "images")
    loaded = SpadePipeline.load(out)
    assert [style.name for style in loaded.styles] == ["a_t1", "b_t1", "a_t2", "b_t2"]
    assert loaded.subjects == ("a/s1", "a/s2", "b/s3")
    assert loaded.record.training["steps"] == 6
    assert loaded.record.training["checked_on"] == "val"
    assert "a/s1" in loaded.record.card
    run_dir = default_run_dir(out)
    assert run_dir == tmp_path / "runs" / "images"
    assert sorted(p.name for p in (run_dir / "sheets").iterdir()) == [
        "step_0000003.png",
        "step_0000006.png",
    ]
    assert (run_dir / "classifier" / "losses.jsonl").is_file()
    assert not any("parametrizations" in key for key in loaded.generator.state_dict())


def test_a_resumed_run_has_the_same_losses_and_weights(store_path, tiny_recipe, tmp_path):
    recipe = tiny_recipe(losses__perceptual=0.5)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_images(recipe, store_path, tmp_path / "m1", whole)
    shutil.copytree(whole, cut)
    for step in (4, 6):
        shutil.rmtree(cut / "checkpoints" / f"step_{step:07d}")
    train_images(recipe, store_path, tmp_path / "m2", cut, resume=True)
    assert losses(whole) == losses(cut)
    assert weights_of(tmp_path / "m1") == weights_of(tmp_path / "m2")


def test_a_run_is_not_overwritten_nor_continued_by_another_recipe(
    store_path, tiny_recipe, tmp_path
):
    train_images(tiny_recipe(), store_path, tmp_path / "m", tmp_path / "run")
    with pytest.raises(RequestError, match="--resume"):
        train_images(tiny_recipe(), store_path, tmp_path / "m", tmp_path / "run")
    with pytest.raises(RequestError, match="another recipe"):
        train_images(
            tiny_recipe(losses__kl=0.1), store_path, tmp_path / "m", tmp_path / "run", resume=True
        )


def test_trackers_get_the_losses_and_may_change_when_a_run_resumes(
    store_path, tiny_recipe, tmp_path, recorders
):
    settings = {"losses__perceptual": 0.5, "train__log_every": 1}
    recipe = tiny_recipe(**settings, train__trackers="[tensorboard]")
    train_images(recipe, store_path, tmp_path / "m", tmp_path / "run")
    folders = {"synthgen-classifier": tmp_path / "run/classifier", "synthgen-run": tmp_path / "run"}
    assert [tracker.run_name for tracker in recorders] == list(folders)
    for tracker in recorders:
        assert without_seconds(tracker.rows) == losses(folders[tracker.run_name])
        assert tracker.finished == 1
    train_images(tiny_recipe(**settings), store_path, tmp_path / "m", tmp_path / "run", resume=True)
    assert len(recorders) == 2


def test_time_that_is_up_still_gives_a_model(store_path, tiny_recipe, tmp_path):
    train_images(tiny_recipe(), store_path, tmp_path / "m", max_minutes=0.0)
    assert SpadePipeline.load(tmp_path / "m").record.training["steps"] == 0


def test_epochs_count_the_training_images(store_path, tiny_recipe, tmp_path):
    # 24 training images, batches of 2, 3 of them a step: 4 steps an epoch.
    recipe = tiny_recipe(
        train__unit="epoch", train__constant=1, train__decay=1, train__accumulation=3
    )
    train_images(recipe, store_path, tmp_path / "m", tmp_path / "run")
    assert SpadePipeline.load(tmp_path / "m").record.training["steps"] == 8


def test_one_modality_of_one_data_set_works_and_warns(tiny_recipe, tmp_path, caplog):
    path = write_store(tmp_path / "one.h5", [("a/s1", "train")], modalities=("t1",))
    train_images(tiny_recipe(losses__perceptual=0.5), path, tmp_path / "m")
    assert [style.name for style in SpadePipeline.load(tmp_path / "m").styles] == ["a_t1"]
    assert "nothing to learn" in caplog.text


def test_bad_requests_are_refused(store_path, tiny_recipe, tmp_path):
    recipe = tiny_recipe()
    with pytest.raises(RequestError, match="no section 'images'"):
        train_images(recipe.model_copy(update={"images": None}), store_path, tmp_path / "m")
    schema = LabelSchema("two", (Tissue("background", 0), Tissue("gm", 1)))
    other = recipe.model_copy(update={"label_schema": schema})
    with pytest.raises(SchemaError, match="brain9"):
        train_images(other, store_path, tmp_path / "m")


def test_style_swap_changes_tissue_means(tmp_path, tiny_recipe):
    path = write_store(tmp_path / "s.h5", [("a/s1", "train"), ("a/s2", "train")], num_slices=6)
    recipe = tiny_recipe(
        generator__base_channels=4,
        losses__adversarial=0.0,
        losses__feature_matching=0.0,
        train__constant=60,
        train__decay=20,
        train__batch_size=4,
        train__lr_generator=0.005,
        train__checkpoint_every=1000,
    )
    train_images(recipe, path, tmp_path / "m")
    model = SpadePipeline.load(tmp_path / "m")
    with TrainingStore.open(path) as store:
        pv = torch.from_numpy(np.stack([store.pv(i) for i in range(4)]))
    images = model.render(pv, ["a_t1", "a_t2"], [SampleKey(0, i) for i in range(4)])
    means = {
        (style, tissue): float(images[:, s][pv[:, channel] > 0.5].mean())
        for s, style in enumerate(("t1", "t2"))
        for tissue, channel in (("csf", 1), ("gm", 2), ("wm", 3))
    }
    assert means["t1", "csf"] < means["t1", "gm"] < means["t1", "wm"]
    assert means["t2", "csf"] > means["t2", "gm"] > means["t2", "wm"]


KNOWN = (
    "{dataset: a, modality: t1, sequence: spin, tr: 600, te: 15, field_t: 1.5, source: known},"
    "{dataset: a, modality: t2, sequence: spin, tr: 4500, te: 100, field_t: 1.5, source: known}"
)
MPRAGE = "sequence: inversion_gradient, tr: 2300, te: 3, ti: 900, flip_deg: 9, field_t: 3"
FLAIR = "sequence: inversion, tr: 9000, te: 91, field_t: 3"
PROTOCOLS = (
    f"[{{dataset: oasis, modality: t1, {MPRAGE}, source: 'a paper'}},"
    f"{{dataset: oasis, modality: flair, {FLAIR}, source: typical}},"
    f"{{dataset: b, modality: t1, {MPRAGE}, source: typical}}]"
)


def test_protocol_styles_are_simulated_where_images_can_move(
    store_path, tiny_recipe, tmp_path, caplog
):
    recipe = tiny_recipe(
        acquisitions=f"[{KNOWN}]",
        protocol_styles=PROTOCOLS,
        contrast_augment__acquisition__probability=0.5,
        contrast_augment__acquisition__te=1.3,
    )
    loaded = SpadePipeline.load(train_images(recipe, store_path, tmp_path / "m"))
    sources = {style.name: style.source for style in loaded.styles}
    fitted = dict.fromkeys(("a_t1", "b_t1", "a_t2", "b_t2"), "fitted")
    assert sources == fitted | {"oasis_t1": "simulated"}
    assert "oasis_flair is left out: no image of a known acquisition" in caplog.text
    assert "b_t1 is left out: it was trained on images" in caplog.text
    assert "- `oasis_t1` (simulated: a paper)\n" in loaded.record.card
    bank = loaded.style_bank
    assert not torch.equal(bank.mean[bank.index("oasis_t1")], bank.mean[bank.index("a_t1")])


def test_a_protocol_equal_to_the_own_acquisition_gives_the_own_style(store, tiny_recipe):
    spin = "sequence: spin, tr: 600, te: 15, field_t: 1.5, source: same"
    recipe = tiny_recipe(
        acquisitions=f"[{KNOWN}]", protocol_styles=f"[{{dataset: c, modality: t1, {spin}}}]"
    )
    batches = ImageBatches(store, "train", 2, 0, None, None, acquisition_augment(recipe.images))
    encoder = build_networks(recipe.images, store, None).style_encoder.eval()
    bank = fit_style_bank(encoder, batches, None, recipe.images.protocol_styles)
    own, same = bank.index("a_t1"), bank.index("c_t1")
    assert torch.allclose(bank.mean[own], bank.mean[same], atol=1e-4)
    assert torch.allclose(bank.factor[own], bank.factor[same], atol=1e-3)


def test_a_moving_run_is_resumed_exactly(store_path, tiny_recipe, tmp_path):
    recipe = tiny_recipe(acquisitions=f"[{KNOWN}]", contrast_augment__acquisition__probability=1.0)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_images(recipe, store_path, tmp_path / "m1", whole)
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step_0000006")
    train_images(recipe, store_path, tmp_path / "m2", cut, resume=True)
    assert weights_of(tmp_path / "m1") == weights_of(tmp_path / "m2")
