import builtins
from importlib.util import find_spec

import numpy as np
import pytest

from synthgen.core.errors import RequestError
from synthgen.data import mni152
from synthgen.data.prepare import PrepareSettings, prepare
from synthgen.data.store import TrainingStore

needs_nilearn = pytest.mark.skipif(find_spec("nilearn") is None, reason="nilearn is not installed")


@pytest.fixture(scope="module")
def template():
    return mni152.load_mni152()


@needs_nilearn
def test_maps_sum_to_one_in_the_brain_and_vanish_outside(template):
    total = template.maps.sum(axis=0)
    np.testing.assert_allclose(total[template.brain], 1, atol=1e-5)
    assert (total[~template.brain] == 0).all()
    assert template.maps.min() >= 0
    litres = template.maps.sum(axis=(1, 2, 3)) / 1e6
    assert 1.5 < template.brain.sum() / 1e6 < 2.1
    assert litres[1] > litres[2] > litres[0] > 0.05  # GM, WM, CSF of the template


@needs_nilearn
def test_nilearn_itself_is_not_imported(monkeypatch):
    real = builtins.__import__

    def guarded(name, *args, **kwargs):
        assert name.split(".")[0] != "nilearn"
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    assert mni152.template_file("gm").is_file()


@needs_nilearn
def test_store_of_the_template(tmp_path):
    report = prepare(["mni152"], tmp_path, PrepareSettings(step=12))
    store = TrainingStore.open(tmp_path)
    assert store.datasets == ("mni152",)
    assert store.modalities == ("t1",)
    assert report.rows[0].brain_ml == pytest.approx(1886, abs=5)
    index = int(np.argmin(np.abs(store.slices.position - 0.6)))
    pv, image = store.pv(index), store.image(index)[0]
    by_tissue = [image[pv[c] > 0.9].mean() for c in (1, 2, 3)]
    assert by_tissue[0] < by_tissue[1] < by_tissue[2]  # T1: CSF, grey, white


def test_absent_nilearn_says_what_to_install(monkeypatch):
    monkeypatch.setattr(mni152, "find_spec", lambda _name: None)
    with pytest.raises(RequestError, match=r'pip install "synthgen\[mni152\]"'):
        mni152.load_mni152()
