import numpy as np
import pytest

from synthgen.core.errors import RequestError
from synthgen.core.schema import BRAIN9, LabelSchema, Tissue
from synthgen.core.tissue_groups import TissueGroups


def test_every_channel_of_brain9_has_its_group():
    groups = TissueGroups.of(BRAIN9, ("csf", "gm", "wm"))
    named = {t: groups.names[g] for t, g in zip(BRAIN9.names, groups.group, strict=True)}
    assert named == {
        "background": "background", "csf": "csf", "gm": "gm", "deep_gm": "gm", "wm": "wm",
        "brainstem": "wm", "wmh": "wm", "tumour": "wm", "oedema": "wm",
    }  # fmt: skip


def test_a_named_lesion_leaves_its_group():
    groups = TissueGroups.of(BRAIN9, ("csf", "gm", "wm", "wmh"))
    assert groups.group[BRAIN9.index("wmh")] == groups.names.index("wmh")
    assert groups.group[BRAIN9.index("tumour")] == groups.names.index("wm")


def test_soft_labels_sum_to_255_and_the_largest_sum_wins():
    pv = np.zeros((9, 1, 2), np.uint8)
    pv[2, 0, 0], pv[4, 0, 0], pv[3, 0, 0] = 70, 70, 115  # grey matter in two channels
    pv[0, 0, 1] = 255
    groups = TissueGroups.of(BRAIN9, ("csf", "gm", "wm"))
    soft = groups.merge(pv)
    assert soft.sum(0).tolist() == [[255, 255]]
    assert soft[:, 0, 0].tolist() == [0, 0, 140, 115]
    assert groups.harden(soft).tolist() == [[2, 0]]


@pytest.mark.parametrize(
    ("tissues", "what"),
    [
        (("csf", "gm", "wn"), "no tissue 'wn'"),
        (("csf", "gm"), "'wm' of schema 'brain9' belongs to none"),
        (("csf", "csf", "gm", "wm"), "different tissues"),
        ((), "different tissues"),
    ],
)
def test_wrong_tissues_are_refused(tissues, what):
    with pytest.raises(RequestError, match=what):
        TissueGroups.of(BRAIN9, tissues)


def test_a_schema_of_its_own_names_its_tissues():
    schema = LabelSchema("own", (Tissue("background", 0), Tissue("bone", 1), Tissue("fat", 2)))
    assert TissueGroups.of(schema, ("bone", "fat")).group == (0, 1, 2)
