"""`synthgen evaluate` on tiny data: reports, errors and exit codes, gates."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from synthgen.cli.evaluate import GATE_FAILED, StoreChoice, parse_store
from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9, LabelSchema
from synthgen.data.store_writer import StoreWriter
from synthgen.evaluate.cases import Frame
from synthgen.evaluate.foreign import open_set
from synthgen.evaluate.selection import draw
from synthgen.generate import (
    GenerationSettings,
    Quarantine,
    RedrawJob,
    generate_labels,
    replay_labels,
    run,
)
from synthgen.labels import ConditionRange

SHAPE = (64, 96)
SPLITS = {"a/sub-1": "train", "a/sub-2": "train", "a/sub-3": "val", "a/sub-4": "val"}
POSITIONS = np.linspace(0.1, 0.9, 60)
COPIES = (3, 17, 30, 44, 58)
NAMES = {name: value for value, name in enumerate(BRAIN9.names)}


def anatomy(rng):
    """A person: smooth fields that deform every slice of one brain alike."""
    return rng.normal(0, 1, (3, *SHAPE)), rng.uniform(0.9, 1.1, 2)


def slice_of(person, position):
    """Label ids `(X, Y)` of a slice: nested rings with folds, wider in the middle of the brain."""
    noise, scale = person
    x, y = np.meshgrid(*(np.linspace(-1, 1, s) for s in SHAPE), indexing="ij")
    wide = 0.55 + 0.3 * np.sin(np.pi * position)
    fields = [ndimage.gaussian_filter(field, 3) for field in noise]
    folds = sum(np.sin(2 * position + k) * field / field.std() for k, field in enumerate(fields))
    r = np.hypot(x * scale[0], 1.1 * y * scale[1]) / wide + 0.18 * folds
    ids = np.zeros(SHAPE, np.uint8)
    for outer, tissue in ((1.0, "csf"), (0.88, "gm"), (0.62, "wm"), (0.25, "deep_gm")):
        ids[r < outer] = NAMES[tissue]
    pieces = ndimage.label(ids > 0)[0]
    ids[pieces != 1 + np.argmax(np.bincount(pieces.ravel())[1:])] = 0
    return ids


def pv_of(ids):
    return (np.arange(BRAIN9.channels)[:, None, None] == ids).astype(np.float32)


def image_of(ids, rng):
    """A T1-like image in [0, 1], 0 outside the brain."""
    level = np.asarray([0, 0.2, 0.5, 0.85, 0.65, 0.7, 0.4, 0.3, 0.3])[ids]
    blurred = ndimage.gaussian_filter(level, 0.6) + rng.normal(0, 0.03, SHAPE)
    return np.where(ids > 0, np.clip(blurred, 0.02, 1), 0).astype(np.float32)


@pytest.fixture(scope="module")
def people():
    return {name: anatomy(np.random.default_rng(i)) for i, name in enumerate(SPLITS)}


@pytest.fixture(scope="module")
def store(tmp_path_factory, people):
    path = tmp_path_factory.mktemp("store") / "store.h5"
    rng = np.random.default_rng(9)
    with StoreWriter(path, BRAIN9, SHAPE, spacing_mm=1.0) as writer:
        for name, person in people.items():
            ids = [slice_of(person, p) for p in POSITIONS]
            pv = np.stack([np.rint(255 * pv_of(i)).astype(np.uint8) for i in ids])
            rows = writer.add_slices(
                name,
                dataset="a",
                split=SPLITS[name],
                z=list(range(len(ids))),
                position=POSITIONS.tolist(),
                pv=pv,
            )
            for modality in ("t1", "t2"):
                images = np.stack([image_of(i, rng) for i in ids])[:, None]
                images = images if modality == "t1" else np.where(images > 0, 1.02 - images, 0)
                writer.add_image(rows, modality, np.clip(images, 0, 1).astype(np.float32))
        writer.commit()
    return path


class Painter:
    """Draws label maps of people nobody has seen."""

    def __init__(self, subjects=(), schema=BRAIN9, shape=SHAPE):
        self.schema, self.shape, self.subjects = schema, shape, subjects
        self.identity = {"model": "painter"}
        self.conditions = ConditionRange({"wmh": (0.0, 0.1)}, (0.1, 0.9))

    def sample(self, keys, conditions):
        maps = [
            pv_of(slice_of(anatomy(np.random.default_rng(1000 + key.index)), condition.position))
            for key, condition in zip(keys, conditions, strict=True)
        ]
        pv = torch.from_numpy(np.stack(maps))
        return pv[:, :, : self.shape[0], : self.shape[1]]


def make_labels(folder, n=60, **options):
    settings = GenerationSettings(batch_size=4, shard_size=8, threads=1)
    generate_labels(Painter(**options), ConditionRange({}, (0.1, 0.9)), n, folder, settings)
    return folder


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return make_labels(tmp_path_factory.mktemp("data") / "made", subjects=("a/sub-1", "a/sub-2"))


def save_nnunet(folder, cases, channel="T1"):
    """Write (ids, image) cases as an nnU-Net raw folder of PNG."""
    for name in ("labelsTr", "imagesTr"):
        (folder / name).mkdir(parents=True)
    about = {"channel_names": {"0": channel}, "labels": NAMES, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(about))
    for number, (ids, image) in enumerate(cases):
        Image.fromarray(ids).save(folder / "labelsTr" / f"c{number:03d}.png")
        grey = np.rint(65535 * image).astype(np.uint16)
        Image.fromarray(grey).save(folder / "imagesTr" / f"c{number:03d}_0000.png")
    return folder


def strangers(count, start=2000):
    rng = np.random.default_rng(5)
    maps = [
        slice_of(anatomy(np.random.default_rng(start + i)), POSITIONS[i % 60]) for i in range(count)
    ]
    return [(ids, image_of(ids, rng)) for ids in maps]


@pytest.fixture
def synthgen(tmp_path, command_line):
    """Run the command line in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments):
        return command_line("evaluate", *map(str, arguments), "--workspace", str(tmp_path / "w"))

    return call


