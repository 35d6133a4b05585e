import pytest
import torch
from torch.nn import functional

from synthgen.core.errors import GeometryError, RequestError
from synthgen.models.spade import SPADEGenerator, draw_noise, shrink_noise
from synthgen.models.spade_blocks import SPADENorm, SPADEResBlock, resize_pv
from synthgen.models.spectral import fold_spectral_norm, initialise_weights

LABELS, LATENT = 3, 4


def generator(**settings):
    return SPADEGenerator(
        label_channels=LABELS,
        shape=(32, 64),
        base_channels=2,
        latent_dim=LATENT,
        hidden=8,
        **settings,
    )


def random_pv(batch, *size, seed=0, channels=LABELS):
    noise = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))
    return noise.softmax(dim=1)


def random_codes(batch, seed=0):
    return torch.randn(batch, LATENT, generator=torch.Generator().manual_seed(seed))


def square_lesion(size, side=64):
    """One-hot PV with a centred square lesion in channel 1."""
    lesion = torch.zeros(side, side)
    start = side // 2 - size // 2
    lesion[start : start + size, start : start + size] = 1
    return torch.stack([1 - lesion, lesion])[None]


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


# brainspade.md section 3.1: counts measured on the reference at 192 x 256 and 256 x 256.
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"label_channels": 7}, 10_837_713),
        ({"label_channels": 7, "base_channels": 8}, 4_450_089),
        ({"label_channels": 7, "base_channels": 32}, 29_867_937),
        ({"label_channels": 7, "base_channels": 64}, 92_948_289),
        ({"label_channels": 12, "shape": (256, 256)}, 11_011_025),
    ],
)
def test_parameter_counts_equal_the_reference(settings, expected):
    with torch.device("meta"):
        assert count(SPADEGenerator(**settings)) == expected


def test_modulation_at_the_centre_of_a_lesion_does_not_depend_on_its_size():
    norm = SPADENorm(channels=4, label_channels=2, hidden=8)
    centres = []
    for size in (5, 7, 9, 15, 19, 25, 35):
        gamma, beta = norm.modulate(square_lesion(size))
        centres.append(torch.cat([gamma, beta], dim=1)[0, :, 32, 32])
    # The receptive field is 5 x 5: from size 5 on, the centre sees lesion only.
    for centre in centres[1:]:
        torch.testing.assert_close(centre, centres[0], rtol=0, atol=1e-6)


def test_modulation_of_constant_labels_is_constant_away_from_the_border():
    norm = SPADENorm(channels=4, label_channels=2, hidden=8)
    gamma, _ = norm.modulate(torch.tensor([0.3, 0.7]).view(1, 2, 1, 1).expand(1, 2, 16, 16))
    inner = gamma[:, :, 2:-2, 2:-2]
    torch.testing.assert_close(inner, inner[:, :, :1, :1].expand_as(inner), rtol=0, atol=1e-6)


def test_norm_is_instance_norm_times_one_plus_gamma_plus_beta():
    norm = SPADENorm(channels=4, label_channels=2, hidden=8)
    x = torch.randn(2, 4, 12, 10) * 3 + 5
    with torch.no_grad():
        norm.modulation.weight.zero_()
        norm.modulation.bias.copy_(torch.tensor([0.5] * 4 + [-2.0] * 4))
        out = norm(x, random_pv(2, 12, 10, channels=2))
    torch.testing.assert_close(out, functional.instance_norm(x) * 1.5 - 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("norm", "groups"), [("instance", 6), ("group", 6), ("batch", None)])
def test_each_norm_is_parameter_free(norm, groups):
    layer = SPADENorm(channels=6, label_channels=2, hidden=8, norm=norm)
    assert not list(layer.norm.parameters())
    assert getattr(layer.norm, "groups", None) == groups


