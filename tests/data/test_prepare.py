from pathlib import Path

import numpy as np
import pytest

from synthgen.core.errors import GeometryError, LeakageError, RequestError, SchemaError, StoreError
from synthgen.core.schema import BRAIN9, LabelSchema, Tissue
from synthgen.data.prepare import PrepareSettings, assign_splits, prepare
from synthgen.data.sources import Scan
from synthgen.data.store import TrainingStore

SHAPE = (48, 64)
SETTINGS = PrepareSettings(shape=SHAPE, min_area=200)


def run(source, out, **changes):
    settings = PrepareSettings(**{"shape": SHAPE, "min_area": 200, **changes})
    return prepare([str(source)], out, settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory, phantoms):
    """Two subjects with images, three with label maps, one with a lesion mask alone."""
    root = tmp_path_factory.mktemp("source")
    for subject in ("sub-1", "sub-2"):
        phantoms.save_maps(root / "mri", subject)
    for number in range(3):
        phantoms.save_labels(root / "labels", f"sub-{number}")
    mask = np.zeros((60, 70, 140), bool)
    mask[30:36, 20:26, 70:76] = True
    phantoms.save(
        root / "les" / "patient01_label-lesion_mask.nii.gz",
        mask,
        phantoms.affine(origin=(-30, -40, -60)),
    )
    out = tmp_path_factory.mktemp("out")
    report = run(root, out, test=("labels/sub-2",))
    return TrainingStore.open(out, BRAIN9), report


def test_pv_sums_to_exactly_one_after_storage(made):
    store, _ = made
    for index in range(len(store.slices)):
        assert (np.rint(store.pv(index) * 255).sum(axis=0) == 255).all()


def test_images_are_zero_outside_the_brain_and_scaled_inside(made):
    store, _ = made
    assert len(store.image_modality) > 0
    for row, index in enumerate(store.image_pv_index):
        image, background = store.image(row)[0], store.pv(int(index))[0]
        assert (image[background > 0.5] == 0).all()
        assert 0 < image[background < 0.05].mean() <= 1
    t1 = [store.image(int(r)) for r in store.image_rows("train", modality="t1")]
    assert 0.95 < max(float(i.max()) for i in t1) <= 1


