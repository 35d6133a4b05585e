"""The generation engine: determinism, resume, extension, workers, repair, replay, bad requests."""

import errno
import json
import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from file_digests import digests
from tiny_generators import SHAPE, TinyImages, TinyLabels

from synthgen.core.errors import RequestError, SchemaError, StoreError
from synthgen.core.manifest import Manifest, sealed
from synthgen.core.schema import BRAIN9, LabelSchema, Tissue
from synthgen.data.shard_file import read_shard
from synthgen.data.shards import Shards, shard_path
from synthgen.data.verify import verify
from synthgen.generate import (
    Acceptance,
    GenerationSettings,
    ImageJob,
    LabelJob,
    forecast,
    generate_images,
    generate_labels,
    replay,
    replay_images,
    replay_labels,
    run,
)
from synthgen.labels import ConditionRange

RANGES = ConditionRange({"wmh": (0.01, 0.05)}, (0.3, 0.7))
SETTINGS = GenerationSettings(batch_size=2, shard_size=4, threads=1)


def make_labels(folder, n=10, settings=SETTINGS, generator=None, ranges=RANGES):
    return generate_labels(generator or TinyLabels(), ranges, n, folder, settings)


def make_images(labels, folder, settings=SETTINGS, per_label=1, styles=("a_t1", "a_t2")):
    return generate_images(
        TinyImages(), Shards(labels), styles, folder, settings, per_label=per_label
    )


@pytest.fixture
def labels(tmp_path):
    make_labels(tmp_path / "labels")
    return tmp_path / "labels"


# what is made


def test_makes_shards_of_the_plan(labels, untouched_rng):
    assert sorted(digests(labels)) == [
        "manifest.json",
        *(f"shards/0000{shard}.h5" for shard in range(3)),
    ]
    assert len(read_shard(shard_path(labels, 2))["index"]) == 2
    assert verify(labels) == []
    manifest = Manifest.read(labels)
    assert manifest.n == 10
    assert manifest.subjects == ["a/sub-01", "a/sub-02"]
    assert manifest.identity["generator.model"] == "tiny-0"
    assert manifest.identity["conditions"] == {"wmh": [0.01, 0.05], "position": [0.3, 0.7]}


def test_global_rng_and_thread_count_are_untouched(tmp_path, untouched_rng):
    before = torch.get_num_threads()
    make_labels(tmp_path, settings=replace(SETTINGS, threads=before + 1))
    assert torch.get_num_threads() == before


def test_sample_does_not_depend_on_n(labels, tmp_path):
    make_labels(tmp_path / "more", n=16)
    few, many = Shards(labels), Shards(tmp_path / "more")
    for index in range(10):
        for name, array in few.raw([index]).items():
            assert array.tobytes() == many.raw([index])[name].tobytes()


def test_samples_differ_and_follow_the_seed(labels, tmp_path):
    make_labels(tmp_path / "other", settings=replace(SETTINGS, seed=1))
    first, second = Shards(labels), Shards(tmp_path / "other")
    assert not np.array_equal(first[0].pv, first[1].pv)
    assert not np.array_equal(first[0].pv, second[0].pv)


def test_every_batch_is_full(tmp_path):
    generator = TinyLabels()
    first_draws = Acceptance(max_attempts=1)
    generate_labels(generator, RANGES, 7, tmp_path, SETTINGS, acceptance=first_draws)
    assert generator.batches == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert len(Shards(tmp_path)) == 7


