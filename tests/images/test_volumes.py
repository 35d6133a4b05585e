"""Painted volumes: labels and images of deformed brains, one number at a time."""

from __future__ import annotations

from functools import cache

import numpy as np
import phantoms
import pytest
import torch

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.schema import BRAIN9
from synthgen.data import anatomies as pool
from synthgen.data.anatomies import Anatomies
from synthgen.data.real_volumes import RealVolumes, VolumeLayout
from synthgen.images.volumes import VolumeGenerator

STYLES = ("t1", "t2", "flair")
WMH = VolumeLayout(("csf", "gm", "wm", "wmh"), spacing_mm=2.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three label maps, one lesion mask without a brain, and one scan with tissue maps."""
    root = tmp_path_factory.mktemp("source")
    for number in range(3):
        phantoms.save_labels(root / "labels", f"sub-{number}", spacing=2.0)
    mask = phantoms.radius() < 0.3
    name = "sub-9_space-MNI_label-lesion_mask.nii.gz"
    matrix = phantoms.affine(2.0, (-40.0, -66.0, -18.0))
    phantoms.save(root / "masks" / name, mask, matrix)
    phantoms.save_maps(root / "scans", "sub-5", matrix=phantoms.affine(2.0))
    return root


def generator(source, *folders, styles=STYLES, layout=WMH, exclude=(), **settings):
    found = brains(tuple(str(source / name) for name in folders or ("labels",)), exclude)
    return VolumeGenerator(found, styles, layout, **settings)


@cache
def brains(folders, exclude):
    """Brains in memory; which volumes were made of them before changes nothing."""
    return Anatomies(folders, BRAIN9, exclude=exclude)


def test_images_and_labels_fit_each_other(source):
    made = generator(source).sample(0)
    assert tuple(made.images) == STYLES
    assert made.labels.shape == (40, 48, 24)  # the field of view of the scan
    assert set(np.unique(made.labels)) <= {0, 1, 2, 3, 4}
    for image in made.images.values():
        assert image.shape == made.labels.shape
        assert image.dtype == np.float32
        assert image.min() == 0
        assert image.max() <= 1
        outside = made.labels == 0
        assert (image[outside] > 0).mean() < 0.03  # the rim: several tissues share the rest
        assert (image[~outside] > 0).mean() > 0.99
    medians = {
        name: [np.median(image[made.labels == value]) for value in (1, 2, 3)]
        for name, image in made.images.items()
    }
    assert medians["t1"] == sorted(medians["t1"])  # fluid, grey, white
    assert medians["t2"][2] < min(medians["t2"][:2])
    assert medians["flair"][0] < medians["flair"][2]


def test_a_volume_is_a_function_of_its_number(source):
    one = generator(source)
    other = VolumeGenerator(Anatomies((str(source / "labels"),), BRAIN9), STYLES, WMH)
    for index in (4, 1):
        a, b = one.sample(index), other.sample(index)
        assert np.array_equal(a.labels, b.labels)
        assert a.facts == b.facts
        assert all(np.array_equal(a.images[s], b.images[s]) for s in STYLES)
    assert not np.array_equal(one.sample(1).labels, generator(source, seed=1).sample(1).labels)


def test_a_style_does_not_depend_on_the_others(source):
    alone = generator(source, styles=("flair",)).sample(2).images["flair"]
    assert np.array_equal(alone, generator(source).sample(2).images["flair"])


def test_every_brain_is_dealt_once_a_round(source):
    made = generator(source, styles=("t1",), layout=VolumeLayout(spacing_mm=4.0))
    groups = [made.sample(index).group for index in range(9)]
    assert [set(groups[i : i + 3]) for i in (0, 3, 6)] == [set(made.subjects)] * 3
    assert len({tuple(groups[i : i + 3]) for i in (0, 3, 6)}) > 1


@pytest.mark.parametrize("spacing_mm", [1.0, 2.0, 3.0])
def test_volumes_keep_their_size_in_mm(spacing_mm, source):
    """One draw at three voxel sizes is one brain."""
    layout = VolumeLayout(WMH.tissues, spacing_mm, crop=True)
    made = generator(source, styles=("t1",), layout=layout, lesions=0.0).sample(1)
    finest = generator(source, styles=("t1",), layout=VolumeLayout(), lesions=0.0).sample(1)
    litres = [(m.labels > 0).sum() * s**3 for m, s in ((made, spacing_mm), (finest, 1.0))]
    assert litres[0] == pytest.approx(litres[1], rel=0.06)
    for side, mm in zip(made.labels.shape, made.origin_mm, strict=True):
        assert mm == -spacing_mm * (side - 1) / 2
    rows = [np.flatnonzero((made.labels > 0).any(axis=other)) for other in ((1, 2), (0, 2), (0, 1))]
    for row, side in zip(rows, made.labels.shape, strict=True):
        assert row[0] * spacing_mm <= 4 + spacing_mm
        assert (side - 1 - row[-1]) * spacing_mm <= 4 + spacing_mm


def test_lesions_are_blobs_unless_there_are_masks(source):
    flair = ("flair",)
    own = [generator(source, styles=flair, lesions=0.0).sample(i) for i in range(2)]
    blobs = [generator(source, styles=flair, lesions=1.0).sample(i) for i in range(2)]
    folders = ("labels", "masks")
    masks = [generator(source, *folders, styles=flair, lesions=1.0).sample(i) for i in range(2)]
    assert {m.facts["lesions"] for m in own} == {""}
    assert {m.facts["lesions"] for m in blobs} == {"blobs"}
    assert {m.facts["lesions"] for m in masks} == {"masks/sub-9"}
    for a, b, c in zip(own, blobs, masks, strict=True):
        assert a.facts["lesion_ml"] < min(b.facts["lesion_ml"], c.facts["lesion_ml"])
        assert (b.labels == 4).sum() > (a.labels == 4).sum()
        assert (c.labels == 4).sum() > (a.labels == 4).sum()
    flair, labels = blobs[0].images["flair"], blobs[0].labels
    assert np.median(flair[labels == 4]) > np.median(flair[labels == 3])


def test_tissues_choose_the_labels(source):
    made = generator(source, layout=VolumeLayout(spacing_mm=2.0), lesions=1.0)
    assert made.label_names == ("background", "csf", "gm", "wm")
    three, four = made.sample(0).labels, generator(source, lesions=1.0).sample(0).labels
    assert np.array_equal(three > 0, four > 0)
    assert (three[four == 4] == 3).mean() > 0.8  # lesions are white matter where not asked for


def test_one_scanner_or_many(source):
    """A data set's name fixes the scanner, its contrast varies little."""

    def contrast(style):
        layout = VolumeLayout(spacing_mm=4.0)
        samples = [generator(source, styles=(style,), layout=layout).sample(i) for i in range(6)]
        ratios = [
            np.median(s.images[style][s.labels == 2]) / np.median(s.images[style][s.labels == 3])
            for s in samples
        ]
        return np.std(ratios)

    assert contrast("random") > 2 * contrast("oasis_t1")


def test_sources_without_a_brain_and_wrong_requests_are_refused(source):
    with pytest.raises(RequestError, match="only 1 lesion masks"):
        generator(source, "masks")
    with pytest.raises(RequestError, match="'sub-77' is no subject"):
        generator(source, exclude=("sub-77",))
    with pytest.raises(RequestError, match="unknown style 'ct'"):
        generator(source, styles=("ct",))
    with pytest.raises(RequestError, match="expected different styles, got 't1,t1'"):
        generator(source, styles=("t1", "t1"))
    with pytest.raises(RequestError, match=r"--lesions: expected a chance in \[0, 1\], got 2"):
        generator(source, lesions=2)
    with pytest.raises(RequestError, match=r"0\.5 to 4, got 9"):
        VolumeLayout(spacing_mm=9)
    with pytest.raises(RequestError, match="liver"):
        generator(source, layout=VolumeLayout(("csf", "gm", "wm", "liver")))
    (source / "empty").mkdir(exist_ok=True)
    with pytest.raises(StoreError, match="no usable NIfTI"):
        generator(source, "empty")


def test_excluded_subjects_are_not_behind_the_volumes(source):
    made = generator(source, "labels", "masks", exclude=("sub-0", "masks/sub-9"))
    assert made.subjects == ("labels/sub-1", "labels/sub-2")


def test_identity_follows_the_files(source, tmp_path):
    phantoms.save_labels(tmp_path / "labels", "sub-0", spacing=2.0)
    before = generator(tmp_path).identity
    assert before == generator(tmp_path).identity
    phantoms.save(tmp_path / "labels" / "sub-0_dseg.nii.gz", phantoms.labels()[::-1], None)
    assert generator(tmp_path).identity["files"] != before["files"]


def test_memory_is_bounded(source, monkeypatch):
    found = Anatomies((str(source / "labels"),), BRAIN9)
    made = VolumeGenerator(found, ("t1",), VolumeLayout(spacing_mm=4.0))
    monkeypatch.setattr(pool, "CACHE_BYTES", 1)
    for index in range(4):
        made.sample(index)
    assert len(found._cache) == 1


def test_scans_beside_their_labels(source):
    anatomies = Anatomies([str(source / "scans")], BRAIN9)
    layout = VolumeLayout(WMH.tissues, 2.0, crop=True)
    volumes = RealVolumes(anatomies, ("flair", "t2", "t1"), layout)
    assert (len(volumes), volumes.name(0)) == (1, "scans-sub-5")
    assert volumes.styles_of(0) == ("flair", "t1")
    made = volumes.sample(0)
    assert (made.subject, made.group) == ("scans/sub-5", "scans/sub-5")
    assert tuple(made.images) == ("flair", "t1")
    assert all(image.shape == made.labels.shape for image in made.images.values())
    t1 = made.images["t1"]
    assert np.median(t1[made.labels == 3]) > np.median(t1[made.labels == 2]) > 0
    assert not t1[made.labels == 0].any()
    with pytest.raises(RequestError, match="no scan has an image of pd; there are flair, t1"):
        RealVolumes(anatomies, ("pd",), layout)


def test_global_generators_are_untouched(source, untouched_rng):
    state = torch.get_rng_state()
    generator(source, layout=VolumeLayout(spacing_mm=4.0), lesions=1.0).sample(0)
    assert torch.equal(torch.get_rng_state(), state)