# quality


def test_report_of_labels(synthgen, store, labels, tmp_path):
    code, out, err = synthgen("quality", labels, "--real", store)
    assert code == 0, err
    folder = tmp_path / "w" / "reports" / "made"
    assert out.splitlines()[0].startswith("Quality of made: ")
    assert out.splitlines()[-1] == str(folder / "report.html")
    body = json.loads((folder / "metrics.json").read_text())
    assert [section["name"] for section in body["sections"]] == ["labels", "diversity"]
    assert sum(body["verdicts"].values()) > 3
    assert "The dataset has no images: only its label maps were measured." in body["notes"]
    facts = {row["fact"]: row["value"] for row in body["provenance"]}
    assert facts["measured"].startswith("60 of 60 generated slices, 240 real ones")
    assert "a/sub-1, a/sub-2" in facts["real subjects behind it"]
    assert facts["generator model"] == "painter"
    assert facts["licence"] == "not stated by the dataset"
    assert "holdout" in facts  # the other split of the same store
    assert not (tmp_path / "w" / "models").exists()


def test_json_is_one_document_and_draws_are_limited(synthgen, store, labels, tmp_path):
    out = tmp_path / "elsewhere"
    asked = ("--real", f"{store}:train+val", "--n-max", 20, "--out", out, "--json")
    code, text, err = synthgen("quality", labels, *asked)
    assert code == 0, err
    body = json.loads(text)
    assert body["report"] == str(out / "report.html")
    assert body["notes"][0] == "20 of 60 generated slices were drawn and measured."
    measured = json.loads((out / "metrics.json").read_text())["provenance"]
    assert {
        "fact": "measured",
        "value": "20 of 60 generated slices, 5 real ones, 5 real ones with images",
    } in measured


# privacy


@pytest.fixture(scope="module")
def leaky(tmp_path_factory, people):
    """Sixty strangers, of whom five have been replaced by training slices."""
    cases = strangers(60)
    rng = np.random.default_rng(4)
    for place, position in zip(COPIES, (5, 15, 25, 35, 45), strict=True):
        ids = slice_of(people["a/sub-2"], POSITIONS[position])
        cases[place] = ids, image_of(ids, rng)
    return save_nnunet(tmp_path_factory.mktemp("leaky") / "Dataset905_Leaky", cases)


def test_the_gate_exits_4_and_quarantines_the_copies(synthgen, store, leaky, tmp_path):
    asked = ("--train", store, "--holdout", f"{store}:val", "--quarantine", tmp_path / "q.json")
    code, out, err = synthgen("privacy", leaky, *asked, "--gate")
    assert code == GATE_FAILED, err
    assert "gate FAILED: Copies of training data: " in out
    found = json.loads((tmp_path / "q.json").read_text())
    assert {*COPIES} <= {*found["flagged"]}
    assert len(found["flagged"]) <= len(COPIES) + 2
    assert (found["checked"], found["total"]) == (60, 60)
    folder = tmp_path / "w" / "reports" / "Dataset905_Leaky" / "privacy"
    body = json.loads((folder / "metrics.json").read_text())
    assert [gate["passed"] for gate in body["gates"] if gate["name"] == "privacy/copies"] == [False]
    assert "Gate FAILED: Copies of training data" in (folder / "report.html").read_text()


class Leaky(Painter):
    """Draws training slices for some samples, on their first attempt."""

    def __init__(self, person):
        super().__init__(subjects=("a/sub-1", "a/sub-2"))
        self._person = person

    def sample(self, keys, conditions):
        pv = super().sample(keys, conditions)
        for row, key in zip(pv, keys, strict=True):
            if key.index in COPIES and not key.attempt:
                row[:] = torch.from_numpy(pv_of(slice_of(self._person, POSITIONS[key.index])))
        return pv


