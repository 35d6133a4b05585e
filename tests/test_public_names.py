"""The names that `import synthgen` gives."""

import pytest
from tiny_models import SUBJECTS, write_image_model, write_label_model

import synthgen
from synthgen.core.errors import StoreError


@pytest.mark.parametrize("name", synthgen.__all__)
def test_every_public_name_is_there(name):
    assert getattr(synthgen, name)
    assert name in dir(synthgen)


def test_an_unknown_name_is_named():
    with pytest.raises(AttributeError, match="no attribute 'lode_pipeline'"):
        _ = synthgen.lode_pipeline


def test_any_model_folder_is_opened(tmp_path):
    labels = synthgen.load_pipeline(write_label_model(tmp_path / "labels"))
    images = synthgen.load_pipeline(str(write_image_model(tmp_path / "images")))
    assert labels.subjects == SUBJECTS
    assert [style.name for style in images.styles] == ["a_t1", "a_flair", "b_flair"]
    assert labels.schema == images.schema


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"_class_name": "FluxPipeline"}'])
def test_another_folder_is_refused(tmp_path, text):
    with pytest.raises(StoreError, match=r"model_index\.json: expected"):
        synthgen.load_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(StoreError, match=r"model_index\.json: expected"):
        synthgen.load_pipeline(tmp_path)
