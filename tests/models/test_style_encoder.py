import pytest
import torch

from synthgen.core.errors import RequestError
from synthgen.models.spectral import fold_spectral_norm
from synthgen.models.style_encoder import StyleCode, StyleEncoder, masked_moments

LATENT = 3


def encoder(**settings):
    return StyleEncoder(base_channels=2, latent_dim=LATENT, **settings)


def brain_image(batch=2, size=(48, 64), margin=8):
    """Random intensities in [-0.9, 0.9] inside a box, exactly -1 outside."""
    generator = torch.Generator().manual_seed(0)
    image = torch.full((batch, 1, *size), -1.0)
    inside = (batch, 1, size[0] - 2 * margin, size[1] - 2 * margin)
    image[..., margin:-margin, margin:-margin] = torch.rand(inside, generator=generator) * 1.8 - 0.9
    return image


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"base_channels": 16, "latent_dim": 16, "faithful": True}, 457_392)],
)
def test_parameter_count_equals_the_reference(settings, expected):
    with torch.device("meta"):
        model = StyleEncoder(**settings)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_masked_moments_equal_mean_and_deviation_over_the_mask():
    x = torch.randn(2, 3, 6, 5)
    mask = (torch.rand(2, 1, 6, 5) > 0.5).float()
    moments = masked_moments(x, mask)
    for sample in range(2):
        values = x[sample][:, mask[sample, 0] > 0]
        torch.testing.assert_close(moments[sample, :3], values.mean(dim=1), rtol=1e-5, atol=1e-5)
        deviation = (values.var(dim=1, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(moments[sample, 3:], deviation, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_default_keeps_contrast_where_the_faithful_network_loses_it():
    image = brain_image()
    half = torch.where(image > -1, image * 0.5, image)
    plain, faithful = encoder().eval(), encoder(faithful=True).eval()
    moved = (plain(image).mu - plain(half).mu).norm() / plain(image).mu.norm()
    assert float(moved) > 0.02
    # Instance norm removes an affine change of the whole image entirely.
    lost = (faithful(image).mu - faithful(image * 0.5).mu).norm() / faithful(image).mu.norm()
    assert float(lost) < 0.02


def test_code_does_not_depend_on_the_background_around_the_brain():
    small = brain_image(size=(64, 64), margin=16)
    wide = torch.full((2, 1, 192, 192), -1.0)
    wide[..., 64:128, 64:128] = small
    model = encoder(num_layers=3).eval()
    # Strides of 8 divide the shift; only the networks' bias outside the brain differs.
    torch.testing.assert_close(model(wide).mu, model(small).mu, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("size", [(16, 16), (192, 256), (50, 70)])
@pytest.mark.parametrize("faithful", [False, True])
def test_any_size_is_accepted(size, faithful):
    code = encoder(faithful=faithful).eval()(torch.zeros(2, 1, *size))
    assert code.mu.shape == code.logvar.shape == (2, LATENT)


def test_empty_brain_gives_finite_codes_and_gradients():
    image = torch.full((1, 1, 32, 32), -1.0, requires_grad=True)
    code = encoder()(image)
    (code.mu.sum() + code.logvar.sum()).backward()
    assert bool(torch.isfinite(code.mu).all())
    assert bool(torch.isfinite(image.grad).all())


@pytest.mark.parametrize("faithful", [False, True])
def test_gradients_reach_every_parameter(faithful):
    model = encoder(faithful=faithful)
    code = model(brain_image())
    (code.mu.square().sum() + code.logvar.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert bool(parameter.grad.abs().sum() > 0), name


@pytest.mark.parametrize("faithful", [False, True])
def test_bf16_autocast_returns_float32_codes(faithful):
    model = encoder(faithful=faithful).eval()
    exact = model(brain_image()).mu
    with torch.autocast("cpu", torch.bfloat16):
        code = model(brain_image())
    assert code.mu.dtype == code.logvar.dtype == torch.float32
    assert (code.mu - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("faithful", [False, True])
def test_save_and_load_give_the_same_codes(tmp_path, faithful):
    model = encoder(faithful=faithful).eval()
    model.save_pretrained(tmp_path)
    loaded = StyleEncoder.from_pretrained(tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    # Loaded tensors may be aligned differently in memory: other kernels, other last bits.
    expected = model(brain_image()).mu
    torch.testing.assert_close(loaded(brain_image()).mu, expected, rtol=1e-4, atol=1e-5)
    folded = fold_spectral_norm(model)
    torch.testing.assert_close(folded(brain_image()).mu, expected, rtol=1e-4, atol=1e-5)


def test_sample_takes_each_noise_from_its_own_generator():
    code = StyleCode(torch.ones(2, LATENT), torch.full((2, LATENT), 2 * torch.log(torch.tensor(3))))
    drawn = code.sample([torch.Generator().manual_seed(seed) for seed in (1, 2)])
    for sample, seed in enumerate((1, 2)):
        noise = torch.randn(LATENT, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(drawn[sample], 1 + 3 * noise)
    with pytest.raises(RequestError, match=r"\(2\), got 1"):
        code.sample([torch.Generator()])


def test_faithful_network_has_six_layers():
    with pytest.raises(RequestError, match="6 layers, got 4"):
        encoder(faithful=True, num_layers=4)
