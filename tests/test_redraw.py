"""Flagged samples are drawn anew in a new dataset; all other samples keep their bytes."""

import json
import shlex
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_generators import TinyImages, TinyLabels
from tiny_models import write_image_model, write_label_model

from synthgen.cli import main
from synthgen.core.errors import RequestError, StoreError
from synthgen.core.manifest import Manifest
from synthgen.core.rng import SampleKey
from synthgen.data.shard_file import open_shard, write_shard
from synthgen.data.shards import Shards, shard_path
from synthgen.data.tissue import quantize_pv
from synthgen.data.verify import verify
from synthgen.generate import (
    Acceptance,
    GenerationSettings,
    LabelJob,
    Quarantine,
    RedrawJob,
    flagged_labels,
    generate_images,
    generate_labels,
    replay,
    replay_labels,
    run,
)
from synthgen.labels import ConditionRange

N = 15
FLAGGED = (2, 3, 9, 14)
RANGES = ConditionRange({"wmh": (0.01, 0.05)}, (0.3, 0.7))
SETTINGS = GenerationSettings(seed=7, batch_size=4, shard_size=8, threads=1)


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def shard_bytes(folder):
    return {name: data for name, data in files(folder).items() if name.startswith("shards")}


def redraw_job(source, flagged=FLAGGED, generator=None, **settings):
    """Return the job of a redraw, with a model that was loaded again."""
    shards = Shards(source)
    job = replay_labels(shards, generator or TinyLabels())
    return RedrawJob.of(
        replace(job, settings=replace(job.settings, **settings)), shards, tuple(flagged)
    )


def redraw(source, out, flagged=FLAGGED, generator=None, **settings):
    job = redraw_job(source, flagged, generator, **settings)
    return run(job, job.n, out)


def assert_equal_rows(one, other, indices):
    for index in indices:
        for name, array in Shards(one).raw([index]).items():
            assert array.tobytes() == Shards(other).raw([index])[name].tobytes(), (index, name)


def assert_replays(folder):
    shards = Shards(folder)
    job = replay_labels(shards, TinyLabels())
    assert {index: replay(job, shards, index) for index in range(len(shards))} == {
        index: [] for index in range(len(shards))
    }


@pytest.fixture
def old(tmp_path):
    generate_labels(TinyLabels(), RANGES, N, tmp_path / "old", SETTINGS)
    return tmp_path / "old"


@pytest.fixture
def new(old, tmp_path):
    redraw(old, tmp_path / "new")
    return tmp_path / "new"


# what is made


def test_only_flagged_samples_change(old, new, untouched_rng):
    assert_equal_rows(old, new, set(range(N)) - set(FLAGGED))
    before, after = Shards(old).raw(FLAGGED), Shards(new).raw(FLAGGED)
    assert (after["attempt"] > before["attempt"]).all()
    np.testing.assert_array_equal(after["condition"], before["condition"])
    np.testing.assert_array_equal(after["index"], FLAGGED)
    for one, other in zip(before["pv"], after["pv"], strict=True):
        assert (one != other).any()
    assert verify(new) == []
    assert Manifest.read(new).subjects == Manifest.read(old).subjects


def test_every_sample_of_the_new_dataset_replays(new):
    assert_replays(new)


def test_a_redrawn_map_is_a_draw_of_its_own_key(old, new):
    generator = TinyLabels()
    for index in FLAGGED:
        row = Shards(new).raw([index])
        first, attempt = Shards(old)[index].attempt + 1, int(row["attempt"][0])
        assert first <= attempt < first + Acceptance().max_attempts
        condition = RANGES.draw(SampleKey(7, index))
        drawn = generator.sample([SampleKey(7, index, attempt)], [condition])[0]
        np.testing.assert_array_equal(row["pv"][0], quantize_pv(drawn.numpy()))


def test_a_redrawn_map_does_not_depend_on_its_neighbours(old, new, tmp_path):
    redraw(old, tmp_path / "alone", [3])
    assert_equal_rows(new, tmp_path / "alone", [3])
    assert_equal_rows(old, tmp_path / "alone", [2])


def test_the_same_acceptance_rule_holds(old, tmp_path):
    strict = Acceptance(max_attempts=1)
    generate_labels(TinyLabels(), RANGES, 8, tmp_path / "first", SETTINGS, acceptance=strict)
    redraw(tmp_path / "first", tmp_path / "second", [1, 6])
    assert Shards(tmp_path / "second").column("attempt").tolist() == [0, 1, 0, 0, 0, 0, 1, 0]


def test_nothing_but_flagged_samples_is_computed(old, tmp_path):
    generator = TinyLabels()
    redraw(old, tmp_path / "new", generator=generator)
    assert {tuple(batch) for batch in generator.batches} == {(index,) for index in FLAGGED}


