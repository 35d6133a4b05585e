"""The privacy section and the audit: what passes, what fails, what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from folded_heads import SLICES, blank, nameless, people

from synthgen.core.errors import GeometryError, LeakageError, RequestError, SchemaError
from synthgen.core.rng import SampleKey, Stream
from synthgen.core.schema import BRAIN9, LabelSchema
from synthgen.data.augment import PvAugment, augment_pair
from synthgen.evaluate.audit import audit_privacy, gates
from synthgen.evaluate.metric import Metric
from synthgen.evaluate.plants import KINDS, MUST_FIND
from synthgen.evaluate.privacy import PLANTS, privacy_section
from synthgen.evaluate.sets import from_arrays, joined

KEY = SampleKey(0, 0)
TRAIN, HOLDOUT = people(range(6), name="train"), people(range(7, 12), name="holdout")
LEARNT = frozenset(TRAIN.subjects)
HONEST = nameless(people(range(30, 34)), ancestors=LEARNT)
# The augments of training, as small as these slices are.
WARP = PvAugment(
    rotate_deg=3, scale=0.03, shear=0.02, shift_px=2, elastic_px=1, elastic_grid=5,
    flip_probability=0.5,
)  # fmt: skip
LABELS_ONLY = replace(
    from_arrays(HONEST.pv(range(2 * SLICES)), BRAIN9, name="maps"), ancestors=LEARNT
)


def memorised():
    """Return the training set as a generator would that learnt it by heart, augments included."""
    rows = range(len(TRAIN))
    generators = [SampleKey(3, i).torch(Stream.AUGMENT) for i in rows]
    pv, images = (torch.from_numpy(read(rows)) for read in (TRAIN.pv, TRAIN.image))
    maps, pictures = augment_pair(pv, images, generators, WARP)
    return from_arrays(
        maps.numpy(),
        BRAIN9,
        name="memory",
        images=pictures.numpy(),
        modality=["t1"] * len(rows),
        dataset=["a"] * len(rows),
    )


MEMORY = replace(memorised(), ancestors=LEARNT)
NUMBERS = {"copies", "planted", "dcr_share", "nndr", "nndr_low", "authenticity", "membership_auc"}


@pytest.fixture(scope="module")
def honest():
    return privacy_section(HONEST, TRAIN, HOLDOUT, key=KEY)


@pytest.fixture(scope="module")
def memory():
    return audit_privacy(MEMORY, TRAIN, HOLDOUT)


def metric(section, name):
    return next(m for m in section.metrics if m.name == f"privacy/{name}")


def test_every_number_stands_beside_its_reference(honest):
    names = [m.name for m in honest.section.metrics]
    assert len(names) == len({*names})
    assert {*names} == {f"privacy/{n}/{w}" for n in NUMBERS for w in ("labels", "images")}
    assert honest.section.refused == ()
    for m in honest.section.metrics:
        assert np.isfinite([m.value, m.reference, m.low, m.high]).all()
        assert m.low <= m.reference <= m.high
        assert m.n > 0


@pytest.mark.parametrize("what", ["labels", "images"])
def test_an_honest_set_is_like_people_who_were_not_trained_on(honest, what):
    assert honest.flagged.size == 0
    assert metric(honest.section, f"copies/{what}").value == 0
    assert metric(honest.section, f"planted/{what}").value == 100
    for name in ("dcr_share", "nndr", "nndr_low", "authenticity", "membership_auc"):
        assert metric(honest.section, f"{name}/{what}").verdict in ("good", "fair")


@pytest.mark.parametrize("what", ["labels", "images"])
def test_a_generator_that_memorises_is_nearer_to_its_people(memory, what):
    section = memory.report.sections[0]
    assert metric(section, f"dcr_share/{what}").value > 0.6
    assert metric(section, f"membership_auc/{what}").value > 0.6
    assert metric(section, f"copies/{what}").value > 30
    assert metric(section, f"copies/{what}").verdict == "poor"


def test_its_gates_fail_and_those_of_an_honest_set_pass(memory):
    failed = {gate.name for gate in memory.report.failed}
    assert failed == {"privacy/copies", "privacy/dcr_share/labels", "privacy/dcr_share/images"}
    audit = audit_privacy(HONEST, TRAIN, HOLDOUT)
    assert audit.report.failed == ()
    assert audit.flagged == ()


def test_the_plant_table_says_what_was_found(honest):
    table = honest.section.tables[0]
    rows = {row[0]: row[1:] for row in table.rows}
    for kind in KINDS[:-1]:
        for column, what in ((0, "labels"), (2, "images")):
            expected = f"{PLANTS} of {PLANTS}" if kind in MUST_FIND[what] else ""
            assert rows[kind][column] == expected
    assert "warped (not required)" in rows
    assert rows["held-out people taken for copies"][0] == f"0 of {len(HOLDOUT)}"


def test_pairs_are_the_nearest_first(honest):
    assert len(honest.pairs) == 2 * len(HONEST)
    distances = [pair.distance for pair in honest.pairs]
    assert distances == sorted(distances)
    listed = honest.section.tables[1].rows
    assert [row[0].split(" (")[0] for row in listed] == ["label maps"] * 5 + ["images"] * 5
    nearest = next(pair for pair in honest.pairs if pair.what == "labels")
    assert listed[0][1:4] == (
        str(nearest.synthetic),
        TRAIN.table.subject[nearest.train],
        str(nearest.train),
    )


def test_pictures_are_png(honest):
    figures = {figure.name: figure.png for figure in honest.section.figures}
    assert {*figures} == {f"{n}-{w}" for n in ("pairs", "distances") for w in ("labels", "images")}
    assert all(png.startswith(b"\x89PNG") for png in figures.values())


def test_copies_among_images_flag_their_slice():
    mixed = from_arrays(
        HONEST.pv([0, 1, 2]),
        BRAIN9,
        images=np.concatenate([HONEST.image([0, 1, 2]), 0.9 * TRAIN.image([40])[:, :, ::-1]]),
        image_slices=[0, 1, 2, 1],
        modality=["t1"] * 4,
        dataset=["a"] * 4,
    )
    result = privacy_section(mixed, TRAIN, HOLDOUT, key=KEY)
    assert result.flagged.tolist() == [1]
    pair = result.pairs[0]
    assert (pair.synthetic, pair.train, pair.what) == (1, 40, "images")
    assert (pair.synthetic_row, pair.train_row) == (3, 40)
    assert (pair.mirrored, pair.copy) == ((0,), True)
    assert metric(result.section, "copies/images").value == 25
    assert metric(result.section, "copies/labels").value == 0


def test_blank_slices_are_no_copies_and_in_no_pair():
    mixed = nameless(joined(HONEST.take(range(SLICES)), nameless(blank(2))), ancestors=LEARNT)
    result = privacy_section(mixed, TRAIN, HOLDOUT, key=KEY)
    assert result.flagged.size == 0
    assert {pair.synthetic for pair in result.pairs} == {*range(SLICES)}
    nothing = from_arrays(blank(2).pv([0, 1]), BRAIN9)
    nothing = privacy_section(nothing, TRAIN, HOLDOUT, key=KEY)
    assert nothing.pairs == ()
    assert metric(nothing.section, "copies/labels").value == 0


def test_label_maps_alone_are_audited_alone():
    result = privacy_section(LABELS_ONLY, TRAIN, HOLDOUT, key=KEY)
    assert {m.name for m in result.section.metrics} == {f"privacy/{n}/labels" for n in NUMBERS}
    assert result.section.refused == ("Copies among images: no images in maps",)
    assert [figure.name for figure in result.section.figures] == [
        "pairs-labels",
        "distances-labels",
    ]


def test_images_of_one_training_person_are_not_audited():
    train = from_arrays(
        TRAIN.pv(range(len(TRAIN))),
        BRAIN9,
        name="train",
        images=TRAIN.image(range(SLICES)),
        subject=TRAIN.table.subject,
        modality=["t1"] * SLICES,
    )
    result = privacy_section(HONEST, train, HOLDOUT, key=KEY)
    assert {m.name.rpartition("/")[2] for m in result.section.metrics} == {"labels"}
    (line,) = result.section.refused
    assert "the images of train show one subject (a/s0); at least 2 are needed" in line


def test_numbers_that_need_more_people_are_refused_by_name():
    result = privacy_section(LABELS_ONLY, people([0, 1]), people([7]), key=KEY)
    measured = {m.name.split("/")[1] for m in result.section.metrics}
    assert measured == {"copies", "planted", "dcr_share", "membership_auc"}
    (line,) = [line for line in result.section.refused if "reference" in line]
    assert "Authenticity, label maps: a reference needs at least 4 real people" in line


def test_equal_keys_give_equal_sections(honest, untouched_rng):
    again = privacy_section(HONEST, TRAIN, HOLDOUT, key=KEY)
    assert again.section.metrics == honest.section.metrics
    assert again.pairs == honest.pairs
    assert again.section.tables == honest.section.tables


def test_a_holdout_that_was_trained_on_is_refused():
    with pytest.raises(LeakageError, match=r"holdout: a/s5 also belong to train"):
        privacy_section(HONEST, TRAIN, people([5, 8], name="holdout"), key=KEY)
    taught = replace(HONEST, ancestors=frozenset({"a/s8"}))
    with pytest.raises(LeakageError, match=r"a/s8 also belong to generated or the models behind"):
        audit_privacy(taught, TRAIN, HOLDOUT)


@pytest.mark.parametrize(
    "audit",
    [lambda *sets: privacy_section(*sets, key=KEY), audit_privacy],
    ids=["section", "audit"],
)
@pytest.mark.parametrize(
    ("made", "train", "holdout", "error", "message"),
    [
        (HONEST.take([]), TRAIN, HOLDOUT, RequestError, "generated: the set is empty"),
        (HONEST, TRAIN.take([]), HOLDOUT, RequestError, "train: the set is empty"),
        (HONEST, TRAIN, HOLDOUT.take([]), RequestError, "holdout: the set is empty"),
        (HONEST, people([1]), HOLDOUT, RequestError, r"people: expected at least 2 .* \(a/s1\)"),
        (HONEST, nameless(TRAIN), HOLDOUT, RequestError, "generated: 72 of 72 slices have no"),
        (HONEST, TRAIN, nameless(HOLDOUT), RequestError, "generated: 60 of 60 slices have no"),
        (
            replace(HONEST, schema=LabelSchema("other", BRAIN9.tissues[:-1])),
            TRAIN,
            HOLDOUT,
            SchemaError,
            "other",
        ),
        (
            replace(HONEST, shape=(32, 32)),
            TRAIN,
            HOLDOUT,
            GeometryError,
            r"generated: expected slices of \(64, 96\) .* got \(32, 32\)",
        ),
    ],
)
def test_what_cannot_be_audited_is_refused(made, train, holdout, error, message, audit):
    with pytest.raises(error, match=message):
        audit(made, train, holdout)


@pytest.mark.parametrize("what", ["labels", "images"])
def test_values_that_are_not_finite_are_refused_with_their_row(what):
    field = "read_pv" if what == "labels" else "read_image"
    read = getattr(HONEST, field)
    broken = replace(HONEST, **{field: lambda row: read(row) + (np.nan if row == 3 else 0)})
    with pytest.raises(RequestError, match=f"generated: the {what} have values .* at row 3"):
        privacy_section(broken, TRAIN, HOLDOUT, key=KEY)


def test_no_modality_in_common_is_refused():
    foreign = replace(HONEST, images=replace(HONEST.images, modality=("ct",) * len(HONEST)))
    with pytest.raises(RequestError, match="generated: no modality in common with train"):
        audit_privacy(foreign, TRAIN, HOLDOUT)


def test_the_quarantine_names_indices_of_the_whole_dataset():
    offenders = {5, 17, 20}
    mixed = replace(
        LABELS_ONLY, read_pv=lambda i: (TRAIN if i in offenders else LABELS_ONLY).read_pv(i)
    )
    audit = audit_privacy(mixed, TRAIN, HOLDOUT)
    assert audit.flagged == (5, 17, 20)
    assert [gate.name for gate in audit.report.failed] == ["privacy/copies"]
    content = {"dataset": "here", "checked": 24, "total": 24, "flagged": [5, 17, 20]}
    assert json.loads(json.dumps(audit.to_json("here"))) == content


def test_a_part_of_a_set_is_drawn_by_the_seed():
    offenders = {*range(0, 24, 2)}
    mixed = replace(
        LABELS_ONLY, read_pv=lambda i: (TRAIN if i in offenders else LABELS_ONLY).read_pv(i)
    )
    first, same, other = (
        audit_privacy(mixed, TRAIN, HOLDOUT, n_max=8, seed=seed) for seed in (0, 0, 1)
    )
    assert first.flagged == same.flagged != other.flagged
    assert {*first.flagged} <= offenders
    assert (first.checked, first.total) == (8, 24)
    assert any("8 of 24 generated slices were drawn" in note for note in first.report.notes)
    with pytest.raises(RequestError, match="n_max must be at least 1, got 0"):
        audit_privacy(mixed, TRAIN, HOLDOUT, n_max=0)


def test_the_audit_says_whose_copies_it_cannot_find():
    taught = replace(LABELS_ONLY, ancestors=frozenset({*LEARNT, "b/absent"}))
    report = audit_privacy(taught, TRAIN, HOLDOUT).report
    assert any("The models also saw b/absent, who have no slices" in n for n in report.notes)


def share(value, low, high):
    return Metric("privacy/dcr_share/labels", "Share", value, 0.5, low, high, "lower", 9, 0.5)


@pytest.mark.parametrize(
    ("metric", "passed"),
    [
        (share(0.54, 0.49, 0.51), True),
        (share(0.56, 0.49, 0.51), False),
        (share(0.44, 0.49, 0.51), False),
        (share(0.56, 0.40, 0.60), True),  # few people are that far from one half themselves
        (share(0.61, 0.40, 0.60), False),
    ],
)
def test_the_dcr_gate_allows_what_few_people_show(metric, passed):
    first, copies = gates([metric], (), 9)
    assert first.passed is passed
    assert copies.passed


def test_one_copy_fails_its_gate():
    (gate,) = gates([], (4,), 2000)
    assert not gate.passed
    assert gate.detail.startswith("1 of 2000 samples")