def test_quarantined_samples_are_drawn_anew(synthgen, store, people, tmp_path):
    settings = GenerationSettings(batch_size=4, shard_size=8, threads=1)
    generator = Leaky(people["a/sub-2"])
    ranges = ConditionRange({}, (0.1, 0.9))
    generate_labels(generator, ranges, 60, tmp_path / "old", settings)
    path = tmp_path / "q.json"
    asked = ("--train", store, "--holdout", f"{store}:val", "--quarantine", path)
    code, out, err = synthgen("privacy", tmp_path / "old", *asked, "--gate")
    assert code == GATE_FAILED, err
    found = Quarantine.read(path)
    assert {*COPIES} <= {*found.flagged}
    line = f"{len(found.flagged)} samples quarantined: synthgen redraw {path} --out ..."
    assert out.splitlines()[-1] == line
    old = found.open()
    job = RedrawJob.of(replay_labels(old, generator), old, found.flagged)
    run(job, job.n, tmp_path / "new")
    synthgen("privacy", tmp_path / "new", *asked)
    assert not {*COPIES} & {*Quarantine.read(path).flagged}


def test_flags_are_indices_of_the_whole_dataset_and_no_gate_no_exit(
    synthgen, store, leaky, tmp_path
):
    asked = ("--train", store, "--holdout", store, "--n-max", 30, "--json")
    code, out, err = synthgen("privacy", leaky, *asked)
    assert code == 0, err
    body = json.loads(out)
    assert body["notes"][0].startswith("30 of 60 generated slices were drawn and audited")
    drawn = draw(open_set(leaky, Frame(BRAIN9, SHAPE, 1.0, ("t1",))), 30, SampleKey(0, 0))
    assert {*COPIES} & {*drawn.tolist()} <= {*body["flagged"]} <= {*drawn.tolist()}


# what is refused


def test_split_names():
    assert parse_store("s.h5", "--real") == StoreChoice(parse_store("s.h5:all", "").path)
    assert parse_store("x/s:train+val", "--real").splits == ("train", "val")
    with pytest.raises(RequestError, match=r"--real: unknown split 'trian' in 's:trian'"):
        parse_store("s:trian", "--real")


def refused(call, code, message):
    got, out, err = call
    assert (got, out) == (code, ""), err
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_missing_dataset_and_store(synthgen, store, labels, tmp_path):
    missing = synthgen("quality", tmp_path / "none", "--real", store)
    refused(missing, 2, "none: no such folder")
    refused(synthgen("quality", labels, "--real", "none.h5"), 3, "no such training store")
    (tmp_path / "empty").mkdir()
    refused(synthgen("quality", tmp_path / "empty", "--real", store), 2, "not a dataset")
    refused(synthgen("quality", labels, "--real", f"{store}:test"), 2, "no slices in split test")


@pytest.mark.parametrize("command", ["quality", "privacy"])
def test_a_holdout_with_training_subjects_is_refused(synthgen, store, labels, command):
    known = "--real" if command == "quality" else "--train"
    both = synthgen(command, labels, known, f"{store}:all", "--holdout", f"{store}:val")
    refused(both, 3, "a/sub-3, a/sub-4 also belong to")


def test_a_holdout_that_the_models_saw_is_refused(synthgen, store, tmp_path):
    made = make_labels(tmp_path / "made", n=8, subjects=("a/sub-1", "a/sub-3"))
    call = synthgen("privacy", made, "--train", store, "--holdout", store)
    refused(call, 3, "a/sub-3 also belong to made or the models behind it")


def test_another_schema_and_size_are_refused(synthgen, store, tmp_path):
    other = LabelSchema("other9", BRAIN9.tissues)
    made = make_labels(tmp_path / "schema", n=4, schema=other)
    refused(synthgen("quality", made, "--real", store), 3, "expected label schema 'brain9'")
    made = make_labels(tmp_path / "size", n=4, shape=(48, 96))
    refused(synthgen("quality", made, "--real", store), 3, "expected slices of 64 x 96")


def test_no_common_modality_is_refused(synthgen, store, tmp_path):
    folder = save_nnunet(tmp_path / "Dataset900_X", strangers(4), channel="CT")
    call = synthgen("quality", folder, "--real", store)
    refused(call, 2, "no modality in common with")


@pytest.mark.parametrize(
    "arguments", [["quality", "x"], ["quality", "x", "--real", "s", "--n-max", "1"], ["nope"]]
)
def test_wrong_usage_exits_2(synthgen, arguments):
    assert synthgen(*arguments)[0] == 2


@pytest.mark.parametrize(
    "command", [["evaluate"], ["evaluate", "quality"], ["evaluate", "privacy"]]
)
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\nfrom synthgen.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        "heavy = {'torch', 'h5py', 'scipy', 'matplotlib', 'jinja2', 'sklearn', 'nibabel'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code, *command, "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("heavy: []")