def test_stored_rows_are_copied_even_where_this_machine_computes_others(old, tmp_path):
    path = shard_path(old, 0)
    arrays = Shards(old).arrays(0)
    arrays["pv"][[0, 1]] = arrays["pv"][[1, 0]]
    with open_shard(path) as file:
        attrs = {
            name: value if isinstance(value, str) else int(value)
            for name, value in file.attrs.items()
        }
    write_shard(path, arrays, attrs)
    redraw(old, tmp_path / "new")
    assert_equal_rows(old, tmp_path / "new", set(range(N)) - set(FLAGGED))


def test_identity_says_what_was_drawn_anew_and_stays_as_it_was_otherwise(old, new):
    before, after = (Manifest.read(folder).identity for folder in (old, new))
    attempts = Shards(old).column("attempt")
    first = {str(index): int(attempts[index]) + 1 for index in FLAGGED}
    assert after == {**before, "first_attempts": first}
    assert before == LabelJob(TinyLabels(), RANGES, SETTINGS).identity
    assert "first_attempts" not in before


def test_redrawing_twice_accumulates(old, new, tmp_path):
    redraw(new, tmp_path / "third", [3, 5])
    first, second, third = (
        Shards(folder).column("attempt") for folder in (old, new, tmp_path / "third")
    )
    assert first[3] < second[3] < third[3]
    assert first[5] < third[5]
    assert_equal_rows(new, tmp_path / "third", set(range(N)) - {3, 5})
    expected = {index: first[index] + 1 for index in (2, 5, 9, 14)} | {3: second[3] + 1}
    identity = Manifest.read(tmp_path / "third").identity
    assert identity["first_attempts"] == {str(index): at for index, at in expected.items()}
    assert verify(tmp_path / "third") == []
    assert_replays(tmp_path / "third")


# resume, workers, repair


@pytest.mark.parametrize("batches", [1, 3])
def test_killed_and_resumed_gives_the_same_bytes(old, new, tmp_path, batches):
    class Killed(RedrawJob):
        def rows(self, batch):
            if batch.start >= batches * SETTINGS.batch_size:
                raise KeyboardInterrupt
            return super().rows(batch)

    job = redraw_job(old)
    killed = Killed(job.job, job.flagged, job.n, job.stored)
    with pytest.raises(KeyboardInterrupt):
        run(killed, N, tmp_path / "killed")
    assert len(shard_bytes(tmp_path / "killed")) == batches // 2
    outcome = redraw(old, tmp_path / "killed")
    assert outcome.kept == 8 * (batches // 2)
    assert shard_bytes(tmp_path / "killed") == shard_bytes(new)
    assert redraw(old, tmp_path / "killed").generated == 0


def test_two_workers_make_the_bytes_of_one(old, new, tmp_path):
    for rank in (1, 0):
        redraw(old, tmp_path / "shared", worker=rank, num_workers=2)
    assert shard_bytes(tmp_path / "shared") == shard_bytes(new)


def test_a_damaged_shard_of_the_old_dataset_is_not_copied(old, tmp_path):
    path = shard_path(old, 1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"00001\.h5: damaged"):
        redraw(old, tmp_path / "new", [2])
    assert "shards/00001.h5" not in shard_bytes(tmp_path / "new")


def test_a_damaged_shard_of_the_new_dataset_is_repaired(old, new):
    before, path = shard_bytes(new), shard_path(new, 0)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="truncated or damaged"):
        redraw(old, new)
    assert redraw(old, new, repair=True).repaired == 1
    assert shard_bytes(new) == before


# what is refused


def test_incomplete_and_foreign_datasets_are_refused(old, tmp_path):
    generate_images(TinyImages(), Shards(old), ["a_t1"], tmp_path / "images", SETTINGS)
    job = replay_labels(Shards(old), TinyLabels())
    with pytest.raises(RequestError, match="holds images"):
        RedrawJob.of(job, Shards(tmp_path / "images"), [0])
    for flagged, shown in (((), "none"), ((N,), rf"\[{N}\]"), ((-1,), r"\[-1\]")):
        with pytest.raises(RequestError, match=rf"among 0 \.\. {N - 1}, got {shown}"):
            RedrawJob.of(job, Shards(old), flagged)
    shard_path(old, 1).unlink()
    with pytest.raises(StoreError, match="1 of 2 shards are missing"):
        RedrawJob.of(job, Shards(old), [0])


