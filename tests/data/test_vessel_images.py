"""Vessel images: the layouts of their publishers, fields, masks, sizes, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthgen.core.errors import RequestError, StoreError
from synthgen.data.vessel_images import (
    field_circle,
    photograph_field,
    read_vessel_images,
    scale_to,
)
from synthgen.data.vessel_layouts import layout_of

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "vessels"
SHAPE = (48, 52)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path, **options)
    return path


def grey(seed, shape=(32, 32)):
    return np.random.default_rng(seed).integers(1, 255, shape, dtype=np.uint8)


def bars(shape=(32, 32), value=255):
    mask = np.zeros(shape, np.uint8)
    mask[4:9] = value
    return mask


def disc(shape=SHAPE, center=(23, 26), radius=20.0):
    x, y = np.ogrid[: shape[0], : shape[1]]
    return (x - center[0]) ** 2 + (y - center[1]) ** 2 <= radius**2


def photograph(seed, shape=SHAPE):
    """Return a round bright field on black, its three channels different."""
    field = disc(shape)
    red = np.where(field, 180, 3)
    return np.stack([red, grey(seed, shape) * field, 20 * field], axis=-1).astype(np.uint8)


def xcad(root, names=("trainA", "trainB", "trainC", "test/images", "test/masks")):
    for number, name in enumerate(names):
        masks = name in ("trainA", "fractals") or "masks" in name
        for k in range(2):
            array = bars(value=255) if masks else grey(10 * number + k)
            save(root / name / f"00{k}_PPA_44_PSA_00_8.png", array)
    return root


def drive(root):
    for part, first in (("training", 21), ("test", 1)):
        for n in range(first, first + 2):
            folder, name = root / part, f"{n:02d}"
            save(folder / "images" / f"{name}_{part}.tif", photograph(n))
            save(folder / "1st_manual" / f"{name}_manual1.gif", bars(SHAPE))
            save(folder / "mask" / f"{name}_{part}_mask.gif", disc().astype(np.uint8) * 255)
    save(root / "test" / "2nd_manual" / "01_manual2.gif", bars(SHAPE))
    save(root / "test" / "2nd_manual" / "02_manual2.gif", bars(SHAPE))
    return root


def chase(root, flat):
    for child in ("01", "02", "03"):
        for eye in "LR":
            name = f"Image_{child}{eye}"
            where = root if flat else root / "images"
            save(where / f"{name}.jpg", photograph(int(child)), quality=95)
            for observer in ("1stHO", "2ndHO"):
                mask = bars(SHAPE) > 0
                save(
                    root / f"{name}_{observer}.png" if flat else root / observer / f"{name}.png",
                    mask,
                )
    return root


def test_xcad_under_both_kinds_of_names(tmp_path):
    official = xcad(tmp_path / "a")
    other = xcad(
        tmp_path / "b", ("fractals", "angiograms", "backgrounds", "test_images", "test_masks")
    )
    for role in ("angiograms", "backgrounds", "masks", "test"):
        first, second = (read_vessel_images(root, role=role) for root in (official, other))
        assert first.layout == second.layout == "xcad"
        assert first.subjects == ("000", "001")
        assert first.identities == ("xcad/000", "xcad/001")
        assert first.names == second.names
        for one, two in zip(first.images, second.images, strict=True):
            np.testing.assert_array_equal(one, two)
        assert set(first.masks) == ({"1st"} if role == "test" else set())
        assert all(field.all() for field in first.fields)
        assert (first.circles == 0).all()
    test = read_vessel_images(official, role="test")
    np.testing.assert_array_equal(test.masks["1st"][0], bars() > 0)
    assert test.images[0].dtype == np.float32
    np.testing.assert_array_equal(np.rint(test.images[1] * 255), grey(31))


def test_drive_has_fields_and_observers_of_its_own(tmp_path):
    root = drive(tmp_path)
    train = read_vessel_images(root)
    test = read_vessel_images(root, "drive", role="test")
    assert train.layout == "drive"
    assert train.subjects == ("21", "22")
    assert test.identities == ("drive/01", "drive/02")
    assert list(train.masks) == ["1st"]
    assert list(test.masks) == ["1st", "2nd"]
    np.testing.assert_array_equal(train.fields[0], disc())
    np.testing.assert_array_equal(np.rint(train.images[0] * 255), photograph(21)[..., 1])


@pytest.mark.parametrize("flat", [False, True])
def test_chase_is_read_by_child(tmp_path, flat):
    root = chase(tmp_path, flat)
    images = read_vessel_images(root)
    assert images.layout == "chase"
    assert images.names == tuple(f"Image_{c}{e}" for c in ("01", "02", "03") for e in "LR")
    assert images.subjects == ("01", "01", "02", "02", "03", "03")
    assert list(images.masks) == ["1st", "2nd"]
    held_out = read_vessel_images(root, subjects=["02"])
    training = read_vessel_images(root, exclude=["02"])
    assert set(held_out.identities) == {"chase/02"}
    assert set(training.subjects) == {"01", "03"}
    # JPEG blurs the rim by a pixel or so.
    assert (images.fields[0] != disc()).mean() < 0.03
    np.testing.assert_allclose(images.circles, [[23, 26, 20]] * 6, atol=1.5)


def test_plain_folder_with_and_without_masks(tmp_path):
    for k in range(2):
        save(tmp_path / "images" / f"p{k}.png", grey(k, (20, 24)))
        save(tmp_path / "masks" / f"p{k}.tif", bars((20, 24), value=1))
    save(tmp_path / "alone" / "x.bmp", photograph(3))
    both = read_vessel_images(tmp_path)
    assert (both.layout, both.subjects, list(both.masks)) == ("plain", ("p0", "p1"), ["1st"])
    assert both.masks["1st"][0].sum() == 5 * 24
    alone = read_vessel_images(tmp_path / "alone")
    assert alone.masks == {}
    np.testing.assert_array_equal(np.rint(alone.images[0] * 255), photograph(3)[..., 1])


def test_sixteen_bits_and_equal_channels_are_grey(tmp_path):
    deep = grey(0).astype(np.uint16) * 257
    save(tmp_path / "a.png", deep)
    save(tmp_path / "b.png", np.stack([grey(0)] * 3, axis=-1))
    images = read_vessel_images(tmp_path).images
    np.testing.assert_allclose(images[0], images[1], atol=1e-6)
    assert images[0].max() <= 1


def test_soft_edges_of_drawn_masks_are_kept(tmp_path):
    soft = bars((64, 64))
    soft[3], soft[9] = 60, 200
    save(tmp_path / "trainA" / "0.png", soft)
    drawn = read_vessel_images(tmp_path, role="masks")
    np.testing.assert_array_equal(np.rint(drawn.images[0] * 255), soft)


def test_rotated_and_hidden_files(tmp_path):
    """A camera's orientation tag turns nothing; hidden copies are passed over."""
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.jpg", grey(0, (20, 40)), exif=exif, quality=95)
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    assert read_vessel_images(tmp_path).images[0].shape == (20, 40)


