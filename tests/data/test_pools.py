"""Three pools: independent, pure, in range, at the pictures' own pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.vessels import VesselMaps
from synthgen.data.pools import Pool, ThreePools

SIDE = 32


def pool(name, pictures, fields=None):
    pictures = tuple(np.asarray(p, np.uint8) for p in pictures)
    files = tuple(Path(f"{name}{k}.png") for k in range(len(pictures)))
    owners = tuple(f"{name}/{k}" for k in range(len(pictures)))
    return Pool(files, owners, pictures, tuple(fields or [None] * len(pictures)))


def noise(name, count, seed, side=SIDE):
    return pool(name, np.random.default_rng(seed).integers(0, 256, (count, side, side)))


def constants(name, values, side=SIDE):
    """Return pictures of one grey value each, which tells the index of a crop."""
    return pool(name, [np.full((side, side), v) for v in values])


def drawn(keys, shape=(SIDE, SIDE), field=(0, 0, 0)):
    """Draw a mask of one pixel in the place that the key's index tells."""
    coverage = np.zeros((len(keys), *shape), np.float32)
    for row, key in enumerate(keys):
        coverage[row].flat[key.index % coverage[row].size] = 1
    zeros = np.zeros_like(coverage)
    circles = np.tile(np.asarray(field, np.float32), (len(keys), 1))
    return VesselMaps(coverage, zeros, zeros, zeros, 0 * circles, circles)


def three(**options):
    made = {
        "angiograms": noise("a", 5, 0),
        "backgrounds": noise("b", 4, 1),
        "masks": noise("m", 3, 2),
        "crop": 16,
        "batch_size": 4,
        "seed": 7,
    } | options
    return ThreePools(made.pop("angiograms"), made.pop("backgrounds"), made.pop("masks"), **made)


def parts(batch):
    return batch.angiograms, batch.backgrounds, batch.masks


@pytest.mark.parametrize("decimate", [False, True])
def test_shapes_ranges_and_binary_masks(decimate):
    for step in range(4):
        batch = three(decimate=decimate).batch(step)
        for part in parts(batch):
            assert part.shape == (4, 1, 16, 16)
            assert part.dtype == torch.float32
            assert part.is_contiguous()
            assert part.min() >= -1
            assert part.max() <= 1
        assert set(batch.masks.unique().tolist()) == {-1.0, 1.0}


def test_black_and_white_are_exact():
    batch = three(angiograms=constants("a", [0]), backgrounds=constants("b", [255])).batch(0)
    assert (batch.angiograms == -1).all()
    assert (batch.backgrounds == 1).all()


def test_half_coverage_is_vessel():
    """What stores and conditions count as vessel: 128 of 255 and more."""
    soft = pool("m", [[[127, 128] * 8] * 16])
    mask = three(masks=soft).batch(0).masks
    assert (mask > 0).float().mean() == 0.5


def test_a_batch_is_a_function_of_seed_and_step(untouched_rng):
    forwards = [three().batch(step) for step in range(3)]
    backwards = [three().batch(step) for step in (2, 1, 0)][::-1]
    for one, two in zip(forwards, backwards, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(parts(one), parts(two), strict=True))
    other = three(seed=8).batch(0)
    assert not any(torch.equal(a, b) for a, b in zip(parts(forwards[0]), parts(other), strict=True))


def test_rows_do_not_depend_on_the_batch_size():
    """Sample n is row n: two batches of four are one of eight."""
    small = [three().batch(step) for step in (0, 1)]
    large = three(batch_size=8).batch(0)
    for name in ("angiograms", "backgrounds", "masks"):
        joined = torch.cat([getattr(batch, name) for batch in small])
        assert torch.equal(joined, getattr(large, name))


