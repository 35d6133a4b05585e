import itertools
import math

import pytest
import torch
from torch.nn import functional

from synthgen.models.hidiff import HiDiffRefiner
from synthgen.models.hidiff_binary import (
    BinaryBlock,
    BinaryConvNd,
    BinaryCrossing,
    activate,
    sign,
)

RANKS = (2, 3)


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scrambled(model, spread=0.3):
    """Give every parameter and running mean random values, for many branches start at 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, values in [*model.named_parameters(), *model.named_buffers()]:
            drawn = torch.randn(values.shape, generator=generator)
            if name.endswith("running_var"):
                values.copy_(0.5 + drawn.abs())
            elif values.is_floating_point():
                values.copy_(spread * drawn)
    return model.eval()


def tiny(spatial_dims=2):
    return HiDiffRefiner(
        spatial_dims, 1, 2, (8, 16), ((2,) * spatial_dims,), (4,), (1,), num_heads=2, binary=True
    )


def inputs(spatial_dims=2, batch=2):
    full, half = (6, 8, 4)[:spatial_dims], (3, 4, 2)[:spatial_dims]
    masks = [random((batch, 2, *full), seed).sigmoid() for seed in (1, 2)]
    times, features = torch.tensor([0, 7])[:batch], [random((batch, 4, *half), 3)]
    return random((batch, 1, *full)), *masks, times, features


def test_sign_and_its_gradient_are_those_of_the_paper():
    u = torch.arange(-2, 2.5, 0.5, requires_grad=True)
    signs = sign(u)
    signs.sum().backward()
    assert signs.tolist() == [-1.0] * 4 + [1.0] * 5  # 0 counts as positive
    assert u.grad.tolist() == [0, 0, 0, 1, 2, 1, 0, 0, 0]  # max(2 - 2 |u|, 0)
    assert sign(torch.tensor([-0.0, float("nan")], dtype=torch.bfloat16)).tolist() == [1.0, -1.0]


@pytest.mark.parametrize("rank", RANKS)
def test_convolution_is_one_of_mean_magnitudes_times_signs(rank):
    conv = BinaryConvNd(5, 4, (3,) * rank, (2,) * rank, centred=False)
    signs = sign(random((2, 5, *(6, 7, 5)[:rank])))
    means = conv.weight.detach().abs().flatten(1).mean(1).reshape(-1, *[1] * (rank + 1))
    weight = torch.where(conv.weight >= 0, means, -means)
    convolve = functional.conv2d if rank == 2 else functional.conv3d
    torch.testing.assert_close(conv(signs), convolve(signs, weight, stride=2, padding=1))


def test_beyond_the_border_there_is_no_sign():
    conv = BinaryConvNd(2, 1, (3, 3), (1, 1), centred=False)
    with torch.no_grad():
        conv.weight.fill_(1)
    counted = conv(torch.ones(1, 2, 3, 3))[0, 0]
    assert counted.tolist() == [[8, 12, 8], [12, 18, 12], [8, 12, 8]]


def test_gradient_passes_weights_within_one_only():
    conv = BinaryConvNd(1, 1, (1, 1), (1, 1), centred=False)
    grads = []
    for value in (-1.5, -0.5, 0.5, 1.5):
        with torch.no_grad():
            conv.weight.fill_(value)
        conv.weight.grad = None
        conv(torch.ones(1, 1, 1, 1)).sum().backward()
        grads.append(conv.weight.grad.item())
    assert grads == [0, 1, 1, 0]


def test_linear_maps_centre_their_weights_but_not_their_scale():
    conv = BinaryConvNd(4, 1, (1, 1), (1, 1), centred=True)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(1, 4, 1, 1))
    assert conv.signs().flatten().tolist() == [-1, -1, 1, 1]
    assert conv.scale().item() == 3


def test_block_is_its_formula():
    block = scrambled(BinaryBlock(6, 3, (3, 3), (1, 1), 4))
    x, emb = random((2, 6, 5, 4)), random((2, 4), 1)
    numbers = block.time(emb)[..., None, None]
    threshold, before, after = numbers[:, :6], numbers[:, 6:9], numbers[:, 9:]
    signs = torch.where(x >= threshold, 1.0, -1.0)
    pairs = x.reshape(2, 3, 2, 5, 4).mean(2)
    hidden = block.norm(block.conv(signs)) + pairs + before
    expected = functional.prelu(hidden, block.slope) + after
    torch.testing.assert_close(block(x, emb), expected)
    torch.testing.assert_close(
        activate(torch.ones(1, 1, 1, 1), *torch.tensor([[-3.0], [0.5], [4.0]])).item(), 3.0
    )


@pytest.mark.parametrize("rank", RANKS)
def test_attention_sums_the_values_of_likely_keys(rank):
    crossing = BinaryCrossing(rank, 8, 2, 4)
    maps = [sign(random((2, 8, *(3, 2, 2)[:rank]), seed)) for seed in range(3)]
    query, key, value = (part.reshape(2, 2, 4, -1) for part in maps)
    expected = torch.zeros_like(query)
    for b, head, i in itertools.product(range(2), range(2), range(query.shape[3])):
        scores = [float(query[b, head, :, i] @ k) / 2 for k in key[b, head].T]  # sqrt(4)
        for j, score in enumerate(scores):
            if math.exp(score) > 0.35 * max(map(math.exp, scores)):
                expected[b, head, :, i] += value[b, head, :, j]
    torch.testing.assert_close(crossing._attend(*maps), expected.reshape(maps[0].shape))


@pytest.mark.parametrize("rank", RANKS)
def test_crossing_starts_by_leaving_the_stream_alone(rank):
    crossing = BinaryCrossing(rank, 8, 2, 4)
    query, stream = (random((2, 8, *(3, 2, 2)[:rank]), seed) for seed in range(2))
    assert torch.equal(crossing(query, stream, random((2, 4))), stream)


@pytest.mark.parametrize("rank", RANKS)
def test_gradients_reach_every_parameter(rank):
    model = scrambled(tiny(rank)).train()
    model(*inputs(rank)).square().sum().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert still == []


def test_tiny_binary_refiner_learns():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = tiny().train()
    batch = inputs()
    target = (batch[0] > 0).float().expand(-1, 2, -1, -1)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = functional.binary_cross_entropy_with_logits(model(*batch), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_binary_refiner_is_saved_and_read_back(tmp_path):
    model = scrambled(tiny())
    model.save_pretrained(tmp_path)
    again = HiDiffRefiner.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(*inputs()), model(*inputs()))
