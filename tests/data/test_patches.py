"""Patches: where they lie, what augmentation keeps, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from raw_folders import Held
from scipy import ndimage

from synthgen.core.errors import RequestError, StoreError
from synthgen.data.mixture import Mixture
from synthgen.data.patch_augment import change_appearance, draw_pose, sample
from synthgen.data.patches import PatchAugmentation, Patches, PatchSettings

STILL = PatchAugmentation()
EVERYTHING = PatchAugmentation(
    rotate_deg=40, scale=0.3, shift=0.3, gamma=0.3, gain=0.3, bias=0.4, blur=1.0, noise=0.1
)
LEVELS = np.asarray([0.0, 0.25, 0.5, 1.0], np.float32)


def blobs(shape, seed=0, groups=4):
    """Return smooth soft labels `(G, *S)` of whole 255ths and an image made of them."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal(shape), 2) for _ in range(groups)]
    soft = np.exp(12 * np.stack(fields))
    soft = np.floor(255 * soft / soft.sum(0))
    soft[0] += 255 - soft.sum(0)
    soft = (soft / 255).astype(np.float32)
    return np.einsum("g,g...->...", LEVELS[:groups], soft)[None], soft


def patches(pairs, patch, *, augmentation=STILL, foreground=0.0, seed=0, count=6, **more):
    target = more.pop("target_mm", None)
    parts = [(Held(pairs, **more), 1.0)]
    if target is not None:
        parts.insert(0, (Held(pairs, name="target", spacing_mm=target), 1e-9))
    settings = PatchSettings(patch, count, foreground, augmentation)
    return Patches(Mixture(parts), settings, seed)


@pytest.mark.parametrize("shape", [(20, 24), (12, 14, 10)])
def test_without_augmentation_a_patch_is_a_crop(shape):
    image, soft = blobs(shape)
    size = tuple(n // 2 for n in shape)
    images, labels = patches([(image, soft)], size).batch(3)
    windows = np.lib.stride_tricks.sliding_window_view(image[0], size)
    assert images.shape == (6, 1, *size)
    assert labels.shape == (6, 4, *size)
    for one, own in zip(images, labels, strict=True):
        axes = tuple(range(-len(size), 0))
        gaps = np.abs(windows - one[0].numpy()).max(axis=axes)
        place = np.unravel_index(gaps.argmin(), gaps.shape)
        assert gaps.min() < 1e-3  # half precision
        box = tuple(slice(p, p + n) for p, n in zip(place, size, strict=True))
        np.testing.assert_allclose(own, soft[(slice(None), *box)], atol=1e-6)


def test_places_cover_the_whole_image():
    ramp = (np.arange(100, dtype=np.float32).reshape(1, 10, 10) + 1) / 100
    soft = np.stack([np.ones((10, 10)), np.zeros((10, 10))]).astype(np.float32)
    images, _ = patches([(ramp, soft)], (4, 4), count=400).batch(0)
    corners = {round(100 * float(one[0, 0, 0])) - 1 for one in images}
    assert corners == {10 * x + y for x in range(7) for y in range(7)}


@pytest.mark.parametrize("augmentation", [STILL, EVERYTHING])
@pytest.mark.parametrize("shape", [(9, 40), (9, 12, 30)])
def test_small_volumes_are_padded_with_background(shape, augmentation, caplog):
    image, soft = blobs(shape)
    made = patches([(image, soft)], (32,) * len(shape), augmentation=augmentation)
    images, labels = made.batch(0)
    corner = (slice(None), slice(None), *(0,) * (len(shape) - 1), 0)
    if augmentation is STILL:
        assert (images[corner] == 0).all()
        assert (labels[corner] == torch.tensor([1.0, 0, 0, 0])).all()
        # The middle of the volume is the middle of the patch.
        assert images[0, 0, 12:21].sum() == images[0].sum() > 0
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-5)
    assert [r for r in caplog.messages if "smaller than the patch" in r] == caplog.messages
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("shape", [(24, 20), (14, 12, 16)])
def test_warps_move_image_and_labels_alike_and_keep_the_sum(shape):
    pair = blobs(shape)
    augmentation = PatchAugmentation(
        rotate_deg=180, scale=0.4, shift=0.5, mirror=(0.5,) * len(shape)
    )
    made = patches([pair], (10,) * len(shape), augmentation=augmentation)
    images, labels = made.batch(0)
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-5)
    assert labels.min() >= 0
    painted = torch.einsum("g,bg...->b...", torch.from_numpy(LEVELS), labels)
    # The background's level is 0, so that this holds beyond the volume as well.
    np.testing.assert_allclose(images[:, 0], painted, atol=2e-3)