def test_the_three_indices_are_independent():
    """Each of the 4 x 4 x 2 triples turns up about equally often."""
    pools = three(
        angiograms=constants("a", [0, 1, 2, 3]),
        backgrounds=constants("b", [4, 5, 6, 7]),
        masks=constants("m", [0, 255]),
        batch_size=256,
    )
    seen = np.zeros((4, 4, 2))
    for step in range(8):
        a, b, m = (
            np.rint((part[:, 0, 0, 0].numpy() + 1) * 127.5).astype(int)
            for part in parts(pools.batch(step))
        )
        np.add.at(seen, (a, b - 4, m // 255), 1)
    expected = seen.sum() / seen.size
    chi2 = ((seen - expected) ** 2 / expected).sum()
    assert chi2 < 61.1  # 31 degrees of freedom, p = 0.001; the draw is fixed


def orientation(crop, picture):
    """Return which of the 8 flips of the picture the crop is."""
    for k in range(8):
        turned = picture[:: -1 if k & 1 else 1, :: -1 if k & 2 else 1]
        if np.array_equal(turned.T if k & 4 else turned, crop):
            return k
    raise AssertionError


@pytest.mark.parametrize("shared", [False, True])
def test_flips_and_transposes(shared):
    same = np.arange(256).reshape(16, 16)
    pools = three(
        angiograms=pool("a", [same]),
        backgrounds=pool("b", [255 - same]),
        masks=pool("m", [same * 0 + (same < 20) * 255]),
        shared_flips=shared,
        batch_size=200,
    )
    batch = pools.batch(0)
    bytes_ = [np.rint((p[:, 0].numpy() + 1) * 127.5).astype(int) for p in parts(batch)]
    first = [orientation(crop, same) for crop in bytes_[0]]
    second = [orientation(crop, 255 - same) for crop in bytes_[1]]
    third = [orientation(crop, (same < 20) * 255) for crop in bytes_[2]]
    assert set(first) == set(second) == set(third) == set(range(8))
    if shared:
        assert first == second == third
    else:
        assert 0.04 < np.mean(np.equal(first, second)) < 0.25  # one in eight
        assert 0.04 < np.mean(np.equal(first, third)) < 0.25


def test_decimation_takes_the_phases_of_pixel_unshuffle():
    picture = np.arange(32 * 32).reshape(32, 32) % 251
    image = torch.as_tensor(picture, dtype=torch.float32)[None, None]
    phases = torch.nn.functional.pixel_unshuffle(image, 2)
    back = torch.nn.functional.pixel_shuffle(phases, 2)
    assert torch.equal(back, image)
    pools = three(angiograms=pool("a", [picture]), backgrounds=None, decimate=True, batch_size=64)
    crops = np.rint((pools.batch(0).angiograms[:, 0].numpy() + 1) * 127.5).astype(int)
    found = set()
    for crop in crops:
        for phase in range(4):
            try:
                orientation(crop, phases[0, phase].numpy().astype(int))
            except AssertionError:
                continue
            found.add(phase)
            break
        else:
            pytest.fail("a crop that is no phase of the picture")
    assert found == {0, 1, 2, 3}


def test_crops_reach_every_corner():
    corners = np.zeros((20, 20))
    corners[0, 0], corners[0, -1], corners[-1, 0], corners[-1, -1] = 1, 2, 3, 4
    batch = three(angiograms=pool("a", [corners]), batch_size=300).batch(0)
    values = np.rint((batch.angiograms.numpy() + 1) * 127.5)
    assert set(np.unique(values)) == {0, 1, 2, 3, 4}


def test_crops_of_photographs_show_their_field():
    """A field in one corner: without care most crops would miss it."""
    field = np.zeros((96, 96), bool)
    field[:40, :40] = True
    framed = pool("a", [field * 200], [field])
    batch = three(angiograms=framed, backgrounds=None, batch_size=100).batch(0)
    shares = (batch.angiograms > 0).float().mean(dim=(1, 2, 3))
    assert (shares >= 0.5).float().mean() > 0.8
    careless = three(angiograms=pool("a", [field * 200]), backgrounds=None, batch_size=100)
    assert (
        (careless.batch(0).angiograms > 0).float().mean(dim=(1, 2, 3)) >= 0.5
    ).float().mean() < 0.4


def test_masks_drawn_on_the_fly():
    pools = three(masks=drawn, crop=SIDE, backgrounds=None)
    batch = pools.batch(3)
    assert ((batch.masks > 0).sum(dim=(1, 2, 3)) == 1).all()
    indices = range(12, 16)
    for row, index in enumerate(indices):
        place = np.argwhere(batch.masks[row, 0].numpy() > 0)[0]
        x, y = divmod(index, SIDE)
        turned = {(a, b) for x_ in (x, SIDE - 1 - x) for y_ in (y, SIDE - 1 - y)
                  for a, b in ((x_, y_), (y_, x_))}  # fmt: skip
        assert tuple(place) in turned


def test_drawn_masks_are_cropped_in_their_field():
    def corner(keys):
        maps = drawn(keys, (96, 96), (20, 20, 24))
        x, y = np.ogrid[:96, :96]
        inside = (x - 20) ** 2 + (y - 20) ** 2 <= 24**2
        return replace(maps, coverage=np.repeat(inside[None], len(keys), 0).astype(np.float32))

    shares = (three(masks=corner, batch_size=60).batch(0).masks > 0).float().mean(dim=(1, 2, 3))
    assert (shares >= 0.5).float().mean() > 0.8


def test_without_backgrounds_the_angiograms_stand_in():
    pools = three(backgrounds=None)
    batch = pools.batch(0)
    assert torch.equal(batch.angiograms, batch.backgrounds)
    assert pools.subjects == tuple(f"a/{k}" for k in range(5))
    assert three().subjects == tuple([f"a/{k}" for k in range(5)] + [f"b/{k}" for k in range(4)])


def test_background_identical_to_an_angiogram():
    angiograms, backgrounds = noise("a", 3, 0), noise("b", 3, 1)
    copied = (*backgrounds.pictures[:2], angiograms.pictures[1].copy())
    with pytest.raises(StoreError, match=r"b2\.png: .*pixels of the angiogram a1\.png"):
        three(angiograms=angiograms, backgrounds=replace(backgrounds, pictures=copied))


def test_empty_pools_and_sizes():
    for name in ("angiograms", "backgrounds", "masks"):
        with pytest.raises(RequestError, match=f"the pool of {name} is empty"):
            three(**{name: pool("x", [])})
    with pytest.raises(RequestError, match=r"m0\.png: 32 x 32 px, too small for crops of 40 px;"):
        three(angiograms=noise("a", 1, 0, 64), backgrounds=None, crop=40, masks=noise("m", 1, 0))
    with pytest.raises(RequestError, match=r"a0\.png: .* crops of 24 px from every other row"):
        three(crop=24, decimate=True)
    with pytest.raises(RequestError, match="drawn masks: 32 x 32 px, too small"):
        three(angiograms=noise("a", 1, 0, 64), backgrounds=None, crop=40, masks=drawn).batch(0)
    with pytest.raises(RequestError, match="crop and batch size of 1 or more, got 0, 4"):
        three(crop=0)
