"""Augmentation: partial volumes stay partial volumes, draws belong to their sample."""

from __future__ import annotations

import pytest
import torch

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.data.augment import (
    ImageAugment,
    PvAugment,
    augment_image,
    augment_lesions,
    augment_pair,
    augment_pv,
    paste_lesions,
    warp_raw,
)

STRONG = PvAugment(
    rotate_deg=25,
    scale=0.3,
    shear=0.2,
    shift_px=6,
    elastic_px=3,
    elastic_grid=4,
    flip_probability=0.5,
)
CONTRAST = ImageAugment(bias=0.35, gamma_low=0.7, gamma_high=1.4, noise=0.05)
SHAPE = (32, 40)


def generators(n, first=0):
    return [SampleKey(3, first + i).torch(Stream.AUGMENT) for i in range(n)]


def random_pv(batch=3, channels=5, shape=SHAPE, seed=0):
    logits = torch.randn(batch, channels, *shape, generator=torch.Generator().manual_seed(seed))
    return torch.softmax(3 * logits, dim=1)


def disk(shape=SHAPE, radius=8.0, at=(0.0, 0.0)):
    x = torch.arange(shape[0])[:, None] - (shape[0] - 1) / 2 - at[0]
    y = torch.arange(shape[1])[None] - (shape[1] - 1) / 2 - at[1]
    inside = (radius - torch.sqrt(x**2 + y**2) + 0.5).clamp(0, 1)
    return torch.stack([1 - inside, inside])[None]


def test_warped_labels_stay_partial_volumes():
    for seed in range(10):
        out = augment_pv(random_pv(seed=seed), generators(3, 3 * seed), STRONG)
        assert (out.sum(dim=1) - 1).abs().max() < 1e-5
        assert out.min() >= 0
        assert out.max() <= 1


def test_background_comes_in_from_outside():
    full = torch.zeros(4, 3, *SHAPE)
    full[:, 2] = 1  # tissue up to the border
    out = augment_pv(full, generators(4), PvAugment(shift_px=12))
    assert out[:, 0].sum() > 0
    assert out[:, 1].abs().max() == 0


def test_default_settings_change_nothing():
    pv = random_pv()
    image = torch.rand(3, 1, *SHAPE, generator=torch.Generator().manual_seed(1))
    image[pv[:, :1] > 0.5] = 0
    assert torch.equal(augment_pv(pv, generators(3), PvAugment()), pv)
    labels, same = augment_pair(pv, image, generators(3), PvAugment())
    assert torch.equal(labels, pv)
    assert torch.equal(same, image)
    brain = torch.ones_like(image)
    assert torch.equal(augment_image(image, brain, generators(3), ImageAugment()), image)


def test_a_flip_is_exact_and_left_right():
    pv = random_pv()
    out = augment_pv(pv, generators(3), PvAugment(flip_probability=1))
    assert torch.equal(out, pv.flip(2))


def test_flips_come_at_their_rate():
    pv = random_pv(batch=200, channels=2, shape=(4, 4))
    out = augment_pv(pv, generators(200), PvAugment(flip_probability=0.3))
    flipped = sum(bool(torch.equal(a, b.flip(1))) for a, b in zip(out, pv, strict=True))
    assert 40 <= flipped <= 80  # 60 expected, standard deviation 6.5


def test_a_small_elastic_amplitude_moves_little():
    pv = disk()
    out = augment_pv(pv, generators(1), PvAugment(elastic_px=1e-4, elastic_grid=4))
    assert (out - pv).abs().max() < 1e-3  # linear interpolation over 1e-4 px


def test_shift_is_bounded_and_in_pixels():
    centres = []
    for i in range(20):
        out = augment_pv(disk(radius=6), generators(1, i), PvAugment(shift_px=5))[0, 1]
        x = (out.sum(1) * torch.arange(SHAPE[0])).sum() / out.sum() - (SHAPE[0] - 1) / 2
        y = (out.sum(0) * torch.arange(SHAPE[1])).sum() / out.sum() - (SHAPE[1] - 1) / 2
        centres.append((float(x), float(y)))
    largest = max(max(abs(x), abs(y)) for x, y in centres)
    assert 3 < largest <= 5.05


