"""The noise predictor of DARL (Kim et al. 2023, arXiv:2209.14566)."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch.nn import functional

from synthgen.core.errors import RequestError
from synthgen.models.darl_unet import NoisePredictor, library_noise_predictor
from synthgen.models.spectral import initialise_weights


def predictor(**settings):
    small = {
        "base_channels": 8,
        "multipliers": (1, 2),
        "num_blocks": 1,
        "attention_levels": (1,),
        "norm_groups": 4,
    }
    return NoisePredictor(**small | settings)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("build", "expected"),
    [(NoisePredictor, 27_432_513), (library_noise_predictor, 28_444_929)],
)
def test_parameter_counts(build, expected):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == expected


def test_schedule_of_the_paper():
    scheduler = DDPMScheduler(2000, beta_start=1e-6, beta_end=1e-2, beta_schedule="linear")
    expected = torch.tensor([0.999999, 0.905043, 4.386e-5])
    # 4.386e-5 is given to four digits.
    assert torch.allclose(scheduler.alphas_cumprod[[0, 199, 1999]], expected, rtol=2e-4)


def test_encoder_outputs_and_attention_stand_where_the_paper_has_them():
    with torch.device("meta"):
        model = NoisePredictor()
    attention = [[s.attention is not None for s in level.stages] for level in model.encoder]
    assert attention == [[level == 4] * 2 for level in range(6)]
    attention = [[s.attention is not None for s in level.stages] for level in model.decoder]
    assert attention == [[level == 4] * 3 for level in reversed(range(6))]
    assert [stage.attention is not None for stage in model.middle] == [True, False]


def test_time_embedding_is_sine_then_cosine_of_raw_steps():
    model, seen = predictor().eval(), []
    model.time.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.zeros(1, 1, 8, 8), torch.tensor([1234]))
    angles = [1234 * 10_000 ** (-i / 32) for i in range(32)]
    expected = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
    # Angles of thousands have an error of 1e-4 in float32.
    assert torch.allclose(seen[0][0], expected, atol=5e-4)


def test_stage_follows_the_equation():
    stage = predictor().encoder[1].stages[0]
    x, embedding = noise(2, 8, 4, 4), noise(2, 64)
    h = stage.conv_0(functional.silu(stage.norm_0(x)))
    h = h + stage.time(functional.silu(embedding))[:, :, None, None]
    h = stage.shortcut(x) + stage.conv_1(functional.silu(stage.norm_1(h)))
    attention = stage.attention
    q, k, v = attention.qkv(attention.norm(h)).flatten(2).chunk(3, dim=1)
    weights = (q.transpose(1, 2) @ k / math.sqrt(16)).softmax(dim=-1)
    expected = h + attention.out((v @ weights.transpose(1, 2)).reshape(h.shape))
    assert torch.allclose(stage(x, embedding), expected, atol=1e-5)


def test_a_step_for_all_equals_one_for_each():
    model, x = predictor(), noise(2, 1, 8, 8)
    one = model(x, 7).sample
    assert one.shape == x.shape
    assert torch.equal(one, model(x, torch.tensor([7, 7])).sample)
    assert not torch.allclose(one, model(x, 8).sample, atol=1e-4)


def test_both_predictors_are_called_alike():
    library = library_noise_predictor(8, (1, 2), 1, (1,), norm_groups=4)
    x, steps = noise(2, 1, 8, 8), torch.tensor([0, 1999])
    assert library(x, steps).sample.shape == predictor()(x, steps).sample.shape


def test_every_parameter_learns():
    model = predictor()
    model(noise(2, 1, 8, 8), torch.tensor([3, 500])).sample.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_orthogonal_start_is_seeded_and_gives_the_scale_of_the_paper():
    models = [NoisePredictor(16, (1, 2, 2), norm_groups=4, attention_levels=(2,)) for _ in "ab"]
    for model in models:
        initialise_weights(model, torch.Generator().manual_seed(1), gain=1.0, scheme="orthogonal")
    x = noise(2, 1, 32, 32)
    outs = [model(x, 100).sample for model in models]
    assert torch.equal(*outs)
    assert 0.1 < outs[0].std() < 2  # no zero start of the last convolution
    flat = models[0].encoder[0].stages[0].conv_1.weight.flatten(1)
    assert torch.allclose(flat @ flat.T, torch.eye(16), atol=1e-5)


def test_sizes_and_groups_that_do_not_fit_are_refused():
    with pytest.raises(RequestError, match=r"divisible by 2, got \(8, 9\)"):
        predictor()(torch.zeros(1, 1, 8, 9), 0)
    with pytest.raises(RequestError, match=r"norm_groups must divide .*\[8, 16\], got 5"):
        predictor(norm_groups=5)


def test_save_and_load_round_trip(tmp_path):
    model = predictor()
    model.save_pretrained(tmp_path)
    again = NoisePredictor.from_pretrained(tmp_path)
    x = noise(1, 1, 16, 16)
    # Loaded tensors may be aligned differently in memory: other kernels, other last bits.
    torch.testing.assert_close(again(x, 5).sample, model(x, 5).sample, rtol=1e-4, atol=1e-5)


def test_layouts_and_types_agree():
    model, x = predictor(), noise(2, 1, 16, 16)
    expected = model(x, 150).sample.detach()
    model.to(memory_format=torch.channels_last)
    assert torch.allclose(model(x, 150).sample, expected, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(x, 150).sample
    mixed.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    # bfloat16 keeps 8 bits.
    assert (mixed.float() - expected).norm() < 0.05 * expected.norm()
    assert (model.bfloat16()(x, 150).sample.float() - expected).norm() < 0.05 * expected.norm()
