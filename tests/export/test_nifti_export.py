"""BIDS derivatives: names, geometry, values, and that synthgen's own readers take them."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from exporting import STORE_SHAPE, write_store

from synthgen.core.errors import RequestError
from synthgen.core.schema import BRAIN9
from synthgen.data.nifti import read_maps
from synthgen.data.rows import Picture
from synthgen.data.shards import Shards
from synthgen.data.sources import discover
from synthgen.data.store import TrainingStore
from synthgen.evaluate.cases import Frame
from synthgen.evaluate.foreign import open_set
from synthgen.export import ExportOptions, export, open_source


def make(source, out, **options):
    return export(open_source(source, **options), "nifti", out, ExportOptions())


def rows(path):
    head, *lines = path.read_text().splitlines()
    return [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]


def test_a_generated_sample_is_a_subject_one_slice_thick(images, tmp_path):
    outcome = make(images, tmp_path / "out", spacing_mm=0.8)
    assert (outcome.count, outcome.what) == (7, "subjects")
    sample = Shards(images)[4]
    anat = tmp_path / "out/sub-000004/anat"
    present = [name for c, name in enumerate(BRAIN9.names) if c and sample.pv[c].any()]
    assert sorted(p.name for p in anat.iterdir()) == sorted(
        [
            "sub-000004_acq-aflair_FLAIR.nii.gz",
            "sub-000004_acq-at1_T1w.nii.gz",
            "sub-000004_dseg.nii.gz",
            *(f"sub-000004_label-{short(name)}_probseg.nii.gz" for name in present),
        ]
    )
    flair = nib.load(anat / "sub-000004_acq-aflair_FLAIR.nii.gz")
    assert flair.shape == (*sample.pv.shape[1:], 1)
    np.testing.assert_allclose(flair.header.get_zooms(), 0.8)
    np.testing.assert_array_equal(flair.get_fdata()[..., 0], sample.images[1])
    # The middle of the plane, index shape // 2, lies at 0.
    np.testing.assert_allclose(flair.affine @ [12, 16, 0, 1], [0, 0, 0, 1], atol=1e-6)


def short(name):
    return {"deep_gm": "DGM", "brainstem": "BS"}.get(name, name.upper())


def test_partial_volumes_come_back(images, tmp_path):
    make(images, tmp_path)
    sample = Shards(images)[2]
    for channel, name in enumerate(BRAIN9.names[1:], start=1):
        path = tmp_path / f"sub-000002/anat/sub-000002_label-{short(name)}_probseg.nii.gz"
        if sample.pv[channel].any():
            np.testing.assert_allclose(
                read_maps(path).data[0, ..., 0], sample.pv[channel], atol=1e-6
            )
    labels = nib.load(tmp_path / "sub-000002/anat/sub-000002_dseg.nii.gz").get_fdata()[..., 0]
    np.testing.assert_array_equal(labels, BRAIN9.to_labels(sample.pv))
    assert [(int(r["index"]), r["name"]) for r in rows(tmp_path / "dseg.tsv")] == [
        (t.value, t.name) for t in BRAIN9.tissues
    ]


def test_slices_of_a_subject_become_its_volume_again(store, tmp_path):
    outcome = make(store, tmp_path / "out")
    assert outcome.count == 3
    anat = tmp_path / "out/sub-a1/anat"
    volume = nib.load(anat / "sub-a1_FLAIR.nii.gz")
    assert volume.shape == (*STORE_SHAPE, 3)
    np.testing.assert_allclose(
        volume.affine, [[1.5, 0, 0, -9], [0, 1.5, 0, -12], [0, 0, 1.5, 6], [0, 0, 0, 1]]
    )
    labels = nib.load(anat / "sub-a1_dseg.nii.gz")
    np.testing.assert_array_equal(labels.affine, volume.affine)
    with TrainingStore.open(store) as opened:
        for z in range(3):
            np.testing.assert_array_equal(volume.get_fdata()[..., z], opened.image(3 + z)[0])
            np.testing.assert_array_equal(
                labels.get_fdata()[..., z], BRAIN9.to_labels(opened.pv(z))
            )
    assert rows(tmp_path / "out/participants.tsv")[2] == {
        "participant_id": "sub-b1", "dataset": "b", "subject": "b/sub-1", "split": "test",
    }  # fmt: skip


def test_every_second_slice_makes_thicker_voxels(tmp_path):
    write_store(tmp_path / "store", zs=(4, 6, 8))
    make(tmp_path / "store", tmp_path / "out", splits=("train",))
    volume = nib.load(tmp_path / "out/sub-a1/anat/sub-a1_T1w.nii.gz")
    assert [float(s) for s in volume.header.get_zooms()] == [1.5, 1.5, 3]
    assert volume.affine[2, 3] == 6


def test_slices_with_a_gap_stay_slices(tmp_path):
    write_store(tmp_path / "store", zs=(4, 5, 8))
    outcome = make(tmp_path / "store", tmp_path / "out", splits=("val",))
    assert outcome.count == 1
    volume = nib.load(tmp_path / "out/sub-a2/anat/sub-a2_acq-z008_T1w.nii.gz")
    assert volume.shape == (*STORE_SHAPE, 1)
    assert volume.affine[2, 3] == 12


def test_prepare_and_evaluate_find_what_they_need(store, images, tmp_path):
    make(store, tmp_path / "real")
    scans = {scan.id: scan for scan in discover([str(tmp_path / "real")]).scans}
    assert {*scans} == {"a/sub-a1", "a/sub-a2", "b/sub-b1"}
    assert {*scans["a/sub-a1"].images} == {"t1", "flair"}
    assert {*scans["a/sub-a1"].maps} == {*BRAIN9.names[1:]}
    make(images, tmp_path / "made")
    back = open_set(tmp_path / "made", Frame(BRAIN9, (24, 32), 1.0, ("t1", "flair")))
    hard = np.argmax(Shards(images)[3].pv, axis=0)
    np.testing.assert_array_equal(np.argmax(back.pv([3])[0], axis=0), hard)


def test_labels_without_images_are_label_maps_and_partial_volumes(labels, tmp_path):
    make(labels, tmp_path)
    names = {p.name for p in (tmp_path / "sub-000000/anat").iterdir()}
    assert all("probseg" in name or "dseg" in name for name in names)
    described = json.loads((tmp_path / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert described["GeneratedBy"][0]["Name"] == "synthgen"
    assert "seed: 0" in described["GeneratedBy"][0]["Description"]


def test_names_that_collide_are_refused(images, tmp_path):
    source = open_source(images)
    twins = (Picture("a-x_t1", "t1"), Picture("ax_t1", "t1"))
    source = replace(source, entries=tuple(replace(e, pictures=twins) for e in source.entries))
    with pytest.raises(RequestError, match="two styles would share a file name"):
        export(source, "nifti", tmp_path / "out", ExportOptions())
    write_store(tmp_path / "store", subjects=(("a/sub-1-2", "train"), ("a/sub-12", "train")))
    with pytest.raises(RequestError, match="would both be sub-a12"):
        make(tmp_path / "store", tmp_path / "out")
