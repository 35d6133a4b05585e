"""The training step of ImgX: finite losses, gradients everywhere, and learning in both ranks."""

from __future__ import annotations

import pytest
import torch
from made_up_labelled import VOLUMES, Discs, imgx_recipe, mixture

from synthgen.core.rng import SampleKey
from synthgen.runtime import build_accelerator
from synthgen.segment.imgx import ImgXNetworks, ImgXSegmenter
from synthgen.segment.imgx_step import ImgxStep, build_network, inference_scheduler
from synthgen.segment.training_data import patches_of
from synthgen.segment.use import SegmenterUse
from synthgen.segment.validation import dice_of_steps

STRATEGIES = ["standard", "recycle_next", "recycle_start", "self_condition"]


class Same:
    """The same batch for ever, of the first cases of the data."""

    def __init__(self, data, count):
        pairs = [[torch.from_numpy(a) for a in data.load(i)] for i in range(count)]
        self.pair = tuple(torch.stack(column) for column in zip(*pairs, strict=True))

    def batch(self, number):
        return self.pair


def step_of(section, data, *, twin=False, batches=None, overlapping=False):
    groups = len(data.tissues)
    accelerator = build_accelerator(section.train.precision, section.train.accumulation)
    network = build_network(section, 1, groups, twin=twin)
    batches = batches or Same(data, section.train.batch_size)
    step = ImgxStep(section, batches, network, accelerator, overlapping=overlapping)
    return step, network, accelerator


@pytest.mark.parametrize(
    ("strategy", "overrides"),
    [*((s, {}) for s in STRATEGIES), ("supervised", {}), ("recycle_start", VOLUMES)],
)
def test_a_few_steps_learn(strategy, overrides):
    twin = strategy == "supervised"
    section = imgx_recipe(
        strategy="standard" if twin else strategy, train__steps=30, train__lr=1e-2, **overrides
    ).imgx
    data = Discs(shape=section.data.patch)
    step, _, accelerator = step_of(section, data, twin=twin)
    losses = [float(step.step(accelerator, i)["loss"]) for i in range(16)]
    assert sum(losses[-4:]) < 0.85 * sum(losses[:4])


def test_gradients_reach_every_parameter():
    section = imgx_recipe(train__clip_norm=0.0).imgx
    for twin in (False, True):
        step, network, accelerator = step_of(section, Discs(), twin=twin)
        for module in network.modules():
            # Time conditioning starts asleep.
            if isinstance(getattr(module, "film", None), torch.nn.Module):
                torch.nn.init.normal_(module.film.weight, std=0.1)
        step._loss(accelerator, 0).backward()
        dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert dead == []


@pytest.mark.parametrize("overlapping", [False, True])
def test_a_batch_without_foreground_has_a_finite_loss(overlapping):
    """imgx.md section 16 (7)."""

    class Empty:
        def batch(self, number):
            soft = torch.zeros(2, 4, 32, 32)
            soft[:, 0] = float(not overlapping)
            return torch.zeros(2, 1, 32, 32), soft

    section = imgx_recipe(losses__cross_entropy=0.0).imgx
    step, network, accelerator = step_of(section, Discs(), batches=Empty(), overlapping=overlapping)
    before = [p.detach().clone() for p in network.parameters()]
    assert float(step.step(accelerator, 0)["loss"]) == 0
    assert all(p.isfinite().all() for p in network.parameters())
    torch.testing.assert_close(list(network.parameters()), before)


def test_draws_do_not_depend_on_how_batches_are_cut():
    """Two micro-batches of two draw as one batch of four does."""
    section = imgx_recipe().imgx
    step, _, _ = step_of(section, Discs())
    whole = step._draw(0, torch.zeros(4, 4, 8, 8))
    halves = [step._draw(n, torch.zeros(2, 4, 8, 8)) for n in (0, 1)]
    for one, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(one, torch.cat([first, second]))


def test_the_rate_rises_and_falls():
    section = imgx_recipe(train__steps=12, train__warmup=4).imgx
    step, _, accelerator = step_of(section, Discs())
    rates = []
    for number in range(12):
        rates.append(step.optimizers["network"].param_groups[0]["lr"])
        step.step(accelerator, number)
    train = section.train
    assert rates[0] == pytest.approx(train.lr_first)
    assert rates[4] == pytest.approx(train.lr)
    assert rates[-1] < 0.1 * train.lr


def test_a_moving_average_is_used_and_put_away():
    section = imgx_recipe(train__ema_decay=0.5).imgx
    step, network, accelerator = step_of(section, Discs())
    for number in range(3):
        step.step(accelerator, number)
    own = network.head.weight.detach().clone()
    with step.averaged_weights():
        assert not torch.equal(network.head.weight, own)
        assert not network.training
    assert torch.equal(network.head.weight, own)


@pytest.mark.parametrize("twin", [False, True])
@pytest.mark.parametrize("overrides", [{}, VOLUMES], ids=["2D", "3D"])
def test_sheets_show_image_truth_and_every_step(overrides, twin):
    section = imgx_recipe(**overrides).imgx
    side = section.data.patch[0]
    step, *_ = step_of(section, Discs(shape=section.data.patch), twin=twin)
    sheet = step.sheet(1)
    assert sheet.shape == (2, 3 if twin else 7, side, side, 3)
    assert 0 <= sheet.min() <= sheet.max() <= 1


def test_it_learns_from_patches():
    section = imgx_recipe().imgx
    data = mixture(count=3)
    batches = patches_of(section.data, section.train, data)
    step, _, accelerator = step_of(section, data, batches=batches)
    assert 0 < float(step.step(accelerator, 0)["loss"]) < 10


@pytest.mark.slow
@pytest.mark.parametrize("twin", [False, True], ids=["recycled", "supervised"])
def test_two_volumes_are_learned_by_heart(twin):
    """imgx.md section 16 (10)."""
    section = imgx_recipe(
        data__patch=[32, 32, 32],
        data__augmentation__mirror=[0.0, 0.0, 0.0],
        network__channels=[8, 16, 32],
        network__strides=[[2, 2, 2], [2, 2, 2]],
        train__steps=140,
        train__lr=1e-2,
    ).imgx
    data = Discs(shape=(32, 32, 32), count=2)
    step, network, accelerator = step_of(section, data, twin=twin)
    for number in range(140):
        step.step(accelerator, number)
    use = SegmenterUse(data.tissues, False, ("image",), 3, (1.0,) * 3, (32,) * 3, 0.5)
    networks = ImgXNetworks(network.eval(), inference_scheduler(section), network, clip=False)
    model = ImgXSegmenter(networks, use)

    def predict(image, index):
        if twin:
            return model.twin().predict(image)
        return model.steps(image, [SampleKey(0, index)])[:, 0]

    scores = dice_of_steps(predict, data, [0, 1], data.spacing_mm)
    assert all(step["mean"] > 0.95 for step in scores)
