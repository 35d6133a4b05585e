"""Does an image show its own label: Dice of a segmenter, border fit, the worst images."""

import numpy as np
import pytest
from monai.metrics import compute_dice
from scipy import ndimage
from torch import as_tensor, nn

from synthgen.core.errors import LeakageError, RequestError, SchemaError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9, LabelSchema, Tissue
from synthgen.evaluate import agreement
from synthgen.evaluate.agreement import agreement_section, worst_images
from synthgen.evaluate.agreement_scores import border_fit, score_images, tissue_dice
from synthgen.evaluate.sets import from_arrays

KEY = SampleKey(5, 0)
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
INTENSITIES = {"t1": (0.0, 0.2, 0.6, 0.9, 0.4), "t2": (0.0, 0.95, 0.55, 0.3, 0.75)}


def brain_pv(rng, size=64, tumour=False):
    """Nested, wavy ellipses, blurred to partial volumes."""
    grid = np.stack(np.meshgrid(*2 * [np.arange(size)], indexing="ij")) - size / 2
    grid = grid + rng.uniform(-2, 2, (2, 1, 1))
    angle, radius = np.arctan2(*grid), np.hypot(grid[0] / 0.85, grid[1])
    wave = 1 + 0.12 * np.sin(5 * angle + rng.uniform(0, 6))
    labels = sum((radius / wave < share * size).astype(int) for share in (0.4, 0.33, 0.22))
    if tumour:
        labels[size // 2 - 4 : size // 2 + 4, size // 2 - 4 : size // 2 + 4] = 4
    pv = np.stack([ndimage.gaussian_filter((labels == c).astype(float), 0.6) for c in range(5)])
    return (pv / pv.sum(axis=0)).astype(np.float32)


def make_set(count=12, *, seed=0, shift=0, subjects=3, modalities=("t1", "t2"), **kwargs):
    """Slices whose images show them, and whose labels are then shifted along X."""
    rng = np.random.default_rng(seed)
    tumour = kwargs.pop("tumour", False)
    pv = np.stack([brain_pv(rng, tumour=tumour) for _ in range(count)])
    images, rows, names = [], [], []
    for modality in modalities:
        for index, label in enumerate(pv):
            image = np.tensordot(INTENSITIES[modality or "t1"], label, axes=1)
            image = (image + rng.normal(0, 0.02, image.shape)).clip(1e-3, 1)
            images.append(np.where(label[0] > 0.5, 0, image)[None])
            rows.append(index)
            names.append(modality)
    return from_arrays(
        np.roll(pv, shift, axis=2),
        kwargs.pop("schema", SCHEMA),
        images=np.asarray(images, dtype=np.float32),
        image_slices=rows,
        subject=[f"{kwargs.get('name', 'real')}-{i % subjects}" for i in range(count)],
        modality=names,
        **kwargs,
    )


class NearestIntensity:
    """A segmenter without a network: each pixel is the tissue of the nearest intensity."""

    schema, known, digest = SCHEMA, (True, True, True, True, False), "0123456789abcdef"
    subjects = ("train-0",)

    def segment(self, images):
        out = []
        for image in images[:, 0]:
            # CSF at the rim is bright in T2 and dark in T1.
            inside = ndimage.binary_erosion(image > 0, iterations=2)
            rim = np.median(image[(image > 0) & ~inside])
            table = np.asarray(INTENSITIES["t2" if rim > 0.6 else "t1"][:4])
            out.append(-np.abs(image - table[:, None, None]))
        scores = np.stack(out)
        absent = np.full_like(scores[:, :1], -1e9)
        return np.concatenate([scores, absent], axis=1).astype(np.float32)


class Useless(NearestIntensity):
    """A segmenter that sees CSF everywhere."""

    def segment(self, images):
        probabilities = np.zeros((len(images), 5, *images.shape[2:]), np.float32)
        probabilities[:, 1] = 1
        return probabilities


def by_name(section):
    return {metric.name: metric for metric in section.metrics}


def test_dice_of_a_hand_worked_image():
    labels = np.asarray([[[0, 1, 1, 1], [2, 2, 0, 0]]])
    guess = np.asarray([[[0, 1, 1, 2], [2, 0, 0, 0]]])
    expected = [2 * 3 / (3 + 4), 2 * 2 / (3 + 2), 2 * 1 / (2 + 2)]
    np.testing.assert_allclose(tissue_dice(guess, labels, 3, at_least=1)[0], expected)


def test_dice_matches_monai():
    rng = np.random.default_rng(1)
    labels, guess = rng.integers(0, 4, (2, 6, 20, 20))
    one_hot = [
        nn.functional.one_hot(as_tensor(x), 5).movedim(-1, 1).float() for x in (guess, labels)
    ]
    np.testing.assert_allclose(
        tissue_dice(guess, labels, 5, at_least=1),
        compute_dice(*one_hot, include_background=True, ignore_empty=True).numpy(),
        rtol=1e-6,
    )


def test_dice_leaves_out_small_tissues_and_ignored_pixels():
    labels = np.asarray([[[1, 1, 1, 1, 2, 3, 3, 3]]])
    guess = np.asarray([[[1, 1, 1, 1, 1, 2, 2, 2]]])
    scores = tissue_dice(guess, labels, 4, at_least=2, ignored=[3])[0]
    assert np.isnan(scores[[0, 2, 3]]).all()
    assert scores[1] == 2 * 4 / (4 + 5)


def test_border_fit_is_one_for_an_image_made_of_its_label():
    pv = brain_pv(np.random.default_rng(0))
    image = np.where(pv[0] > 0.5, 0, 0.1 + 0.9 * np.tensordot(INTENSITIES["t1"], pv, axes=1))
    assert border_fit(image.astype(np.float32), pv) == pytest.approx(1, abs=1e-5)


def test_border_fit_is_the_explained_share_of_variance():
    """Share / (1 - share) is signal over noise, so that the signal follows from any noise."""
    pv = brain_pv(np.random.default_rng(0), size=192)
    image = np.where(pv[0] > 0.5, 0, 0.1 + np.tensordot(INTENSITIES["t1"], pv, axes=1))
    noise = np.random.default_rng(1).normal(0, 1, image.shape) * (image > 0)
    shares = [
        border_fit((image + sigma * noise + 5 * (image > 0)).astype(np.float32), pv)
        for sigma in (0.05, 0.1, 0.2)
    ]
    signal = [
        share / (1 - share) * sigma**2
        for share, sigma in zip(shares, (0.05, 0.1, 0.2), strict=True)
    ]
    np.testing.assert_allclose(signal, signal[0], rtol=0.1)


@pytest.mark.parametrize("modality", ["t1", "t2"])
def test_border_fit_falls_as_the_label_moves(modality):
    rng = np.random.default_rng(3)
    pv = brain_pv(rng)
    image = np.where(pv[0] > 0.5, 0, np.tensordot(INTENSITIES[modality], pv, axes=1))
    image = (image + rng.normal(0, 0.03, image.shape) * (image > 0)).clip(0, 1).astype(np.float32)
    fits = [border_fit(image, np.roll(pv, shift, axis=1)) for shift in (0, 1, 2, 4)]
    assert fits == sorted(fits, reverse=True)
    assert fits[0] - fits[1] > 0.03
    assert fits[3] < 0.6 * fits[0]


def test_border_fit_ignores_gain_and_offset_of_intensities():
    rng = np.random.default_rng(4)
    pv = brain_pv(rng)
    image = np.tensordot(INTENSITIES["t1"], pv, axes=1) + rng.normal(0, 0.05, pv.shape[1:])
    inside = pv[0] <= 0.5
    fits = [
        border_fit(np.where(inside, gain * image.clip(0.01) + offset, 0).astype(np.float32), pv)
        for gain, offset in ((1, 0), (0.5, 0.2))
    ]
    assert fits[0] == pytest.approx(fits[1], abs=1e-3)


def test_border_fit_of_noise_is_low_and_of_no_borders_unknown():
    rng = np.random.default_rng(5)
    pv = brain_pv(rng)
    noise = rng.random(pv.shape[1:]).astype(np.float32) * (pv[0] < 0.5)
    assert border_fit(noise, pv) < 0.05
    alone = np.stack([pv[0], 1 - pv[0]])
    assert np.isnan(border_fit(noise, alone))


def test_section_degrades_with_every_shift_of_the_labels():
    real = make_set(name="real")
    sections = [
        by_name(
            agreement_section(
                make_set(seed=1, shift=shift, name="fake"),
                real,
                segmenter=NearestIntensity(),
                key=KEY,
            )
        )
        for shift in (0, 1, 2, 4)
    ]
    for name in ("agreement/dice/csf", "agreement/dice/gm", "agreement/dice/wm"):
        values = [section[name].value for section in sections]
        assert values == sorted(values, reverse=True), name
        assert values[0] - values[3] > 0.1, name
    fits = [section["agreement/border_fit"].value for section in sections]
    assert fits == sorted(fits, reverse=True)
    assert sections[0]["agreement/dice/gm"].verdict != "poor"
    assert sections[3]["agreement/dice/gm"].verdict == "poor"
    assert sections[3]["agreement/border_fit"].verdict == "poor"


def test_section_of_real_data_equals_its_reference():
    real = make_set()
    section = agreement_section(real, real, segmenter=NearestIntensity(), key=KEY)
    assert {*by_name(section)} == {
        "agreement/border_fit",
        *(f"agreement/dice/{name}" for name in ("csf", "gm", "wm")),
    }
    for metric in section.metrics:
        assert metric.value == metric.reference, metric.name
        assert metric.low <= metric.reference <= metric.high, metric.name
        assert (metric.better, metric.ideal, metric.n) == ("higher", 1, 24)
        assert metric.provenance["segmenter"].startswith("0123456789ab")
    assert not section.refused
    assert section.figures[0].png.startswith(b"\x89PNG")
    assert [row[0] for row in section.tables[0].rows] == ["t1", "t2"]


def test_reference_is_the_mean_over_modalities_of_means_over_images():
    real = make_set()
    section = agreement_section(real, real, segmenter=NearestIntensity(), key=KEY)
    scores = score_images(real, np.arange(24), NearestIntensity())
    expected = 0.5 * scores.dice[:12, 2].mean() + 0.5 * scores.dice[12:, 2].mean()
    assert by_name(section)["agreement/dice/gm"].reference == pytest.approx(expected)


@pytest.mark.parametrize(
    ("subjects", "said"),
    [(3, "bootstrap over 3 real subjects"), (1, "bootstrap over 12 slices of one real subject")],
)
def test_interval_says_what_was_drawn(subjects, said):
    real = make_set(subjects=subjects)
    section = agreement_section(real, real, segmenter=NearestIntensity(), key=KEY)
    assert section.metrics[0].provenance["interval"].startswith(said)


def test_equal_keys_give_equal_sections(untouched_rng):
    fake, real = make_set(seed=1, name="fake"), make_set()
    first, second = (
        agreement_section(fake, real, segmenter=NearestIntensity(), key=KEY) for _ in range(2)
    )
    assert first == second


def test_too_many_images_are_thinned_evenly(monkeypatch):
    monkeypatch.setattr(agreement, "MOST_IMAGES", 20)
    real = make_set()
    section = agreement_section(real, real, segmenter=NearestIntensity(), key=KEY)
    assert {metric.n for metric in section.metrics} == {20}


def test_worst_images_are_those_with_a_foreign_label():
    fake = make_set(seed=1, name="fake")
    pv = fake.pv(range(12))
    pv[7] = np.roll(pv[7], 9, axis=1)
    spoilt = from_arrays(
        pv,
        SCHEMA,
        images=fake.image(range(24)),
        image_slices=fake.images.slices,
        modality=fake.images.modality,
    )
    section = agreement_section(spoilt, make_set(), segmenter=NearestIntensity(), key=KEY)
    listed = [row[0] for row in section.tables[1].rows]
    assert listed[0] == "7"
    assert len({*listed}) == len(listed) == 6
    scores = score_images(spoilt, np.arange(24), NearestIntensity())
    assert {*worst_images(scores, scores, [1, 2, 3])[:2]} == {7, 19}


def test_tissues_that_cannot_be_judged_are_refused_by_name():
    fake = make_set(seed=1, tumour=True, name="fake")
    section = agreement_section(fake, make_set(), segmenter=NearestIntensity(), key=KEY)
    assert any("tumour" in line and "do not show it" in line for line in section.refused)
    assert "agreement/dice/tumour" not in by_name(section)
    section = agreement_section(fake, make_set(), segmenter=Useless(), key=KEY)
    assert any(line.startswith("wm:") and "Dice 0.00" in line for line in section.refused)


def test_pixels_of_unknown_tissues_cost_nothing():
    plain, ill = (make_set(6, seed=1, tumour=tumour) for tumour in (False, True))
    dice = [score_images(s, np.arange(12), NearestIntensity()).dice[:, 3] for s in (plain, ill)]
    np.testing.assert_allclose(*dice, atol=0.05)


def test_too_few_images_are_refused():
    section = agreement_section(
        make_set(4, name="fake"), make_set(), segmenter=NearestIntensity(), key=KEY
    )
    assert not section.metrics
    assert any("got 8 and 24" in line for line in section.refused)


def test_modalities_that_real_data_lack_are_named():
    section = agreement_section(
        make_set(name="fake"), make_set(modalities=("t1",)), segmenter=NearestIntensity(), key=KEY
    )
    assert any(line.startswith("agreement of t2") for line in section.refused)
    assert [row[0] for row in section.tables[0].rows] == ["t1"]


def test_images_of_unknown_modality_are_compared_together():
    section = agreement_section(
        make_set(modalities=("",), name="fake"), make_set(), segmenter=NearestIntensity(), key=KEY
    )
    assert section.metrics[0].provenance["modalities"].startswith("not known")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"modalities": ()}, RequestError, "set has none"),
        ({"modalities": ("t2",)}, RequestError, "no modality in common: real has t2"),
        ({"name": "train"}, LeakageError, "train-0"),
    ],
)
def test_unfit_sets_are_refused(changes, error, message):
    fake = make_set(modalities=("t1",), name="fake")
    if "modalities" in changes:
        fake, real = make_set(name="real", **changes), make_set(modalities=("t1",), name="other")
    else:
        real = make_set(**changes)
    with pytest.raises(error, match=message):
        agreement_section(fake, real, segmenter=NearestIntensity(), key=KEY)


def test_other_schema_and_size_are_refused():
    real = make_set()
    foreign = from_arrays(
        np.zeros((1, 9, 64, 64), np.float32), BRAIN9, images=np.zeros((1, 1, 64, 64), np.float32)
    )
    with pytest.raises(SchemaError, match="expected label schema 'toy'"):
        agreement_section(foreign, real, segmenter=NearestIntensity(), key=KEY)
    smaller = from_arrays(
        np.zeros((1, 5, 32, 32), np.float32), SCHEMA, images=np.zeros((1, 1, 32, 32), np.float32)
    )
    with pytest.raises(RequestError, match=r"\(32, 32\)"):
        agreement_section(smaller, real, segmenter=NearestIntensity(), key=KEY)
