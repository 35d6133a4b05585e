import logging

import pytest
import torch
from torch.nn import functional

from synthgen.core.errors import RequestError
from synthgen.models import hidiff_deploy
from synthgen.models.hidiff import HiDiffRefiner
from synthgen.models.hidiff_binary import BinaryBlock
from synthgen.models.hidiff_deploy import DeployedRefiner, best_backend
from synthgen.models.hidiff_integer import IntegerBlock, fold

BACKENDS = ("reference", "int8", "popcount")
STEPS = 4
TOLERANCE = 1e-5  # float32 rounding of outputs of a few units

# widths, taps, stride, size, size after enlarging
BLOCKS = {
    "one word": ((64, 64), (3, 3), (1, 1), (5, 7), None),
    "odd widths": ((70, 35), (3, 3), (1, 1), (4, 6), None),
    "halved": ((128, 64), (3, 3), (1, 1), (3, 13), None),
    "quartered": ((128, 32), (3, 3), (1, 1), (3, 4), None),
    "shrinking": ((20, 40), (3, 3), (2, 2), (5, 8), None),
    "shrinking unequally": ((8, 8), (3, 3), (1, 3), (5, 8), None),
    "enlarging": ((64, 32), (3, 3), (1, 1), (4, 3), (7, 6)),
    "linear, wider": ((8, 32), (1, 1), (1, 1), (3, 4), None),
    "linear, narrower": ((32, 8), (1, 1), (1, 1), (3, 4), None),
    "one pixel": ((16, 8), (3, 3), (1, 1), (1, 1), None),
    "volume": ((16, 16), (3, 3, 3), (1, 1, 1), (3, 4, 5), None),
    "volume shrinking": ((16, 48), (3, 3, 3), (1, 2, 2), (2, 5, 4), None),
    "volume enlarging": ((16, 8), (3, 3, 3), (1, 1, 1), (2, 3, 2), (2, 5, 4)),
}


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scrambled(model):
    """Give parameters and running statistics random values, norms of both signs among them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, values in [*model.named_parameters(), *model.named_buffers()]:
            drawn = torch.randn(values.shape, generator=generator)
            if name.endswith("running_var"):
                values.copy_(0.5 + drawn.abs())
            elif values.is_floating_point():
                values.copy_(0.1 * drawn)
    return model.eval()


def deployed(block, embeddings, backend):
    if backend == "popcount":
        pytest.importorskip("numba")
        from synthgen.models.hidiff_bits import PopcountBlock  # noqa: PLC0415

        return PopcountBlock(fold(block, embeddings))
    return IntegerBlock(fold(block, embeddings), integers=backend == "int8")


def tiny(spatial_dims=2, **settings):
    """Return a refiner with every kind of block: conditions, joins and an X-Former."""
    strides = ((2,) * spatial_dims, (1, *(2,) * (spatial_dims - 1)))
    shape = {
        "in_channels": 1, "out_channels": 2, "channels": (64, 64, 128), "strides": strides,
        "feature_channels": (4, 8), "feature_levels": (1, 2), "num_heads": 2, "binary": True,
    }  # fmt: skip
    model = scrambled(HiDiffRefiner(spatial_dims, **shape | settings))
    # One batch through the norms, so that every map is of a few units.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            module.momentum = 1.0
            torch.nn.init.constant_(module.weight, 0.5)
    with torch.no_grad():
        model.train()(*inputs(spatial_dims, num_features=len(model.trunks)))
    return model.eval()


def inputs(spatial_dims=2, num_features=2):
    size = (9, 7, 6)[:spatial_dims]
    masks = [random((2, 2, *size), seed).sigmoid() for seed in (1, 2)]
    times = torch.tensor([0, STEPS - 1])
    features = [random((2, width, *[4] * spatial_dims), width) for width in (4, 8)]
    return random((2, 1, *size)), *masks, times, features[:num_features]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_block_equals_its_simulation(name, backend):
    (wide, narrow), kernel, stride, size, enlarged = BLOCKS[name]
    block = scrambled(BinaryBlock(wide, narrow, kernel, stride, 6))
    embeddings, x = random((STEPS, 6), 1), random((2, wide, *size), 2)
    t = torch.tensor([1, 3])
    shown = x if enlarged is None else functional.interpolate(x, size=enlarged)
    expected = block(shown, embeddings[t])
    got = deployed(block, embeddings, backend)(x, t, size=enlarged)
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("widths", [(64, 64, 64), (64, 128, 64), (64, 64, 128), (8, 8, 8)])
@torch.no_grad()
def test_block_takes_two_maps_side_by_side(widths, backend):
    first, second, narrow = widths
    block = scrambled(BinaryBlock(first + second, narrow, (3, 3), (1, 1), 6))
    embeddings, t = random((STEPS, 6), 1), torch.tensor([2])
    x, beside = random((1, first, 5, 4), 2), random((1, second, 5, 4), 3)
    expected = block(torch.cat([x, beside], 1), embeddings[t])
    got = deployed(block, embeddings, backend)(x, t, beside=beside)
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_values_at_the_threshold_and_dead_outputs(backend):
    block = scrambled(BinaryBlock(64, 64, (3, 3), (1, 1), 6))
    block.norm.weight[:3] = 0
    block.conv.weight[3] = 0
    embeddings, t = random((STEPS, 6), 1), torch.arange(1)
    threshold = block.time(embeddings[t])[:, :64, None, None]
    x = torch.cat([threshold, threshold.nextafter(torch.tensor(-9.0))], -1)
    got = deployed(block, embeddings, backend)(x, t)
    torch.testing.assert_close(got, block(x, embeddings[t]), atol=TOLERANCE, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank", [2, 3])
@torch.no_grad()
def test_refiner_equals_its_simulation_block_by_block(rank, backend):
    if backend == "popcount":
        pytest.importorskip("numba")
    simulated, seen = tiny(rank), {}
    for name, module in simulated.named_modules():
        if isinstance(module, BinaryBlock):
            module.register_forward_hook(
                lambda _, given, result, name=name: seen.update({name: (given[0], result)})
            )
    expected = simulated(*inputs(rank))
    ready = DeployedRefiner(simulated, STEPS, backend=backend)
    assert len(seen) == 2 + 1 + 2 + 2 + 2 * 5 + 2 + 2  # levels, a join, crossings of five
    for name, (x, result) in seen.items():
        got = ready.net.get_submodule(name)(x, inputs(rank)[3])
        torch.testing.assert_close(got, result, atol=TOLERANCE, rtol=1e-6)
    got = ready(*inputs(rank))
    # One sign that differs by rounding changes its neighbourhood; most pixels see none.
    assert (got - expected).abs().median() < TOLERANCE
    assert not any(isinstance(module, BinaryBlock) for module in ready.modules())


@torch.no_grad()
def test_prepared_features_give_the_same():
    ready = DeployedRefiner(tiny(), STEPS, backend="reference")
    *parts, features = inputs()
    trunks = ready.prepare(features, parts[0].shape[2:])
    assert torch.equal(ready.refine(*parts, trunks), ready(*parts, features))


def test_bfloat16_of_the_real_layers_only_rounds():
    pytest.importorskip("numba")
    model = tiny(feature_channels=(), feature_levels=(), num_heads=0)
    *parts, _ = inputs(num_features=0)
    exact = DeployedRefiner(model, STEPS)(*parts)
    rounded = DeployedRefiner(model, STEPS, dtype=torch.bfloat16)(*parts)
    assert rounded.dtype == torch.float32
    assert float(torch.corrcoef(torch.stack([exact.flatten(), rounded.flatten()]))[0, 1]) > 0.95


def test_threads_do_not_change_a_bit():
    pytest.importorskip("numba")
    ready, before = DeployedRefiner(tiny(), STEPS, backend="popcount"), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            block = ready.net.encoder[0]
            results.append(block(random((1, 64, 7, 6)), torch.tensor([1])))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_input_of_a_block_is_left_alone():
    pytest.importorskip("numba")
    ready = DeployedRefiner(tiny(), STEPS, backend="popcount")
    x = random((1, 64, 7, 6)).contiguous(memory_format=torch.channels_last)
    copied = x.clone()
    ready.net.encoder[0](x, torch.tensor([1]))
    assert torch.equal(x, copied)


def test_deploying_leaves_the_trained_refiner_as_it_is():
    model = tiny().train()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    DeployedRefiner(model, STEPS, backend="reference")
    assert model.training
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert any(isinstance(module, BinaryBlock) for module in model.modules())


def test_real_refiner_is_refused():
    with pytest.raises(RequestError, match=r"expected a binary refiner \(binary: true\)"):
        DeployedRefiner(tiny(binary=False), STEPS)


@pytest.mark.parametrize(
    ("installed", "working", "chosen"),
    [
        (True, ("popcount", "int8"), "popcount"),
        (False, ("popcount", "int8"), "int8"),
        (True, ("int8",), "int8"),
        (True, (), "reference"),
    ],
)
def test_fastest_way_that_works_is_chosen(monkeypatch, caplog, installed, working, chosen):
    best_backend.cache_clear()
    monkeypatch.setattr(hidiff_deploy, "find_spec", lambda _: object() if installed else None)
    monkeypatch.setattr(hidiff_deploy, "_works", lambda backend: backend in working)
    with caplog.at_level(logging.INFO):
        assert best_backend() == chosen
    if not installed:
        assert "pip install 'synthgen[numba]'" in caplog.text
    if not working:
        assert "int8 does not work on this machine" in caplog.text
    best_backend.cache_clear()


def test_self_test_finds_wrong_sums_and_missing_calls(monkeypatch):
    assert hidiff_deploy._works("int8")

    def wrong(folded, backend):
        return IntegerBlock(folded._replace(scale=folded.scale * 1.1), integers=False)

    def missing(folded, backend):
        raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qconv_prepack'")

    for broken in (wrong, missing):
        monkeypatch.setattr(hidiff_deploy, "_block", broken)
        assert not hidiff_deploy._works("int8")


@pytest.mark.parametrize("width", [8, 70])
def test_norm_and_silu_in_one_pass(width):
    pytest.importorskip("numba")
    from synthgen.models.hidiff_bits import NormSilu  # noqa: PLC0415

    norm = scrambled(torch.nn.GroupNorm(2, width))
    x = 40 * random((2, width, 19, 17)) + 3
    exact = norm.double()(x.double())
    got = NormSilu(norm)(x.clone())
    torch.testing.assert_close(got.double(), functional.silu(exact), atol=1e-5, rtol=1e-5)
