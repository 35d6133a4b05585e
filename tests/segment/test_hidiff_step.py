"""One step of HiDiff: who learns, who does not, and that refinement helps."""

from __future__ import annotations

import pytest
import torch
from made_up_labelled import hidiff_recipe, mixture

from synthgen.core.rng import SampleKey, Stream
from synthgen.diffusion.bernoulli import BernoulliScheduler
from synthgen.losses.bernoulli import bernoulli_terms
from synthgen.runtime import build_accelerator
from synthgen.segment.hidiff_masks import MaskForm
from synthgen.segment.hidiff_networks import (
    HiDiffNetworks,
    build_refiner,
    build_scheduler,
    build_segmentor,
    refine,
)
from synthgen.segment.hidiff_step import HiDiffStep, segmentor_steps
from synthgen.segment.segmentor_step import SegmentorStep
from synthgen.segment.training_data import patches_of


def networks_of(recipe, form):
    return HiDiffNetworks(
        build_segmentor(recipe, 1, form),
        build_refiner(recipe, 1, form),
        build_scheduler(recipe.schedule),
        recipe.features,
    )


def step_of(folder, **overrides):
    recipe = hidiff_recipe(folder, **overrides).hidiff
    form = MaskForm(4, overlapping=False, categorical=False)
    networks, accelerator = networks_of(recipe, form), build_accelerator("fp32")
    batches = patches_of(recipe.data, recipe.train, mixture())
    return HiDiffStep(recipe, batches, networks, form, accelerator), accelerator


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(network, before):
    return {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}


@pytest.mark.parametrize("binary", [False, True])
def test_each_half_of_a_step_changes_its_own_network_alone(tmp_path, binary):
    """Running statistics of norms count too."""
    if binary:
        pytest.importorskip("synthgen.models.hidiff_binary")
    step, accelerator = step_of(
        tmp_path, collaboration__warmup=0, refiner__binary=binary, train__lr_first=1e-2
    )
    names = ("segmentor", "refiner")
    nets = {name: step.models[name] for name in names}
    images, soft = step._batches.batch(0)
    before = {name: state(net) for name, net in nets.items()}
    step._refiner_turn(accelerator, images, soft, 0)
    assert not changed(nets["segmentor"], before["segmentor"])
    assert changed(nets["refiner"], before["refiner"])
    before = {name: state(net) for name, net in nets.items()}
    step._segmentor_turn(accelerator, images, soft, 0, 5)
    assert not changed(nets["refiner"], before["refiner"])
    assert changed(nets["segmentor"], before["segmentor"]) == set(before["segmentor"])
    assert all(p.grad is None for p in nets["refiner"].parameters())


def test_the_refiner_is_taught_in_every_parameter(tmp_path):
    step, accelerator = step_of(tmp_path, collaboration__warmup=99, train__steps=9)
    before = state(step.models["refiner"])
    for number in range(6):  # heads that start at 0 wake up one behind the other
        losses = step.step(accelerator, number)
    assert set(losses) == {"bound", "focal"}
    assert changed(step.models["refiner"], before) == set(before)


@pytest.mark.parametrize(("share", "own"), [(0.0, [False] * 4), (1.0, [True] * 4)])
def test_recycled_masks_drift_from_the_first_guess(tmp_path, share, own):
    step, accelerator = step_of(tmp_path, recycle=share, schedule__sampler="mode")
    for number in range(3):
        step.step(accelerator, number)
    images, soft = step._batches.batch(3)
    truth = step._form.hard(soft)
    logits, maps = step.models["segmentor"](images)
    prior = step._form.prior(logits).detach()
    generators = [torch.Generator().manual_seed(n) for n in range(len(images))]
    start = step._start(images, truth, prior, maps, generators)
    assert not start.requires_grad
    assert step.models["refiner"].training
    last = torch.full((len(images),), 9)
    chain = step._networks.scheduler
    first = chain.initial(prior, torch.zeros_like(prior))
    with torch.no_grad():
        output = step.models["refiner"](images, first, prior, last, step._seen(maps))
    guess = (chain.calibrate(output, first) >= 0.5).float()
    expected = guess if all(own[: len(images)]) else truth
    assert torch.equal(start, expected)
    assert not torch.equal(guess, truth)


def test_dice_joins_the_loss_of_the_refiner(tmp_path):
    step, accelerator = step_of(tmp_path, refiner_losses__dice=2.0)
    losses = step.step(accelerator, 0)
    assert set(losses) == {"bound", "focal", "dice"}
    assert 0 < float(losses["dice"]) <= 1
    total = step._diffusion_loss(losses)
    expected = losses["bound"] + losses["focal"] + 2 * losses["dice"]
    torch.testing.assert_close(total, expected)


def test_the_diffusion_reaches_the_segmentor(tmp_path):
    """Through the mask and the maps that the refiner sees."""
    step, accelerator = step_of(tmp_path, collaboration__ramp=1)
    for number in range(3):
        step.step(accelerator, number)  # the refiner's last layer starts at 0
    images, soft = step._batches.batch(3)
    segmentor = step.models["segmentor"]
    logits, maps = segmentor(images)
    prior = step._form.prior(logits)
    keys = step._keys(3, len(images), 17)
    for part in ([prior.detach(), maps], [prior, [m.detach() for m in maps]]):
        terms = step._diffuse(images, soft, *part, keys)
        weight = segmentor.network.model[0].conv.unit0.conv.weight
        (gradient,) = torch.autograd.grad(
            terms["bound"] + terms["focal"], weight, retain_graph=True
        )
        assert float(gradient.abs().sum()) > 0