def test_overlapping_regions_move_without_a_background():
    whole = np.zeros((16, 16), np.float32)
    whole[4:12, 4:12] = 1
    core = np.zeros_like(whole)
    core[6:10, 6:10] = 1
    pair = whole[None] * 0.5, np.stack([whole, core])
    made = patches(
        [pair], (24, 24), augmentation=PatchAugmentation(rotate_deg=45),
        tissues=("whole", "core"), overlapping=True, foreground=1.0,
    )  # fmt: skip
    images, labels = made.batch(0)
    assert labels.shape == (6, 2, 24, 24)
    assert (labels[:, 1] <= labels[:, 0] + 1e-6).all()
    np.testing.assert_allclose(images[:, 0], 0.5 * labels[:, 0], atol=1e-3)
    assert labels[:, 0].sum((1, 2)).numpy() == pytest.approx(64, rel=0.02)


@pytest.mark.parametrize("shape", [(13, 17), (9, 11, 7)])
def test_sampling_agrees_with_scipy(shape):
    rng = np.random.default_rng(0)
    array = rng.random(shape).astype(np.float32)
    n, patch = len(shape), (8, 5, 6)[: len(shape)]
    matrix = np.eye(n) + 0.4 * rng.standard_normal((n, n))
    center = np.asarray(shape) / 2 + 0.3
    offset = center - matrix @ ((np.asarray(patch) - 1) / 2)
    expected = ndimage.affine_transform(
        array, matrix, offset, output_shape=patch, order=1, mode="grid-constant"
    )
    made = sample([array[None], array[None] * 2], patch, center, matrix)
    np.testing.assert_allclose(made[0], expected, atol=1e-4)
    np.testing.assert_allclose(made[1], 2 * expected, atol=2e-4)


def test_turns_are_rigid_in_millimetres():
    """A ball in a volume of thick slices stays a ball."""
    spacing = np.asarray((1.0, 1.0, 3.0))
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip((40, 40, 14), spacing, strict=True)]
    distance = np.sqrt(sum(g**2 for g in np.meshgrid(*axes, indexing="ij")))
    ball = (1 / (1 + np.exp(distance - 9))).astype(np.float32)
    pair = ball[None], np.stack([1 - ball, ball])
    made = patches(
        [pair], (40, 40, 14), augmentation=PatchAugmentation(rotate_deg=90),
        spacing_mm=tuple(spacing),
    )  # fmt: skip
    labels = made.batch(0)[1].numpy()
    assert np.abs(labels[:, 1] - ball).max() < 0.12  # linear interpolation of thick slices
    assert np.abs(labels[:, 1].sum((1, 2, 3)) / ball.sum() - 1).max() < 0.02


def test_cases_are_brought_to_the_spacing_of_the_mixture():
    ramp = np.broadcast_to(np.linspace(0, 1, 11, dtype=np.float32)[:, None], (11, 8))[None]
    pair = ramp, np.stack([1 - ramp[0], ramp[0]])
    images, labels = patches([pair], (22, 16), target_mm=(1.0, 1.0), spacing_mm=(2.0, 2.0)).batch(0)
    inner = images[0, 0, 1:-1, 8].numpy()
    np.testing.assert_allclose(np.diff(inner), 0.05, atol=1e-3)
    np.testing.assert_allclose(inner[0], 0.025, atol=1e-3)  # half pixels are kept apart
    np.testing.assert_allclose(labels[0, 1, 1:-1, 8], inner, atol=3e-3)


@pytest.mark.parametrize("augmentation", [STILL, PatchAugmentation(mirror=(0.5, 0.5, 0.5))])
def test_foreground_patches_show_a_tissue(augmentation):
    image, soft = np.full((1, 40, 40, 20), 0.5, np.float32), np.zeros((2, 40, 40, 20), np.float32)
    soft[1, 38, 3, 9] = 1
    soft[0] = 1 - soft[1]
    made = patches([(image, soft)], (8, 8, 8), foreground=1.0, augmentation=augmentation, count=20)
    _, labels = made.batch(0)
    assert (labels[:, 1].amax((1, 2, 3)) == 1).all()
    _, labels = patches([(image, soft)], (8, 8, 8), count=20).batch(0)
    assert labels[:, 1].amax((1, 2, 3)).mean() < 0.5


def test_small_tissues_are_as_likely_as_large_ones():
    soft = np.zeros((3, 60, 60), np.float32)
    soft[1, :30], soft[2, 55, 55] = 1, 1
    soft[0] = 1 - soft[1:].sum(0)
    _, labels = patches([(soft[:1], soft)], (8, 8), foreground=1.0, count=200).batch(0)
    assert labels[:, 2].amax((1, 2)).mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(200))


def test_cases_without_foreground_are_passed_over():
    image, soft = blobs((16, 16))
    bare = np.zeros_like(soft)
    bare[0] = 1
    made = patches([(image, bare), (image, bare), (image, soft)], (8, 8), foreground=1.0)
    for number in range(4):
        assert (made.batch(number)[1][:, 1:].amax((1, 2, 3)) > 0.5).all()
    # Without the wish for foreground they are drawn as well.
    made = patches([(image, bare), (image, bare), (image, soft)], (16, 16), count=30)
    assert (made.batch(0)[1][:, 1:].amax((1, 2, 3)) == 0).any()


