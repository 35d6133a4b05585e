"""The gate of angiograms: what it measures, what it keeps, what it counts."""

import numpy as np
import pytest
from tiny_vessels import Negative, Threshold, Tubes

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey
from synthgen.data.shards import Shards
from synthgen.generate import AngiogramJob, Gate, GenerationSettings, run
from synthgen.generate.gate import MARGIN_PX

SETTINGS = GenerationSettings(batch_size=2, shard_size=4, threads=1)


def painted(faults, **gate):
    return AngiogramJob(Tubes(), Negative(faults), Gate(Threshold(), **gate), SETTINGS)


def bars(*columns, shape=(1, 1, 32, 40)):
    """Return images or masks with dark bars."""
    image = np.zeros(shape, np.float32)
    for first, last in columns:
        image[..., first:last] = 1
    return image


@pytest.mark.parametrize(
    ("mask", "found", "dice", "outside"),
    [
        ([(4, 8)], [(4, 8)], 1.0, 0.0),
        ([(4, 8)], [], 0.0, 0.0),
        ([(4, 8)], [(6, 10)], 0.5, 0.0),
        # Five pixels beside the mask are forgiven, the sixth is not: one column of four.
        ([(4, 8)], [(4, 8 + MARGIN_PX)], 2 * 4 / 13, 0.0),
        ([(4, 8)], [(4, 9 + MARGIN_PX)], 2 * 4 / 14, 0.25),
        ([], [], 1.0, 0.0),
        ([], [(0, 1)], 0.0, 32.0),
    ],
)
def test_gate_measures_dice_and_what_is_painted_outside(mask, found, dice, outside):
    scores = Gate(Threshold()).measure(1 - bars(*found), bars(*mask)[:, 0] > 0)
    assert scores.dtype == np.float32
    assert scores.tolist() == [pytest.approx([dice, outside])]


def test_gate_passes_at_its_bounds_and_prefers_what_fails_by_less():
    gate = Gate(Threshold())
    scores = np.asarray([[0.8, 0.05], [0.799, 0.0], [0.9, 0.06], [1, 0]], np.float32)
    assert gate.passes(scores).tolist() == [True, False, False, True]
    kept = np.asarray([[0.5, 0.0]] * 4, np.float32)
    assert gate.better(scores, kept).all()
    assert not gate.better(kept, np.asarray([[0.6, 0.1]] * 4, np.float32)).any()


def test_redraws_are_pure_and_depend_on_the_batch_alone():
    job = painted(0.6)
    whole = job.rows(range(8, 12))
    assert 0 < (whole["attempt"] > 0).sum() < 4
    assert all(
        np.array_equal(array, painted(0.6).rows(range(8, 12))[name])
        for name, array in whole.items()
    )
    for place, index in enumerate(range(8, 12)):
        key = SampleKey(0, index, int(whole["attempt"][place]))
        tree = Tubes().draw([key])
        assert np.array_equal(whole["pv"][place, 1], np.rint(255 * tree.coverage[0]))
        image = Negative(0.6).render(tree, [key])
        assert np.array_equal(whole["images"][place], image[0].astype(np.float16))
    refused = [index for index in range(8, 12) if whole["attempt"][index - 8] > 0]
    assert job.generator.batches[1] == [(index, 1) for index in refused]


def test_best_draw_is_kept_where_none_passes():
    job = painted(1.0, max_attempts=4)
    rows = job.rows(range(6))
    draws = [
        Gate(Threshold()).measure(
            Negative(1.0).render(Tubes().draw(keys), keys).astype(np.float16).astype(np.float32),
            Tubes().draw(keys).mask,
        )
        for keys in ([SampleKey(0, i, attempt) for i in range(6)] for attempt in range(4))
    ]
    missed = np.stack([np.maximum(0.8 - d[:, 0], 0) + np.maximum(d[:, 1] - 0.05, 0) for d in draws])
    assert rows["attempt"].tolist() == missed.argmin(axis=0).tolist()
    assert len({*rows["attempt"].tolist()}) > 1
    report = job.gate.report(rows["gate"], rows["attempt"])
    assert (report.draws, report.rejected, report.failed, report.rate) == (24, 24, 6, 1.0)


def test_report_counts_draws_from_what_is_stored(tmp_path):
    job = painted(0.5)
    run(job, 10, tmp_path)
    shards = Shards(tmp_path)
    report = job.gate.report(shards.column("gate"), shards.column("attempt"))
    assert report.samples == 10
    assert report.draws == sum(len(batch) for batch in job.generator.batches)
    assert report.rejected == report.draws - (report.samples - report.failed)


def test_gate_that_looks_once_keeps_the_first_draws():
    job = painted(1.0, max_attempts=1)
    rows = job.rows(range(4))
    assert not rows["attempt"].any()
    assert not job.gate.passes(rows["gate"]).any()
    with pytest.raises(RequestError, match="max-attempts must be at least 1, got 0"):
        Gate(Threshold(), 0)
