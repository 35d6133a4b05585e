"""Judges learn from real slices, are the same for one key, and are stored and found again."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from synthgen.core.errors import RequestError, SchemaError, StoreError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9, LabelSchema, Tissue
from synthgen.data.augment import ImageAugment, PvAugment
from synthgen.evaluate import judge_training
from synthgen.evaluate.agreement import agreement_section
from synthgen.evaluate.judge_networks import POOLED, JudgeSettings, TissueSegmenter
from synthgen.evaluate.judge_training import judges_for, train_judges
from synthgen.evaluate.judges import (
    CLASSIFIER,
    RECORD,
    SEGMENTER,
    Judges,
    judge_identity,
    set_fingerprint,
)
from synthgen.evaluate.sets import from_arrays

KEY = SampleKey(11, 0)
SCHEMA = LabelSchema(
    "toy",
    (
        Tissue("background", 0),
        Tissue("csf", 1),
        Tissue("gm", 2),
        Tissue("wm", 3),
        Tissue("tumour", 4, lesion=True),
    ),
)
INTENSITIES = {"t1": (0.0, 0.15, 0.55, 0.9, 0.4), "t2": (0.0, 0.95, 0.6, 0.3, 0.7)}
TINY = JudgeSettings(
    classifier_steps=40,
    classifier_batch=4,
    classifier_width=8,
    segmenter_steps=40,
    segmenter_batch=4,
    segmenter_widths=(8, 8, 8, 8, 8, 8),
    segmenter_lr=2e-2,
    classifier_lr=1e-2,
    warp=PvAugment(shift_px=2, flip_probability=0.5),
    contrast=ImageAugment(noise=0.02),
)
SHORT = replace(TINY, classifier_steps=2, segmenter_steps=2)


def make_set(count=6, *, seed=0, size=40, modalities=("t1", "t2"), name="real", **kwargs):
    """Nested ellipses of three tissues; each slice has an image of each modality."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*2 * [np.arange(size)], indexing="ij")) - size / 2
    pv, images, rows, names = [], [], [], []
    for index in range(count):
        centred = grid + rng.uniform(-2, 2, (2, 1, 1))
        radius = np.hypot(centred[0] / rng.uniform(0.75, 0.95), centred[1])
        labels = sum((radius < share * size).astype(int) for share in (0.45, 0.34, 0.2))
        soft = np.stack(
            [ndimage.gaussian_filter((labels == c).astype(float), 0.5) for c in range(5)]
        )
        soft = soft / soft.sum(axis=0)
        pv.append(soft)
        for modality in modalities:
            image = np.tensordot(INTENSITIES[modality or "t1"], soft, axes=1)
            image = (image + rng.normal(0, 0.02, image.shape)).clip(1e-3, 1)
            images.append(np.where(soft[0] > 0.5, 0, image)[None])
            rows.append(index)
            names.append(modality)
    shape = (0, 1, size, size)
    return from_arrays(
        np.asarray(pv, dtype=np.float32),
        SCHEMA,
        name=name,
        images=np.asarray(images, dtype=np.float32) if images else np.zeros(shape, np.float32),
        image_slices=rows,
        subject=[f"{name}-{i % 3}" for i in range(count)],
        modality=names,
        dataset=["site" if m else "" for m in names],
        **kwargs,
    )


@pytest.fixture(scope="module")
def judges():
    """Judges that learned for a second."""
    return train_judges(make_set(12), KEY, TINY)


def test_segmenter_finds_tissues_of_unseen_slices(judges):
    unseen = make_set(4, seed=1)
    found = judges.segment(unseen.image(range(8))).argmax(axis=1)
    labels = unseen.pv(unseen.images.slices).argmax(axis=1)
    for tissue in (1, 2, 3):
        a, b = found == tissue, labels == tissue
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.8, SCHEMA.names[tissue]


def test_classifier_names_modality_and_dataset_of_unseen_images(judges):
    unseen = make_set(4, seed=1)
    modality, dataset = judges.classify(unseen.image(range(8)))
    assert modality == unseen.images.modality
    assert {*dataset} == {"site"}


