"""prepare on the project's development data, where it is there."""

from pathlib import Path

import numpy as np
import pytest

from synthgen.core.schema import BRAIN9
from synthgen.data.prepare import PrepareSettings, prepare
from synthgen.data.store import TrainingStore

DATA = Path(__file__).parents[2].parent / "shared" / "data"
VAL = ("sub-14", "sub-16", "sub-lo12")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"development data is not at {DATA}"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("store")
    report = prepare([str(DATA)], out, PrepareSettings(val=VAL, step=6))
    return TrainingStore.open(out, BRAIN9), report


def test_every_subject_is_there_once(made):
    store, report = made
    assert len(report.rows) == 16 + 4 + 24 - 2
    assert store.modalities == ("flair", "t1", "t1ce", "t2")
    assert store.datasets == ("lesjak2016-longitudinal", "lesjak2017-cross-sectional")
    assert set(store.subjects("val")) == {
        "brain-labels/sub-14",
        "brain-labels/sub-16",
        "lesjak2016-longitudinal/sub-lo12",
    }
    for patient, subject in (("07", "sub-cs07"), ("19", "sub-cs19")):
        assert any(f"patient{patient}: left out" in n and subject in n for n in report.notes)


def test_volumes_are_those_of_brains(made):
    _, report = made
    shown = [row for row in report.rows if row.origin != "lesion mask"]
    assert all(1000 < row.brain_ml < 1900 for row in shown)
    lesions = {row.subject.split("/")[1]: row.lesion_ml for row in report.rows}
    # The sizes in the data's own description.
    assert lesions["sub-cs07"] == pytest.approx(1.3, abs=0.1)
    assert lesions["sub-cs19"] == pytest.approx(49.8, abs=0.5)
    assert lesions["sub-11"] == pytest.approx(39, abs=1)
    assert lesions["sub-15"] == pytest.approx(45, abs=1)


def test_stored_values(made):
    store, _ = made
    for index in range(0, len(store.slices), 7):
        assert (np.rint(store.pv(index) * 255).sum(axis=0) == 255).all()
    for row in range(0, len(store.image_modality), 5):
        background = store.pv(int(store.image_pv_index[row]))[0]
        assert (store.image(row)[0][background > 0.5] == 0).all()


def test_contrast_follows_the_modality(made):
    store, _ = made
    levels = {}
    for modality in ("t1", "t2", "flair"):
        sums, weights = np.zeros(BRAIN9.channels), np.zeros(BRAIN9.channels)
        for row in store.image_rows("train", modality=modality):
            pv = store.pv(int(store.image_pv_index[row]))
            core = pv > 0.9
            sums += (core * store.image(int(row))).sum(axis=(1, 2))
            weights += core.sum(axis=(1, 2))
        levels[modality] = dict(zip(BRAIN9.names, sums / np.maximum(weights, 1), strict=True))
    t1, t2, flair = levels["t1"], levels["t2"], levels["flair"]
    assert t1["csf"] < t1["gm"] < t1["wm"]
    assert t2["wm"] < t2["gm"] < t2["csf"]
    assert flair["csf"] < flair["wm"] < flair["gm"] < flair["wmh"]
    assert t1["wmh"] < t1["wm"]
    assert t2["wmh"] > t2["gm"]


def test_anterior_is_up_and_the_brain_in_the_middle(made):
    store, _ = made
    # The cerebellum and brainstem lie behind the middle, and Y grows to the front.
    for subject in ("brain-labels/sub-05", "lesjak2017-cross-sectional/sub-cs07"):
        rows = [i for i, name in enumerate(store.slices.subject) if name == subject]
        low = min(rows, key=lambda i: abs(store.slices.position[i] - 0.15))
        brain = np.argwhere(store.pv(low)[0] < 0.5)
        assert brain[:, 1].mean() < 256 / 2 - 10
        every = np.any([store.pv(i)[0] < 0.5 for i in rows], axis=0)
        extent = np.argwhere(every)
        middle = (extent.min(axis=0) + extent.max(axis=0)) / 2
        np.testing.assert_allclose(middle, (96, 128), atol=3)