def test_another_redraw_does_not_continue_a_folder(old, new):
    before = files(new)
    with pytest.raises(RequestError, match=r"holds another dataset \(first_attempts: there"):
        redraw(old, new, [5])
    assert files(new) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not readable as JSON"),
        ("[1, 2]", r"sample indices as flagged, got \[1, 2\]"),
        ('"a\\nb"', r"got 'a\\nb'"),
        ("{}", r"got \{\}"),
        ('{"dataset": 3, "total": 4, "flagged": []}', "expected a folder as dataset"),
        ('{"dataset": "d", "total": "4", "flagged": []}', "a number as total"),
        ('{"dataset": "d", "total": 4, "flagged": 1}', "sample indices as flagged"),
        ('{"dataset": "d", "total": 4, "flagged": [1.0]}', "sample indices as flagged"),
        ('{"dataset": "d", "total": 4, "flagged": [true]}', "sample indices as flagged"),
        ('{"dataset": "d", "total": 4, "flagged": [4]}', r"flags sample 4 of .* 4 samples, 0 \.\."),
        ('{"dataset": "d", "total": 4, "flagged": [1, -1]}', "flags sample -1"),
    ],
)
def test_wrong_quarantine_files_are_named(tmp_path, text, message):
    path = tmp_path / "q.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=message) as error:
        Quarantine.read(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_quarantine_is_read_in_order_and_opens_its_dataset(old, tmp_path):
    path = write_quarantine(tmp_path / "q.json", old, [9, 2, 9])
    found = Quarantine.read(path)
    assert found.flagged == (2, 9)
    assert len(found.open()) == N
    with pytest.raises(RequestError, match=f"audited 16 samples and .* holds {N}; audit it again"):
        replace(found, total=16).open()
    with pytest.raises(RequestError, match="no dataset of `synthgen labels`"):
        replace(found, dataset=tmp_path).open()
    with pytest.raises(RequestError, match=r"none\.json: cannot be read \(No such file"):
        Quarantine.read(tmp_path / "none.json")


# images


def test_flagged_images_lead_to_their_labels(old, new, tmp_path):
    generate_images(TinyImages(), Shards(old), ["a_t1"], tmp_path / "images", SETTINGS, per_label=3)
    images = Shards(tmp_path / "images")
    assert flagged_labels(images, Shards(old), [1, 44, 0, 6]) == (0, 2, 14)
    with pytest.raises(RequestError, match=r"images was not painted from .*new \(labels: then"):
        flagged_labels(images, Shards(new), [1])


# the command


SMALL = ("--shard-size", 4, "--batch-size", 2, "--threads", 1)


def write_quarantine(path, dataset, flagged):
    total = Manifest.read(dataset).n
    found = {"dataset": str(dataset), "checked": total, "total": total, "flagged": flagged}
    path.write_text(json.dumps(found))
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A workspace with models, six label maps and twelve images of them."""
    work = tmp_path_factory.mktemp("work")
    write_label_model(work / "models" / "labels")
    write_image_model(work / "models" / "images")
    place = ("--workspace", work, "--device", "cpu")
    call("labels", "--n", 6, "--lesion", "wmh=0.01:0.05", "--steps", 2, *SMALL, *place)
    call("images", "--style", "a_t1,a_flair", "--per-label", 2, "--seed", 5, *SMALL, *place)
    return work


@pytest.fixture
def work(drawn, tmp_path):
    """The workspace's datasets; they name their models in its own folder."""
    for name in ("labels", "images"):
        shutil.copytree(drawn / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def images(work):
    return work / "images" / "a_t1+a_flair"


def call(*arguments):
    """Run the command line in this process; return the exit code."""
    before, sys.argv = sys.argv, ["synthgen", *map(str, arguments)]
    try:
        main()
    except SystemExit as stop:
        return stop.code or 0
    finally:
        sys.argv = before
    return 0


@pytest.fixture
def synthgen(capsys):
    """Return a call that gives (exit code, stdout, stderr)."""

    def run_it(*arguments):
        capsys.readouterr()
        return call(*arguments), *capsys.readouterr()

    return run_it


def test_command_redraws_labels(synthgen, work):
    path = write_quarantine(work / "q.json", work / "labels", [1, 4])
    asked = ("redraw", path, "--out", work / "new", "--device", "cpu")
    code, out, err = synthgen(*asked)
    assert (code, err) == (0, "")
    assert f"labels: {work / 'labels'}, 6 maps, 2 to draw anew" in out
    assert f"{work / 'new'} holds 6 samples in all, 2 drawn anew, the others copied from" in out
    assert "paint" not in out
    assert_equal_rows(work / "labels", work / "new", [0, 2, 3, 5])
    assert synthgen("verify", work / "new")[0] == 0
    for index in range(6):
        assert synthgen("replay", work / "new", "--index", index, "--device", "cpu")[0] == 0
    made = json.loads(synthgen(*asked, "--json")[1])
    assert (made["kept"], made["generated"], made["redrawn"]) == (6, 0, [1, 4])
    assert (made["folder"], made["source"]) == (str(work / "new"), str(work / "labels"))
    again = write_quarantine(work / "q2.json", work / "new", [1])
    assert synthgen("redraw", again, "--out", work / "third", "--device", "cpu")[0] == 0
    assert Manifest.read(work / "third").provenance["redrawn_from"] == str(work / "new")
    assert synthgen("replay", work / "third", "--index", 1, "--device", "cpu")[0] == 0


def test_command_redraws_the_labels_behind_images_and_says_how_to_paint_them(
    synthgen, work, images
):
    path = write_quarantine(work / "q.json", images, [9, 8, 3])
    asked = ("redraw", path, "--out", work / "new", "--labels", work / "labels", "--device", "cpu")
    code, out, err = synthgen(*asked)
    assert (code, err) == (0, "")
    assert_equal_rows(work / "labels", work / "new", [0, 2, 3, 5])
    attempts = [Shards(folder).column("attempt") for folder in (work / "labels", work / "new")]
    assert (attempts[0] < attempts[1]).tolist() == [False, True, False, False, True, False]
    paint = shlex.split(out.splitlines()[-1].removeprefix("paint the new labels: synthgen "))
    assert shlex.split(json.loads(synthgen(*asked, "--json")[1])["paint"]) == ["synthgen", *paint]
    code, _, err = synthgen(*paint, "--device", "cpu")
    assert (code, err) == (0, "")
    painted = images.with_name("a_t1+a_flair-new")
    before, after = (Manifest.read(folder).identity for folder in (images, painted))
    assert {name for name in before if before[name] != after[name]} == {"labels"}
    assert before.keys() == after.keys()
    assert synthgen("verify", painted)[0] == 0


def test_labels_default_to_those_the_images_were_made_of(synthgen, drawn, work, images):
    path = write_quarantine(work / "q.json", images, [0])
    code, out, _ = synthgen("redraw", path, "--out", work / "new", "--device", "cpu")
    assert code == 0
    assert f"labels: {drawn / 'labels'}, 6 maps, 1 to draw anew" in out


def test_an_empty_list_is_nothing_to_draw_anew(synthgen, work):
    path = write_quarantine(work / "q.json", work / "labels", [])
    code, out, _ = synthgen("redraw", path, "--out", work / "new")
    assert code == 0
    assert out == f"{work / 'labels'}: no sample was flagged; nothing to draw anew\n"
    made = json.loads(synthgen("redraw", path, "--out", work / "new", "--json")[1])
    assert made == {"folder": None, "source": str(work / "labels"), "redrawn": [], "paint": None}
    assert not (work / "new").exists()


def test_bad_requests_are_one_line_and_exit_code_2(synthgen, work, images, tmp_path):
    asked = write_quarantine(work / "q.json", work / "labels", [1])
    painted = write_quarantine(work / "qi.json", images, [1])
    other = write_label_model(tmp_path / "other", seed=1)
    (work / "empty").mkdir()
    foreign = work / "foreign.json"
    foreign.write_text(json.dumps({"dataset": str(work / "empty"), "total": 1, "flagged": [0]}))
    call("redraw", asked, "--out", work / "new", "--device", "cpu")
    new, before = ("--out", work / "x"), files(work)
    for arguments, message in (
        ((work / "none.json", *new), "none.json: cannot be read"),
        ((foreign, *new), "only those are drawn anew"),
        ((asked, "--out", work / "labels"), "is the old dataset"),
        ((painted, "--out", images), "is the old dataset"),
        ((painted, "--out", work / "images" / ".." / "labels", "--labels", work / "labels"), "old"),
        ((asked, "--out", images), "kind: there 'images', asked 'labels'"),
        ((asked, *new, "--labels", work / "labels"), "--labels is for images"),
        ((asked, *new, "--model", other), "was made by another generator"),
        ((painted, *new, "--labels", work / "empty"), "no dataset there; name the labels"),
        ((painted, *new, "--labels", work / "new"), "was not painted from"),
    ):
        code, _, err = synthgen("redraw", *arguments, "--device", "cpu")
        assert (code, len(err.splitlines())) == (2, 1), (arguments, err)
        assert message in err
    assert files(work) == before


def test_missing_out_is_a_usage_error(synthgen, work):
    path = write_quarantine(work / "q.json", work / "labels", [1])
    assert synthgen("redraw", path)[0] == 2


def test_thread_count_is_left_alone(old, tmp_path):
    before = torch.get_num_threads()
    redraw(old, tmp_path / "new")
    assert torch.get_num_threads() == before
