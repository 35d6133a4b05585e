import numpy as np
import pytest

from synthgen.core.errors import RequestError, SchemaError
from synthgen.core.schema import BRAIN9, LabelSchema, Tissue


def _maps(dtype=np.float32, top=1):
    pv = np.zeros((9, 3, 4), dtype=dtype)
    pv[0] = top
    return pv


def test_default_channels():
    assert BRAIN9.names == (
        "background", "csf", "gm", "wm", "deep_gm", "brainstem", "wmh", "tumour", "oedema",
    )  # fmt: skip
    assert BRAIN9.lesion_channels == (6, 7, 8)


def test_good_maps_pass():
    BRAIN9.check(_maps())
    BRAIN9.check(_maps(np.uint8, 255))


def test_value_out_of_range_names_tissue_and_voxel():
    pv = _maps()
    pv[3, 1, 2] = 1.27
    expected = r"case\.nii: pv channel 3 \('wm'\) has value 1\.27 at voxel \(1, 2\)"
    with pytest.raises(SchemaError, match=expected):
        BRAIN9.check(pv, "case.nii")


def test_nan_is_refused():
    pv = _maps()
    pv[2, 0, 3] = np.nan
    with pytest.raises(SchemaError, match=r"'gm'\) has value nan at voxel \(0, 3\)"):
        BRAIN9.check(pv)


@pytest.mark.parametrize("value", [0.5, 1.001])
def test_wrong_sum_names_the_voxel(value):
    pv = _maps()
    pv[0, 2, 1] = 0.5
    pv[1, 2, 1] = value - 0.5 if value > 0.5 else 0.25
    with pytest.raises(SchemaError, match=r"sum to .* at voxel \(2, 1\)"):
        BRAIN9.check(pv)


def test_stored_maps_sum_to_255_exactly():
    pv = _maps(np.uint8, 255)
    pv[0, 0, 0] = 254
    with pytest.raises(SchemaError, match=r"sum to 254 at voxel \(0, 0\).*255"):
        BRAIN9.check(pv)


def test_wrong_number_of_channels_is_refused():
    with pytest.raises(SchemaError, match=r"expected 9 PV channels .* \(3, 4\)"):
        BRAIN9.check(np.ones((3, 4)))


def test_json_round_trip_keeps_the_fingerprint():
    again = LabelSchema.from_json(BRAIN9.to_json())
    assert again == BRAIN9
    assert again.fingerprint == BRAIN9.fingerprint == "035a6b4bfc3f2fac"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "x", "tissues": [{"name": "a"}]}'])
def test_foreign_json_is_refused(text):
    with pytest.raises(SchemaError):
        LabelSchema.from_json(text)


def test_another_schema_is_refused_with_both_names():
    other = LabelSchema("vessel2", (Tissue("background", 0), Tissue("vessel", 1)))
    BRAIN9.require_same(BRAIN9, "store.h5")
    with pytest.raises(SchemaError, match=r"store\.h5: expected .*'brain9'.*got 'vessel2'"):
        BRAIN9.require_same(other, "store.h5")


def test_malformed_schemas_are_refused():
    with pytest.raises(SchemaError, match="first tissue must be 'background'"):
        LabelSchema("x", (Tissue("gm", 1),))
    with pytest.raises(SchemaError, match="a tissue value stands twice"):
        LabelSchema("x", (Tissue("background", 0), Tissue("gm", 0)))
    with pytest.raises(SchemaError, match="a tissue name stands twice"):
        LabelSchema("x", (Tissue("background", 0), Tissue("background", 1)))


def test_unknown_tissue_lists_the_known_ones():
    assert BRAIN9.index("wmh") == 6
    with pytest.raises(RequestError, match="no tissue 'bone'; it has background, csf"):
        BRAIN9.index("bone")


def test_hard_labels_and_fractions():
    pv = np.zeros((9, 2, 2), dtype=np.float32)
    pv[0, 0] = 1
    pv[3, 1] = [0.6, 1.0]
    pv[6, 1, 0] = 0.4
    assert BRAIN9.to_labels(pv).tolist() == [[0, 0], [3, 3]]
    fractions = BRAIN9.fractions(pv)
    assert fractions[3] == pytest.approx(0.8)
    assert fractions[6] == pytest.approx(0.2)
    assert fractions[0] == pytest.approx(0.5)


def test_fractions_of_an_empty_map_are_zero():
    assert not BRAIN9.fractions(_maps()).any()
