"""The generator and the discriminator of DARL (Kim et al. 2023, arXiv:2209.14566)."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from synthgen.core.errors import RequestError
from synthgen.models.darl import DarlGenerator, one_hot, patch_discriminator
from synthgen.models.darl_unet import NoisePredictor
from synthgen.models.spade_blocks import SPADENorm, SPADEResBlock
from synthgen.models.spectral import fold_spectral_norm


def generator(**settings):
    return DarlGenerator(**{"base_channels": 4, "spade_hidden": 8} | settings)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def square_mask(batch=2, side=32):
    mask = -torch.ones(batch, 1, side, side)
    mask[:, :, side // 4 : side // 2, side // 4 : side // 2] = 1
    return mask


def switchable(channels=6):
    norm = SPADENorm(channels, 2, hidden=8, pv_resize="nearest", switchable=True)
    torch.nn.init.normal_(norm.unlabelled.weight)
    torch.nn.init.normal_(norm.unlabelled.bias)
    return norm


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_counts_of_the_paper():
    with torch.device("meta"):
        model, discriminator = DarlGenerator(), patch_discriminator()
    assert count(model) == 7_936_513
    assert count(discriminator) == 2_762_689
    labelled = [p for name, p in model.named_parameters() if ".shared." in name]
    labelled += [p for name, p in model.named_parameters() if ".modulation." in name]
    assert sum(p.numel() for p in labelled) == 4_599_424
    plain = [p for name, p in model.named_parameters() if ".unlabelled." in name]
    assert sum(p.numel() for p in plain) == 3_968


def test_cost_and_shapes_at_256():
    """darl.md, measured on the authors' networks: 90.4 and 173.2 GMAC, 3.11 for a discriminator."""
    with FakeTensorMode(), torch.no_grad():
        unet, model, discriminator = NoisePredictor(), DarlGenerator(), patch_discriminator()
        image, steps = torch.empty(1, 1, 256, 256), torch.zeros(1, dtype=torch.long)
        costs = []
        for mask in (None, image):
            with FlopCounterMode(display=False) as flops:
                out = model(image, unet(image, steps).sample, mask)
            assert out.shape == image.shape
            costs.append(flops.get_total_flops() / 2e9)
        with FlopCounterMode(display=False) as flops:
            (features,) = discriminator(out)
        costs.append(flops.get_total_flops() / 2e9)
    assert features[-1].shape == (1, 1, 30, 30)
    assert costs == pytest.approx([90.4, 173.2, 3.11], rel=0.02)


def test_both_paths_and_the_cycle_give_planes_in_the_open_range():
    model, unet = generator(), NoisePredictor(4, (1, 2), 1, (1,), norm_groups=2)
    x, steps = noise(2, 1, 32, 48), torch.tensor([0, 199])
    mask = functional.pad(square_mask(), (0, 16), value=-1.0)
    painted = model(x, unet(x, steps).sample, mask)
    again = model(painted, unet(painted, steps).sample)
    for out in (painted, again, model(x, unet(x, steps).sample)):
        assert out.shape == x.shape
        assert out.abs().max() < 1


def test_without_labels_the_norm_is_an_affine_instance_norm():
    norm, x = switchable(), 3 * noise(2, 6, 8, 8) + 1
    weight, bias = norm.unlabelled.weight, norm.unlabelled.bias
    expected = functional.instance_norm(x, weight=weight, bias=bias)
    assert torch.allclose(norm(x, None), expected, atol=1e-5)


def test_with_labels_and_no_modulation_the_norm_is_a_plain_instance_norm():
    norm, x = switchable(), 3 * noise(2, 6, 8, 8) + 1
    torch.nn.init.zeros_(norm.modulation.weight)
    torch.nn.init.zeros_(norm.modulation.bias)
    expected = functional.instance_norm(x)
    assert torch.allclose(norm(x, one_hot(square_mask(side=16))), expected, atol=1e-5)


def test_with_labels_the_norm_follows_the_equation():
    norm, x, labels = switchable(), noise(2, 6, 16, 16), one_hot(square_mask(side=16))
    hidden = functional.relu(norm.shared(labels))
    gamma, beta = norm.modulation(hidden).chunk(2, dim=1)
    expected = functional.instance_norm(x) * (1 + gamma) + beta
    assert torch.allclose(norm(x, labels), expected, atol=1e-5)


def test_a_norm_that_is_not_switchable_wants_labels():
    with pytest.raises(RequestError, match="not switchable"):
        SPADENorm(4, 2, hidden=8)(torch.zeros(1, 4, 8, 8), None)


def test_block_follows_the_equation():
    block = SPADEResBlock(6, 4, 2, 8, pv_resize="nearest", switchable=True).eval()
    x = noise(2, 6, 8, 8)

    def step(norm, conv, v):
        return conv(functional.leaky_relu(norm(v, None), 0.2))

    h = step(block.norm_1, block.conv_1, step(block.norm_0, block.conv_0, x))
    expected = block.conv_s(block.norm_s(x, None)) + h
    assert torch.equal(block(x, None), expected)
    assert block.conv_s.bias is None


