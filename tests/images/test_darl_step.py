"""The training step of DARL: its losses, who gets gradients, and each part left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_vessels import recipe, sources
from torch.nn import functional

from synthgen.core.errors import SchemaError
from synthgen.core.rng import SampleKey
from synthgen.data.pools import PoolBatch
from synthgen.images.angiogram.darl_parts import check_batch
from synthgen.images.angiogram.darl_step import DarlStep, cross_entropy
from synthgen.images.angiogram.sources import prepare
from synthgen.images.angiogram.train import build_parts
from synthgen.runtime import build_accelerator

ALL = {
    "diffusion", "background", "cycle", "dice", "cldice", "pairs", "adversarial_mask",
    "adversarial_angiogram", "discriminator_mask", "discriminator_angiogram",
}  # fmt: skip


class _Fixed:
    """The same few batches over and over."""

    def __init__(self, batches):
        self._batches = batches

    def batch(self, step):
        return self._batches[step % len(self._batches)]


@pytest.fixture
def make(tmp_path):
    """Return a function: overrides to a step and its accelerator."""

    def build(*, accumulation=1, data_from=None, few=None, **overrides):
        section = recipe(tmp_path, **overrides).angiograms
        accelerator = build_accelerator(section.train.precision, accumulation)
        data = prepare(section, data_from or sources())
        pools = _Fixed([data.pools.batch(i) for i in range(few)]) if few else data.pools
        step = DarlStep(section, pools, build_parts(section), accelerator, pairs=data.pairs)
        return step, accelerator

    return build


def moved(step, accelerator, number=1):
    """Return the losses of a step, and which parameters it changed, by network."""
    before = {
        f"{name}.{key}": value.clone()
        for name, model in step.models.items()
        for key, value in model.named_parameters()
    }
    losses = step.step(accelerator, number)
    after = {
        f"{name}.{key}": value
        for name, model in step.models.items()
        for key, value in model.named_parameters()
    }
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    return losses, changed, set(after)


def test_every_part_of_the_recipe_has_its_loss_and_every_network_learns(make):
    step, accelerator = make()
    losses, changed, everything = moved(step, accelerator)
    assert set(losses) == ALL
    assert all(np.isfinite(float(value)) for value in losses.values())
    # A convolution in front of instance norm has a bias without effect; nothing else rests.
    assert {name for name in everything - changed if not name.endswith("bias")} == set()


def test_losses_are_finite_in_bfloat16(make):
    step, accelerator = make(train__precision="bf16")
    for number in range(3):
        losses = step.step(accelerator, number)
        assert all(np.isfinite(float(value)) for value in losses.values())
        assert all(v.dtype == torch.float32 for v in losses.values() if torch.is_tensor(v))


def test_spade_branches_learn_from_path_b_alone(make):
    """Without path B's losses nothing reaches them; the shared convolutions still learn."""
    silent = {
        f"losses__{name}": 0.0
        for name in ("diffusion", "adversarial_angiogram", "cycle", "dice", "cldice", "background")
    }
    step, accelerator = make(**silent)
    _, changed, everything = moved(step, accelerator)
    spade = {n for n in everything if n.startswith("generator.") and ".modulation." in n}
    assert spade
    assert not spade & changed
    assert {n for n in changed if n.startswith("generator.") and "conv_0" in n}


@pytest.mark.parametrize("name", sorted(ALL - {"discriminator_mask", "discriminator_angiogram"}))
def test_each_loss_can_be_left_out(make, name):
    step, accelerator = make(**{f"losses__{name}": 0.0})
    side = name.removeprefix("adversarial_")
    gone = {name, f"discriminator_{side}"} if side != name else {name}
    assert set(step.step(accelerator, 1)) == ALL - gone
    assert (f"{side}_critic" in step.models) == (f"{side}_pool" in step.models)
    assert side == name or f"{side}_critic" not in step.models


def test_without_any_critic_there_is_one_optimiser(make):
    step, accelerator = make(losses__adversarial_mask=0.0, losses__adversarial_angiogram=0.0)
    step.step(accelerator, 0)
    assert set(step.optimizers) == {"generator"}


def test_the_ablation_without_diffusion_has_no_noise_and_no_noise_predictor(make, monkeypatch):
    step, accelerator = make(noise_predictor="null")
    assert "noise_predictor" not in step.models
    seen = []
    forward = step._networks.generator.forward
    monkeypatch.setattr(
        step._networks.generator,
        "forward",
        lambda x, eps, mask=None: seen.append((x, eps)) or forward(x, eps, mask),
    )
    losses = step.step(accelerator, 1)
    assert set(losses) == ALL - {"diffusion"}
    clean = step._pools.batch(1).angiograms
    assert torch.equal(seen[0][0], clean)
    assert not any(eps.any() for _, eps in seen)