def test_field_is_the_largest_part_without_holes():
    red = np.where(disc(), 0.7, 0.0).astype(np.float32)
    red[20:24, 20:24] = 0
    red[0, :3] = 0.5
    np.testing.assert_array_equal(photograph_field(red), disc())


@pytest.mark.parametrize("damage", ["none", "dark sector", "cut by the frame"])
def test_circle_of_a_field(damage):
    field = disc((200, 220), (95, 104), 90.0)
    if damage == "dark sector":
        x, y = np.ogrid[:200, :220]
        field &= ~((x - 95 + y - 104 > 112) & (y > 104))
    if damage == "cut by the frame":
        field[:20] = field[-20:] = False
        field = field[20:-20]
    center = (75, 104) if damage == "cut by the frame" else (95, 104)
    np.testing.assert_allclose(field_circle(field), (*center, 90), atol=0.7)


def test_no_circle_without_a_round_field():
    assert (field_circle(np.ones((40, 40), bool)) == 0).all()
    square = np.zeros((80, 80), bool)
    square[10:70, 10:70] = True
    assert (field_circle(square) == 0).all()


def test_whole_factors_average_blocks(tmp_path):
    save(tmp_path / "a.png", grey(4, (40, 64)))
    images = read_vessel_images(tmp_path)
    half = scale_to(images, side=32).images[0]
    blocks = images.images[0].reshape(20, 2, 32, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(half, blocks, atol=1e-6)


def test_scaling_keeps_area_and_agrees(tmp_path):
    images = read_vessel_images(drive(tmp_path))
    small = scale_to(images, field_diameter=28.0)
    factor = 28.0 / (2 * images.circles[0, 2])
    np.testing.assert_allclose(small.circles[:, 2], 14, rtol=1e-5)
    # The circle moved with the field: fitted anew it is the same.
    np.testing.assert_allclose(field_circle(small.fields[0]), small.circles[0], atol=0.6)
    assert small.images[0].shape == tuple(int(n * factor) for n in SHAPE)
    assert small.masks["1st"][0].shape == small.fields[0].shape == small.images[0].shape
    assert small.fields[0].sum() == pytest.approx(images.fields[0].sum() * factor**2, rel=0.03)
    inner = np.abs(images.images[0].mean() - small.images[0].mean())
    assert inner < 0.03


def test_same_scale_changes_nothing(tmp_path):
    save(tmp_path / "a.png", grey(4, (40, 64)))
    images = read_vessel_images(tmp_path)
    np.testing.assert_array_equal(scale_to(images, side=64).images[0], images.images[0])


def test_masks_keep_what_is_half_covered(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[1:4] = 255  # after halving: rows half, fully and not covered
    save(tmp_path / "images" / "a.png", grey(0))
    save(tmp_path / "masks" / "a.png", mask)
    small = scale_to(read_vessel_images(tmp_path), side=16)
    assert small.masks["1st"][0].all(axis=1).tolist() == [True, True] + [False] * 14


def test_scale_refuses_enlarging_and_fields_that_are_not_there(tmp_path):
    save(tmp_path / "a.png", grey(0))
    images = read_vessel_images(tmp_path)
    with pytest.raises(RequestError, match=r"a\.png: a side of 32\.0 px cannot become 64 px"):
        scale_to(images, side=64)
    with pytest.raises(RequestError, match="cannot become 8 px"):
        scale_to(images, side=8)
    with pytest.raises(RequestError, match=r"a\.png: has no round field of view"):
        scale_to(images, field_diameter=20)
    with pytest.raises(RequestError, match="either the side or the diameter"):
        scale_to(images)


def refused(folder, match, error=StoreError, **options):
    with pytest.raises(error, match=match) as caught:
        read_vessel_images(folder, **options)
    assert "\n" not in str(caught.value)


def test_colour_where_grey_is_needed(tmp_path):
    save(tmp_path / "trainB" / "c.png", photograph(0, (32, 32)))
    refused(tmp_path, r"c\.png: expected a single-channel grey picture.*'plain'")


def test_not_square(tmp_path):
    save(tmp_path / "trainB" / "c.png", grey(0, (32, 40)))
    refused(tmp_path, r"c\.png: expected a square picture, got 32 x 40; crop it")


def test_grey_mask(tmp_path):
    root = xcad(tmp_path)
    sevens = (np.arange(1024).reshape(32, 32) % 7).astype(np.uint8)
    save(root / "test" / "masks" / "001_PPA_44_PSA_00_8.png", sevens)
    with pytest.raises(StoreError, match=r"001_.*0 and one other grey value, got 7 values \(0, 1"):
        read_vessel_images(root, role="test")


def test_drawn_mask_that_is_a_picture_or_empty(tmp_path):
    root = xcad(tmp_path)
    path = save(root / "trainA" / "001_PPA_44_PSA_00_8.png", grey(0))
    refused(root, "0 or 255 but for soft edges, got .*is this an image", role="masks")
    save(path, np.zeros((32, 32), np.uint8))
    refused(root, "shows no vessel", role="masks")


def test_missing_mask(tmp_path):
    root = xcad(tmp_path / "x")
    (root / "test" / "masks" / "001_PPA_44_PSA_00_8.png").unlink()
    refused(root, r"001_PPA.*no mask 001_PPA_44_PSA_00_8\.png in .*masks", role="test")
    root = drive(tmp_path / "d")
    (root / "training" / "mask" / "22_training_mask.gif").unlink()
    refused(root, r"22_training\.tif: no 'field of view' mask numbered 22")
    root = chase(tmp_path / "c", flat=True)
    (root / "Image_02R_1stHO.png").unlink()
    refused(root, r"Image_02R\.jpg: no mask Image_02R_1stHO\.png")


def test_mask_of_another_size(tmp_path):
    root = xcad(tmp_path)
    save(root / "test" / "masks" / "000_PPA_44_PSA_00_8.png", bars((32, 40)))
    refused(root, r"000_.*a mask of 32 x 40 for a picture of 32 x 32 pixels", role="test")


def test_unreadable_files(tmp_path):
    whole = save(tmp_path / "a" / "x.png", grey(0, (200, 200))).read_bytes()
    (tmp_path / "a" / "x.png").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "a", r"x\.png: damaged")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "y.png").write_text("a page", encoding="utf-8")
    refused(tmp_path / "b", r"y\.png: not a picture; expected PNG")


