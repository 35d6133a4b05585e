import json

import pytest

from synthgen.core.errors import SchemaError, StoreError
from synthgen.core.schema import BRAIN9
from synthgen.data.label_tables import freesurfer_table, read_table, tissue_of


def test_freesurfer_ids_fall_into_the_brain9_channels():
    table = freesurfer_table(BRAIN9)
    expected = {
        0: "background", 2: "wm", 41: "wm", 3: "gm", 42: "gm", 4: "csf", 24: "csf", 14: "csf",
        7: "wm", 46: "wm", 8: "gm", 47: "gm", 10: "deep_gm", 17: "deep_gm", 53: "deep_gm",
        28: "deep_gm", 16: "brainstem", 77: "wmh", 25: "wmh", 57: "wmh", 1011: "gm", 2035: "gm",
        251: "wm", 85: "wm", 31: "csf", 511: "background",
    }  # fmt: skip
    for label, tissue in expected.items():
        assert BRAIN9.names[table[label]] == tissue, label


@pytest.mark.parametrize(
    ("name", "tissue"),
    [
        ("CSF", "csf"),
        ("CGM", "gm"),
        ("CBWM", "wm"),
        ("deep GM", "deep_gm"),
        ("Left-Cerebral-White-Matter", "wm"),
        ("right cerebellum cortex", "gm"),
        ("Right-VentralDC", "deep_gm"),
        ("Brain-Stem", "brainstem"),
        ("ctx-rh-precuneus", "gm"),
        ("left choroid plexus of the lateral ventricle (name inferred)", "csf"),
        ("background (air, or outside the field of view)", "background"),
        ("5th ventricle (cavum septi pellucidi)", "csf"),
        ("eye balls", "background"),
        ("lesion", "wmh"),
        ("kidney", None),
    ],
)
def test_structure_names(name, tissue):
    assert tissue_of(name) == tissue


def test_json_with_class_index(tmp_path):
    path = tmp_path / "labels.json"
    classes = ["background", "CSF", "CGM"]
    path.write_text(json.dumps({"fine": classes, "labels": [{"id": 7, "name": "x", "fine": 2}]}))
    assert read_table(path, BRAIN9) == {7: 2}


def test_json_of_ids(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"0": "background", "1": "csf", "9": "lesion"}')
    assert read_table(path, BRAIN9) == {0: 0, 1: 1, 9: 6}


def test_bids_tsv(tmp_path):
    path = tmp_path / "dseg.tsv"
    path.write_text("index\tname\tcolor\n0\tBackground\t#0\n5\tGM\t#1\n")
    assert read_table(path, BRAIN9) == {0: 0, 5: 2}


def test_freesurfer_colour_table(tmp_path):
    path = tmp_path / "LUT.txt"
    path.write_text("#No. Name R G B A\n0 Unknown 0 0 0 0\n\n10 Left-Thalamus 0 118 14 0\n")
    assert read_table(path, BRAIN9) == {0: 0, 10: 4}


def test_unknown_names_are_listed(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"1": "csf", "2": "spleen", "3": "liver"}')
    with pytest.raises(SchemaError, match=r"t\.json: no tissue .* 2 'spleen', 3 'liver'"):
        read_table(path, BRAIN9)


@pytest.mark.parametrize("text", ["[1, 2]", '{"labels": [{"name": "csf"}]}', '{"a": "csf"}', "{}"])
def test_other_json_is_refused(tmp_path, text):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(SchemaError, match=r"t\.json"):
        read_table(path, BRAIN9)


def test_tsv_without_the_columns_is_refused(tmp_path):
    path = tmp_path / "dseg.tsv"
    path.write_text("id\tlabel\n1\tGM\n")
    with pytest.raises(SchemaError, match="expected the columns 'index' and 'name', got id, label"):
        read_table(path, BRAIN9)


def test_unreadable_table_is_refused(tmp_path):
    path = tmp_path / "t.json"
    path.write_text("{")
    with pytest.raises(StoreError, match=r"t\.json: not a readable label table"):
        read_table(path, BRAIN9)
    with pytest.raises(StoreError, match=r"gone\.tsv"):
        read_table(tmp_path / "gone.tsv", BRAIN9)