def test_the_ablation_without_s_spade_has_a_generator_for_each_path(make):
    step, accelerator = make(generator__shared="false")
    _, changed, everything = moved(step, accelerator)
    assert {n for n in everything if n.startswith("painter.")} & changed
    # Path A's generator has SPADE layers that nothing uses, and path B's unlabelled norms rest.
    resting = {n for n in everything - changed if not n.endswith("bias")}
    assert any(n.startswith("generator.") and ".modulation." in n for n in resting)
    assert any(n.startswith("painter.") and ".unlabelled." in n for n in resting)


def test_the_cycle_may_use_cross_entropy(make):
    step, accelerator = make(losses__cycle_kind="ce")
    assert np.isfinite(float(step.step(accelerator, 0)["cycle"]))
    found, mask = torch.tensor([0.5, -0.5]), torch.tensor([1.0, -1.0])
    expected = -np.log(0.75)
    assert float(cross_entropy(found, mask)) == pytest.approx(expected, rel=1e-6)


def test_the_background_may_be_the_angiogram_itself(make):
    step, accelerator = make(data__background="self", losses__adversarial_mask=0.0)
    batch = step._pools.batch(0)
    assert torch.equal(batch.backgrounds, batch.angiograms)
    assert "discriminator_mask" not in step.step(accelerator, 0)


def test_topology_losses_grow_from_nothing(make):
    step, accelerator = make(losses__ramp_from=1, losses__ramp=2)
    assert [("dice" in step.step(accelerator, i)) for i in range(3)] == [False, False, True]


def test_the_loss_is_the_weighted_sum_of_the_paper(make):
    """Replay one step by hand from the same draws, and compare."""
    step, accelerator = make(
        losses__dice=0.0, losses__cldice=0.0, losses__background=0.0, losses__pairs=0.0,
        schedule__shared_noise="true", train__ema_decay=0.0,
    )  # fmt: skip
    networks, batch = step._parts.networks, step._pools.batch(0)
    for network in step._parts.painters.values():
        network.eval()
    draws = step._draw([_key(step, i) for i in range(2)], batch.masks)
    assert torch.equal(draws.noise_a, draws.noise_b)
    assert torch.equal(draws.noise_a, draws.noise_cycle)
    abar = networks.scheduler.alphas_cumprod

    def noised(x, t):
        a = abar[t].reshape(-1, 1, 1, 1)
        return a.sqrt() * x + (1 - a).sqrt() * draws.noise_a

    x, y = noised(batch.angiograms, draws.t_a), noised(batch.backgrounds, draws.t_b)
    with torch.no_grad():
        predictor, generator = networks.noise_predictor, networks.generator
        found = generator(x, predictor(x, draws.t_a).sample)
        eps = predictor(y, draws.t_b).sample
        painted = generator(y, eps, batch.masks)
        z = noised(painted, draws.t_a)
        again = generator(z, predictor(z, draws.t_a).sample)
        told = {n: c.network(f)[0][-1] for (n, c), f in
                zip(step._parts.critics.items(), (found, painted), strict=True)}  # fmt: skip
    expected = {
        "diffusion": functional.mse_loss(eps, draws.noise_a),
        "cycle": (again - batch.masks).abs().mean(),
        "adversarial_mask": (told["mask"] - 1).square().mean(),
        "adversarial_angiogram": (told["angiogram"] - 1).square().mean(),
    }
    # In eval mode, as above: in training mode each call moves the spectral norms.
    losses = step._micro_batch(accelerator, 0, 0)
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(float(value), rel=1e-4), name


def _key(step, index):
    return SampleKey(step._recipe.train.seed, index, 16)