def test_sizes_are_refused_before_decoding(tmp_path):
    save(tmp_path / "a" / "x.png", np.zeros((9000, 20), np.uint8))
    refused(tmp_path / "a", r"x\.png: 9000 x 20 pixels; sides of 16 to 8192 pixels are read")
    save(tmp_path / "b" / "x.png", np.zeros((8, 20), np.uint8))
    refused(tmp_path / "b", "8 x 20 pixels")
    bomb = Image.new("1", (20000, 20000))
    (tmp_path / "c").mkdir()
    bomb.save(tmp_path / "c" / "x.png")
    refused(tmp_path / "c", r"x\.png: far too large a picture; sides of 16")


def test_other_pixel_types_and_frames(tmp_path):
    save(tmp_path / "a" / "x.tif", np.zeros((20, 20), np.float32))
    refused(tmp_path / "a", r"x\.tif: pixel type 'F'")
    clear = np.zeros((20, 20, 4), np.uint8)
    save(tmp_path / "b" / "x.png", clear)
    refused(tmp_path / "b", r"x\.png: has transparent pixels")
    frames = [Image.fromarray(grey(k)) for k in range(2)]
    (tmp_path / "c").mkdir()
    frames[0].save(tmp_path / "c" / "x.gif", save_all=True, append_images=frames[1:])
    refused(tmp_path / "c", r"x\.gif: holds several frames")


