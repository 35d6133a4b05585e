import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.losses.style import (
    code_consistency,
    modality_dataset_bce,
    random_affine,
    style_contrastive,
)

CONSISTENCY = pytest.mark.parametrize("loss", [style_contrastive, code_consistency])


def generators(n, seed=0):
    return [SampleKey(seed, index).torch(Stream.AUGMENT) for index in range(n)]


def smooth_image(batch=1, size=(40, 56)):
    x, y = torch.meshgrid(*(torch.arange(s, dtype=torch.float32) for s in size), indexing="ij")
    bump = torch.exp(-(((x - 17) / 6) ** 2 + ((y - 32) / 9) ** 2) / 2)
    return bump[None, None].repeat(batch, 1, 1, 1)


def test_bce_at_zero_logits_is_log_two_for_each_head():
    loss = modality_dataset_bce(
        torch.zeros(2, 3),
        torch.zeros(2, 4),
        torch.tensor([0, 2]),
        torch.tensor([1, 3]),
        alpha_mod=0.75,
        alpha_dat=0.3,
    )
    assert float(loss) == pytest.approx((0.75 + 0.3) * math.log(2))


def test_bce_value():
    # Right class at logit 2, wrong one at 1: mean of log(1 + e^-2) and log(1 + e^1).
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2
    loss = modality_dataset_bce(
        torch.tensor([[2.0, 1.0]]),
        torch.zeros(1, 2),
        torch.tensor([0]),
        torch.tensor([0]),
        alpha_mod=1.0,
        alpha_dat=0.0,
    )
    assert float(loss) == pytest.approx(expected)


@CONSISTENCY
def test_consistency_is_one_minus_the_cosine(loss):
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    b = torch.tensor([[5.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [4.0, 3.0]])
    assert float(loss(a, b)) == pytest.approx((0 + 1 + 2 + (1 - 24 / 25)) / 4)


@CONSISTENCY
def test_consistency_reduces_in_float32(loss):
    codes = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    value = loss(codes, codes)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(0, abs=1e-6)


def test_every_sample_gets_its_own_transform():
    moved = random_affine(smooth_image(batch=3), generators(3))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert float((moved[i] - moved[j]).abs().max()) > 0.05


@pytest.mark.usefixtures("untouched_rng")
def test_a_transform_depends_on_its_generator_alone():
    image = smooth_image(batch=3)
    moved = random_affine(image, generators(3))
    alone = random_affine(image[:1], generators(3)[2:])
    torch.testing.assert_close(moved[2:], alone, rtol=0, atol=1e-6)


def test_no_ranges_leave_the_image_alone():
    image = smooth_image()
    moved = random_affine(image, generators(1), scale=0, rotate=0, shift_px=0)
    torch.testing.assert_close(moved, image, rtol=0, atol=1e-5)


def test_transform_equals_a_slow_affine_in_pixels():
    image = smooth_image()
    moved = random_affine(image, generators(1), scale=0.2, rotate=0.75, shift_px=3.0)
    draws = (torch.rand(4, generator=generators(1)[0]) * 2 - 1).tolist()
    zoom, angle = 1 + 0.2 * draws[0], 0.75 * draws[1]
    # Output pixel p takes the value at R(angle) / zoom (p - centre) + centre + shift.
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    matrix = np.array([[cos, sin], [-sin, cos]])
    centre = (np.array(image.shape[-2:]) - 1) / 2
    offset = centre + 3.0 * np.array(draws[2:]) - matrix @ centre
    expected = ndimage.affine_transform(
        image[0, 0].numpy(), matrix, offset, order=1, mode="nearest"
    )
    np.testing.assert_allclose(moved[0, 0].numpy(), expected, atol=1e-4)


def test_border_values_fill_what_comes_from_outside():
    moved = random_affine(torch.full((2, 1, 20, 30), -1.0), generators(2))
    torch.testing.assert_close(moved, torch.full((2, 1, 20, 30), -1.0))


def test_gradients_pass_the_transform():
    image = smooth_image().requires_grad_()
    random_affine(image, generators(1)).sum().backward()
    assert bool(image.grad.abs().sum() > 0)


def test_transform_runs_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        moved = random_affine(smooth_image(), generators(1))
    torch.testing.assert_close(moved, random_affine(smooth_image(), generators(1)))


def test_one_generator_per_image_is_needed():
    with pytest.raises(RequestError, match=r"\(2\), got 1"):
        random_affine(smooth_image(batch=2), generators(1))