def test_the_mask_changes_the_painted_image_only_around_itself():
    model = generator().eval()
    x, eps = noise(2, 1, 64, 64), noise(2, 1, 64, 64, seed=1)
    mask = square_mask(side=64)
    assert not torch.allclose(model(x, eps, mask), model(x, eps, -mask), atol=1e-3)
    # The other branch has other parameters.
    assert not torch.allclose(model(x, eps, mask), model(x, eps), atol=1e-3)


def test_both_modes_share_the_convolutions_and_label_branches_learn_from_path_b_only():
    model = generator()
    x, eps = noise(2, 1, 32, 32), noise(2, 1, 32, 32, seed=1)

    def reached(*mask):
        names = [name for name, _ in model.named_parameters()]
        loss = (model(x, eps, *mask) * x).sum()
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        return {name for name, grad in zip(names, grads, strict=True) if grad is not None}

    every = {name for name, _ in model.named_parameters()}
    labelled = {n for n in every if ".shared." in n or ".modulation." in n}
    plain = {n for n in every if ".unlabelled." in n}
    assert reached() == every - labelled
    assert reached(square_mask()) == every - plain


def test_the_cycle_reaches_the_label_branches():
    model = generator()
    x, eps = noise(2, 1, 32, 32), noise(2, 1, 32, 32, seed=1)
    (model(model(x, eps, square_mask()), eps) - square_mask()).abs().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # In front of an instance norm a bias has no effect.
        if not name.endswith("bias"):
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("soft", [False, True])
def test_condition_has_the_area_of_the_target(soft):
    mask = noise(3, 1, 16, 16).tanh() if soft else noise(3, 1, 16, 16).sign()
    channels = one_hot(mask)
    assert torch.allclose(channels.sum(dim=1), torch.ones(3, 16, 16))
    area = ((mask + 1) / 2).sum(dim=(1, 2, 3))
    assert torch.allclose(channels[:, 1].sum(dim=(1, 2)), area, rtol=1e-5)
    if not soft:
        assert set(channels.unique().tolist()) == {0.0, 1.0}


def test_sizes_that_do_not_fit_are_refused():
    model = generator()
    with pytest.raises(RequestError, match=r"divisible by 4, got \(30, 32\)"):
        model(torch.zeros(1, 1, 30, 32), torch.zeros(1, 1, 30, 32))
    x = torch.zeros(2, 1, 32, 32)
    with pytest.raises(RequestError, match=r"got \(1, 1, 32, 32\)"):
        model(x, x, x[:1])


def test_save_and_load_round_trip(tmp_path):
    model = generator(num_blocks=1, label_resize="area").eval()
    x, eps = noise(2, 1, 32, 32), noise(2, 1, 32, 32, seed=1)
    model.save_pretrained(tmp_path)
    again = DarlGenerator.from_pretrained(tmp_path).eval()
    for mask in (None, square_mask()):
        # Loaded tensors may be aligned differently in memory: other kernels, other last bits.
        torch.testing.assert_close(again(x, eps, mask), model(x, eps, mask), rtol=1e-4, atol=1e-5)


def test_spectral_norm_can_be_folded_away():
    model = generator().eval()
    x, eps = noise(2, 1, 32, 32), noise(2, 1, 32, 32, seed=1)
    folded = fold_spectral_norm(model)
    assert torch.allclose(folded(x, eps, square_mask()), model(x, eps, square_mask()), atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_layouts_and_types_agree(masked):
    model = generator(base_channels=8)
    x, eps = noise(2, 1, 32, 32), noise(2, 1, 32, 32, seed=1)
    mask = square_mask() if masked else None
    expected = model.eval()(x, eps, mask)
    model.to(memory_format=torch.channels_last)
    assert torch.allclose(model(x, eps, mask), expected, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(x, eps, mask)
    mixed.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    low = model.bfloat16()(x, eps, mask)
    # bfloat16 keeps 8 bits; instance norms keep errors of some per cent from growing.
    for out in (mixed, low):
        assert out.dtype == torch.float32
        assert (out - expected).norm() < 0.1 * expected.norm()


def test_discriminator_follows_the_table():
    model = patch_discriminator(4)
    (chain,) = model.scales
    convs = [chain.first, *chain.middle, chain.last]
    assert [conv.stride[0] for conv in convs] == [2, 2, 2, 1, 1]
    assert [conv.out_channels for conv in convs] == [4, 8, 16, 32, 1]
    x = noise(2, 1, 48, 48)
    expected = functional.leaky_relu(convs[0](x), 0.2)
    for conv in convs[1:-1]:
        expected = functional.leaky_relu(functional.instance_norm(conv(expected)), 0.2)
    assert torch.allclose(model(x)[0][-1], convs[-1](expected), atol=1e-5)
