import json
import math

import numpy as np
import pytest
from made_up_benchmark import SUBJECTS, absent, missed, row, write_benchmark, write_run
from scipy import stats

from synthgen.benchmark.rows import read_results
from synthgen.benchmark.statistics import ALL, analyse
from synthgen.benchmark.verdict import Gain, Outcome


def find(entries, **wanted):
    (entry,) = [e for e in entries if all(getattr(e, k) == v for k, v in wanted.items())]
    return entry


def analysed(out):
    return analyse(read_results(out))


@pytest.fixture
def out(tmp_path):
    return write_benchmark(tmp_path)


def test_seeds_are_averaged_before_subjects_are_paired(out):
    results = read_results(out)
    contrast = find(analyse(results).contrasts, arm="synthetic", tissue="gm", measure="dice")
    arm, real = (results.scores(a, "gm", "dice", ("t1",)) for a in ("synthetic", "real"))
    test = stats.ttest_rel(arm.mean(axis=1), real.mean(axis=1))
    assert contrast.n == 12
    assert contrast.p_paired == test.pvalue
    assert (contrast.low, contrast.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert contrast.difference == pytest.approx(arm.mean() - real.mean())
    assert contrast.ratio == pytest.approx(arm.mean() / real.mean())
    unpaired = stats.ttest_ind(arm.mean(axis=1), real.mean(axis=1))
    assert contrast.p_unpaired == pytest.approx(unpaired.pvalue)
    assert contrast.p_wilcoxon == stats.wilcoxon(arm.mean(axis=1) - real.mean(axis=1)).pvalue
    variances = [v.mean(axis=0).var(ddof=1) / 3 for v in (arm, real)]
    assert contrast.seed_se == pytest.approx(math.sqrt(sum(variances)))
    assert contrast.trainings == (3, 3)


def test_levels_name_both_spreads(out):
    results = read_results(out)
    level = find(analyse(results).levels, arm="real", tissue="wm", measure="dice")
    values = results.scores("real", "wm", "dice", ("t1",))
    assert level.mean == pytest.approx(values.mean())
    assert level.sd == pytest.approx(values.mean(axis=1).std(ddof=1))
    assert level.seed_sd == pytest.approx(values.mean(axis=0).std(ddof=1))
    assert level.low < level.mean < level.high
    assert (level.n, level.missed, level.trainings) == (12, 0, 3)


def test_p_values_are_corrected_over_the_tissues_of_an_arm(out):
    contrasts = analysed(out).contrasts
    own = [c for c in contrasts if (c.arm, c.measure) == ("hybrid", "dice")]
    assert [c.tissue for c in own] == ["csf", "gm", "wm"]
    order = sorted(own, key=lambda c: c.p_paired)
    assert order[0].p_holm == pytest.approx(3 * order[0].p_paired)


def test_the_headline_is_the_mean_over_tissues(out):
    results = read_results(out)
    headline = find(analyse(results).headlines, arm="contrast")
    tissues = [results.scores("contrast", t, "dice", ("t1",)) for t in results.tissues]
    assert headline.mean == pytest.approx(np.mean(tissues))
    assert (headline.tissue, headline.interval) == (ALL, "t")
    assert headline.outcome is Outcome.WORSE


def test_effects_are_found_and_said_in_one_sentence(out):
    verdicts = analysed(out).verdicts
    assert [*verdicts] == ["real", "synthetic", "hybrid", "contrast"]
    assert verdicts["synthetic"].startswith("synthetic: worse than real; mean Dice 0.")
    assert "95% t interval -0." in verdicts["synthetic"]
    assert "over 12 subjects; standard error over 3 and 3 trainings 0.00" in verdicts["synthetic"]
    assert verdicts["hybrid"].startswith("hybrid: better than real")
    assert verdicts["real"].startswith("real: mean Dice 0.")


def test_more_of_a_distance_is_worse(out):
    contrast = find(analysed(out).contrasts, arm="synthetic", tissue="gm", measure="hd95_mm")
    assert contrast.difference > 0
    assert contrast.outcome is Outcome.WORSE
    assert contrast.p_non_inferior is None


def test_thirty_subjects_are_resampled_with_the_trainings(tmp_path):
    subjects = tuple(f"sub-{i:02d}" for i in range(30))
    headline = find(
        analysed(write_benchmark(tmp_path, subjects=subjects)).headlines, arm="synthetic"
    )
    assert (headline.n, headline.interval) == (30, "bootstrap")
    assert headline.low < headline.difference < headline.high


@pytest.mark.parametrize(("n", "text"), [(1, "no interval from 1 subject"), (2, "2 subjects")])
def test_too_few_subjects_are_too_few(tmp_path, n, text):
    found = analysed(write_benchmark(tmp_path, subjects=SUBJECTS[:n]))
    assert found.verdicts["contrast"].startswith("contrast: too few subjects to tell; ")
    assert text in found.verdicts["contrast"]
    assert all(c.outcome is Outcome.TOO_FEW for c in found.contrasts)
    assert all(c.p_wilcoxon is None for c in found.contrasts)
    assert any("Wilcoxon's test cannot reach .05" in line for line in found.warnings)


def test_a_single_training_is_no_comparison(tmp_path):
    found = analysed(write_benchmark(tmp_path, seeds=[0]))
    assert find(found.headlines, arm="contrast").outcome is Outcome.ONE_TRAINING
    assert "one training in each arm" in found.verdicts["contrast"]
    assert any(line.startswith("Fewer than 3 trainings") for line in found.warnings)


def test_a_difference_within_the_noise_of_trainings_is_not_claimed(tmp_path):
    def noisy(case):
        shift = (case["seed"] - 1) * 0.06 * (case["arm"] == "synthetic")
        return row(*(case[k] for k in ("arm", "seed", "subject", "tissue")), case["dice"] + shift)

    found = analysed(write_benchmark(tmp_path, change=noisy))
    headline = find(found.headlines, arm="synthetic")
    assert headline.p_paired < 1e-6
    assert headline.outcome is Outcome.NOISE


def test_a_subject_without_the_tissue_leaves_all_arms(tmp_path):
    def without(case):
        gone = (case["subject"], case["tissue"], case["arm"]) == ("sub-03", "csf", "hybrid")
        keys = ("arm", "seed", "subject", "tissue")
        return absent(**{k: case[k] for k in keys}) if gone else case

    found = analysed(write_benchmark(tmp_path, change=without))
    assert {lv.n for lv in found.levels if lv.tissue == "csf"} == {11}
    assert {lv.n for lv in found.levels if lv.tissue == "gm"} == {12}
    assert {c.n for c in found.headlines} == {11}
    assert any(line.startswith("csf: sub-03 left out for all arms") for line in found.warnings)


def test_a_missed_tissue_keeps_its_zero_and_has_no_distance(tmp_path):
    def unseen(case):
        gone = case["subject"] == "sub-03" and case["arm"] == "hybrid" and case["seed"] == 2
        keys = ("arm", "seed", "subject", "tissue")
        return missed(**{k: case[k] for k in keys}) if gone else case

    found = analysed(write_benchmark(tmp_path, change=unseen))
    dice = find(found.levels, arm="hybrid", tissue="gm", measure="dice")
    hd95 = find(found.levels, arm="hybrid", tissue="gm", measure="hd95_mm")
    assert (dice.n, dice.missed, hd95.n, hd95.missed) == (12, 0, 11, 1)
    assert find(found.contrasts, arm="hybrid", tissue="gm", measure="hd95_mm").n == 11
    assert find(found.contrasts, arm="synthetic", tissue="gm", measure="hd95_mm").n == 12


def test_a_tissue_that_was_never_learnt_is_said(tmp_path):
    def unlearnt(case):
        gone = (case["arm"], case["seed"], case["tissue"]) == ("real", 1, "csf")
        keys = ("arm", "seed", "subject", "tissue")
        return missed(**{k: case[k] for k in keys}) if gone else case

    found = analysed(write_benchmark(tmp_path, change=unlearnt))
    assert "real seed 1 never found csf: Dice 0 in every subject." in found.warnings


def test_nothing_anywhere(tmp_path):
    """A tissue that no subject has leaves numbers out; it breaks nothing."""
    keys = ("arm", "seed", "subject", "tissue")

    def gone(case):
        return absent(**{k: case[k] for k in keys})

    found = analysed(write_benchmark(tmp_path, change=gone))
    assert all(lv.n == 0 and math.isnan(lv.mean) for lv in found.levels)
    assert "nothing to compare" in found.verdicts["synthetic"]


def test_without_a_real_arm_there_are_levels_alone(out):
    document = json.loads((out / "spec.json").read_text())
    document["arms"] = [{"name": "synthetic"}]
    (out / "spec.json").write_text(json.dumps(document))
    found = analysed(out)
    assert found.contrasts == ()
    assert found.verdicts["synthetic"].startswith("synthetic: mean Dice 0.")
    assert found.warnings == (
        "No training of the arm 'real' has finished: nothing to compare with.",
    )


def test_smoke_is_stamped(tmp_path):
    found = analysed(write_benchmark(tmp_path, budget_name="smoke"))
    assert all(v.startswith("NOT A RESULT (smoke budget): ") for v in found.verdicts.values())


def test_modalities_are_averaged_and_shown_each(tmp_path):
    out = write_benchmark(tmp_path, modalities=["flair", "t1"])
    for path in out.glob("runs/*/*/cases.json"):
        rows = json.loads(path.read_text())
        seed = int(path.parent.name.removeprefix("seed"))
        flair = [r | {"modality": "flair", "dice": r["dice"] - 0.1} for r in rows]
        write_run(out, path.parent.parent.name, seed, rows + flair)
    found = analysed(out)
    assert {lv.modality for lv in found.levels} == {ALL, "t1", "flair"}
    level = {
        m: find(found.levels, arm="real", tissue="gm", measure="dice", modality=m)
        for m in (ALL, "t1", "flair")
    }
    assert level[ALL].n == 12
    assert level[ALL].mean == pytest.approx(level["t1"].mean - 0.05)
    assert level["flair"].mean == pytest.approx(level["t1"].mean - 0.1)


@pytest.mark.parametrize(
    ("gain", "outcome"),
    [
        (Gain(-0.03, -0.04, -0.02, 20, 0.004, 0.01), Outcome.WORSE),
        (Gain(-0.005, -0.008, -0.002, 20, 0.001, 0.01), Outcome.WORSE_WITHIN),
        # The interval stays above the margin, the noise of trainings does not: worse is claimed.
        (Gain(-0.008, -0.0095, -0.0065, 20, 0.002, 0.01), Outcome.WORSE),
        (Gain(0.03, 0.02, 0.04, 20, 0.004, 0.01), Outcome.BETTER),
        (Gain(0.03, 0.02, 0.04, 20, 0.02, 0.01), Outcome.NOISE),
        (Gain(0.03, 0.02, 0.04, 20, math.nan, 0.01), Outcome.ONE_TRAINING),
        (Gain(0.0, -0.005, 0.005, 20, 0.001, 0.01), Outcome.AS_GOOD),
        (Gain(0.0, -0.005, 0.005, 20, 0.006, 0.01), Outcome.NOISE),
        (Gain(0.0, -0.02, 0.02, 20, 0.001, 0.01), Outcome.TOO_FEW),
        (Gain(0.0, -0.02, 0.02, 20, math.nan, 0.01), Outcome.TOO_FEW),
        (Gain(0.0, -0.005, 0.005, 20, 0.001), Outcome.TOO_FEW),
        (Gain(0.3, 0.2, 0.4, 2, 0.0, 0.01), Outcome.TOO_FEW),
        (Gain(0.3, math.nan, math.nan, 1, 0.0, 0.01), Outcome.TOO_FEW),
        (Gain(0.0, 0.0, 0.0, 9, 0.0, 0.01), Outcome.NO_SPREAD),
    ],
)
def test_what_an_interval_supports(gain, outcome):
    assert gain.outcome() is outcome


def test_a_difference_must_survive_the_correction(tmp_path):
    """One tissue at p = .03 among three is no finding."""
    pattern = stats.norm.ppf((np.arange(12) + 0.5) / 12)
    pattern = 0.014 * pattern / pattern.std(ddof=1)

    def shifted(case):
        place = SUBJECTS.index(case["subject"])
        mean = 0.01 * (case["tissue"] == "csf")
        noise = 0.0001 * case["seed"]
        difference = (pattern[place] + mean) * (case["arm"] == "synthetic") + noise
        keys = ("arm", "seed", "subject", "tissue")
        return row(*(case[k] for k in keys), 0.8 + difference)

    contrast = find(
        analysed(write_benchmark(tmp_path, change=shifted)).contrasts,
        arm="synthetic",
        tissue="csf",
        measure="dice",
    )
    assert contrast.p_paired == pytest.approx(0.03, abs=0.003)
    assert contrast.p_holm == pytest.approx(3 * contrast.p_paired)
    assert contrast.outcome is Outcome.CORRECTED