def test_no_foreground_anywhere_is_one_clear_line():
    image, soft = blobs((16, 16))
    soft = np.stack([np.ones((16, 16)), *np.zeros((3, 16, 16))]).astype(np.float32)
    with pytest.raises(StoreError, match=r"held: none of 100 cases shows any of csf, gm, wm.*to 0"):
        patches([(image, soft)], (8, 8), foreground=0.5).batch(0)
    assert patches([(image, soft)], (8, 8)).batch(0)[1][:, 0].min() == 1


@pytest.mark.parametrize("shape", [(24, 20), (14, 12, 16)])
def test_batches_are_functions_of_seed_and_number(shape, untouched_rng):
    pairs = [blobs(shape, seed) for seed in range(4)]
    more = {"augmentation": EVERYTHING, "foreground": 0.5}
    size = (10,) * len(shape)
    first = patches(pairs, size, **more)
    made = [first.batch(number) for number in range(3)]
    settings = PatchSettings(size, 6, 0.5, EVERYTHING)
    uncached = Patches(Mixture([(Held(pairs), 1.0)]), settings, 0, cache_bytes=0)
    for number in (2, 0, 1):
        for ours, theirs in zip(made[number], uncached.batch(number), strict=True):
            assert torch.equal(ours, theirs)
    assert not torch.equal(made[0][0], made[1][0])
    assert not torch.equal(made[0][0], patches(pairs, size, seed=1, **more).batch(0)[0])
    assert first.identity != patches(pairs, size, **more | {"foreground": 0.4}).identity


def test_appearance_never_changes_where_a_patch_lies():
    pairs = [blobs((24, 20), seed) for seed in range(4)]
    moved = PatchAugmentation(rotate_deg=40, scale=0.3, shift=0.3)
    one, other = (patches(pairs, (10, 10), augmentation=a).batch(2) for a in (moved, EVERYTHING))
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[0], other[0])


def test_the_cache_keeps_within_its_budget():
    pairs = [blobs((16, 16), seed) for seed in range(3)]
    case = 16 * 16 * (2 + 3)
    for budget, loads in ((4 * 8 * case, 3), (case, None)):
        data = Held(pairs)
        settings = PatchSettings((16, 16), 30, 0.0, STILL)
        Patches(Mixture([(data, 1.0)]), settings, 0, cache_bytes=budget).batch(0)
        assert data.loads == loads if loads else data.loads > 3


def test_mirrors():
    pair = blobs((12, 12))
    plain, _ = patches([pair], (12, 12)).batch(0)
    mirrored, _ = patches(
        [pair], (12, 12), augmentation=PatchAugmentation(mirror=(0.0, 1.0))
    ).batch(0)
    assert torch.equal(mirrored, plain.flip(-1))


@pytest.mark.parametrize("dims", [2, 3])
def test_appearance_keeps_the_range_and_the_black_outside(dims):
    image = torch.rand(2, *(12,) * dims, generator=torch.Generator().manual_seed(0))
    image[:, :4] = 0
    for seed in range(5):
        made = change_appearance(
            image, EVERYTHING, np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        )
        assert made.shape == image.shape
        assert made.min() >= 0
        assert made.max() <= 1
        assert (made[:, :4] == 0).all()
        assert (made - image).abs().mean() > 0.02
        # Each channel has a contrast of its own.
        assert not torch.equal((made - image)[0], (made - image)[1])


def test_nothing_is_changed_by_zeros():
    image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    rng, noise = np.random.default_rng(0), torch.Generator().manual_seed(0)
    assert torch.equal(change_appearance(image, STILL, rng, noise), image)
    assert draw_pose(rng, 3, STILL).still


@pytest.mark.parametrize("dims", [2, 3])
def test_rotations_are_rotations(dims):
    for seed in range(5):
        pose = draw_pose(np.random.default_rng(seed), dims, PatchAugmentation(rotate_deg=180))
        np.testing.assert_allclose(pose.matrix @ pose.matrix.T, np.eye(dims), atol=1e-12)
        assert np.linalg.det(pose.matrix) == pytest.approx(1)


def test_settings_of_another_rank_are_refused():
    pair = blobs((12, 12))
    with pytest.raises(RequestError, match=r"held: the data are 2-D.*\(8, 8, 8\)"):
        patches([pair], (8, 8, 8))
    with pytest.raises(RequestError, match=r"mirror 2 probabilities"):
        patches([pair], (8, 8), augmentation=PatchAugmentation(mirror=(0.5,)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchAugmentation(noise=-1), "noise must be at least 0, got -1"),
        (lambda: PatchAugmentation(gain=math.nan), "gain"),
        (lambda: PatchAugmentation(mirror=(0.5, 2.0)), "mirror must be probabilities"),
        (lambda: PatchSettings((8, 0), 4, 0.5, STILL), r"got patch \(8, 0\)"),
        (lambda: PatchSettings((8, 8), 0, 0.5, STILL), "batch_size 0"),
        (lambda: PatchSettings((8, 8), 4, 1.5, STILL), "foreground 1.5"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(RequestError, match=message):
        make()