def test_images_pad_their_last_batch_with_the_last_label(labels, tmp_path):
    make_images(labels, tmp_path / "a", per_label=3)
    make_images(labels, tmp_path / "b", SETTINGS, per_label=3)
    shards = Shards(tmp_path / "a")
    assert len(shards) == 30
    assert [row.label_index for row in shards] == [i // 3 for i in range(30)]
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert verify(tmp_path / "a") == []


def test_progress_and_outcome_count_samples(tmp_path):
    seen = []
    outcome = generate_labels(
        TinyLabels(),
        RANGES,
        5,
        tmp_path,
        SETTINGS,
        progress=lambda *state: seen.append(state),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert (outcome.generated, outcome.kept, outcome.repaired) == (5, 0, 0)
    assert outcome.bytes == sum(p.stat().st_size for p in (tmp_path / "shards").iterdir())
    again = make_labels(tmp_path, n=5)
    assert (again.generated, again.kept, again.bytes) == (0, 5, 0)


# resume and extend


@pytest.mark.parametrize("lost", [{0}, {1}, {2}, {0, 2}, {0, 1, 2}])
def test_resume_makes_lost_shards_again_and_keeps_the_others(labels, lost):
    before = digests(labels)
    stamps = {s: shard_path(labels, s).stat().st_mtime_ns for s in range(3)}
    for shard in lost:
        shard_path(labels, shard).unlink()
    outcome = make_labels(labels)
    assert digests(labels) == before
    assert outcome.generated == sum({0: 4, 1: 4, 2: 2}[shard] for shard in lost)
    for shard in set(stamps) - lost:
        assert shard_path(labels, shard).stat().st_mtime_ns == stamps[shard]


def test_resume_clears_what_a_killed_run_left(labels):
    before = digests(labels)
    shard_path(labels, 1).unlink()
    for name in ("shards/.00001.h5.4242.tmp", "shards/.00002.h5.1.tmp", ".manifest.json.7.tmp"):
        (labels / name).write_bytes(b"half")
    make_labels(labels)
    assert digests(labels) == before


@pytest.mark.parametrize(("first", "then"), [(10, 11), (10, 12), (10, 25), (1, 3), (4, 8)])
def test_larger_n_continues(tmp_path, first, then):
    make_labels(tmp_path / "grown", n=first)
    old = Shards(tmp_path / "grown").raw(range(first))
    outcome = make_labels(tmp_path / "grown", n=then)
    assert (outcome.kept, outcome.generated) == (first, then - first)
    make_labels(tmp_path / "whole", n=then)
    assert digests(tmp_path / "grown") == digests(tmp_path / "whole")
    for name, array in Shards(tmp_path / "grown").raw(range(first)).items():
        assert array.tobytes() == old[name].tobytes()


def test_images_grow_with_their_labels(labels, tmp_path):
    make_images(labels, tmp_path / "images", per_label=2)
    make_labels(labels, n=13)
    make_images(labels, tmp_path / "images", per_label=2)
    make_images(labels, tmp_path / "whole", per_label=2)
    assert digests(tmp_path / "images") == digests(tmp_path / "whole")


def test_smaller_n_than_is_there_is_refused(labels):
    before = digests(labels)
    for n in (9, 1):
        with pytest.raises(RequestError, match="already holds 10 samples and --n is the total"):
            make_labels(labels, n=n)
    assert digests(labels) == before


def test_n_may_shrink_to_what_a_killed_run_made(labels):
    shard_path(labels, 2).unlink()
    make_labels(labels, n=8)
    assert len(Shards(labels)) == 8
    assert verify(labels) == []


# workers


@pytest.mark.parametrize("world", [2, 3, 5])
def test_any_number_of_workers_gives_the_same_bytes(labels, tmp_path, world):
    for rank in reversed(range(world)):
        outcome = make_labels(
            tmp_path / "shared", settings=replace(SETTINGS, worker=rank, num_workers=world)
        )
        assert outcome.n == 10
    assert digests(tmp_path / "shared") == digests(labels)


# damage


def flip(path, place, bit=0):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_bit_flipped_shard_is_refused_and_repaired_on_request(labels, seed):
    before = digests(labels)
    rng = np.random.default_rng(seed)
    path = shard_path(labels, seed % 3)
    size = path.stat().st_size
    place = int(rng.integers(512)) if seed == 0 else int(rng.integers(size))
    flip(path, place, int(rng.integers(8)))
    damaged = digests(labels)
    with pytest.raises(StoreError, match=rf"{path.name}: (damaged|truncated).*--repair"):
        make_labels(labels)
    assert digests(labels) == damaged
    outcome = make_labels(labels, settings=replace(SETTINGS, repair=True))
    assert outcome.repaired == 1
    assert digests(labels) == before


def test_truncated_shards_are_refused_and_repaired_on_request(labels):
    before = digests(labels)
    for shard in (0, 2):
        os.truncate(shard_path(labels, shard), 700)
    with pytest.raises(StoreError, match=r"00000\.h5: truncated.*and 1 more damaged"):
        make_labels(labels)
    outcome = make_labels(labels, settings=replace(SETTINGS, repair=True))
    assert (outcome.repaired, outcome.generated, outcome.kept) == (2, 6, 4)
    assert digests(labels) == before


def test_repair_makes_only_damaged_shards_again(labels):
    stamp = shard_path(labels, 0).stat().st_mtime_ns
    flip(shard_path(labels, 1), -1)
    make_labels(labels, settings=replace(SETTINGS, repair=True))
    assert shard_path(labels, 0).stat().st_mtime_ns == stamp


def test_shards_of_another_dataset_are_never_continued(labels, tmp_path):
    make_labels(tmp_path / "other", settings=replace(SETTINGS, seed=5))
    stray = shard_path(tmp_path / "other", 1).read_bytes()
    shard_path(labels, 1).write_bytes(stray)
    with pytest.raises(StoreError, match="belongs to another dataset"):
        make_labels(labels, settings=replace(SETTINGS, repair=True))
    assert shard_path(labels, 1).read_bytes() == stray


def test_shards_without_a_manifest_are_refused(labels):
    (labels / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"has shards but no manifest\.json"):
        make_labels(labels)


def test_full_disk_keeps_finished_shards_and_the_next_run_completes(tmp_path, monkeypatch):
    make_labels(tmp_path / "whole", n=20)
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) > 3:  # the manifest and two shards fit
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreError, match="No space left on device"):
        make_labels(tmp_path / "full", n=20)
    monkeypatch.undo()
    left = digests(tmp_path / "full")
    assert sorted(left) == ["manifest.json", "shards/00000.h5", "shards/00001.h5"]
    outcome = make_labels(tmp_path / "full", n=20)
    assert outcome.kept == 8
    assert digests(tmp_path / "full") == digests(tmp_path / "whole")