def test_rotation_keeps_shapes_and_aspect():
    pv = disk(radius=9)
    out = augment_pv(pv, generators(1), PvAugment(rotate_deg=90))
    # A disk is its own rotation only if pixels are treated as square on a 32 x 40 grid.
    assert (out - pv).abs().mean() < 0.01


def test_scale_changes_area_by_its_square_at_most():
    area = float(disk(radius=7)[0, 1].sum())
    for i in range(10):
        out = augment_pv(disk(radius=7), generators(1, i), PvAugment(scale=0.2))
        assert area / 1.2**2 * 0.98 <= float(out[0, 1].sum()) <= area / 0.8**2 * 1.02


def test_pair_is_warped_alike():
    pv = disk(radius=9)
    labels, image = augment_pair(pv, pv[:, 1:], generators(1), STRONG)
    assert torch.equal(labels, augment_pv(pv, generators(1), STRONG))
    # Cubic against linear interpolation of the same edge.
    assert (image - labels[:, 1:]).abs().mean() < 0.02
    assert image[labels[:, :1] > 0.5].abs().max() == 0


def test_same_generator_same_sample_whatever_stands_beside_it():
    pv = random_pv(batch=4)
    image = torch.rand(4, 1, *SHAPE, generator=torch.Generator().manual_seed(2))
    brain = torch.ones_like(image)
    together = augment_pv(pv, generators(4), STRONG)
    contrast = augment_image(image, brain, generators(4), CONTRAST)
    for i in range(4):
        alone = augment_pv(pv[i : i + 1], generators(1, i), STRONG)
        assert torch.allclose(alone[0], together[i], atol=1e-6)
        alone = augment_image(image[i : i + 1], brain[:1], generators(1, i), CONTRAST)
        assert torch.allclose(alone[0], contrast[i], atol=1e-6)
    assert torch.equal(together, augment_pv(pv, generators(4), STRONG))
    assert not torch.allclose(together, augment_pv(pv, generators(4, 50), STRONG))


def test_one_transform_does_not_change_the_draws_of_another():
    pv = disk(at=(5.0, 3.0))
    flip_only = augment_pv(pv, generators(1, 7), PvAugment(flip_probability=0.5))
    settings = PvAugment(flip_probability=0.5, elastic_px=1e-6)
    assert torch.allclose(flip_only, augment_pv(pv, generators(1, 7), settings), atol=1e-4)


def test_global_generator_is_untouched():
    before = torch.get_rng_state()
    pv = random_pv()
    image = torch.full((3, 1, *SHAPE), 0.5)
    augment_pair(pv, image, generators(3), STRONG)
    augment_lesions(pv[:, 1], generators(3), STRONG)
    augment_image(image, torch.ones_like(image), generators(3), CONTRAST)
    assert torch.equal(torch.get_rng_state(), before)


def test_pasted_lesion_takes_white_matter_and_keeps_the_sum():
    pv = torch.zeros(1, 9, 4, 4)
    pv[:, 3, :2], pv[:, 1, 2:] = 1, 1  # white matter above, CSF below
    out = paste_lesions(pv, torch.full((1, 4, 4), 0.8), 6, 0.5)
    assert torch.allclose(out[0, 6, :2], torch.full((2, 4), 0.4))
    assert torch.allclose(out[0, 3, :2], torch.full((2, 4), 0.6))
    assert torch.equal(out[0, :, 2:], pv[0, :, 2:])
    assert torch.equal(paste_lesions(pv, torch.ones(1, 4, 4), 6, 0.0), pv)