def test_dark_photograph_without_field(tmp_path):
    dark = photograph(0)
    dark[..., 0] //= 5
    save(tmp_path / "x.png", dark)
    refused(tmp_path, r"x\.png: a field of view of 0\.0% of the frame")


def test_folders_that_hold_nothing(tmp_path):
    refused(tmp_path / "none", "no such folder", RequestError)
    refused(tmp_path / "none", "no such folder", RequestError, layout="chase")
    (tmp_path / "data" / "CHASE_DB1").mkdir(parents=True)
    refused(tmp_path / "data", "holds no pictures.*one of its folders CHASE_DB1")
    (tmp_path / "x" / "trainB").mkdir(parents=True)
    refused(tmp_path / "x", "trainB: holds no pictures")
    refused(tmp_path / "x", "'trainC or backgrounds'.*found none", RequestError, role="backgrounds")
    save(tmp_path / "y" / "a.png", grey(0))
    save(tmp_path / "y" / "a.bmp", grey(0))
    refused(tmp_path / "y", r"a\.png: a\.bmp has this name too")


def test_subjects_and_roles_that_are_not_there(tmp_path):
    root = chase(tmp_path, flat=False)
    refused(root, "no subject '09'; it has 01, 02, 03", RequestError, subjects=["09"])
    refused(root, "no subject 'x'", RequestError, exclude=["x"])
    everyone = ["01", "02", "03"]
    refused(root, "every subject is excluded", RequestError, exclude=everyone)
    for role in ("backgrounds", "masks", "test"):
        refused(root, f"CHASE has no {role}; ", RequestError, role=role)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"development data is not at {DATA}")
def test_real_pictures():
    children = read_vessel_images(DATA / "CHASE_DB1", subjects=["02", "06"])
    assert len(children) == 4
    assert layout_of(DATA / "XCAD") == "xcad"
    # One camera: all fields have one size, though dark rims hide parts of 02R and 06L.
    np.testing.assert_allclose(children.circles[:, 2], 459.3, atol=1.5)
    assert all(0.65 < field.mean() < 0.70 for field in children.fields)
    for field, first, second in zip(children.fields, *children.masks.values(), strict=True):
        assert 0.05 < first[field].mean() < 0.16
        agreement = 2 * (first & second).sum() / (first.sum() + second.sum())
        assert 0.65 < agreement < 0.9
    test = read_vessel_images(DATA / "XCAD", role="test")
    assert [image.shape for image in test.images] == [(512, 512)] * 2
    assert [round(float(m.mean()), 3) for m in test.masks["1st"]] == [0.058, 0.049]
    drawn = read_vessel_images(DATA / "XCAD", role="masks")
    # The shares at half coverage that the notes on the method tell.
    assert [round(float((i >= 128 / 255).mean()), 4) for i in drawn.images] == [0.0547, 0.0378]