def test_interrupt_leaves_complete_shards_only(tmp_path):
    def stop(done, _):
        if done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_labels(TinyLabels(), RANGES, 20, tmp_path / "cut", SETTINGS, progress=stop)
    assert len(list((tmp_path / "cut/shards").iterdir())) == 2
    make_labels(tmp_path / "cut", n=20)
    make_labels(tmp_path / "whole", n=20)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


# bad requests: refused before anything is touched


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": replace(SETTINGS, seed=3)}, "seed: there 0, asked 3"),
        ({"settings": replace(SETTINGS, batch_size=4)}, "batch_size: there 2, asked 4"),
        ({"settings": replace(SETTINGS, shard_size=8)}, "shard_size: there 4, asked 8"),
        ({"settings": replace(SETTINGS, threads=2)}, "threads: there 1, asked 2"),
        ({"generator": TinyLabels(1)}, "generator.model: there 'tiny-0', asked 'tiny-1'"),
        ({"ranges": ConditionRange({}, (0.3, 0.7))}, "conditions: there"),
    ],
)
def test_another_identity_is_refused_by_name(labels, change, message):
    before = digests(labels)
    with pytest.raises(RequestError, match=message):
        make_labels(labels, n=50, **change)
    assert digests(labels) == before


def test_images_into_a_folder_of_labels_are_refused(labels):
    before = digests(labels)
    with pytest.raises(RequestError, match="kind: there 'labels', asked 'images'"):
        make_images(labels, labels)
    assert digests(labels) == before


@pytest.mark.parametrize("n", [0, -3])
def test_n_below_one_is_refused(tmp_path, n):
    with pytest.raises(RequestError, match=f"n={n}"):
        make_labels(tmp_path / "x", n=n)
    assert not (tmp_path / "x").exists()


def test_settings_that_fit_nothing_are_refused(tmp_path):
    with pytest.raises(RequestError, match="shard_size must be a multiple"):
        make_labels(tmp_path / "x", settings=GenerationSettings(batch_size=3, shard_size=4))
    with pytest.raises(RequestError, match="threads must be at least 1"):
        GenerationSettings(threads=0)
    assert not (tmp_path / "x").exists()


def test_unknown_lesion_is_refused():
    with pytest.raises(RequestError, match=r"unknown lesion 'foo'.*wmh, tumour, oedema"):
        LabelJob(TinyLabels(), ConditionRange({"foo": (0, 1)}, (0, 1)), SETTINGS)


@pytest.mark.parametrize(
    ("styles", "message"),
    [
        (["a_pd"], "unknown style 'a_pd'; there are a_t1, a_t2, a_flair"),
        ([], "no style"),
        (["a_t1", "a_t1"], "stands twice"),
    ],
)
def test_unknown_styles_are_refused(labels, tmp_path, styles, message):
    with pytest.raises(RequestError, match=message):
        make_images(labels, tmp_path / "x", styles=styles)
    assert not (tmp_path / "x").exists()