def test_pasted_lesions_leave_partial_volumes_anywhere():
    pv = random_pv(batch=2, channels=9)
    lesion = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(5))
    out = paste_lesions(pv, lesion, 6, torch.tensor([0.0, 1.0]))
    assert (out.sum(dim=1) - 1).abs().max() < 1e-5
    assert out.min() >= 0
    assert torch.equal(out[0], pv[0])
    assert (out[1, 6] >= pv[1, 6]).all()


def test_warped_lesion_masks_stay_masks():
    masks = disk(radius=4)[:, 1]
    out = augment_lesions(masks, generators(1), STRONG)
    assert out.shape == masks.shape
    assert out.min() >= 0
    assert out.max() <= 1
    assert out.sum() > 0


def test_contrast_change_is_bounded():
    image = torch.full((8, 1, *SHAPE), 0.5)
    brain = torch.ones_like(image)
    out = augment_image(image, brain, generators(8), ImageAugment(bias=0.35))
    assert out.min() >= 0.5 * 0.7
    assert out.max() <= 0.5 * 1.43
    assert out.std() > 0
    out = augment_image(image, brain, generators(8), ImageAugment(gamma_low=0.5, gamma_high=2))
    assert out.min() >= 0.25 - 1e-6
    assert out.max() <= 0.5**0.5 + 1e-6


def test_image_is_zero_outside_the_brain_and_within_range():
    image = torch.rand(3, 1, *SHAPE, generator=torch.Generator().manual_seed(2))
    brain = (disk()[:, 1:] > 0.5).float().expand(3, -1, -1, -1)
    out = augment_image(image, brain, generators(3), CONTRAST)
    assert out[brain == 0].abs().max() == 0
    assert out.min() >= 0
    assert out.max() <= 1


def test_noise_has_the_rician_mean_in_the_dark():
    image = torch.zeros(1, 1, 200, 200)
    settings = ImageAugment(noise=0.1)
    generator = generators(1)[0]
    sigma = 0.1 * float(torch.rand(3, generator=generators(1)[0])[2])
    out = augment_image(image, torch.ones_like(image), [generator], settings)
    # Rayleigh mean sigma sqrt(pi / 2); 40 000 draws: relative standard error 0.3 %
    assert float(out.mean()) == pytest.approx(sigma * (torch.pi / 2) ** 0.5, rel=0.02)


def test_gradients_are_not_needed_and_arguments_not_changed():
    pv = random_pv(channels=9)
    copy = pv.clone()
    augment_pv(pv, generators(3), STRONG)
    paste_lesions(pv, torch.ones(3, *SHAPE), 6, 1.0)
    assert torch.equal(pv, copy)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"rotate_deg": -1}, "rotate_deg"),
        ({"flip_probability": 1.5}, "flip_probability"),
        ({"elastic_grid": 1}, "elastic_grid"),
        ({"shear": float("nan")}, "shear"),
    ],
)
def test_unusable_label_settings_are_refused(settings, name):
    with pytest.raises(RequestError, match=name):
        PvAugment(**settings)


def test_unusable_image_settings_are_refused():
    with pytest.raises(RequestError, match="gamma_low"):
        ImageAugment(gamma_low=1.2, gamma_high=0.8)


def test_warped_logits_keep_borders_sharp_and_the_rim_goes_on():
    """As far as the map is concerned, the same warp as that of the partial volumes."""
    pv = disk()
    settings = PvAugment(rotate_deg=20, scale=0.1, elastic_px=2, elastic_grid=4, shift_px=6)
    soft = augment_pv(pv, generators(1), settings)
    logits = warp_raw(20 * pv, generators(1), settings)
    sharp = logits.softmax(dim=1)
    assert torch.equal(sharp.argmax(1), soft.argmax(1))
    assert sharp.amax(1).mean() > soft.amax(1).mean()
    moved = warp_raw(20 * torch.ones(1, 1, *SHAPE), generators(1), PvAugment(shift_px=12))
    assert torch.equal(moved, torch.full((1, 1, *SHAPE), 20.0))
    flipped = warp_raw(random_pv(), generators(3), PvAugment(flip_probability=1))
    assert torch.equal(flipped, random_pv().flip(2))
