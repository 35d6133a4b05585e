"""The report: true, complete, escaped, and independent of any network."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from synthgen.core.errors import StoreError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9
from synthgen.evaluate.metric import FAIR, Figure, Metric, Section, Table
from synthgen.evaluate.plots import contact_sheets, distance, strip
from synthgen.evaluate.report import Gate, Report, render, show_number, write_report
from synthgen.evaluate.sets import from_arrays

KEY = SampleKey(3, 0)
PNG = b"\x89PNG\r\n\x1a\nnot really"
VOID = {"meta", "img", "br", "hr", "link", "input", "rect", "line", "polygon"}


def metric(name="fidelity/frechet/spectrum/flair", value=2.0, better="lower", **changes):
    made = Metric(
        name,
        f"Title of {name}",
        value,
        1.0,
        0.5,
        1.5,
        better,
        120,
        provenance={"encoder": "spectrum", "sha256": "0f" * 8},
    )
    return replace(made, **changes)


@pytest.fixture
def report():
    fidelity = Section(
        "fidelity",
        "Fidelity",
        "How near the images are.",
        metrics=(
            metric(),
            metric("fidelity/frechet/classifier/t1", 9.0),
            metric("fidelity/coverage/spectrum/t1", 0.75, "higher", ideal=1.0, high=0.9),
        ),
        figures=(Figure("spread plot", "Spread of <b>features</b>", PNG),),
        tables=(Table("By tissue", ("tissue", "share"), (("gm", "12.5 %"), ("wm", "<i>7</i>"))),),
        refused=("KID: needs at least 50 samples a side, got 12",),
    )
    privacy = Section(
        "privacy", "Privacy", "Copies?", metrics=(metric("privacy/dcr", 0.5, "equal"),)
    )
    return Report(
        "quality",
        "Quality of <script>alert(1)</script>",
        (fidelity, privacy),
        sheets=(Figure("labels", "Labels, generated above", PNG),),
        facts=(("seed", "42"), ("model", "deadbeef"), ("licence", "CC BY 4.0, https://c.org/by")),
        notes=("2 of 9 subjects were left out",),
        gates=(Gate("privacy/dcr_share", "DCR share", False, "0.71, allowed 0.45 to 0.55"),),
    )


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_every_name_and_value_is_on_the_page(report):
    text = re.sub(r"\s+", " ", Page(render(report)).text)
    for number in report.metrics:
        assert number.title in text
        assert show_number(number.value) in text
        assert f"{show_number(number.low)} to {show_number(number.high)}" in text
    wanted = "Fidelity|Privacy|How near the images are.|seed|42|deadbeef|CC BY 4.0|12.5 %"
    wanted += "|KID: needs at least 50 samples a side, got 12|2 of 9 subjects|allowed 0.45 to 0.55"
    missing = [word for word in wanted.split("|") if word not in text]
    assert not missing


def test_the_page_is_escaped_and_asks_for_nothing(report):
    html = render(report)
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.found}
    assert "<script>alert(1)</script>" in page.text
    assert "<i>7</i>" in page.text
    for tag, attributes in page.found:
        for name in ("src", "href", "xlink:href", "action", "data"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:image/png;base64,", "#")), (
                tag,
                target,
            )
        assert not [name for name in attributes if name.startswith("on")]
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_pictures_have_words(report):
    images = [a for tag, a in Page(render(report)).found if tag in ("img", "svg")]
    assert len(images) == 2 + 2 * len(report.metrics) - 1  # one kind shows the worst of two
    assert all(a.get("alt") or a.get("aria-label") for a in images)


def test_the_worst_of_each_kind_is_the_headline(report):
    html = render(report)
    glance = Page(html[html.index('id="summary"') - 9 : html.index('<section id="pictures"')]).text
    assert "Title of fidelity/frechet/classifier/t1" in glance
    assert "worst of 2" in glance
    assert "Title of fidelity/frechet/spectrum/flair" not in glance
    assert "Title of fidelity/coverage/spectrum/t1" in glance


def test_summary_counts_and_names_the_gate(report):
    assert report.verdicts() == {"good": 2, "fair": 1, "poor": 1}
    assert report.summary() == (
        "2 good, 1 fair, 1 poor of 4 numbers; 1 not computed; gate failed: DCR share"
    )
    passed = replace(report, gates=(replace(report.gates[0], passed=True),))
    assert passed.summary().endswith("all gates passed")


def test_written_files_and_json(report, tmp_path):
    page = write_report(report, tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    assert page.read_text() == render(report)
    body = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert body["summary"] == report.summary()
    assert body["sections"][0]["metrics"][1] == report.metrics[1].to_json()
    assert body["sections"][0]["metrics"][1]["verdict"] == "poor"
    assert body["sections"][0]["metrics"][1]["n"] == 120
    assert body["sections"][0]["refused"] == list(report.sections[0].refused)
    assert {"fact": "model", "value": "deadbeef"} in body["provenance"]
    files = [*body["sheets"], body["sections"][0]["figures"][0]["file"]]
    assert files == ["figures/sheet-labels.png", "figures/fidelity-spread-plot.png"]
    assert all((tmp_path / "out" / name).read_bytes() == PNG for name in files)


def test_figures_of_an_older_report_go_and_other_files_stay(report, tmp_path):
    write_report(report, tmp_path)
    (tmp_path / "figures" / "mine.png").write_bytes(b"")
    write_report(replace(report, sheets=()), tmp_path)
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        "fidelity-spread-plot.png",
        "mine.png",
    }


def test_figures_of_equal_names_get_files_of_their_own(report, tmp_path):
    twins = (Figure("a b", "one", b"1"), Figure("a/b", "two", b"2"), Figure("../x", "three", b"3"))
    write_report(replace(report, sheets=twins), tmp_path)
    names = sorted(p.name for p in (tmp_path / "figures").glob("sheet*"))
    assert names == ["sheet-a-b-2.png", "sheet-a-b.png", "sheet-x.png"]


def test_numbers_that_are_none_are_poor_and_null(report, tmp_path):
    broken = Section("s", "S", "T", metrics=(metric(value=float("nan")),))
    write_report(replace(report, sections=(broken,)), tmp_path)
    body = json.loads((tmp_path / "metrics.json").read_text())
    assert body["sections"][0]["metrics"][0]["value"] is None
    assert body["verdicts"]["poor"] == 1
    assert "not a number" in (tmp_path / "report.html").read_text()


def test_an_empty_report_says_so():
    report = Report("quality", "Q", (Section("a", "A", "B", refused=("x: too few",)),))
    assert report.summary() == "no number could be computed; 1 not computed"
    assert "x: too few" in Page(render(report)).text


def test_a_folder_that_cannot_be_made_is_named(report, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file.*choose another --out"):
        write_report(report, tmp_path / "file")


# strips


@pytest.mark.parametrize("better", ["lower", "higher", "equal"])
@pytest.mark.parametrize("value", np.linspace(-3, 9, 41).tolist())
def test_the_mark_lies_in_the_zone_of_its_verdict(better, value):
    number = metric(value=value, better=better, ideal=0.0 if better == "lower" else 2.0)
    marks, far = strip(number), distance(number)
    assert (far <= 1 + 1e-9) == (number.verdict == "good") or abs(far - 1) < 1e-6
    assert (far > FAIR) == (number.verdict == "poor") or abs(far - FAIR) < 1e-6
    if marks.beyond:
        return
    slack = 0.02
    inside = {
        name: low - slack <= marks.value <= high + slack
        for name, (low, high) in (("good", marks.good), ("fair", marks.fair))
    }
    assert inside["good"] == (number.verdict == "good") or abs(far - 1) < 1e-2
    assert inside["fair"] == (number.verdict != "poor") or abs(far - FAIR) < 1e-2


def test_the_interval_touches_the_end_of_the_good_zone():
    lower, higher = metric(), metric(better="higher", ideal=2.0)
    for number in (lower, higher):
        marks = strip(number)
        assert marks.interval[1] == marks.good[1]
        assert marks.interval[0] < marks.reference < marks.interval[1]


def test_a_floor_without_spread_is_all_or_nothing():
    perfect = {"reference": 1.0, "low": 1.0, "high": 1.0, "ideal": 1.0}
    same = metric(value=1.0, better="higher", **perfect)
    worse = metric(value=0.99, better="higher", **perfect)
    assert (distance(same), strip(same).beyond, same.verdict) == (0.0, 0, "good")
    assert (distance(worse), strip(worse).beyond, worse.verdict) == (np.inf, 1, "poor")


# contact sheets


def brains(count, modality, position, subject=None, shape=(24, 32)):
    rng = np.random.default_rng(0)
    pv = np.zeros((count, BRAIN9.channels, *shape), np.float32)
    pv[:, 0] = 1
    pv[:, 0, 6:18, 8:24], pv[:, 2, 6:18, 8:24] = 0, 1
    images = rng.uniform(0.2, 1, (count, 1, *shape)).astype(np.float32) * (1 - pv[:, :1])
    return from_arrays(
        pv,
        BRAIN9,
        images=images,
        subject=subject,
        position=position,
        modality=[modality] * count,
        style=[f"a_{modality}"] * count,
    )


def test_contact_sheets_show_labels_and_shared_modalities(untouched_rng):
    synthetic = brains(9, "t1", np.linspace(0, 1, 9))
    real = brains(7, "t1", np.linspace(0, 1, 7), ["a"] * 7)
    sheets = contact_sheets(synthetic, real, KEY)
    assert [sheet.name for sheet in sheets] == ["labels", "images-t1"]
    assert all(sheet.png.startswith(b"\x89PNG") for sheet in sheets)
    assert sheets == contact_sheets(synthetic, real, KEY)


@pytest.mark.parametrize("place", [np.nan, 0.5])
def test_contact_sheets_without_positions_or_common_modality(place):
    synthetic = brains(2, "flair", [place, place])
    real = brains(3, "t1", [0.1, 0.2, 0.3], ["a", "b", "c"])
    sheets = contact_sheets(synthetic, real, KEY)
    assert [sheet.name for sheet in sheets] == ["labels", "images-a_flair"]
    assert "no real ones" in sheets[1].caption


def test_a_report_of_tables_alone_shows_no_verdicts(tmp_path):
    table = Table("Faults", ("fault", "value"), (("blur", "3"),))
    report = Report("quality", "Faults", (Section("sanity", "Sanity", "Text.", tables=(table,)),))
    assert report.summary() == "tables only, without verdicts"
    page = write_report(report, tmp_path / "r").read_text()
    assert "At a glance" not in page
    assert "not computed" not in page
    assert "blur" in page
