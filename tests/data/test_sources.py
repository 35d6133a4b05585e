import json
from pathlib import Path

import pytest

from synthgen.core.errors import RequestError, StoreError
from synthgen.data.sources import discover, entities, slug, style_modality


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def only(root):
    (scan,) = discover([str(root)]).scans
    return scan


def test_modalities_by_suffix_and_contrast_agent(tmp_path):
    touch(
        tmp_path / "ds",
        *(
            f"sub-1/anat/sub-1_{name}.nii.gz"
            for name in ("T1w", "T2w", "FLAIR", "ce-gadolinium_T1w", "PD", "bold")
        ),
    )
    scan = only(tmp_path / "ds")
    assert set(scan.images) == {"t1", "t2", "flair", "t1ce", "pd"}
    assert scan.id == "ds/sub-1"


def test_derivatives_join_their_subject(tmp_path):
    touch(
        tmp_path / "ds",
        "sub-1/anat/sub-1_space-MNI_T1w.nii.gz",
        "derivatives/tissue/sub-1/anat/sub-1_space-MNI_desc-fine_probseg.nii.gz",
        "derivatives/tissue/sub-1/anat/sub-1_space-MNI_desc-brain_mask.nii.gz",
        "derivatives/tissue/sub-1/anat/sub-1_space-MNI_label-GM_probseg.nii.gz",
    )
    scan = only(tmp_path / "ds")
    assert scan.fine.name == "sub-1_space-MNI_desc-fine_probseg.nii.gz"
    assert scan.brain.name == "sub-1_space-MNI_desc-brain_mask.nii.gz"
    assert set(scan.maps) == {"gm"}


def test_a_root_may_hold_several_datasets(tmp_path):
    touch(tmp_path, "a/sub-1_dseg.nii.gz", "b/sub-1/anat/sub-1_T1w.nii.gz", "b/other.txt")
    assert [s.id for s in discover([str(tmp_path)]).scans] == ["a/sub-1", "b/sub-1"]


def test_expert_lesion_mask_is_preferred_and_change_masks_are_not_lesions(tmp_path):
    touch(
        tmp_path / "ds",
        "sub-1/anat/sub-1_T1w.nii.gz",
        "sub-1/anat/sub-1_desc-auto_label-lesion_mask.nii.gz",
        "sub-1/anat/sub-1_label-lesion_mask.nii.gz",
        "sub-2/anat/sub-2_T1w.nii.gz",
        "sub-2/anat/sub-2_desc-auto_label-lesion_mask.nii.gz",
        "sub-2/anat/sub-2_label-lesionchange_mask.nii.gz",
    )
    found = discover([str(tmp_path / "ds")])
    assert found.scans[0].lesions["wmh"].name == "sub-1_label-lesion_mask.nii.gz"
    assert found.scans[1].lesions["wmh"].name == "sub-2_desc-auto_label-lesion_mask.nii.gz"
    assert "expert mask is preferred" in found.notes[0]
    assert "automatic lesion mask" in found.notes[1]


def test_patients_with_masks_alone(tmp_path):
    touch(tmp_path / "les", "patient07_space-MNI_label-lesion_mask.nii.gz")
    scan = only(tmp_path / "les")
    assert scan.lesions_only
    assert scan.id == "les/patient07"


def test_sessions_are_scans_of_one_subject(tmp_path):
    touch(
        tmp_path / "ds",
        "sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz",
        "sub-1/ses-2/anat/sub-1_ses-2_T1w.nii.gz",
    )
    one, two = discover([str(tmp_path / "ds")]).scans
    assert one.id == two.id == "ds/sub-1"
    assert (one.session, two.session) == ("ses-1", "ses-2")


