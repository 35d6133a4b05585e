import csv
import io
import json
import re

import nibabel as nib
import numpy as np
import pytest
from made_up_benchmark import SUBJECTS, absent, brain, spec, write_benchmark, write_volumes

from synthgen.benchmark.gallery import slice_dice, worst_slices
from synthgen.benchmark.report import write_report
from synthgen.benchmark.rows import read_results
from synthgen.core.errors import RequestError, StoreError

ARMS = ("real", "synthetic")


@pytest.fixture
def out(tmp_path):
    """Two arms, few subjects, volumes and predictions."""
    effects = {"real": 0.0, "synthetic": -0.05}
    write_benchmark(tmp_path, subjects=SUBJECTS[:7], effects=effects)
    write_volumes(tmp_path, arms=ARMS, subjects=SUBJECTS[:7])
    return tmp_path


def lines(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_a_report_holds_everything(out):
    page = write_report(out)
    folder = out / "report"
    assert page == folder / "report.html"
    assert {p.name for p in folder.iterdir()} == {
        "report.html", "statistics.json", "metrics.csv", "table.csv", "table.md", "table.tex",
        "figures",
    }  # fmt: skip
    assert {p.stem for p in (folder / "figures").iterdir()} == {
        "paired", "differences", "worst-real", "worst-synthetic",
    }  # fmt: skip
    html = page.read_text()
    assert "synthetic: worse than real; mean Dice" in html
    assert html.count("data:image/png;base64,") == 4
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)
    assert "<script" not in html
    assert "NOT A RESULT" not in html
    assert "0" * 64 in html  # the data's digest


def test_the_tables_say_what_the_statistics_say(out):
    write_report(out)
    folder = out / "report"
    body = json.loads((folder / "statistics.json").read_text())
    assert (body["stamp"], body["margin"], body["reference"]) == (None, 0.01, "real")
    scores = lines(folder / "metrics.csv")
    assert len(scores) == 2 * 3 * 7 * 3
    own = [float(r["dice"]) for r in scores if (r["arm"], r["tissue"]) == ("synthetic", "gm")]
    (level,) = [
        lv
        for lv in body["levels"]
        if (lv["arm"], lv["tissue"], lv["measure"]) == ("synthetic", "gm", "dice")
    ]
    assert level["mean"] == pytest.approx(np.mean(own))
    (line,) = [
        r
        for r in lines(folder / "table.csv")
        if (r["arm"], r["tissue"], r["measure"]) == ("synthetic", "gm", "dice")
    ]
    assert float(line["mean"]) == pytest.approx(level["mean"])
    assert float(line["vs_real_difference"]) < 0
    assert float(line["vs_real_low"]) < float(line["vs_real_high"]) < 0
    assert line["vs_real_trainings"] == "3+3"
    text = (folder / "table.md").read_text()
    assert f"{level['mean']:.3f} ± {level['sd']:.3f} [{level['seed_sd']:.3f}]" in text
    assert "| synthetic | gm | 7 |" in text
    tex = (folder / "table.tex").read_text()
    assert f"{level['mean']:.3f} $\\pm$ {level['sd']:.3f}" in tex
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 6


def test_undefined_numbers_are_null_and_blank(out):
    for path in out.glob("runs/*/*/cases.json"):
        rows = json.loads(path.read_text())
        keys = ("arm", "seed", "subject", "tissue")
        rows = [
            absent(**{k: r[k] for k in keys}) if r["tissue"] == "csf" else r for r in rows
        ]  # no subject has it
        path.write_text(json.dumps(rows))
    write_report(out)
    body = json.loads((out / "report/statistics.json").read_text())
    (level,) = [
        lv
        for lv in body["levels"]
        if (lv["arm"], lv["tissue"], lv["measure"]) == ("real", "csf", "dice")
    ]
    assert level["mean"] is None
    assert lines(out / "report/metrics.csv")[0]["dice"] == ""
    assert "nan" not in (out / "report/report.html").read_text().lower().split("<main>")[0]
    assert "| real | - |" in (out / "report/table.md").read_text()