def test_probabilities_sum_to_one_and_unknown_tissues_get_none(judges):
    probabilities = judges.segment(make_set(2).image(range(3)))
    assert probabilities.shape == (3, 5, 40, 40)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert judges.known == (True, True, True, True, False)
    assert not probabilities[:, 4].any()


def test_images_are_judged_one_by_one(judges):
    """Batch norm and standardisation must not let neighbours in a batch change an answer."""
    images = make_set(4, seed=2).image(range(8))
    alone = np.concatenate([judges.segment(image[None]) for image in images])
    np.testing.assert_allclose(judges.segment(images), alone, atol=1e-5)


def test_sizes_that_do_not_pool_are_padded(judges):
    images = make_set(1, size=40).image([0])[..., :37, :33]
    assert judges.segment(images).shape == (1, 5, 37, 33)


def test_agreement_falls_as_labels_move(judges):
    """The judges serve as segmenter of an agreement section."""
    real = make_set(8, seed=3, name="holdout")
    values = []
    for shift in (0, 1, 2, 4):
        fake = make_set(8, seed=4, name="fake")
        moved = from_arrays(
            np.roll(fake.pv(range(8)), shift, axis=2),
            SCHEMA,
            images=fake.image(range(16)),
            image_slices=fake.images.slices,
            modality=fake.images.modality,
        )
        section = agreement_section(moved, real, segmenter=judges, key=KEY)
        values.append([metric.value for metric in section.metrics])
    # CSF, GM, WM, border fit; one pixel can fall short of the inner ellipse's own error.
    assert (np.diff(np.asarray(values), axis=0) < 0.005).all()
    assert (np.asarray(values)[0] - np.asarray(values)[3] > 0.05).all()


def test_same_key_same_judges(untouched_rng):
    real = make_set()
    first, second, other = (train_judges(real, key, SHORT) for key in (KEY, KEY, SampleKey(11, 1)))
    assert first.digest == second.digest
    assert first.identity == second.identity
    assert other.digest != first.digest
    assert other.identity != first.identity


def test_bf16_trains_too():
    judges = train_judges(make_set(), KEY, replace(SHORT, precision="bf16"))
    probabilities = judges.segment(make_set(1).image([0]))
    assert np.isfinite(probabilities).all()


def test_saved_judges_judge_alike(judges, tmp_path):
    judges.save(tmp_path)
    loaded = Judges.load(tmp_path)
    images = make_set(2, seed=5).image(range(4))
    np.testing.assert_array_equal(loaded.segment(images), judges.segment(images))
    assert loaded.classify(images) == judges.classify(images)
    for name in ("schema", "modalities", "datasets", "subjects", "identity", "settings", "known"):
        assert getattr(loaded, name) == getattr(judges, name), name
    assert loaded.digest == judges.digest
    assert loaded.subjects == ("real-0", "real-1", "real-2")


def test_stored_judges_are_found_again(tmp_path, monkeypatch):
    real = make_set()
    first = judges_for(real, tmp_path, KEY, SHORT)
    trained = []

    def count(*args):
        trained.append(args)
        return first

    monkeypatch.setattr(judge_training, "train_judges", count)
    again = judges_for(make_set(name="real"), tmp_path, KEY, SHORT)
    assert not trained
    assert again.digest == first.digest
    for real_set, key, settings in (
        (make_set(seed=9), KEY, SHORT),
        (real, SampleKey(12, 0), SHORT),
        (real, KEY, replace(SHORT, segmenter_lr=1e-3)),
    ):
        judges_for(real_set, tmp_path, key, settings)
    assert len(trained) == 3


def test_half_written_judges_are_trained_again(tmp_path):
    real = make_set()
    place = tmp_path / judge_identity(set_fingerprint(real), KEY, SHORT)[:16]
    place.mkdir()
    (place / SEGMENTER).write_bytes(b"cut")
    digest = judges_for(real, tmp_path, KEY, SHORT).digest
    assert Judges.load(place).digest == digest


@pytest.mark.parametrize("name", [CLASSIFIER, SEGMENTER])
def test_damaged_weights_are_named(judges, tmp_path, name):
    judges.save(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=f"{name}: damaged"):
        Judges.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(StoreError, match=f"{name}: cannot be read"):
        Judges.load(tmp_path)


