import torch

from synthgen.models.contrast import even


def pictures(count=3, side=24):
    generator = torch.Generator().manual_seed(3)
    return 0.05 * torch.randn(count, 1, side, side, generator=generator) - 0.6


def test_mean_and_spread_are_those_of_the_range():
    images = even(pictures()).images
    assert torch.allclose(images.mean((2, 3)), torch.zeros(3, 1), atol=1e-2)
    assert torch.allclose(images.std((2, 3)), torch.full((3, 1), 1 / 3.5), atol=1e-2)
    assert images.abs().max() <= 1


def test_exposure_and_gain_change_nothing():
    one = pictures()
    assert torch.allclose(even(one).images, even(0.5 * one + 0.2).images, atol=1e-5)


def test_the_dark_frame_counts_for_nothing_and_stays_dark():
    one = pictures(1)
    framed = torch.full((1, 1, 40, 40), -1.0)
    framed[..., 8:32, 8:32] = one
    found = even(framed).images
    assert torch.allclose(found[..., 8:32, 8:32], even(one).images, atol=1e-5)
    assert (found[..., :8, :] == -1).all()


def test_unchanged_pictures_come_back_whole_even_where_they_were_cut_off():
    one = pictures(2)
    one[:, :, 3, 3] = 0.99
    evened = even(one)
    assert evened.images[:, :, 3, 3].eq(1).all()
    assert torch.allclose(evened.back(evened.images, one), one, atol=1e-6)


def test_a_flat_picture_is_not_blown_up():
    flat = torch.full((1, 1, 8, 8), -0.5)
    assert even(flat).images.eq(0).all()
    assert even(torch.full((1, 1, 8, 8), -1.0)).images.eq(-1).all()
