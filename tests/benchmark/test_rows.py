import math

import pytest
from made_up_benchmark import absent, missed, row, spec, write_benchmark, write_run

from synthgen.benchmark.rows import read_results
from synthgen.core.errors import RequestError, StoreError


@pytest.fixture
def out(tmp_path):
    return write_benchmark(tmp_path)


def one_run(out, rows, **changes):
    import json  # noqa: PLC0415

    (out / "spec.json").write_text(json.dumps(spec(arms=["real"], seeds=[0], **changes)))
    write_run(out, "real", 0, rows)
    return read_results(out)


def test_a_folder_reads_back_as_it_was_written(out):
    results = read_results(out)
    assert results.arms == ("real", "synthetic", "hybrid", "contrast")
    assert results.tissues == ("csf", "gm", "wm")
    assert results.modalities == ("t1",)
    assert len(results.cases) == 4 * 3 * 12 * 3
    assert results.seeds("real") == (0, 1, 2)
    dice = results.scores("real", "gm", "dice", ("t1",))
    assert dice.shape == (12, 3)
    case = next(c for c in results.cases if (c.arm, c.seed, c.tissue) == ("real", 1, "gm"))
    assert dice[0, 1] == case.scores["dice"]
    assert not results.smoke
    assert results.failed == {}
    assert results.pending == ()


def test_scores_of_several_modalities_are_their_mean(tmp_path):
    rows = [
        row(subject=s, modality=m, dice=d)
        for s, dice in (("a", (0.5, 0.7)), ("b", (0.8, 0.9)))
        for m, d in zip(("flair", "t1"), dice, strict=True)
    ]
    results = one_run(tmp_path, rows)
    both = results.scores("real", "gm", "dice", results.modalities)[:, 0]
    assert both == pytest.approx([0.6, 0.85])
    assert results.scores("real", "gm", "dice", ("t1",))[:, 0] == pytest.approx([0.7, 0.9])


def test_null_is_not_a_number(tmp_path):
    results = one_run(tmp_path, [absent(subject="a"), missed(subject="b")])
    dice = results.scores("real", "gm", "dice", ("t1",))[:, 0]
    assert math.isnan(dice[0])
    assert dice[1] == 0
    assert math.isnan(results.scores("real", "gm", "hd95_mm", ("t1",))[1, 0])


def test_trainings_that_crashed_or_did_not_finish_are_listed(out):
    (out / "runs/hybrid/seed1/done.json").unlink()
    (out / "runs/contrast/seed2/done.json").unlink()
    (out / "failed.json").write_text('{"contrast seed 2": "loss is not\\n finite at step 7"}')
    results = read_results(out)
    assert results.pending == ("hybrid seed 1",)
    assert results.failed == {"contrast seed 2": "loss is not finite at step 7"}
    assert results.seeds("hybrid") == (0, 2)


def test_a_folder_without_a_finished_training_is_refused(out, tmp_path):
    for done in out.glob("runs/*/*/done.json"):
        done.unlink()
    (out / "failed.json").write_text('{"real seed 0": "out of memory"}')
    with pytest.raises(RequestError, match=r"no training has finished.*real seed 0: out of memory"):
        read_results(out)
    with pytest.raises(RequestError, match=r"no spec.json, so no benchmark"):
        read_results(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"margin": 0}, r"spec.json: 'margin' must lie in \(0, 1\), got 0"),
        ({"margin": True}, "'margin'.*got True"),
        ({"tissues": "gm"}, "'tissues' must be a list, got 'gm'"),
        ({"budget_name": ""}, "'budget_name' must be a str"),
    ],
)
def test_an_unusable_spec_is_named(tmp_path, changes, message):
    with pytest.raises(StoreError, match=message):
        one_run(tmp_path, [row()], **changes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"cases.json: expected a list of rows, got \[\]"),
        ([1], "row 0: expected an object, got 1"),
        ([row(dice=1.2, hd95_mm=1.0, nsd=1.0, precision=1, recall=1)], r"dice is 1.2; expected in"),
        ([row(hd95_mm=-1)], "hd95_mm is -1; expected at least 0, or null"),
        ([row(nsd="0.5")], "nsd is '0.5'"),
        ([row(n_ref=-3)], "'n_ref' must be a count, got -3"),
        ([row(subject="")], "'subject' must be a name"),
        ([row(iou=0.5)], "has the unknown key 'iou'"),
        ([{k: v for k, v in row().items() if k != "recall"}], "lacks 'recall'"),
        ([row(), row(tissue="bone")], "row 1: tissue 'bone' is none of csf, gm, wm"),
        ([row(), row()], "sub-01, t1, gm stands twice"),
        ([row(arm="hybrid")], "belongs to hybrid seed 0"),
        ([row() | {"dice": None}], "dice is null with 1000 reference and 1000 predicted voxels"),
        ([absent() | {"dice": 1.0}], "dice is 1.0 with 0 reference and 0 predicted"),
        ([missed() | {"dice": 0.3}], "expected dice 0 and hd95_mm null"),
        ([row(subject="a"), row(subject="b", tissue="wm")], "has no row for a, t1, wm"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, rows, message):
    with pytest.raises(StoreError, match=message):
        one_run(tmp_path, rows)


def test_trainings_scored_on_different_subjects_are_refused(out):
    rows = [row("hybrid", 1, f"sub-{i:02d}", t) for i in range(1, 12) for t in ("csf", "gm", "wm")]
    write_run(out, "hybrid", 1, rows)
    with pytest.raises(
        StoreError, match=r"hybrid seed 1 has no row for sub-12, t1, csf.*run it agai"
    ):
        read_results(out)


def test_files_that_are_not_json_are_named(out):
    (out / "runs/real/seed0/cases.json").write_text("[")
    with pytest.raises(StoreError, match=r"seed0/cases.json: not JSON.*run that arm again"):
        read_results(out)
    (out / "runs/real/seed0/cases.json").unlink()
    with pytest.raises(StoreError, match=r"seed0/cases.json: cannot be read"):
        read_results(out)
    (out / "failed.json").write_text("[1]")
    with pytest.raises(StoreError, match=r"failed.json: expected training names and reasons"):
        read_results(out)