def test_the_target_is_no_way_to_move_the_prior():
    scheduler = BernoulliScheduler()
    draws = torch.Generator().manual_seed(0)
    y0, y_t = (torch.rand((2, 1, 6, 6), generator=draws).round() for _ in "ab")
    logits, t = torch.randn((2, 1, 6, 6), generator=draws), torch.tensor([4, 7])
    f = (0.1 + 0.8 * torch.rand((2, 1, 6, 6), generator=draws)).requires_grad_()

    def gradient(prior):
        terms = bernoulli_terms(scheduler, logits, y_t, y0, prior, t, gamma=2.0)
        return torch.autograd.grad(terms.bound.sum(), f)[0]

    target = scheduler.posterior(y_t, y0, f.detach(), t)
    mean = scheduler.posterior(y_t, scheduler.calibrate(logits, y_t), f, t)
    by_hand = -(target * mean.log2() + (1 - target) * (1 - mean).log2()).flatten(1).mean(1).sum()
    assert torch.allclose(gradient(f), torch.autograd.grad(by_hand, f)[0], atol=1e-6)


def test_the_segmentor_learns_at_its_own_steps(tmp_path):
    recipe = hidiff_recipe(tmp_path, train__steps=9, collaboration__warmup=3).hidiff
    step, accelerator = step_of(tmp_path, train__steps=9, collaboration__warmup=3)
    told = ["segmentor" in step.step(accelerator, number) for number in range(9)]
    assert [n for n, learns in enumerate(told) if learns] == [3, 5, 7]
    assert segmentor_steps(recipe) == 3


@pytest.mark.parametrize("prediction", ["mask", "flips"])
def test_a_perfect_refiner_recovers_the_truth_from_any_prior(prediction):
    scheduler = BernoulliScheduler(prediction=prediction)
    draws = torch.Generator().manual_seed(1)
    truth = torch.rand((1, 2, 8, 8), generator=draws).round()
    prior = torch.rand((1, 2, 8, 8), generator=draws)

    def oracle(mask, _):
        return 20 * (2 * scheduler.target(mask, truth) - 1)

    found = refine(scheduler, oracle, prior, [SampleKey(0, 0).torch(Stream.NOISE)])
    assert found.shape == (10, 1, 2, 8, 8)
    assert torch.equal(found.round(), truth.expand_as(found))


def dice(found, truth):
    labels = found.argmax(1)
    masks = torch.stack([labels == c for c in range(1, 4)], 1).float()
    both = 2 * (masks * truth[:, 1:]).sum((0, 2, 3))
    return float((both / (masks + truth[:, 1:]).sum((0, 2, 3))).mean())


@pytest.mark.slow
def test_refinement_mends_a_segmentor_that_was_damaged(tmp_path):
    """Eight images again and again; the segmentor is damaged, then left as it is."""
    plain = {"rotate_deg": 0, "scale": 0, "shift": 0, "mirror": [0, 0], "gamma": 0, "bias": 0}
    recipe = hidiff_recipe(
        tmp_path,
        pretrain__steps=60,
        pretrain__batch_size=8,
        train__steps=120,
        train__batch_size=8,
        train__lr=1e-2,
        train__warmup=10,
        collaboration__warmup=120,
        segmentor__channels=[8, 16],
        **{f"data__augmentation__{name}": value for name, value in plain.items()},
    ).hidiff
    form, data = MaskForm(4, overlapping=False, categorical=False), mixture()
    networks, accelerator = networks_of(recipe, form), build_accelerator("fp32")
    batches = patches_of(recipe.data, recipe.pretrain, data)
    alone = SegmentorStep(recipe, batches, networks.segmentor, form, accelerator)
    for number in range(60):
        alone.step(accelerator, number)
    damage = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in networks.segmentor.parameters():
            noise = torch.randn(weight.shape, generator=damage)
            weight.add_(0.3 * weight.abs().mean() * noise)
        last = [p for n, p in networks.segmentor.named_parameters() if n.endswith("bias")][-1]
        last[1] += 1.5  # calls too much csf
    step = HiDiffStep(recipe, batches, networks, form, accelerator)
    for number in range(120):
        step.step(accelerator, number)
    pairs = [data.parts[0].load(i) for i in range(8)]
    images, truth = (torch.stack([torch.from_numpy(p[k]) for p in pairs]) for k in (0, 1))
    with torch.no_grad(), step.averaged_weights():
        logits, maps = networks.segmentor(images)
        prior = form.prior(logits)
        features = [maps[i] for i in networks.features]
        found = refine(
            networks.scheduler,
            lambda mask, t: networks.refiner(images, mask, prior, t, features),
            prior,
            [SampleKey(0, i).torch(Stream.NOISE) for i in range(8)],
        )
    before, after = dice(prior, truth), dice(found[-1], truth)
    assert before < 0.9
    assert after > before + 0.05
