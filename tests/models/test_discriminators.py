import pytest
import torch
from torch.nn import functional

from synthgen.core.errors import RequestError
from synthgen.models.discriminators import PyramidPatchDiscriminator
from synthgen.models.spectral import fold_spectral_norm


def discriminator(**settings):
    return PyramidPatchDiscriminator(in_channels=3, base=4, **settings)


def random_input(size=(32, 48)):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


def test_parameter_count_equals_the_reference():
    with torch.device("meta"):
        model = PyramidPatchDiscriminator(in_channels=16)  # 12 labels, 3 modalities, 1 image
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_027_715


def test_features_per_scale_end_in_one_logit_plane():
    scales = discriminator()(random_input())
    assert [len(features) for features in scales] == [4, 4, 4]
    for features in scales:
        assert [f.shape[1] for f in features] == [4, 8, 16, 1]
    sizes = [features[0].shape[-1] for features in scales]
    assert sizes == [25, 13, 7]  # conv4 with stride 2 and padding 2 on 48, 24, 12


def test_widths_stop_at_512():
    with torch.device("meta"):
        model = PyramidPatchDiscriminator(in_channels=1, num_layers=6, num_scales=1)
    assert [conv.out_channels for conv in model.scales[0].middle] == [128, 256, 512, 512, 512]


@pytest.mark.parametrize(("num_layers", "expected"), [(3, 34), (4, 70)])
def test_receptive_field(num_layers, expected):
    model = discriminator(num_scales=1, num_layers=num_layers).eval().double()
    x = torch.randn(1, 3, 160, 160, dtype=torch.float64, requires_grad=True)
    features = x
    chain = model.scales[0]
    # Without the instance norm, which looks at the whole image.
    for conv in (chain.first, *chain.middle, chain.last):
        features = conv(features)
    centre = features.shape[-1] // 2
    features[0, 0, centre, centre].backward()
    seen = x.grad.abs().sum(dim=(0, 1, 2)).nonzero()
    assert int(seen.max() - seen.min()) + 1 == expected


def test_second_scale_sees_the_averaged_image():
    model = discriminator(num_scales=2).eval()
    x = random_input()
    halved = functional.avg_pool2d(x, 4, 2, 1, count_include_pad=False)
    assert halved.shape[-2:] == (16, 24)
    expected = model.scales[1](halved)
    for feature, wanted in zip(model(x)[1], expected, strict=True):
        torch.testing.assert_close(feature, wanted)


def test_averaging_keeps_constant_planes_constant():
    plane = functional.avg_pool2d(torch.ones(1, 1, 32, 48), 4, 2, 1, count_include_pad=False)
    torch.testing.assert_close(plane, torch.ones(1, 1, 16, 24))


def test_gradients_reach_every_parameter():
    model = discriminator()
    sum(features[-1].square().sum() for features in model(random_input())).backward()
    for name, parameter in model.named_parameters():
        assert bool(parameter.grad.abs().sum() > 0), name


def test_bf16_autocast_stays_close():
    model = discriminator().eval()
    exact = model(random_input())[0][-1]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(random_input())[0][-1]
    assert (logits.float() - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("spectral_norm", [True, False])
def test_save_and_load_give_the_same_discriminator(tmp_path, spectral_norm):
    model = discriminator(spectral_norm=spectral_norm)
    model(random_input())
    model.eval().save_pretrained(tmp_path)
    loaded = PyramidPatchDiscriminator.from_pretrained(tmp_path)
    folded = fold_spectral_norm(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    for scale, expected in enumerate(model(random_input())):
        for other in (loaded, folded):
            # Other memory alignment, other last bits.
            torch.testing.assert_close(
                other(random_input())[scale][-1], expected[-1], rtol=1e-4, atol=1e-5
            )


def test_no_scales_are_refused():
    with pytest.raises(RequestError, match="at least 1, got 0 and 3"):
        discriminator(num_scales=0)