def test_style_changes_the_modulation_and_must_be_given():
    norm = SPADENorm(channels=4, label_channels=LABELS, hidden=8, style_dim=LATENT)
    pv = random_pv(2, 8, 8)
    first, _ = norm.modulate(pv, random_codes(2, seed=1))
    second, _ = norm.modulate(pv, random_codes(2, seed=2))
    assert not torch.allclose(first, second)
    with pytest.raises(RequestError, match="pass the style"):
        norm.modulate(pv)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_norm_takes_its_statistics_in_float32(offset):
    norm = SPADENorm(channels=2, label_channels=2, hidden=4).norm
    x = (torch.randn(1, 2, 64, 64) + offset).bfloat16()
    exact = functional.instance_norm(x.double())
    # Only the rounding of the result to bfloat16 (2^-9 relative) is left.
    torch.testing.assert_close(norm(x).double(), exact, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("mode", ["nearest", "area"])
def test_resized_partial_volumes_still_sum_to_one(mode):
    small = resize_pv(random_pv(2, 32, 64), (4, 8), mode)
    assert small.shape == (2, LABELS, 4, 8)
    torch.testing.assert_close(small.sum(dim=1), torch.ones(2, 4, 8))


def test_area_resize_averages_blocks():
    pv = random_pv(1, 8, 8)
    blocks = pv.view(1, LABELS, 2, 4, 2, 4).mean(dim=(3, 5))
    torch.testing.assert_close(resize_pv(pv, (2, 2), "area"), blocks)


def test_block_has_a_shortcut_only_where_widths_differ():
    assert SPADEResBlock(4, 4, 2, 8).conv_s is None
    assert SPADEResBlock(4, 2, 2, 8).conv_s.bias is None


@pytest.mark.parametrize("settings", [{}, {"style_in_norm": True}, {"output": "leaky_relu"}])
def test_style_changes_the_image(settings):
    model = generator(**settings).eval()
    pv = random_pv(2, 32, 64)
    first, second = (model(pv, random_codes(2, seed))[0] for seed in (1, 2))
    assert first.shape == (2, 1, 32, 64)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("style_in_norm", [False, True])
def test_one_label_map_is_painted_in_many_styles(style_in_norm):
    model = generator(style_in_norm=style_in_norm).eval()
    pv, z = random_pv(1, 32, 64), random_codes(3)
    # Kernels differ with the batch size in the last bits.
    torch.testing.assert_close(
        model(pv, z)[0], model(pv.expand(3, -1, -1, -1), z)[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("norm", ["instance", "group", "batch"])
@pytest.mark.parametrize("style_in_norm", [False, True])
def test_gradients_reach_every_parameter(norm, style_in_norm):
    model = generator(norm=norm, style_in_norm=style_in_norm)
    model(random_pv(2, 32, 64), random_codes(2))[0].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.abs().sum() > 0), name


def test_generator_learns():
    model = generator(style_in_norm=True)
    pv, z = random_pv(2, 32, 64), random_codes(2)
    target = pv[:, :1] - pv[:, 1:2]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = (model(pv, z)[0] - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_bf16_autocast_stays_close_and_returns_float32():
    model = generator(style_in_norm=True).eval()
    pv, z = random_pv(2, 32, 64), random_codes(2)
    exact = model(pv, z)[0]
    with torch.autocast("cpu", torch.bfloat16):
        image = model(pv, z)[0]
    assert image.dtype == torch.float32
    # performance.md: 3.3 % relative L2 on the full-size network.
    assert (image - exact).norm() < 0.1 * exact.norm()


def test_bf16_training_step_gives_finite_gradients():
    model = generator()
    with torch.autocast("cpu", torch.bfloat16):
        image = model(random_pv(2, 32, 64), random_codes(2))[0]
    image.square().mean().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(RequestError, match=r"divisible by 32, got \(48, 64\)"):
        SPADEGenerator(label_channels=2, shape=(48, 64))
    with pytest.raises(GeometryError, match=r"\(32, 64\), got \(64, 64\)"):
        generator()(random_pv(1, 64, 64), random_codes(1))


@pytest.mark.parametrize("spectral_norm", [True, False])
def test_save_and_load_give_the_same_generator(tmp_path, spectral_norm):
    model = generator(style_in_norm=True, spectral_norm=spectral_norm)
    pv, z = random_pv(2, 32, 64), random_codes(2)
    for _ in range(2):
        model(pv, z)[0]  # moves the power iteration
    model.eval().save_pretrained(tmp_path)
    loaded = SPADEGenerator.from_pretrained(tmp_path)
    state = loaded.state_dict()
    assert any(key.endswith("._u") for key in state) == spectral_norm
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    # Loaded tensors may be aligned differently in memory: other kernels, other last bits.
    torch.testing.assert_close(loaded(pv, z)[0], model(pv, z)[0], rtol=1e-4, atol=1e-5)


def test_folded_spectral_norm_gives_the_same_images(tmp_path):
    model = generator(style_in_norm=True).train()
    pv, z = random_pv(2, 32, 64), random_codes(2)
    model(pv, z)[0]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_spectral_norm(model)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not folded.config["spectral_norm"]
    assert not any("parametrizations" in key for key in folded.state_dict())
    expected = model.eval()(pv, z)[0]
    torch.testing.assert_close(folded(pv, z)[0], expected, rtol=1e-5, atol=1e-6)
    folded.save_pretrained(tmp_path)
    loaded = SPADEGenerator.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(pv, z)[0], expected, rtol=1e-5, atol=1e-6)


def test_folding_copies_the_weights():
    model = generator().eval()
    folded = fold_spectral_norm(model)
    with torch.no_grad():
        folded.out.weight.zero_()
    assert bool(model.out.weight.abs().sum() > 0)


def test_spectral_norm_brings_the_largest_singular_value_to_one():
    conv = generator().train().blocks[3].conv_1
    for _ in range(100):
        conv(torch.zeros(1, conv.in_channels, 4, 4))
    conv.eval()
    largest = torch.linalg.svdvals(conv.weight.detach().flatten(1))[0]
    # The power iteration converges from below; 100 more steps leave under 1 %.
    assert float(largest) == pytest.approx(1, abs=0.01)


def test_initial_weights_come_from_the_generator_alone():
    first, second = generator(), generator()
    for model in (first, second):
        initialise_weights(model, torch.Generator().manual_seed(3), gain=0.02)
    for key, value in first.named_parameters():
        assert torch.equal(value, second.get_parameter(key)), key
    fan = first.start.in_features + first.start.out_features
    assert float(first.start.weight.detach().std()) == pytest.approx(
        0.02 * (2 / fan) ** 0.5, rel=0.1
    )
    assert not first.start.bias.any()


def test_initialising_leaves_the_global_generator_alone():
    model = generator()
    before = torch.default_generator.get_state()
    initialise_weights(model, torch.Generator())
    assert torch.equal(torch.default_generator.get_state(), before)


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_features_grow_as_asked(upsample):
    model = generator(upsample=upsample).eval()
    assert fold_spectral_norm(model).upsample == upsample
    seen = []
    model.blocks[0].register_forward_hook(lambda *call: seen.append(call[2]))
    model.blocks[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(random_pv(1, 32, 64), random_codes(1))
    small, large = seen  # (1, 32, 1, 2) and (1, 32, 2, 4)
    left, right = small[..., 0, 0], small[..., 0, 1]
    # Half-pixel centres: the inner pixels lie a quarter of the way to the neighbour.
    share = 0.25 if upsample == "bilinear" else 0.0
    expected = [left, left + share * (right - left), right - share * (right - left), right]
    torch.testing.assert_close(large[..., 0, :], torch.stack(expected, dim=-1))


def test_grain_is_noise_on_the_image_and_must_be_given():
    model = generator(grain_bands=2).eval()
    pv, codes = random_pv(2, 32, 64), random_codes(2)
    draws = [draw_noise([torch.Generator().manual_seed(s)] * 2, (32, 64)) for s in (0, 0, 1)]
    with torch.no_grad():
        (first, plain), (again, _), (other, same) = (model(pv, codes, n) for n in draws)
        (nothing, flat) = model(pv, codes, 0 * draws[0])
    assert torch.equal(first, again)
    assert torch.equal(plain, same)
    assert torch.equal(nothing, flat)
    assert torch.equal(plain, flat)
    assert not torch.allclose(first, other)
    # softplus(-4) = 0.018 a band: faint, as long as nothing was learnt.
    assert 0.01 < float((first - plain).std()) < 0.05
    with pytest.raises(RequestError, match="paints grain; pass the noise"):
        model(pv, codes)


def test_without_grain_both_images_are_one():
    image, plain = generator()(random_pv(1, 32, 64), random_codes(1))
    assert image is plain


def test_one_map_with_grain_is_painted_in_many_styles():
    model, pv = generator(grain_bands=2, style_in_norm=True).eval(), random_pv(1, 32, 64)
    noise = draw_noise([torch.Generator().manual_seed(s) for s in range(3)], (32, 64))
    with torch.no_grad():
        together, _ = model(pv, random_codes(3), noise)
        alone, _ = model(pv, random_codes(3)[1:2], noise[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("style_in_norm", [False, True])
def test_takes_of_one_map_equal_paintings_and_share_the_label_branch(monkeypatch, style_in_norm):
    model = generator(style_in_norm=style_in_norm, grain_bands=1).eval()
    pv, codes = random_pv(2, 32, 64), [random_codes(2, seed=s) for s in range(3)]
    draws = [torch.Generator().manual_seed(s) for s in range(2)]
    noise = draw_noise(draws, (32, 64))
    calls = []
    layer = model.blocks[6].norm_0
    # What the style does not enter is done once a map.
    counted = (layer.shared, "forward") if style_in_norm else (layer, "_modulation")
    convolve = getattr(*counted)
    monkeypatch.setattr(*counted, lambda x: calls.append(1) or convolve(x))
    with torch.no_grad():
        together = model.paint(pv, [(z, noise) for z in codes])
        assert len(calls) == len(pv)
        for (image, plain), z in zip(together, codes, strict=True):
            alone = model(pv, z, noise)
            assert torch.equal(image, alone[0])
            assert torch.equal(plain, alone[1])
    # Nothing is written over that a gradient needs.
    torch.testing.assert_close(model(pv, codes[0], noise)[0], together[0][0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["nearest", "area"])
def test_labels_shrunk_step_by_step_equal_labels_shrunk_at_once(mode):
    pv = random_pv(2, 32, 64)
    maps = generator(pv_resize=mode)._smaller(pv)
    assert sorted(maps) == [2, 4, 8, 16, 32, 64]
    for width, small in maps.items():
        torch.testing.assert_close(
            small, resize_pv(pv, (width // 2, width), mode), atol=1e-6, rtol=0
        )


def test_the_shortcut_of_a_batch_norm_keeps_its_own_statistics():
    block = SPADEResBlock(6, 4, LABELS, 8, norm="batch").train()
    block(torch.randn(2, 6, 8, 8) + 5, random_pv(2, 8, 8))
    first, shortcut = block.norm_0.norm, block.norm_s.norm
    assert float(shortcut.running_mean.mean()) == pytest.approx(0.5, abs=0.2)
    assert torch.equal(first.running_mean, shortcut.running_mean)


@pytest.mark.parametrize("size", [(192, 256), (96, 128), (24, 32), (6, 8)])
def test_shrunk_noise_stays_standard_normal(size):
    draws = [torch.Generator().manual_seed(s) for s in range(16)]
    noise = shrink_noise(draw_noise(draws, (192, 256)), size)
    assert noise.shape == (16, 1, *size)
    assert float(noise.mean()) == pytest.approx(0, abs=0.12)
    assert float(noise.std()) == pytest.approx(1, abs=0.1)