def test_one_space_is_used_the_one_with_tissue_maps(tmp_path):
    touch(
        tmp_path / "ds",
        "sub-1/anat/sub-1_T1w.nii.gz",
        "derivatives/x/sub-1/anat/sub-1_space-MNI_T1w.nii.gz",
        "derivatives/x/sub-1/anat/sub-1_space-MNI_desc-fine_probseg.nii.gz",
    )
    found = discover([str(tmp_path / "ds")])
    assert found.scans[0].images["t1"].name == "sub-1_space-MNI_T1w.nii.gz"
    assert any("space 'MNI' used" in note for note in found.notes)


def test_dataset_name_from_participants_then_title_then_folder(tmp_path):
    touch(tmp_path / "My Folder", "sub-1_dseg.nii.gz", "sub-2_dseg.nii.gz")
    folder = tmp_path / "My Folder"
    assert [s.dataset for s in discover([str(folder)]).scans] == ["my-folder"] * 2
    description = folder / "dataset_description.json"
    description.write_text(json.dumps({"Name": "A title that is far too long for a style name"}))
    assert discover([str(folder)]).scans[0].dataset == "my-folder"
    description.write_text(json.dumps({"Name": "OASIS 3"}))
    assert discover([str(folder)]).scans[0].dataset == "oasis-3"
    (folder / "participants.tsv").write_text("participant_id\tdataset\nsub-2\tSite B\n")
    assert [s.dataset for s in discover([str(folder)]).scans] == ["oasis-3", "site-b"]


def test_unreadable_description_is_refused(tmp_path):
    touch(tmp_path / "ds", "sub-1_dseg.nii.gz")
    (tmp_path / "ds" / "dataset_description.json").write_text("{}")
    with pytest.raises(StoreError, match=r"dataset_description\.json: expected JSON with a 'Name'"):
        discover([str(tmp_path / "ds")])


def test_label_table_nearest_to_the_map(tmp_path):
    touch(tmp_path / "ds", "sub-1/anat/sub-1_dseg.nii.gz", "sub-2/anat/sub-2_dseg.nii.gz")
    touch(tmp_path / "ds", "dseg.tsv", "sub-2/anat/sub-2_dseg.tsv")
    one, two = discover([str(tmp_path / "ds")]).scans
    assert one.table == tmp_path / "ds" / "dseg.tsv"
    assert two.table.name == "sub-2_dseg.tsv"


def test_atlas_is_found_and_is_no_subject(tmp_path):
    touch(tmp_path / "ds", "sub-1_T1w.nii.gz", "atlas/atlas_res-2_desc-tissue_probseg.nii.gz")
    found = discover([str(tmp_path / "ds")])
    assert found.atlas.name == "atlas_res-2_desc-tissue_probseg.nii.gz"
    assert len(found.scans) == 1


def test_folder_without_nifti_is_refused(tmp_path):
    touch(tmp_path, "a.png", "b/c.txt")
    with pytest.raises(StoreError, match=f"{tmp_path}: no usable NIfTI file"):
        discover([str(tmp_path)])


def test_missing_folder_is_refused():
    with pytest.raises(RequestError, match="nowhere: no such folder"):
        discover(["nowhere"])


def test_same_folder_twice_is_refused(tmp_path):
    touch(tmp_path / "ds", "sub-1_dseg.nii.gz")
    with pytest.raises(RequestError, match="'ds/sub-1' was found twice"):
        discover([str(tmp_path / "ds")] * 2)


def test_builtin_source_needs_no_folder():
    (scan,) = discover(["mni152"]).scans
    assert scan.template
    assert not scan.lesions_only


def test_names():
    assert entities(Path("x/sub-1_space-MNI_T1w.nii")) == ({"sub": "1", "space": "MNI"}, "t1w")
    assert slug(" Ä b__C ") == "b-c"


@pytest.mark.parametrize(
    ("style", "modality"),
    [("oasis_t1ce", "t1ce"), ("oasis_t1", "t1"), ("flair", "flair"), ("sharp1", "")],
)
def test_the_modality_of_a_style_is_the_end_of_its_name(style, modality):
    assert style_modality(style, ["t1", "t1ce", "flair"]) == modality
