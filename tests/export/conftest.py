"""Tiny sources to export: generated labels and images, and a store of three real subjects."""

import datasets
import huggingface_hub
import pytest
from exporting import write_store
from tiny_generators import TinyImages, TinyLabels

from synthgen.data.shards import Shards
from synthgen.generate import GenerationSettings, generate_images, generate_labels
from synthgen.labels import ConditionRange

SETTINGS = GenerationSettings(batch_size=2, shard_size=4)


@pytest.fixture(scope="session")
def labels(tmp_path_factory):
    """Seven generated label maps."""
    folder = tmp_path_factory.mktemp("made") / "labels"
    generate_labels(
        TinyLabels(), ConditionRange({"wmh": (0.01, 0.05)}, (0.3, 0.7)), 7, folder, SETTINGS
    )
    return folder


@pytest.fixture(scope="session")
def images(labels, tmp_path_factory):
    """The seven maps in two styles."""
    folder = tmp_path_factory.mktemp("made") / "images"
    generate_images(TinyImages(), Shards(labels), ("a_t1", "a_flair"), folder, SETTINGS)
    return folder


@pytest.fixture
def store(tmp_path):
    """The folder of a store."""
    return write_store(tmp_path / "store")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Keep `datasets` from the network; return the folder of its caches."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield tmp_path / "cache"
    datasets.enable_progress_bars()