def test_tissues_stand_where_they_were(made, phantoms):
    store, _ = made
    middle = min(store.slice_indices("train"), key=lambda i: abs(store.slices.position[i] - 0.5))
    pv = store.pv(int(middle))
    center = pv[:, SHAPE[0] // 2, SHAPE[1] // 2]
    assert BRAIN9.names[int(center.argmax())] == "deep_gm"
    assert set(BRAIN9.to_labels(pv).ravel()) >= {0, 1, 2, 3, 4}
    brain = np.argwhere(pv[0] < 0.5)
    middle_xy = (brain.min(axis=0) + brain.max(axis=0)) / 2
    np.testing.assert_allclose(middle_xy, (SHAPE[0] / 2, SHAPE[1] / 2), atol=1)


def test_label_maps_become_soft_maps(made):
    store, _ = made
    rows = [i for i, name in enumerate(store.slices.dataset) if name == "labels"]
    pv = np.stack([store.pv(i) for i in rows])
    gm = pv[:, BRAIN9.index("gm")]
    assert ((gm > 0.2) & (gm < 0.8)).mean() > 0.02


def test_rim_of_hard_maps_is_soft_too_and_the_brain_the_same(made, phantoms):
    store, report = made
    rows = [i for i, name in enumerate(store.slices.dataset) if name == "mri"]
    background = np.stack([store.pv(i)[0] for i in rows])
    assert ((background > 0.05) & (background < 0.95)).sum() > 0
    brain = phantoms.radius() < 1
    inside = int(brain.sum()) / 1000
    (row,) = (r for r in report.rows if r.subject == "mri/sub-1")
    assert row.brain_ml == pytest.approx(inside, abs=0.06)


def test_lesions_keep_their_volume_and_soften(made, phantoms):
    store, report = made
    _, mask = phantoms.maps()
    (row,) = (r for r in report.rows if r.subject == "mri/sub-1")
    assert row.lesion_ml == pytest.approx(mask.sum() / 1000, rel=0.15)
    assert store.slices.fractions[:, BRAIN9.index("wmh")].max() > 0


def test_lesion_bank_holds_the_mask_at_its_place(made):
    store, _ = made
    assert store.lesion_split == ["train"] * len(store.lesion_position)
    assert 4 <= len(store.lesion_position) <= 8
    # World z 10 .. 15 mm, of a brain from -58 to 70 mm.
    assert store.lesion_position.mean() == pytest.approx((12.5 + 58) / 128, abs=0.01)
    lesion = store.lesion(3)
    assert lesion.max() > 0.9
    # World x 0 .. 5, y -20 .. -15, around a brain centred at (0, -18).
    x, y = np.argwhere(lesion > 0.5).mean(axis=0)
    assert (x, y) == pytest.approx((SHAPE[0] / 2 + 2.5, SHAPE[1] / 2 + 0.5), abs=0.51)


def test_no_subject_stands_in_two_splits(made):
    store, report = made
    splits = {s: set(store.subjects(s)) for s in ("train", "val", "test")}
    assert not splits["train"] & splits["val"]
    assert not splits["train"] & splits["test"]
    assert not splits["val"] & splits["test"]
    assert splits["test"] == {"labels/sub-2"}
    assert len(splits["val"]) == 1
    assert {row.subject for row in report.rows} == set.union(*splits.values())


def test_same_input_same_store(tmp_path, phantoms):
    phantoms.save_maps(tmp_path / "mri", "sub-1")
    one, two = (run(tmp_path / "mri", tmp_path / name) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint != ""


def test_other_voxel_sizes_are_resampled(tmp_path, phantoms):
    phantoms.save_labels(tmp_path / "labels", "sub-1", spacing=2.0)
    report = run(tmp_path / "labels", tmp_path, shape=(96, 128))
    single = 0.84**3 * np.pi / 6 * np.prod(phantoms.SHAPE) / 1000
    assert report.rows[0].brain_ml == pytest.approx(8 * single, rel=0.15)
    assert report.rows[0].slices > 24


def test_step_takes_every_nth_slice(tmp_path, phantoms):
    phantoms.save_labels(tmp_path / "labels", "sub-1")
    all_slices = run(tmp_path / "labels", tmp_path / "a").rows[0].slices
    assert run(tmp_path / "labels", tmp_path / "b", step=3).rows[0].slices == -(-all_slices // 3)


def test_dry_run_writes_nothing(tmp_path, phantoms):
    phantoms.save_maps(tmp_path / "mri", "sub-1")
    report = prepare([str(tmp_path / "mri")], tmp_path / "out", SETTINGS, dry_run=True)
    assert report.rows[0].modalities == ("flair", "t1")
    assert report.bytes > 0
    assert not (tmp_path / "out").exists()


def test_same_lesion_mask_under_another_name_counts_once(tmp_path, phantoms):
    phantoms.save_maps(tmp_path / "mri", "sub-cs07")
    _, mask = phantoms.maps()
    wide = np.pad(mask, 9)
    other = mask.copy()
    other[28, 28, 13] = False
    other[5:9, 20:26, 9] = True
    phantoms.save(tmp_path / "les" / "patient07_label-lesion_mask.nii.gz", wide)
    phantoms.save(tmp_path / "les" / "patient08_label-lesion_mask.nii.gz", other)
    report = prepare([str(tmp_path)], tmp_path / "out", SETTINGS, dry_run=True)
    assert [r.subject for r in report.rows] == ["les/patient08", "mri/sub-cs07"]
    assert any("les/patient07: left out" in n and "mri/sub-cs07" in n for n in report.notes)


def test_images_alone_get_their_tissues_from_the_atlas(tmp_path, phantoms):
    for number, name in enumerate(("T1w", "FLAIR")):
        levels = (0.2, 0.5, 0.8) if number == 0 else (0.1, 0.7, 0.5)
        phantoms.save(
            tmp_path / "ds" / "sub-1" / "anat" / f"sub-1_{name}.nii.gz",
            phantoms.image(levels=levels),
        )
    fine, lesion = phantoms.maps()
    fine[2] += lesion
    atlas = np.moveaxis(0.9 * fine + 0.02 * (fine.sum(axis=0) > 0), 0, -1)
    phantoms.save(tmp_path / "ds" / "atlas" / "a_desc-tissue_probseg.nii.gz", atlas)
    report = run(tmp_path / "ds", tmp_path / "out")
    assert report.rows[0].origin == "atlas"
    store = TrainingStore.open(tmp_path / "out")
    index = int(np.argmin(np.abs(store.slices.position - 0.5)))
    names = BRAIN9.to_labels(store.pv(index))
    truth = phantoms.labels()[:, :, 11 + 1]
    found = names[4:44, 8:56]
    assert (found[truth == 2] == 3).mean() > 0.9
    assert (found[truth == 3] == 2).mean() > 0.8


def test_global_rng_is_untouched(tmp_path, phantoms, untouched_rng):
    phantoms.save_maps(tmp_path / "mri", "sub-1")
    run(tmp_path / "mri", tmp_path / "out")


# The split.


def scans(**counts):
    return [
        Scan(dataset, f"sub-{i}", images={"t1": Path("x")} if dataset.startswith("mri") else {})
        for dataset, n in counts.items()
        for i in range(n)
    ]


def test_automatic_split_holds_out_a_tenth_of_each_dataset():
    split = assign_splits(scans(labels=20, mri=10), PrepareSettings())
    val = [name for name, where in split.items() if where == "val"]
    assert sorted(name.split("/")[0] for name in val) == ["labels", "labels", "mri"]


def test_dataset_with_images_keeps_a_training_subject():
    for seed in range(20):
        split = assign_splits(scans(mri_a=1, mri_b=1, mri_c=1, x=2), PrepareSettings(seed=seed))
        val = [name for name, where in split.items() if where == "val"]
        assert [name.split("/")[0] for name in val] == ["x"]


def test_split_depends_on_the_seed_and_not_on_the_order():
    some = scans(labels=30)
    one = assign_splits(some, PrepareSettings(seed=1))
    assert one == assign_splits(some[::-1], PrepareSettings(seed=1))
    assert one != assign_splits(some, PrepareSettings(seed=2))


def test_few_subjects_are_all_for_training():
    assert set(assign_splits(scans(labels=4), PrepareSettings()).values()) == {"train"}


def test_named_subjects_only():
    split = assign_splits(
        scans(a=8, mri=2), PrepareSettings(val=("a/sub-0", "sub-7"), test=("mri/sub-1",))
    )
    assert [name for name, where in split.items() if where == "val"] == ["a/sub-0", "a/sub-7"]
    assert split["mri/sub-1"] == "test"


def test_subject_in_both_lists_is_refused():
    with pytest.raises(LeakageError, match="'a/sub-1' is named for both --val and --test"):
        assign_splits(scans(a=3), PrepareSettings(val=("sub-1",), test=("a/sub-1",)))


def test_ambiguous_and_unknown_names_are_refused():
    with pytest.raises(RequestError, match="'sub-1' stands for a/sub-1, b/sub-1"):
        assign_splits(scans(a=3, b=3), PrepareSettings(val=("sub-1",)))
    with pytest.raises(RequestError, match="'sub-9' is no subject"):
        assign_splits(scans(a=3), PrepareSettings(test=("sub-9",)))


# Bad input. Each leaves no store behind.


def refused(tmp_path, error, match, **changes):
    with pytest.raises(error, match=match) as caught:
        run(tmp_path / "ds", tmp_path / "out", **changes)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*"))


def image_file(tmp_path, name="T1w"):
    return tmp_path / "ds" / "sub-1" / "anat" / f"sub-1_{name}.nii.gz"


def map_file(tmp_path, name):
    return tmp_path / "ds" / "derivatives" / "tissue" / "sub-1" / "anat" / f"sub-1_{name}.nii.gz"


def test_nan_volume(tmp_path, phantoms):
    phantoms.save_maps(tmp_path / "ds", "sub-1")
    phantoms.save(image_file(tmp_path), np.where(phantoms.labels() == 3, np.nan, 1.0))
    refused(tmp_path, StoreError, r"sub-1_T1w\.nii\.gz: \d+ voxels are NaN")


def test_empty_volume(tmp_path, phantoms):
    phantoms.save_maps(tmp_path / "ds", "sub-1")
    phantoms.save(image_file(tmp_path), np.zeros(phantoms.SHAPE))
    refused(tmp_path, StoreError, r"sub-1_T1w\.nii\.gz: the volume is empty")


def test_4d_image(tmp_path, phantoms):
    phantoms.save_maps(tmp_path / "ds", "sub-1")
    phantoms.save(image_file(tmp_path), np.stack([phantoms.image()] * 2, axis=-1))
    refused(tmp_path, GeometryError, r"sub-1_T1w\.nii\.gz: expected a 3-D volume")


def test_incomplete_tissue_maps(tmp_path, phantoms):
    fine, _ = phantoms.maps()
    phantoms.save(image_file(tmp_path), phantoms.image())
    for name, data in (("GM", fine[1]), ("WM", fine[2])):
        phantoms.save(map_file(tmp_path, f"label-{name}_probseg"), data)
    refused(tmp_path, SchemaError, r"probseg\.nii\.gz: .*incomplete, label-CSF_probseg is missing")


def test_complete_tissue_maps(tmp_path, phantoms):
    fine, lesion = phantoms.maps()
    phantoms.save(image_file(tmp_path), phantoms.image())
    whole = {"CSF": fine[0], "GM": fine[1] + fine[3], "WM": fine[2] + fine[4] + lesion}
    for name, data in whole.items():
        phantoms.save(map_file(tmp_path, f"label-{name}_probseg"), data)
    report = run(tmp_path / "ds", tmp_path / "out")
    assert report.rows[0].origin == "maps"


def test_shapes_that_disagree(tmp_path, phantoms):
    phantoms.save_maps(tmp_path / "ds", "sub-1")
    phantoms.save(image_file(tmp_path, "FLAIR"), phantoms.image((40, 48, 22)))
    refused(
        tmp_path, GeometryError, r"sub-1_FLAIR\.nii\.gz: expected shape \(40, 48, 24\), got .*22\)"
    )


@pytest.mark.parametrize("name", ["label-lesion_mask", "desc-brain_mask"])
def test_mask_of_another_shape(tmp_path, phantoms, name):
    phantoms.save_maps(tmp_path / "ds", "sub-1")
    phantoms.save(map_file(tmp_path, name), np.ones((40, 48, 22), np.uint8))
    refused(tmp_path, GeometryError, rf"sub-1_{name}\.nii\.gz: expected shape")


def test_affines_that_disagree(tmp_path, phantoms):
    phantoms.save_maps(tmp_path / "ds", "sub-1")
    moved = phantoms.affine(origin=(-20, -24, -9))
    phantoms.save(image_file(tmp_path), phantoms.image(), moved)
    refused(tmp_path, GeometryError, r"sub-1_T1w\.nii\.gz: its affine differs .* by 3 ")


def test_label_ids_outside_the_table(tmp_path, phantoms):
    phantoms.save_labels(tmp_path / "ds", "sub-1")
    phantoms.save_table(tmp_path / "ds", {0: "background", 24: "csf", 3: "gm", 2: "wm", 10: "dgm"})
    brainstem, lesion = ((phantoms.labels() == i).sum() for i in (16, 25))
    refused(
        tmp_path,
        SchemaError,
        rf"sub-1_dseg\.nii\.gz: .* 16 \({brainstem} voxels\), 25 \({lesion} voxels\)",
    )


def test_given_label_table_is_used(tmp_path, phantoms):
    phantoms.save_labels(tmp_path / "ds", "sub-1")
    names = {0: "background", 24: "csf", 3: "gm", 2: "wm", 10: "dgm", 16: "bs", 25: "tumour"}
    table = phantoms.save_table(tmp_path, names)
    run(tmp_path / "ds", tmp_path / "out", label_table=table)
    fractions = TrainingStore.open(tmp_path / "out").slices.fractions
    assert fractions[:, BRAIN9.index("tumour")].max() > 0
    assert fractions[:, BRAIN9.index("wmh")].max() == 0


def test_pv_outside_zero_to_one(tmp_path, phantoms):
    phantoms.save_maps(tmp_path / "ds", "sub-1")
    fine, _ = phantoms.maps()
    fine[2, 20, 30, 12] = 1.27
    phantoms.save(map_file(tmp_path, "desc-fine_probseg"), np.moveaxis(fine, 0, -1))
    refused(
        tmp_path,
        SchemaError,
        r"desc-fine_probseg\.nii\.gz: 'wm' has value 1.27 at voxel \(20, 30, 12\)",
    )


@pytest.mark.parametrize(("factor", "total"), [(0.5, "0.5"), (1.0, "1.5")])
def test_pv_that_does_not_sum_to_one(tmp_path, phantoms, factor, total):
    phantoms.save_maps(tmp_path / "ds", "sub-1")
    fine, _ = phantoms.maps()
    fine[:, 20, 24, 12] *= factor
    fine[6, 20, 24, 12] += 0.5 if factor == 1 else 0
    phantoms.save(map_file(tmp_path, "desc-fine_probseg"), np.moveaxis(fine, 0, -1))
    refused(tmp_path, SchemaError, rf"sum to {total} at voxel \(20, 24, 12\)")


def test_rounding_of_probabilities_is_tolerated(tmp_path, phantoms):
    phantoms.save_maps(tmp_path / "ds", "sub-1")
    fine, _ = phantoms.maps()
    phantoms.save(map_file(tmp_path, "desc-fine_probseg"), np.moveaxis(fine * 0.99, 0, -1))
    assert run(tmp_path / "ds", tmp_path / "out").rows[0].slices > 0


def test_fine_map_with_other_channels(tmp_path, phantoms):
    phantoms.save_maps(tmp_path / "ds", "sub-1")
    fine, _ = phantoms.maps()
    phantoms.save(map_file(tmp_path, "desc-fine_probseg"), np.moveaxis(fine[:5], 0, -1))
    refused(tmp_path, GeometryError, r"desc-fine_probseg\.nii\.gz: expected 7 tissue maps.* got 5")


def test_image_with_its_skull(tmp_path, phantoms):
    head = np.clip(phantoms.image(), 20, None)
    phantoms.save(image_file(tmp_path), head)
    refused(tmp_path, StoreError, r"sub-1_T1w\.nii\.gz: not skull-stripped .* no brain mask")


def test_empty_brain_mask(tmp_path, phantoms):
    phantoms.save_maps(tmp_path / "ds", "sub-1")
    phantoms.save(map_file(tmp_path, "desc-brain_mask"), np.zeros(phantoms.SHAPE, np.uint8))
    refused(tmp_path, StoreError, r"desc-brain_mask\.nii\.gz: the brain mask is empty")


def test_brain_that_does_not_fit(tmp_path, phantoms):
    phantoms.save_labels(tmp_path / "ds", "sub-1")
    refused(
        tmp_path, GeometryError, r"ds/sub-1: the brain measures .* fit into 24 x 24", shape=(24, 24)
    )


def test_no_slice_with_enough_brain(tmp_path, phantoms):
    phantoms.save_labels(tmp_path / "ds", "sub-1")
    refused(tmp_path, GeometryError, "no axial slice has 9000 brain voxels", min_area=9000)


def test_truncated_image(tmp_path, phantoms):
    phantoms.save_maps(tmp_path / "ds", "sub-1")
    path = image_file(tmp_path)
    path.write_bytes(path.read_bytes()[:3000])
    refused(tmp_path, StoreError, r"sub-1_T1w\.nii\.gz: not a readable NIfTI")


def test_schema_without_the_brain_tissues(tmp_path, phantoms):
    phantoms.save_labels(tmp_path / "ds", "sub-1")
    schema = LabelSchema("two", (Tissue("background", 0), Tissue("brain", 1)))
    refused(tmp_path, RequestError, "schema 'two' lacks csf, gm, wm", schema=schema)


def test_bad_input_leaves_the_old_store(tmp_path, phantoms):
    phantoms.save_maps(tmp_path / "ds", "sub-1")
    run(tmp_path / "ds", tmp_path / "out")
    before = (tmp_path / "out" / "store.h5").read_bytes()
    phantoms.save_maps(tmp_path / "ds", "sub-2")
    phantoms.save(tmp_path / "ds" / "sub-2" / "anat" / "sub-2_T1w.nii.gz", np.zeros(phantoms.SHAPE))
    with pytest.raises(StoreError, match="sub-2_T1w"):
        run(tmp_path / "ds", tmp_path / "out")
    assert (tmp_path / "out" / "store.h5").read_bytes() == before
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["store.h5"]
