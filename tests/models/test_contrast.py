import torch

from synthgen.models.contrast import even, even_locally


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
    for evened in (even(one), even_locally(one, 9, 0.3)):
        assert evened.images[:, :, 3, 3].eq(1).all()
        assert torch.equal(evened.back(evened.images, one), one)


def test_what_was_changed_is_a_share_of_the_local_brightness():
    one = pictures(1, 96)
    one[..., :48] -= 0.2
    evened = even_locally(one, 17, 0.4)
    changed = evened.back(evened.images - 0.5, one)
    dark, bright = (-0.5 * 0.4 * (level + 1) for level in (-0.8, -0.6))
    assert torch.allclose((changed - one)[..., 10:38], torch.tensor(dark), atol=0.01)
    assert torch.allclose((changed - one)[..., 58:86], torch.tensor(bright), atol=0.01)


def test_locally_even_pictures_look_like_real_crops_of_that_share():
    one = pictures(1, 96)
    local = even_locally(one, 33, float(even(one).share)).images
    assert torch.allclose(local.std(), torch.tensor(1 / 3.5), atol=0.03)


def test_the_share_does_not_depend_on_the_exposure():
    one = (pictures() + 1) / 2
    assert torch.allclose(even(2 * one - 1).share, even(1.4 * one - 1).share, atol=1e-4)


def test_a_flat_picture_is_not_blown_up():
    flat = torch.full((1, 1, 8, 8), -0.5)
    assert even(flat).images.eq(0).all()
    assert even(torch.full((1, 1, 8, 8), -1.0)).images.eq(-1).all()