def test_smoke_is_no_result(out):
    names = [{"name": arm} for arm in ARMS]
    document = spec(budget_name="smoke") | {"arms": names}
    (out / "spec.json").write_text(json.dumps(document))
    write_report(out)
    for name in ("report.html", "table.md", "table.tex", "table.csv", "statistics.json"):
        assert "NOT A RESULT" in (out / "report" / name).read_text(), name


def test_one_subject_is_too_few(tmp_path):
    effects = {"real": 0.0, "synthetic": -0.05}
    write_benchmark(tmp_path, subjects=SUBJECTS[:1], effects=effects)
    write_volumes(tmp_path, arms=ARMS, subjects=SUBJECTS[:1])
    assert "synthetic: too few subjects to tell" in write_report(tmp_path).read_text()


def test_failed_and_unfinished_trainings_are_listed(out):
    (out / "failed.json").write_text('{"synthetic seed 2": "loss is not finite"}')
    (out / "runs/synthetic/seed2/done.json").unlink()
    (out / "runs/real/seed1/done.json").unlink()
    html = write_report(out).read_text()
    assert "synthetic seed 2 failed: loss is not finite." in html
    assert "real seed 1 has not finished; the same command continues it." in html


def test_names_cannot_inject_html(out):
    (out / "failed.json").write_text('{"synthetic seed 2": "<img src=x>"}')
    assert "<img src=x>" not in write_report(out).read_text()


def test_old_figures_go(out):
    write_report(out)
    old = out / "report/figures/worst-gone.png"
    old.write_bytes(b"")
    write_report(out)
    assert not old.exists()


def test_dice_of_each_slice():
    truth = brain()
    predicted = truth.copy()
    predicted[2] = 0
    scores = slice_dice(predicted, truth, 3)
    assert scores[:5] == pytest.approx([1, 1, 0, 1, 1])
    assert np.isnan(scores[5])  # blank


def test_the_gallery_shows_the_worst_slice_of_different_subjects(out):
    found = worst_slices(read_results(out), "synthetic")
    assert len(found) == 4
    assert {failure.z for failure in found} == {1}
    assert len({failure.volume for failure in found}) == 4
    assert found[0].image.shape == found[0].truth.shape == found[0].predicted.shape == (48, 64)
    assert found[0].dice < 0.8


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "test/sub-01_t1.npz").unlink(), r"sub-01_t1.npz: not a readable test"),
        (lambda out: (out / "test/sub-01_t1.npz").write_bytes(b"x"), "not a readable test volume"),
        (
            lambda out: np.savez(out / "test/sub-01_t1.npz", image=np.zeros((2, 3, 4)), label=[1]),
            r"image \(2, 3, 4\) and label \(1,\) must be equal 3-D",
        ),
        (
            lambda out: nib.save(
                nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)),
                out / "preds/real/seed0/sub-01_t1.nii.gz",
            ),
            r"shape \(4, 4, 4\) does not fit the test volume's \(6, 48, 64\) \(Z, X, Y\)",
        ),
        (
            lambda out: (out / "preds/real/seed0/sub-01_t1.nii.gz").unlink(),
            r"sub-01_t1.nii.gz: not a readable prediction.*run that arm again",
        ),
        (
            lambda out: (out / "preds/real/seed0/sub-01_t1.nii.gz").write_bytes(b"x"),
            r"not a readable prediction",
        ),
    ],
)
def test_damaged_volumes_are_named(tmp_path, damage, message):
    write_benchmark(tmp_path, subjects=SUBJECTS[:1], effects={"real": 0.0}, seeds=[0])
    write_volumes(tmp_path, arms=["real"], subjects=SUBJECTS[:1], seeds=[0])
    damage(tmp_path)
    with pytest.raises(StoreError, match=message):
        write_report(tmp_path)


def test_nothing_finished_leaves_no_report(tmp_path):
    with pytest.raises(RequestError, match="no benchmark"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()