def test_foreign_records_are_named(judges, tmp_path):
    with pytest.raises(StoreError, match="holds no judges"):
        Judges.load(tmp_path / "absent")
    judges.save(tmp_path)
    record = json.loads((tmp_path / RECORD).read_bytes())
    for text, message in (
        ("{", "not readable as JSON"),
        (json.dumps({**record, "format": "synthgen-judges/0"}), "got 'synthgen-judges/0'"),
        (json.dumps({"format": record["format"]}), "not the record of judges"),
        (json.dumps({**record, "modalities": ["t1"]}), "weights of another network"),
    ):
        (tmp_path / RECORD).write_text(text)
        with pytest.raises(StoreError, match=message):
            Judges.load(tmp_path)


def test_judges_cannot_be_written_over_a_file(judges, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another"):
        judges.save(tmp_path / "file")


def test_fingerprint_tells_sets_apart_by_content():
    first = set_fingerprint(make_set(name="real"))
    assert first == set_fingerprint(make_set(name="real"))
    assert first == set_fingerprint(replace(make_set(name="real"), name="moved"))
    for other in (
        make_set(seed=1),
        make_set(7),
        make_set(modalities=("t1",)),
        make_set(name="elsewhere"),
    ):
        assert set_fingerprint(other) != first


def test_images_without_modality_teach_the_segmenter_alone():
    mixed = train_judges(make_set(modalities=("t1", "")), KEY, SHORT)
    assert (mixed.modalities, mixed.datasets) == (("t1",), ("site",))
    unknown = train_judges(make_set(modalities=("",)), KEY, SHORT)
    assert unknown.classify(make_set(1).image([0])) == (("",), ("",))


def test_sets_and_images_that_cannot_be_used_are_refused(judges):
    with pytest.raises(RequestError, match="the set has none"):
        train_judges(make_set(modalities=()), KEY, SHORT)
    with pytest.raises(RequestError, match=r"\(2, 40, 40\)"):
        judges.segment(np.zeros((2, 40, 40), np.float32))
    with pytest.raises(RequestError, match="NaN"):
        judges.classify(np.full((1, 1, 40, 40), np.nan, np.float32))
    foreign = from_arrays(
        np.zeros((1, 9, 40, 40), np.float32), BRAIN9, images=np.zeros((1, 1, 40, 40), np.float32)
    )
    with pytest.raises(SchemaError, match="expected label schema 'toy'"):
        agreement_section(foreign, foreign, segmenter=judges, key=KEY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier_steps": 0}, "classifier_steps must be at least 1, got 0"),
        ({"segmenter_batch": -1}, "segmenter_batch must be at least 1, got -1"),
        ({"segmenter_widths": (8, 8)}, r"6 positive numbers, got \(8, 8\)"),
        ({"lesion_probability": 1.5}, "got 1.5"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(RequestError, match=message):
        JudgeSettings(**changes)


def test_standardised_input_ignores_gain_and_offset():
    net = TissueSegmenter((True, True, True), (8, 8, 8, 8, 8, 8)).eval()
    image = torch.from_numpy(make_set(1).image([0]))
    brighter = torch.where(image > 0, 0.3 + 0.4 * image, 0)
    torch.testing.assert_close(net(image), net(brighter), atol=1e-4, rtol=1e-4)


def test_training_window_holds_every_brain():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        images = np.zeros((2, 1, 96, 80), np.float32)
        x, y = rng.integers(0, 60, 2)
        images[0, 0, x : x + 20, y : y + 10] = 1
        images[1, 0, x + 3, y + 2] = 1
        cut = images[judge_training._window(torch.from_numpy(images))]
        assert cut.sum() == images.sum()
        assert all(side % POOLED == 0 for side in cut.shape[2:])
        assert cut.shape[2] == 32
    empty = torch.zeros(1, 1, 40, 40)
    assert empty[judge_training._window(empty)].shape == (1, 1, 16, 16)


def test_rare_tissues_weigh_more():
    amount = np.asarray([1e6, 100.0, 100.0, 25.0, 0.01])
    weights = judge_training._tissue_weights(amount)
    mean = 225.01 / 4
    expected = [1, 1, 1, (mean / 25) ** 0.5, 5]
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
