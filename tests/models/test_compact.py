import pytest
import torch
from torch import nn

from synthgen.models import spade
from synthgen.models.compact import compact, compact_each, whole
from synthgen.models.spade import SPADEGenerator
from synthgen.runtime import seeded_init

CHANNELS = 3


def head(x, y, box):
    """Background with random labels in a box of rows and columns."""
    maps = torch.zeros(1, CHANNELS, x, y)
    maps[:, 0] = 1
    inside = torch.rand(1, CHANNELS, x, y, generator=torch.Generator().manual_seed(0))
    rows, columns = (slice(*ends) for ends in box)
    maps[:, :, rows, columns] = inside[:, :, rows, columns]
    return maps


def convolutions():
    with seeded_init(0, 0):
        return nn.Sequential(
            nn.Conv2d(CHANNELS, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1)
        ).double()


def generator(**settings):
    with seeded_init(0, 0):
        return SPADEGenerator(CHANNELS, (64, 96), 2, latent_dim=4, hidden=8, **settings).eval()


def codes(count):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0))


BOXES = [
    ((10, 20), (12, 30)),
    ((0, 20), (12, 40)),  # at two edges
    ((0, 32), (0, 40)),  # nothing repeats
    ((7, 7), (9, 9)),  # all repeats
    ((5, 27), (5, 35)),  # runs of five: nothing to leave out
    ((6, 26), (6, 34)),  # one row and column at each side
    ((31, 32), (0, 1)),
]


@pytest.mark.parametrize("box", BOXES)
@torch.no_grad()
def test_convolutions_of_compact_maps_are_those_of_the_whole(box):
    maps, net = head(32, 40, box).double(), convolutions()
    small = compact(maps)
    torch.testing.assert_close(small.put_back(net(small.values)), net(maps), rtol=0, atol=1e-14)


@torch.no_grad()
def test_what_repeats_outside_a_box_is_left_out():
    # Five rows or columns stand for each run outside.
    assert compact(head(32, 40, BOXES[0])).values.shape == (1, CHANNELS, 10 + 10, 18 + 10)
    assert compact(head(32, 40, BOXES[3])).values.shape == (1, CHANNELS, 5, 5)
    assert compact(head(32, 40, BOXES[2])).values.shape == (1, CHANNELS, 32, 40)
    assert compact(head(32, 40, BOXES[4])).values.shape == (1, CHANNELS, 32, 40)
    assert compact(head(32, 40, BOXES[5])).values.shape == (1, CHANNELS, 30, 38)


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (5, 6)])
@torch.no_grad()
def test_maps_of_a_few_pixels(size):
    maps, net = head(*size, ((0, 0), (0, 0))).double(), convolutions()
    small = compact(maps)
    torch.testing.assert_close(small.put_back(net(small.values)), net(maps), rtol=0, atol=1e-14)


@torch.no_grad()
def test_bands_between_two_heads_and_several_maps_at_once():
    first, second = head(64, 40, ((5, 15), (8, 16))), head(64, 40, ((50, 60), (20, 30)))
    both, net = torch.cat([first, second]).double(), convolutions()
    small = compact(both)
    # Rows: run of 5, box of 10, run of 35, box of 10, run of 4; a run keeps five at most.
    assert small.values.shape == (2, CHANNELS, 5 + 10 + 5 + 10 + 4, 5 + 8 + 4 + 10 + 5)
    torch.testing.assert_close(small.put_back(net(small.values)), net(both), rtol=0, atol=1e-14)


def test_maps_stay_together_where_a_gradient_is_wanted_or_they_are_small():
    maps = head(64, 64, ((20, 40), (20, 40))).expand(3, -1, -1, -1)
    (together,) = compact_each(maps)
    assert together.places is None
    with torch.no_grad():
        assert [part.values.shape[2:] for part in compact_each(maps)] == [(30, 30)] * 3
        (small,) = compact_each(maps[:, :, :32, :32])
    assert small.places is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("style_in_norm", [False, True])
@torch.no_grad()
def test_images_are_those_of_whole_maps(dtype, style_in_norm, monkeypatch):
    model = generator(style_in_norm=style_in_norm)
    nn.Module.to(model, dtype).to(memory_format=torch.channels_last)
    boxes = (((20, 40), (30, 60)), ((0, 64), (50, 96)))
    pv = torch.cat([head(64, 96, box) for box in boxes])
    z = codes(2).to(dtype)
    image, _ = model(pv, z)
    one_in_two_styles, _ = model(pv[:1], z)
    monkeypatch.setattr(spade, "compact_each", lambda maps: [whole(maps)])
    expected, _ = model(pv, z)
    assert float(expected.std()) > 0.01
    # Other sizes, other kernels: last bits.
    margin = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(image, expected, rtol=0, atol=margin)
    torch.testing.assert_close(one_in_two_styles, model(pv[:1], z)[0], rtol=0, atol=margin)


@torch.no_grad()
def test_an_image_does_not_depend_on_the_other_maps_of_its_batch():
    model = generator()
    model.to(memory_format=torch.channels_last)
    maps = [
        head(64, 96, box)
        for box in (((20, 40), (30, 60)), ((0, 64), (50, 96)), ((30, 50), (0, 90)))
    ]
    z = codes(1).expand(2, -1)
    first, second = (model(torch.cat([maps[0], other]), z)[0][0] for other in maps[1:])
    assert torch.equal(first, second)
