"""The network of ImgX (Fu et al. 2023, arXiv:2308.16355), in 2D and 3D."""

import pytest
import torch

from synthgen.core.errors import RequestError
from synthgen.models.imgx import ImgXUNet

SMALL = {"channels": (4, 8, 12), "num_heads": 2, "head_dim": 4, "dropout": 0.0}
SIZES = {2: (13, 18), 3: (9, 10, 7)}


def network(n=2, **settings):
    return ImgXUNet(n, 1, 3, 3, **SMALL | settings).eval()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(n=2, batch=2):
    image, mask = noise(batch, 1, *SIZES[n]), noise(batch, 3, *SIZES[n], seed=1)
    return image.sigmoid(), mask.sigmoid(), torch.linspace(-10, 9, batch)


def perturb(model, scale=0.3):
    """Move all parameters, those that start at zero too."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    return model


@pytest.mark.parametrize(
    ("n", "image", "classes", "first", "millions"),
    [
        (3, 1, 16, (2, 2, 2), 33.10),  # AMOS
        (3, 1, 9, (2, 2, 1), 33.07),  # male pelvic MR
        (3, 4, 2, (2, 2, 2), 33.09),  # BraTS
        (2, 1, 2, (2, 2), 12.35),  # muscle ultrasound
    ],
)
def test_parameter_counts_are_the_published_ones(n, image, classes, first, millions):
    strides = (first, (2,) * n, (2,) * n)
    with torch.device("meta"):
        model = ImgXUNet(n, image, classes, classes, strides=strides, time_conditioning="none")
    # The published network has a layer of 256 inputs and a bias in each block, to no effect: five
    # blocks at 32, 64 and 128 channels, seven at 256.
    dead = 257 * (5 * (32 + 64 + 128) + 7 * 256)
    assert round((model.num_parameters() + dead) / 1e6, 2) == millions


def test_exact_counts_without_the_dead_layers():
    with torch.device("meta"):
        flat = ImgXUNet(2, 1, 2, 2, time_conditioning="none")
        twin = ImgXUNet(2, 1, 2, 0, time_conditioning="none")
    assert flat.num_parameters() == 11_604_130
    assert flat.num_parameters() - twin.num_parameters() == 2 * 9 * 32


@pytest.mark.parametrize("n", [2, 3])
def test_any_size_gives_logits_of_that_size(n):
    model = network(n)
    logits = model(*inputs(n))
    assert logits.shape == (2, 3, *SIZES[n])
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("n", [2, 3])
def test_with_film_the_time_matters(n):
    model, (image, mask, _) = perturb(network(n)), inputs(n)
    outs = [model(image, mask, torch.full((2,), value)) for value in (9.0, -10.0)]
    assert (outs[0] - outs[1]).abs().max() > 1e-3
    near = model(image, mask, torch.full((2,), 9.01))
    assert (near - outs[0]).norm() < 0.2 * (outs[1] - outs[0]).norm()


def test_each_sample_has_its_own_time():
    model, (image, mask, times) = perturb(network()), inputs()
    both = model(image, mask, times)
    for i in range(2):
        alone = model(image[i : i + 1], mask[i : i + 1], times[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_as_published_the_time_does_not_matter():
    model, (image, mask, _) = perturb(network(time_conditioning="none")), inputs()
    outs = [model(image, mask, torch.full((2,), value)) for value in (9.0, -10.0)]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], model(image, mask))


def test_adding_the_time_in_front_of_an_instance_norm_does_nothing():
    """The published place of the time; why there is FiLM."""
    norm, u = network().encoder[0].blocks[0].norm_1, noise(2, 4, 8, 8)
    constant = noise(2, 4, 1, 1, seed=1)
    assert torch.allclose(norm(u + constant), norm(u), atol=1e-5)


def test_film_starts_as_no_conditioning():
    plain, film = network(time_conditioning="none"), network()
    film.load_state_dict(
        plain.state_dict()
        | {k: v for k, v in film.state_dict().items() if ".film." in k or k.startswith("time.")}
    )
    image, mask, times = inputs()
    torch.testing.assert_close(film(image, mask, times), plain(image, mask))


def test_block_follows_the_equation():
    block, x = perturb(network()).encoder[1].blocks[0], noise(2, 8, 6, 6)
    embedding = noise(2, 16, seed=1)
    gelu, norm = torch.nn.functional.gelu, torch.nn.functional.instance_norm

    def normed(layer, u):
        return norm(u, weight=layer.weight, bias=layer.bias, eps=1e-6)

    h = block.conv_1(gelu(normed(block.norm_0, block.conv_0(x)), approximate="tanh"))
    scale, shift = block.film(embedding)[:, :, None, None].chunk(2, dim=1)
    h = normed(block.norm_1, h) * (1 + scale) + shift
    expected = gelu(x + h, approximate="tanh")
    torch.testing.assert_close(block(x, embedding), expected, rtol=1e-4, atol=1e-5)


def test_transformer_equals_torchs_and_has_no_positions():
    transformer = perturb(network()).bottom[1]
    x = noise(2, 12, 3, 5)
    tokens = x.flatten(2).transpose(1, 2)
    h = transformer.norm_0(tokens)
    q, k, v = transformer.qkv(h).chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        share = torch.softmax(q[..., head] @ k[..., head].transpose(1, 2) / 4**0.5, dim=-1)
        heads.append(share @ v[..., head])
    h = tokens + transformer.out(torch.cat(heads, dim=-1))
    wide = torch.nn.functional.gelu(transformer.wide(transformer.norm_1(h)), approximate="tanh")
    expected = transformer.norm_2(h + transformer.narrow(wide)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(transformer(x, None), expected, rtol=1e-4, atol=1e-5)
    turned = transformer(x.flip(2, 3), None).flip(2, 3)
    torch.testing.assert_close(turned, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("deep", [1, 2])
def test_ranks_agree(deep):
    """A 3D network on volumes of depth 1 is the 2D network of its middle kernels."""
    flat = perturb(network(2, strides=((2, 2), (3, 2))))
    volume = network(3, strides=((2, 2, deep), (3, 2, deep)))
    weights = volume.state_dict()
    for name, weight in flat.state_dict().items():
        if weight.ndim < weights[name].ndim:
            depth = weights[name].shape[-1]
            filled = torch.zeros_like(weights[name])
            # A transposed convolution fills the added depth, which is cut off behind its norm.
            everywhere = ".enlarge." in name
            place = slice(None) if everywhere else {1: 0, 2: 0, 3: 1}[depth]
            filled[..., place] = weight[..., None] if everywhere else weight
            weights[name] = filled
        else:
            weights[name] = weight
    volume.load_state_dict(weights)
    image, mask, times = inputs()
    expected = flat(image, mask, times)
    out = volume(image[..., None], mask[..., None], times)[..., 0]
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)


def test_strides_of_one_keep_an_axis():
    model = network(3, strides=((2, 2, 1), (2, 2, 2)))
    levels = model.encode(*inputs(3))
    assert [tuple(maps[-1].shape[2:]) for maps in levels] == [(9, 10, 7), (5, 5, 7), (3, 3, 4)]


def test_encoder_maps_are_all_there_and_decode_to_the_logits():
    model, arguments = perturb(network(), 0.1), inputs()
    levels = model.encode(*arguments)
    assert [maps[-1].shape[1] for maps in levels] == [4, 8, 12]
    assert [len(maps) for maps in levels] == [3, 3, 4]
    assert torch.equal(model.decode(levels, arguments[2]), model(*arguments))
    assert [len(maps) for maps in levels] == [3, 3, 4]


def test_the_twin_sees_the_image_alone():
    twin = ImgXUNet(2, 1, 3, 0, time_conditioning="none", **SMALL)
    image, mask, _ = inputs()
    assert twin(image).shape == mask.shape
    with pytest.raises(RequestError, match=r"expected no mask .* got \(2, 3, 13, 18\)"):
        twin(image, mask)


def test_gradients_reach_every_parameter():
    model = perturb(network(), 0.1).train()
    (model(*inputs()) * noise(2, 3, *SIZES[2], seed=3)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_gradients_do_not_depend_on_the_layout():
    model, arguments = perturb(network(channels=(4, 8)), 0.1), inputs()
    towards = noise(2, 3, *SIZES[2], seed=3)
    (model(*arguments) * towards).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.to(memory_format=torch.channels_last)
    (model(*arguments) * towards).sum().backward()
    for name, parameter in model.named_parameters():
        gap = (parameter.grad - expected[name]).norm()
        assert gap <= 1e-3 * expected[name].norm() + 1e-3, name


@pytest.mark.parametrize("n", [2, 3])
def test_layouts_and_types_agree(n):
    model, arguments = network(n), inputs(n)
    expected = model(*arguments)
    model.to(memory_format={2: torch.channels_last, 3: torch.channels_last_3d}[n])
    torch.testing.assert_close(model(*arguments), expected, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(*arguments)
    low = model.bfloat16()(*arguments)
    for out in (mixed, low):
        assert out.dtype == torch.float32
        # bfloat16 keeps 8 bits; norms keep errors of some per cent from growing.
        assert (out - expected).norm() < 0.1 * expected.norm()


def test_save_and_load_round_trip(tmp_path):
    model = perturb(network(3, strides=((2, 2, 1), (2, 2, 2))), 0.1)
    model.save_pretrained(tmp_path)
    again = ImgXUNet.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(*inputs(3)), model(*inputs(3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spatial_dims": 4}, "must be 2 or 3, got 4"),
        ({"strides": ((2, 2),)}, r"expected 2 strides of 2 .* got \[\(2, 2\)\]"),
        ({"strides": ((2, 2), (2, 2, 2))}, r"got \[\(2, 2\), \(2, 2, 2\)\]"),
        ({"strides": ((2, 2), (2, 0))}, r"got \[\(2, 2\), \(2, 0\)\]"),
        ({"time_conditioning": "add"}, "'film' or 'none', got 'add'"),
        ({"mask_channels": 0}, "set time_conditioning to 'none'"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(settings, message):
    with pytest.raises(RequestError, match=message):
        ImgXUNet(**SMALL | settings)


def test_inputs_that_do_not_fit_are_refused():
    model, (image, mask, times) = network(), inputs()
    with pytest.raises(RequestError, match=r"images \(B, 1, X, Y\), got .* \(2, 1, 9, 10, 7\)"):
        model(*inputs(3))
    with pytest.raises(RequestError, match=r"a mask of shape \(2, 3, 13, 18\) .* got none"):
        model(image)
    with pytest.raises(RequestError, match=r"got \(2, 3, 12, 18\)"):
        model(image, mask[:, :, 1:], times)
    with pytest.raises(RequestError, match="expected the log-SNR"):
        model(image, mask)
    with pytest.raises(RequestError, match=r"\(4, 3\) shrinks to one point"):
        model(image[..., :4, :3], mask[..., :4, :3], times)


def test_a_tiny_network_learns():
    model = network(channels=(4, 8)).train()
    image, mask, times = inputs()
    target = (image[:, 0] * 3).long().clamp(max=2)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(image, mask, times), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
