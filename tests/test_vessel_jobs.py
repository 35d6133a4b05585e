"""Datasets of vessel trees and angiograms: determinism, resume, gate, verify, replay, preview."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from file_digests import digests
from tiny_vessels import SHAPE, Negative, Threshold, Tubes

from synthgen.core.errors import RequestError, SchemaError, StoreError
from synthgen.core.manifest import Manifest, sealed
from synthgen.core.rng import SampleKey
from synthgen.core.schema import VESSEL
from synthgen.data.preview import draw_preview
from synthgen.data.shard_checks import PAST_THE_END, PICTURE_EXTRAS
from synthgen.data.shard_file import open_shard, read_shard, write_shard
from synthgen.data.shards import Shards, shard_path
from synthgen.data.verify import verify
from synthgen.data.vessel_panels import OUTLINE, vessel_panels
from synthgen.evaluate.overview import overview
from synthgen.generate import (
    AngiogramJob,
    Gate,
    GenerationSettings,
    VesselJob,
    forecast,
    replay,
    replay_angiograms,
    replay_vessels,
    run,
    vessel_job,
)
from synthgen.generate.vessel_job import EXTRAS, MOST_NODES, labelled_nodes
from synthgen.labels.vessels import VesselGenerator

SETTINGS = GenerationSettings(batch_size=2, shard_size=4, threads=1)


def vessels(folder, n=10, extras=EXTRAS, settings=SETTINGS):
    return run(VesselJob(Tubes(), extras, settings), n, folder)


def painted(faults=0.5, settings=SETTINGS, **gate):
    return AngiogramJob(Tubes(), Negative(faults), Gate(Threshold(), **gate), settings)


def rewrite(folder, shard, change):
    """Change the arrays of a shard, and give it a checksum that fits."""
    path = shard_path(folder, shard)
    arrays = read_shard(path)
    with open_shard(path) as file:
        attrs = dict(file.attrs)
    change(arrays)
    write_shard(path, arrays, attrs)


@pytest.fixture(params=["vessels", "angiograms"])
def job(request):
    return VesselJob(Tubes(), EXTRAS, SETTINGS) if request.param == "vessels" else painted()


# what is stored


def test_trees_are_label_maps_without_conditions(tmp_path, untouched_rng):
    vessels(tmp_path, extras=())
    shards = Shards(tmp_path, VESSEL)
    assert verify(tmp_path) == []
    assert (shards.manifest.kind, shards.condition_names, shards.styles) == ("labels", (), ())
    stored = shards.raw([0, 7])
    assert sorted(stored) == ["attempt", "condition", "index", "pv", "realised"]
    assert stored["pv"].shape == (2, 2, *SHAPE)
    assert stored["condition"].shape == stored["realised"].shape == (2, 0)
    drawn = Tubes().draw([SampleKey(0, 0), SampleKey(0, 7)])
    assert np.array_equal(stored["pv"][:, 1], np.rint(255 * drawn.coverage))
    assert np.array_equal(stored["pv"][:, 1] >= 128, drawn.mask)


def test_extras_are_stored_and_read_by_name(tmp_path):
    vessels(tmp_path)
    row = Shards(tmp_path)[3]
    assert sorted(row.extras) == sorted(EXTRAS)
    assert {name: str(row.extras[name].dtype) for name in PICTURE_EXTRAS} == {
        name: values.dtype for name, values in PICTURE_EXTRAS.items()
    }
    assert verify(tmp_path) == []


def test_graph_holds_the_labelled_nodes_and_is_filled_up(tmp_path):
    vessels(tmp_path, extras=["graph"])
    graph = Shards(tmp_path)[5].extras["graph"]
    assert (graph.shape, graph.dtype) == ((MOST_NODES, 6), np.float32)
    tube = Tubes().tree(SampleKey(0, 5))
    assert np.array_equal(graph[:4, :3], tube.nodes[:4])
    assert graph[:4, 3].tolist() == tube.radius[:4].tolist()
    assert graph[:4, 4].tolist() == [-1, 0, 1, 2]
    assert (graph[4:] == PAST_THE_END).all()


def test_labelled_nodes_are_numbered_anew():
    tube = Tubes().tree(SampleKey(0, 0))
    # 0 - 1 - 3 labelled, 2 - 4 not, 5 a labelled root of its own.
    forest = replace(
        tube,
        parent=np.asarray([-1, 0, 1, 1, 2, -1], np.int32),
        branch=np.asarray([0, 0, 1, 2, 1, 3], np.int32),
        visible=np.asarray([True, True, False, True, False, True]),
    )
    nodes = labelled_nodes(forest)
    assert nodes[:, 4].tolist() == [-1, 0, 1, -1]
    assert nodes[:, 5].tolist() == [0, 0, 2, 3]


def test_angiograms_hold_image_mask_and_gate(tmp_path, untouched_rng):
    run(painted(), 10, tmp_path)
    shards = Shards(tmp_path, VESSEL)
    assert verify(tmp_path) == []
    assert (shards.manifest.kind, shards.styles) == ("angiograms", ("angiogram",))
    row = shards[2]
    assert row.images.shape == (1, *SHAPE)
    assert row.gate[0] == pytest.approx(1, abs=0.2)
    assert shards.raw([2])["images"].dtype == np.float16
    assert shards.manifest.identity["gate"]["min_dice"] == 0.8


def test_without_a_gate_nothing_is_measured_or_drawn_again(tmp_path):
    run(AngiogramJob(Tubes(), Negative(1.0), None, SETTINGS), 4, tmp_path)
    shards = Shards(tmp_path)
    assert verify(tmp_path) == []
    assert shards[0].gate is None
    assert not shards.column("attempt").any()


def test_first_attempts_of_angiograms_show_the_trees_of_vessels(tmp_path):
    vessels(tmp_path / "vessels", extras=())
    run(painted(0.5), 10, tmp_path / "angiograms")
    trees, images = Shards(tmp_path / "vessels"), Shards(tmp_path / "angiograms")
    first = np.flatnonzero(images.column("attempt") == 0)
    assert 0 < len(first) < 10
    for index in range(10):
        same = np.array_equal(trees[index].pv, images[index].pv)
        assert same == (index in first)


def test_subjects_of_every_part_are_named():
    job = AngiogramJob(
        Tubes(subjects=("a/1",)), Negative(subjects=("b/2",)), Gate(Threshold(subjects=("c/3",)))
    )
    assert job.subjects == ["a/1", "b/2", "c/3"]
    assert replace(job, gate=None).subjects == ["a/1", "b/2"]


# determinism


def test_kill_and_resume_gives_the_same_bytes(job, tmp_path):
    def stop(done, _):
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, 13, tmp_path / "cut", progress=stop)
    assert len(list((tmp_path / "cut/shards").iterdir())) == 1
    (tmp_path / "cut/shards/.00001.h5.7.tmp").write_bytes(b"half")
    run(job, 13, tmp_path / "cut")
    run(job, 13, tmp_path / "whole")
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_larger_n_extends_and_changes_nothing(job, tmp_path):
    run(job, 5, tmp_path / "grown")
    old = Shards(tmp_path / "grown").raw(range(5))
    run(job, 11, tmp_path / "grown")
    run(job, 11, tmp_path / "whole")
    assert digests(tmp_path / "grown") == digests(tmp_path / "whole")
    for name, array in Shards(tmp_path / "grown").raw(range(5)).items():
        assert array.tobytes() == old[name].tobytes()


def test_two_workers_make_the_bytes_of_one(job, tmp_path):
    run(job, 13, tmp_path / "one")
    for rank in (1, 0):
        settings = replace(SETTINGS, worker=rank, num_workers=2)
        run(replace(job, settings=settings), 13, tmp_path / "two")
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


def test_forecast_writes_nothing(job, tmp_path):
    told = forecast(job, 10, tmp_path / "new")
    assert (told.n, told.kept, told.files) == (10, 0, 3)
    assert not (tmp_path / "new").exists()


def test_another_generator_or_gate_is_refused(tmp_path):
    run(painted(), 4, tmp_path)
    with pytest.raises(RequestError, match=r"gate: there .*asked None"):
        run(replace(painted(), gate=None), 8, tmp_path)
    with pytest.raises(RequestError, match=r"generator\.preset: there 'tubes', asked 'hoses'"):
        run(replace(painted(), generator=Tubes(preset="hoses")), 8, tmp_path)
    with pytest.raises(RequestError, match=r"generator\.renderer\.faults"):
        run(painted(0.1), 8, tmp_path)


# verify


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("centreline", lambda a: a + 1, r"expected finite values in \[0, 1\], got 2"),
        ("centreline", lambda a: a.astype(np.int16), "expected uint8, got int16"),
        ("path_length", lambda a: a - 1, "expected finite values >= 0, got -1"),
        ("radius", lambda a: a * np.float16("nan"), "got nan"),
        ("radius", lambda a: a[:, 1:], r"expected an array of shape \(48, 64\), got \(47, 64\)"),
        ("branches", lambda a: a - 5, "got -5"),
        (
            "graph",
            lambda a: a[..., :5],
            r"expected float32 \(nodes, 6\), got float32 of \(12000, 5\)",
        ),
        ("graph", lambda a: a[:, ::-1], "a node stands after the end"),
        ("graph", lambda a: a * np.float32(0), "node 0 has the parent -?0"),
        ("graph", lambda a: a * np.asarray([1, 1, 1, -1, 1, 1], np.float32), "not positive"),
    ],
)
def test_verify_catches_a_wrong_extra(tmp_path, name, change, message):
    vessels(tmp_path, n=4)
    rewrite(tmp_path, 0, lambda arrays: arrays.update({name: change(arrays[name])}))
    problems = verify(tmp_path)
    assert len(problems) >= 1
    assert all(f"sample {i} {name}: " in line for i, line in enumerate(problems[:4]))
    assert re.search(message, problems[0])


def test_verify_wants_the_arrays_of_the_manifest(tmp_path):
    vessels(tmp_path, n=4, extras=("centreline",))
    rewrite(tmp_path, 0, lambda arrays: arrays.pop("centreline"))
    (problem,) = verify(tmp_path)
    assert "expected arrays attempt, centreline, condition, index, pv, realised, got" in problem


def test_verify_catches_a_wrong_gate_or_image(tmp_path):
    run(painted(), 4, tmp_path)
    rewrite(tmp_path, 0, lambda arrays: arrays.update(gate=arrays["gate"] + 1))
    (problem,) = verify(tmp_path)
    assert "gate, Dice: expected finite values in [0, 1], got" in problem
    rewrite(tmp_path, 0, lambda arrays: arrays.update(gate=arrays["gate"][:, :1]))
    (problem,) = verify(tmp_path)
    assert "gate: expected (n, 2)" in problem
    rewrite(tmp_path, 0, lambda arrays: arrays.update(images=arrays["images"] * np.float16(2)))
    assert "image values must be finite and lie in [0, 1]" in verify(tmp_path)[0]


# replay, preview, evaluate


def test_replay_is_equal_bit_for_bit(tmp_path):
    vessels(tmp_path / "vessels")
    shards = Shards(tmp_path / "vessels")
    assert replay(replay_vessels(shards, Tubes()), shards, 7) == []
    run(painted(), 10, tmp_path / "angiograms")
    images = Shards(tmp_path / "angiograms")
    again = replay_angiograms(images, Tubes(), Negative(0.5), Gate(Threshold()))
    assert [replay(again, images, index) for index in range(10)] == [[]] * 10
    with pytest.raises(RequestError, match=r"generator\.renderer\.faults: then 0\.5, here 0\.1"):
        replay_angiograms(images, Tubes(), Negative(0.1), Gate(Threshold()))
    with pytest.raises(RequestError, match="gate: then"):
        replay_angiograms(images, Tubes(), Negative(0.5), None)


def test_replay_of_a_manifest_that_lacks_something_is_refused(tmp_path):
    vessels(tmp_path, n=2)
    raw = json.loads((tmp_path / "manifest.json").read_text())
    del raw["identity"]["extras"], raw["identity"]["threads"]
    (tmp_path / "manifest.json").write_text(json.dumps(sealed(raw)))
    with pytest.raises(StoreError, match="lacks what made the dataset"):
        replay_vessels(Shards(tmp_path), Tubes())


def test_preview_stands_upright(tmp_path):
    run(painted(0), 3, tmp_path / "angiograms")
    vessels(tmp_path / "vessels", n=3)
    row = Shards(tmp_path / "angiograms")[1]
    image, outlined, coverage = vessel_panels(row)
    # The tube runs down the left half: rows are X, columns Y, nothing is turned.
    assert image.shape == (*SHAPE, 3)
    assert np.array_equal(image[..., 0], row.images[0])
    assert np.array_equal(coverage[..., 0], row.pv[1])
    line = (outlined == np.asarray(OUTLINE, np.float32)).all(axis=-1)
    assert line.any()
    assert not line[:, SHAPE[1] // 2 :].any()
    assert not (line & (row.pv[1] > 0.5)).any()
    assert len(vessel_panels(Shards(tmp_path / "vessels")[1])) == 2
    for name in ("angiograms", "vessels"):
        assert draw_preview(Shards(tmp_path / name), 3).startswith(b"\x89PNG")


def test_overview_refuses_with_one_line(tmp_path):
    vessels(tmp_path, n=2)
    with pytest.raises(RequestError, match="holds vessel trees; expected label maps") as refused:
        overview(Shards(tmp_path))
    assert "\n" not in str(refused.value)


# bad parts


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        (("depth",), "unknown extra 'depth'; there are centreline, path_length, radius"),
        (("graph", "graph"), "stands twice: graph, graph"),
    ],
)
def test_unknown_extras_are_refused(extras, message):
    with pytest.raises(RequestError, match=message):
        VesselJob(Tubes(), extras)


def test_extras_of_masks_without_a_tree_are_refused():
    bent = VesselGenerator("ssvs", (64, 64))
    with pytest.raises(RequestError, match="ssvs masks are warped rectangles without a tree"):
        VesselJob(bent, ("radius",))
    assert VesselJob(bent).rows(range(2))["pv"].shape == (2, 2, 64, 64)


def test_parts_that_break_are_named(monkeypatch):
    with pytest.raises(SchemaError, match=r"vessel generator, samples from 4: expected coverage"):
        VesselJob(Tubes(coverage=1.5)).rows(range(4, 6))
    with pytest.raises(SchemaError, match=r"angiogram renderer, samples from 0: .*\[0, 1\]"):
        AngiogramJob(Tubes(), Negative(level=1.5)).rows(range(2))
    with pytest.raises(SchemaError, match=r"expected probabilities in \[0, 1\]"):
        Gate(Threshold()).measure(np.full((1, 1, 8, 8), 2.0), np.zeros((1, 8, 8), bool))
    monkeypatch.setattr(vessel_job, "MOST_NODES", 3)
    with pytest.raises(SchemaError, match=r"sample 0, graph: 4 nodes of at most 3"):
        VesselJob(Tubes(), ("graph",)).rows(range(2))


def test_manifest_names_the_kind(tmp_path):
    run(painted(), 2, tmp_path)
    assert Manifest.read(tmp_path).kind == "angiograms"