def test_steps_and_noise_are_drawn_per_sample_and_within_their_ranges(make):
    step, _ = make(schedule__paint_t=2000)
    keys = [_key(step, i) for i in range(200)]
    draws = step._draw(keys, torch.zeros(200, 1, 4, 4))
    assert int(draws.t_a.max()) < 200
    assert 1500 < int(draws.t_b.max()) < 2000
    assert len(draws.t_a.unique()) > 100
    own = [draws.noise_a, draws.noise_b, draws.noise_cycle, draws.noise_pairs]
    for i, first in enumerate(own):
        for second in own[i + 1 :]:
            correlation = float((first * second).mean())
            assert abs(correlation) < 0.06
    again = step._draw(keys[3:4], torch.zeros(1, 1, 4, 4))
    assert torch.equal(again.noise_b[0], draws.noise_b[3])
    assert again.t_b[0] == draws.t_b[3]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_each_optimiser_steps_once_an_iteration(make, accumulation):
    step, accelerator = make(accumulation=accumulation)
    for i in range(3):
        step.step(accelerator, i)
    assert set(step.optimizers) == {"generator", "discriminator"}
    for optimizer in step.optimizers.values():
        assert {int(state["step"]) for state in optimizer.state.values()} == {3}
        assert all(p.grad is None for group in optimizer.param_groups for p in group["params"])


def test_a_step_does_not_touch_the_global_generator(make, untouched_rng):
    step, accelerator = make()
    step.step(accelerator, 0)


def test_averaged_weights_are_lent_and_taken_back(make):
    step, accelerator = make()
    for i in range(3):
        step.step(accelerator, i)
    model = step.models["generator"]
    live = [p.clone() for p in model.parameters()]
    with step.averaged_weights():
        lent = [p.clone() for p in model.parameters()]
        assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(live, model.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(live, lent, strict=True))


def test_without_a_moving_average_the_weights_are_the_last_ones(make):
    step, accelerator = make(train__ema_decay=0.0)
    step.step(accelerator, 0)
    assert not step.ema
    live = [p.clone() for p in step.models["generator"].parameters()]
    with step.averaged_weights():
        lent = list(step.models["generator"].parameters())
        assert all(torch.equal(a, b) for a, b in zip(live, lent, strict=True))


def test_a_sheet_shows_six_columns(make):
    step, _ = make()
    sheet = step.sheet(0)
    assert sheet.shape == (2, 6, 32, 32)
    assert sheet.min() >= 0
    assert sheet.max() <= 1
    # write_sheet swaps the axes and flips the first: the drawn mask comes out as it was.
    shown = np.flip(np.swapaxes(sheet[0, 3], 0, 1), axis=0)
    assert np.array_equal(shown, (step._pools.batch(0).masks[0, 0].numpy() + 1) / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": torch.full((1, 1, 8, 8), 0.25)}, "expected binary masks.*0.25"),
        ({"angiograms": torch.zeros(1, 3, 8, 8)}, r"single-channel.*\(1, 3, 8, 8\)"),
        ({"backgrounds": torch.zeros(1, 1, 4, 4)}, r"of one shape.*\(1, 1, 4, 4\)"),
    ],
)
def test_batches_of_another_form_are_refused(change, message):
    good = torch.ones(1, 1, 8, 8)
    batch = replace(PoolBatch(good, good, good), **change)
    with pytest.raises(SchemaError, match=f"batch 7: .*{message}"):
        check_batch(batch, 7)


def test_pairs_teach_path_a(make):
    """With the supervised term alone, path A finds strokes in rendered pictures."""
    off = {f"losses__{name}": 0.0 for name in ALL if not name.startswith("disc")}
    step, accelerator = make(
        **(off | {"losses__pairs": 1.0}), train__steps=100, train__lr_generator=0.01,
        train__batch_size=4, generator__base_channels=4,
    )  # fmt: skip
    values = [float(step.step(accelerator, i)["pairs"]) for i in range(25)]
    assert np.mean(values[-4:]) < 0.6 * np.mean(values[:4])


@pytest.mark.slow
def test_eight_triples_are_learnt_by_heart(make):
    """Wiring, not quality: the cycle closes within 50 steps (an empty mask costs 0.37)."""
    wide = {
        "data__crop": 64,
        "train__batch_size": 4,
        "train__lr_generator": 2e-4,
        "generator__base_channels": 16,
        "generator__spade_hidden": 64,
        "generator__num_blocks": 2,
        "discriminator__base_channels": 16,
        "noise_predictor__base_channels": 16,
        "schedule__shared_noise": "true",
        "train__steps": 1000,
    } | {f"losses__{name}": 0.0 for name in ("dice", "cldice", "background", "pairs")}
    step, accelerator = make(data_from=sources((96, 96), count=8, half=6.0), few=2, **wide)
    cycle = [float(step.step(accelerator, i)["cycle"]) for i in range(50)]
    assert np.isfinite(cycle).all()
    assert cycle[0] > 0.8
    assert np.mean(cycle[-4:]) < 0.15
