import itertools

import pytest
import torch

from synthgen.core.errors import RequestError
from synthgen.diffusion.bernoulli import BernoulliScheduler
from synthgen.losses.bernoulli import bernoulli_terms
from synthgen.models.hidiff import HiDiffRefiner, level_sizes
from synthgen.models.hidiff_blocks import norm_groups, shortcut

SIZES = {2: (11, 12), 3: (5, 12, 9)}


def random(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def tiny(spatial_dims=2, **settings):
    """Return a refiner of three levels, the coarsest with an X-Former."""
    strides = ((2,) * spatial_dims, (1, *(2,) * (spatial_dims - 1)))
    shape = {
        "in_channels": 2, "out_channels": 3, "channels": (4, 8, 8), "strides": strides,
        "feature_channels": (6, 5), "feature_levels": (1, 2), "num_heads": 2,
    }  # fmt: skip
    return HiDiffRefiner(spatial_dims, **shape | settings)


def scrambled(model):
    """Give every parameter random values, for many branches start at 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def inputs(model, spatial_dims=2, batch=2):
    size = SIZES[spatial_dims]
    k = model.config["out_channels"]
    sizes = level_sizes(size, model.strides)
    features = [
        random((batch, width, *sizes[level]), 9 + level)
        for width, level in zip(model.feature_channels, model.feature_levels, strict=True)
    ]
    y_t = random((batch, k, *size), 1).round()
    prior = torch.softmax(random((batch, k, *size), 2), 1)
    image = random((batch, model.config["in_channels"], *size))
    return image, y_t, prior, torch.arange(batch) * 4, features


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("num_heads", [0, 2])
@pytest.mark.parametrize("binary", [False, True])
def test_any_size_in_any_rank(spatial_dims, num_heads, binary):
    model = scrambled(tiny(spatial_dims, num_heads=num_heads, binary=binary))
    logits = model(*inputs(model, spatial_dims))
    assert logits.shape == (2, 3, *SIZES[spatial_dims])
    assert bool(logits.isfinite().all())


def test_both_twins_have_one_layout():
    real, binary = tiny(), tiny(binary=True)
    shared = ("stem", "time", "trunks", "conditions", "norm", "head")
    for name in shared:
        twins = (getattr(model, name).state_dict() for model in (real, binary))
        first, second = ({key: value.shape for key, value in each.items()} for each in twins)
        assert first == second, name
    for name in ("joins", "encoder", "shrinks", "middle", "x_former", "enlarges", "decoder"):
        assert len(getattr(real, name)) == len(getattr(binary, name)), name


def test_a_thin_volume_equals_its_slices():
    """A kernel whose outer slices are 0 makes the 3-D network the 2-D one."""
    strides = ((2, 2), (2, 2))
    flat = scrambled(tiny(2, strides=strides))
    deep = tiny(3, strides=tuple((*stride, 1) for stride in strides)).eval()
    weights = {}
    for name, wide in deep.state_dict().items():
        narrow = flat.state_dict()[name]
        if narrow.ndim == wide.ndim:
            weights[name] = narrow
        else:
            weights[name] = torch.zeros_like(wide)
            weights[name][..., wide.shape[-1] // 2] = narrow
    deep.load_state_dict(weights)
    image, y_t, prior, t, features = inputs(flat)
    expected = flat(image, y_t, prior, t, features)
    raised = (x[..., None] for x in (image, y_t, prior))
    got = deep(*raised, t, [feature[..., None] for feature in features])
    torch.testing.assert_close(got[..., 0], expected, atol=1e-4, rtol=1e-4)


def test_it_starts_undecided():
    model = tiny()
    logits = model(*inputs(model))
    assert torch.equal(logits, torch.zeros_like(logits))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_gradients_reach_every_parameter_and_input(spatial_dims):
    model = scrambled(tiny(spatial_dims))
    image, y_t, prior, t, features = inputs(model, spatial_dims)
    given = [x.requires_grad_() for x in (image, y_t, prior, *features)]
    model(image, y_t, prior, t, features).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert float(parameter.grad.abs().sum()) > 0, name
    assert all(float(x.grad.abs().sum()) > 0 for x in given)


def test_the_time_counts():
    model = scrambled(tiny())
    image, y_t, prior, _, features = inputs(model, batch=1)
    with torch.no_grad():
        by_step = [model(image, y_t, prior, torch.tensor([t]), features) for t in range(10)]
    for first, second in itertools.pairwise(by_step):
        assert float((first - second).abs().max()) > 1e-3
    times = torch.tensor([2, 7])
    both = model(*(x.expand(2, -1, -1, -1) for x in (image, y_t, prior)), times,
                 [feature.expand(2, -1, -1, -1) for feature in features])  # fmt: skip
    torch.testing.assert_close(both[0], by_step[2][0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both[1], by_step[7][0], atol=1e-4, rtol=1e-4)


def test_the_time_matters_to_a_fresh_network_behind_its_head():
    model = tiny().eval()
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    image, y_t, prior, _, features = inputs(model, batch=1)
    with torch.no_grad():
        early, late = (model(image, y_t, prior, torch.tensor([t]), features) for t in (0, 9))
    assert float((early - late).abs().max()) > 1e-3


def test_steps_on_one_picture_share_what_prepare_made():
    model = scrambled(tiny())
    image, y_t, prior, t, features = inputs(model)
    trunks = model.prepare(features, image.shape[2:])
    for times in (t, t + 1):
        expected = model(image, y_t, prior, times, features)
        assert torch.equal(model.refine(image, y_t, prior, times, trunks), expected)


def test_features_of_other_sizes_are_interpolated():
    model = scrambled(tiny())
    image, y_t, prior, t, features = inputs(model)
    constant = [torch.ones_like(feature) for feature in features]
    coarse = [torch.ones(*feature.shape[:2], 3, 2) for feature in features]
    expected = model(image, y_t, prior, t, constant)
    torch.testing.assert_close(model(image, y_t, prior, t, coarse), expected)


def test_a_segmenter_without_feature_maps():
    model = scrambled(tiny(feature_channels=(), feature_levels=()))
    assert not list(model.x_former)
    assert model(*inputs(model)).shape == (2, 3, *SIZES[2])


def count(modules, kind=torch.nn.Module):
    """Return the weights, without biases, of all layers of a kind."""
    return sum(
        layer.weight.numel()
        for module in modules
        for layer in module.modules()
        if isinstance(layer, kind) and hasattr(layer, "weight")
    )


def test_the_published_size():
    """Weights of every part that the published network has too; time heads and norms differ."""
    c = 128
    with torch.device("meta"):
        model = HiDiffRefiner(
            2, 1, 9, (c, c, 2 * c, 2 * c, 4 * c, 4 * c), ((2, 2),) * 5,
            (96, 192, 384, 768), (2, 3, 4, 5), num_heads=4,
        )  # fmt: skip
    blocks = [*model.joins.values(), *model.encoder, *model.shrinks, *model.middle]
    blocks += [*model.enlarges, *model.decoder]
    # 32.44 M binary convolutions, a time MLP of 0.33 M, 12.54 M of condition blocks and 1.58 M of
    # their time heads; 1.43 and 0.68 GMAC of the real convolutions at both ends, at 256 x 256.
    assert count(blocks, torch.nn.Conv2d) == 220 * 9 * c * c == 32_440_320
    assert sum(p.numel() for p in model.time.parameters()) == 328_704
    trunks = sum(p.numel() for p in model.trunks.parameters())
    convolutions = sum(p.numel() for block in model.conditions for p in block.conv.parameters())
    assert round((trunks + convolutions) / 1e6, 2) == 12.54
    heads = sum(p.numel() for block in model.conditions for p in block.time.parameters())
    assert heads == 2 * (2 * 2 * c + 2 * 4 * c) * (4 * c + 1)
    assert 256 * 256 * model.stem.weight.numel() == 1_434_451_968
    assert 256 * 256 * model.head.weight.numel() == 679_477_248
    # The X-Former has 6.29 M weights there too: its layer-scale layer is our projection.
    crossing = count(model.x_former, torch.nn.Linear) - count([b.time for b in model.x_former])
    assert crossing == 24 * (4 * c) ** 2 == 6_291_456
    # 66.5 M in all, not 89.2 M: one scale and shift per norm instead of 36 M of time heads that
    # shift thresholds before every sign and every PReLU, which real activations do not need.
    assert sum(p.numel() for p in model.parameters()) == 66_491_209


def test_shortcuts_keep_the_mean():
    x = random((2, 8, 6, 4))
    means = shortcut(x, 4, (2, 2))
    assert means.shape == (2, 4, 3, 2)
    torch.testing.assert_close(means.mean((1, 2, 3)), x.mean((1, 2, 3)))
    wide = shortcut(x, 16, (1, 1))
    assert torch.equal(wide[:, :8], x)
    assert torch.equal(wide[:, 8:], x)
    # An incomplete window is the mean of what it holds.
    assert torch.equal(shortcut(torch.ones(1, 1, 3, 5, 7), 1, (2, 2, 1)), torch.ones(1, 1, 2, 3, 7))
    assert [norm_groups(c) for c in (1, 12, 32, 96, 768)] == [1, 4, 32, 32, 32]


def test_save_and_load_give_the_same_logits(tmp_path):
    model = scrambled(tiny())
    model.save_pretrained(tmp_path)
    loaded = HiDiffRefiner.from_pretrained(tmp_path).eval()
    given = inputs(model)
    # Loaded tensors may be aligned differently in memory: other kernels, other last bits.
    torch.testing.assert_close(loaded(*given), model(*given), rtol=1e-4, atol=1e-5)


def test_bf16_stays_close():
    model = scrambled(tiny())
    given = inputs(model)
    with torch.no_grad():
        exact = model(*given)
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(*given)
        pure = torch.nn.Module.to(model, torch.bfloat16)(*given)
    assert float((cast.float() - exact).norm()) < 0.1 * float(exact.norm())
    assert float((pure.float() - exact).norm()) < 0.1 * float(exact.norm())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strides": ((2, 2),)}, r"3 levels in 2-D need 2 strides of 2 numbers, got \[\[2, 2\]\]"),
        ({"channels": (4, 6, 12)}, r"equal or multiples, got \[4, 6, 12\]"),
        ({"feature_levels": (2, 1)}, r"2 feature maps need as many rising levels, got \[2, 1\]"),
        ({"feature_levels": (1, 3)}, r"lie in 0 \.\. 2, got \[1, 3\]"),
        ({"num_heads": 3}, r"divide the coarsest width 8, got 3"),
    ],
)
def test_unusable_settings_are_refused(settings, message):
    with pytest.raises(RequestError, match=message):
        tiny(**settings)


def test_features_of_another_segmenter_are_refused():
    model = tiny()
    image, y_t, prior, t, features = inputs(model)
    with pytest.raises(RequestError, match=r"maps of \[6, 5\] channels, got \[5, 6\]"):
        model(image, y_t, prior, t, features[::-1])
    with pytest.raises(RequestError, match="spatial_dims must be 2 or 3, got 1"):
        HiDiffRefiner(1, 1, 1, (4,), ())


def discs(count, side):
    """Return images, masks, and the masks of a segmenter that is sure, and wrong by a shift."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij")).float()
    centres = side * (0.3 + 0.4 * random((count, 2, 1, 1)))
    masks = ((grid - centres).norm(dim=1) < side / 5).float()[:, None]
    prior = 0.1 + 0.8 * masks.roll((2, -2), (2, 3))
    return masks + 0.3 * random(masks.shape, 1), masks, prior


def dice(probabilities, masks):
    binary = (probabilities > 0.5).float()
    return float(2 * (binary * masks).sum() / (binary.sum() + masks.sum()))


def test_it_learns_where_a_segmenter_is_wrong():
    images, masks, prior = discs(8, 16)
    chain = BernoulliScheduler()
    model = HiDiffRefiner(2, 1, 1, (16, 16), ((2, 2),))
    adam = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(40):
        t = (10 * random((8,), 100 + step)).long()
        y_t = chain.add_noise(masks, prior, t, random(masks.shape, 200 + step))
        logits = model(images, y_t, prior, t)
        terms = bernoulli_terms(chain, logits, y_t, masks, prior, t, gamma=2.0)
        adam.zero_grad()
        (terms.bound + terms.focal).mean().backward()
        adam.step()
    chain.set_timesteps(5)
    y_t = chain.initial(prior, random(masks.shape, 1000))
    with torch.no_grad():
        for t in chain.timesteps:
            logits = model(images, y_t, prior, t.expand(8))
            y_t, _ = chain.step(logits, t, y_t, prior, random(masks.shape, 1001 + int(t)))
    assert dice(prior, masks) < 0.7
    assert dice(y_t, masks) > 0.9
