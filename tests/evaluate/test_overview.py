"""The overview: a generated dataset described, with nothing real beside it."""

import json

import numpy as np
import pytest
from tiny_generators import TinyImages, TinyLabels

from synthgen.cli import build_app
from synthgen.core.schema import BRAIN9
from synthgen.data.shards import Shards
from synthgen.evaluate.label_metrics import describe_labels
from synthgen.evaluate.overview import overview
from synthgen.evaluate.sets import from_shards
from synthgen.generate import GenerationSettings, generate_images, generate_labels
from synthgen.labels import ConditionRange

SETTINGS = GenerationSettings(batch_size=4, shard_size=8, threads=1)


class PlainImages(TinyImages):
    """Every tissue has one brightness: a tenth of its channel, in every style."""

    def render(self, pv, styles, keys):
        return (pv.argmax(1, keepdim=True) / 10).expand(-1, len(styles), -1, -1).float()


class PureLabels(TinyLabels):
    """Hard label maps."""

    def sample(self, keys, conditions):
        pv = super().sample(keys, conditions)
        return (pv == pv.amax(1, keepdim=True)).float()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    ranges = ConditionRange({"wmh": (0.01, 0.05)}, (0.3, 0.7))
    generate_labels(PureLabels(), ranges, 24, folder / "labels", SETTINGS)
    styles = ("a_t1", "a_flair")
    generate_images(
        PlainImages(), Shards(folder / "labels"), styles, folder / "images", SETTINGS, per_label=1
    )
    return folder


def tables(report):
    return {table.title: table for section in report.sections for table in section.tables}


def test_tables_state_what_the_maps_are(images):
    report = overview(Shards(images / "labels"))
    described = describe_labels(from_shards(Shards(images / "labels")))
    shares = {row[0]: row[1] for row in tables(report)["Tissues"].rows}
    for name, told in shares.items():
        assert told == f"{np.median(described.fractions[:, BRAIN9.index(name)]):.1%}"
    (request,) = tables(report)["Lesion requests"].rows
    ratio = np.median(described.realised[:, 0] / described.requested[:, 0])
    assert request[:2] == ("wmh", "24 of 24")
    assert request[3] == f"{ratio:.2f}"
    assert [section.name for section in report.sections] == ["labels"]
    assert not report.graded


def test_brightness_of_each_tissue_and_style(images):
    table = tables(overview(Shards(images / "images")))["Brightness of each tissue"]
    assert table.columns == ("style", *BRAIN9.names[1:])
    assert [row[0] for row in table.rows] == ["a_flair", "a_t1"]
    for row in table.rows:
        for channel, cell in enumerate(row[1:], start=1):
            assert cell in (f"{channel / 10:.2f}", "none")


def test_the_command_writes_a_page_with_a_contact_sheet(images, tmp_path, capsys):
    words = ["evaluate", "overview", str(images / "images"), "--out", str(tmp_path)]
    assert not build_app()(words, standalone_mode=False)
    assert "tables only" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64" in page
    assert 'src="http' not in page
    body = json.loads((tmp_path / "metrics.json").read_text())
    assert body["kind"] == "overview"
    assert body["notes"] == [
        "No real data stand beside these tables; `synthgen evaluate quality` compares."
    ]


def test_only_some_slices_are_read_where_there_are_many(images):
    facts = dict(overview(Shards(images / "labels"), n_max=4).facts)
    assert facts["read"] == "4 of 24 samples"