def test_incomplete_labels_are_refused(labels, tmp_path):
    shard_path(labels, 1).unlink()
    with pytest.raises(StoreError, match=r"1 of 3 shards are missing \(first 00001\.h5\)"):
        make_images(labels, tmp_path / "x")
    make_labels(labels)
    Manifest(**(vars(Manifest.read(labels)) | {"n": 12})).write(labels)
    with pytest.raises(StoreError, match=r"1 of 3 shards are missing \(first 00002\.h5\)"):
        make_images(labels, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_images_of_images_and_of_another_schema_are_refused(labels, tmp_path):
    make_images(labels, tmp_path / "images")
    with pytest.raises(RequestError, match="holds images; --labels wants a dataset of labels"):
        make_images(tmp_path / "images", tmp_path / "x")
    other = LabelSchema("two", (Tissue("background", 0), Tissue("brain", 1)))
    with pytest.raises(SchemaError, match="expected label schema 'two'"):
        generate_images(
            TinyImages(schema=other), Shards(labels), ["a_t1"], tmp_path / "x", SETTINGS
        )
    with pytest.raises(RequestError, match="per-label must be at least 1, got 0"):
        make_images(labels, tmp_path / "x", per_label=0)


def test_a_generator_that_breaks_is_named_and_costs_nothing_finished(tmp_path):
    with pytest.raises(SchemaError, match=r"label generator, samples from 6:.*nan"):
        make_labels(tmp_path, generator=TinyLabels(broken_at=6))
    assert [p.name for p in (tmp_path / "shards").iterdir()] == ["00000.h5"]
    make_labels(tmp_path)
    assert verify(tmp_path) == []


def test_images_outside_their_range_are_refused(labels, tmp_path):
    for offset, message in ((-1.0, r"expected finite values in \[0, 1\]"), (1e-3, "exactly 0")):
        generator = TinyImages(offset=offset)
        with pytest.raises(SchemaError, match=message):
            generate_images(generator, Shards(labels), ["a_t1"], tmp_path / "x", SETTINGS)


# dry run, replay, memory


def test_forecast_writes_nothing_and_counts(labels, tmp_path):
    job = LabelJob(TinyLabels(), RANGES, SETTINGS)
    new = forecast(job, 10, tmp_path / "new")
    assert (new.n, new.kept, new.files) == (10, 0, 3)
    assert new.seconds > 0
    real = sum(p.stat().st_size for p in (labels / "shards").iterdir())
    assert abs(new.bytes - real) < 0.25 * real
    assert not (tmp_path / "new").exists()
    before = digests(labels)
    more = forecast(job, 17, labels)
    assert (more.kept, more.files) == (10, 3)
    assert forecast(job, 10, labels).files == 0
    assert digests(labels) == before


def test_replay_is_equal_bit_for_bit(labels, tmp_path):
    shards = Shards(labels)
    for index in (0, 5, 9):
        assert replay(replay_labels(shards, TinyLabels()), shards, index) == []
    make_images(labels, tmp_path / "images", per_label=3)
    painted = Shards(tmp_path / "images")
    for index in (0, 16, 29):
        assert replay(replay_images(painted, TinyImages()), painted, index) == []


def test_replay_tells_what_differs(labels):
    shards = Shards(labels)
    job = replay_labels(shards, TinyLabels())
    other = replace(job, generator=TinyLabels(1), acceptance=Acceptance(max_attempts=1))
    differing = replay(other, shards, 3)
    assert [line.partition(":")[0] for line in differing] == ["attempt", "pv", "realised"]
    with pytest.raises(RequestError, match=r"generator\.model: then 'tiny-0', here 'tiny-1'"):
        replay_labels(shards, TinyLabels(1))
    with pytest.raises(RequestError, match="there is no 10"):
        replay(job, shards, 10)


def test_replay_of_a_manifest_that_lacks_something_is_refused(labels):
    raw = json.loads((labels / "manifest.json").read_text())
    del raw["identity"]["conditions"]
    (labels / "manifest.json").write_text(json.dumps(sealed(raw)))
    with pytest.raises(StoreError, match="lacks what made the dataset"):
        replay_labels(Shards(labels), TinyLabels())


def test_memory_does_not_grow_with_n(tmp_path):
    peaks = []
    for n in (16, 160):
        job = LabelJob(TinyLabels(), RANGES, SETTINGS)
        tracemalloc.start()
        run(job, n, tmp_path / str(n))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # A shard of four maps is 28 kB here and some wait in the queue; 144 more maps are a megabyte.
    assert peaks[1] < peaks[0] + 500_000


def test_image_job_knows_its_ancestors(labels):
    job = ImageJob.of(TinyImages(), Shards(labels), ["a_t1"], settings=SETTINGS)
    assert job.subjects == ["a/sub-01", "a/sub-02", "b/sub-07"]
    assert job.schema == BRAIN9
    assert job.rows(range(2))["images"].shape == (2, 1, *SHAPE)
