"""Feature spaces: known spectra, encoders that run alike anywhere, and what they refuse."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from tiny_models import SHAPE, write_label_model
from torch import nn

from synthgen.core.errors import RequestError, SchemaError, StoreError
from synthgen.core.manifest import file_digest, sealed
from synthgen.core.schema import BRAIN9, LabelSchema, Tissue
from synthgen.evaluate.feature_spaces import (
    GRID,
    AutoencoderSpace,
    ClassifierSpace,
    ModuleSpace,
    SpectrumSpace,
)
from synthgen.evaluate.features import radial_power_spectrum, require_features
from synthgen.evaluate.judge_networks import JudgeSettings, build_networks
from synthgen.evaluate.judges import Judges

TOY = LabelSchema("toy", (Tissue("background", 0), Tissue("brain", 1)))


def noise(count=4, shape=(64, 64), seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, (count, 1, *shape)).astype(np.float32)


def wave(shape, cycles, amplitude=1.0):
    x, y = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    phase = 2 * np.pi * (cycles[0] * x / shape[0] + cycles[1] * y / shape[1])
    return (amplitude * np.cos(phase)).astype(np.float32)[None, None]


def untrained_judges(seed=0, width=8):
    settings = JudgeSettings(classifier_width=width, segmenter_widths=(8,) * 6)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        nets = build_networks(settings, 2, 1, (True, True))
    classifier, segmenter = (net.eval() for net in nets)
    names = (("t1", "t2"), ("site",), ("a", "b"))
    return Judges(TOY, *names, "0" * 64, settings, (True, True), classifier, segmenter)


def slow_spectrum(image, bins):
    """Every frequency of the whole plane by itself, with the transform written out."""
    sides = image.shape
    window = np.outer(*(0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(n) + 0.5) / n) for n in sides))
    image = (image - (image * window).sum() / window.sum()) * window
    x, y = (np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) for n in sides)
    power = np.abs(x @ image @ y.T) ** 2 / (window**2).sum()
    rings = [[] for _ in range(bins)]
    for i, j in np.ndindex(*sides):
        radius = np.hypot(min(i, sides[0] - i) / sides[0], min(j, sides[1] - j) / sides[1])
        for b in range(bins):
            if b / bins / 2 + 1e-9 < radius <= (b + 1) / bins / 2 + 1e-9:
                rings[b].append(power[i, j])
    return np.log([np.mean(ring) for ring in rings])


@pytest.mark.parametrize(("shape", "bins"), [((16, 16), 8), ((13, 18), 6), ((12, 9), 4)])
def test_spectrum_equals_the_slow_one(shape, bins):
    images = noise(2, shape)
    expected = [slow_spectrum(image.astype(float), bins) for image in images[:, 0]]
    np.testing.assert_allclose(radial_power_spectrum(images), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "cycles", "ring"),
    [((64, 64), (8, 0), 7), ((64, 128), (0, 40), 19), ((192, 256), (9, 16), 4)],
)
def test_wave_peaks_at_its_frequency(shape, cycles, ring):
    """Radius in cycles per pixel: 8 / 64, 40 / 128, hypot(9 / 192, 16 / 256) = 0.078125."""
    assert radial_power_spectrum(wave(shape, cycles))[0].argmax() == ring


def test_power_of_a_wave_is_known():
    """A Hann window spreads a wave over 3 x 3 frequencies, in shares 1/4, 1/2, 1/4 of each axis.

    Of amplitude A in N x M pixels, the middle one has (A / 2 * N / 2 * M / 2) ** 2, the others
    (1/2)**2 or (1/4)**2 of it, and the window's power is (3 / 8) ** 2 * N * M.
    """
    bins, side, amplitude = 32, 64, 0.7
    spectrum = np.exp(radial_power_spectrum(wave((side, side), (16, 0), amplitude))[0])
    middle = (amplitude / 2 * side / 2 * side / 2) ** 2 / ((3 / 8) ** 2 * side * side)
    grid = np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(side)]))
    total = 0.0
    for ring in range(bins):
        inside = (grid > ring / side + 1e-9) & (grid <= (ring + 1) / side + 1e-9)
        total += spectrum[ring] * inside.sum()
    np.testing.assert_allclose(total, 2 * middle * 1.5**2, rtol=1e-5)


def test_white_noise_is_flat_at_its_variance():
    """The first ring loses to the mean: 1 + (1 / 2)**2 - 2 * (1 / 2) * (2 / 3) of it are left."""
    power = np.exp(radial_power_spectrum(noise(400, scale=0.3))).mean(axis=0) / 0.3**2
    np.testing.assert_allclose(power[1:], 1, rtol=0.1)  # 400 images of 8 frequencies
    np.testing.assert_allclose(power[0], 7 / 12, rtol=0.15)


def test_doubled_amplitude_adds_log_4():
    images = noise()
    np.testing.assert_allclose(
        radial_power_spectrum(2 * images), radial_power_spectrum(images) + np.log(4), rtol=1e-9
    )


def test_blur_lowers_high_frequencies():
    """The mean of neighbours has cos(pi * f)**2 of the power at f cycles a pixel along an axis."""
    images = noise(200)
    blurred = (images + np.roll(images, 1, axis=2)) / 2
    before, after = (np.exp(radial_power_spectrum(x)).mean(axis=0) for x in (images, blurred))
    fx, fy = np.meshgrid(*2 * [np.fft.fftfreq(64)], indexing="ij")
    ring = np.ceil(np.round(np.hypot(fx, fy) * 64, 9)) - 1
    expected = [(np.cos(np.pi * fx) ** 2)[ring == b].mean() for b in range(32)]
    np.testing.assert_allclose((after / before)[1:], expected[1:], atol=0.03)
    assert (np.diff((after / before)[::4]) < 0).all()


def test_spectrum_ignores_brightness_quarter_turns_and_mirrors():
    images = noise()
    expected = radial_power_spectrum(images)
    for other in (images + 3, np.rot90(images, axes=(2, 3)), images[:, :, ::-1]):
        np.testing.assert_allclose(radial_power_spectrum(other), expected, atol=1e-5)


def test_spectrum_of_a_blank_slice_is_finite():
    assert np.isfinite(radial_power_spectrum(np.zeros((1, 1, 192, 256), np.float32))).all()
    assert radial_power_spectrum(np.zeros((3, 1, 192, 256), np.float32)).shape == (3, 32)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 64, 64), np.float32), r"\(2, 64, 64\)"),
        (np.zeros((2, 3, 64, 64), np.float32), r"\(2, 3, 64, 64\)"),
        (np.zeros((0, 1, 64, 64), np.float32), r"\(0, 1, 64, 64\)"),
        (np.full((1, 1, 8, 8), np.nan, np.float32), "NaN"),
        (np.zeros((1, 1, 3, 8), np.float32), "4 x 4 pixels"),
    ],
)
def test_spectrum_refuses(images, message):
    with pytest.raises(RequestError, match=message):
        SpectrumSpace()(images)


def test_classifier_features_feed_its_heads():
    judges = untrained_judges()
    images = np.random.default_rng(0).random((5, 1, 48, 64), dtype=np.float32)
    features = ClassifierSpace(judges)(images)
    assert features.shape == (5, 4 * 8)
    with torch.inference_mode():
        expected = judges.classifier(judges.classifier_input(images)).modality
        found = judges.classifier.modality_head(torch.from_numpy(features).float())
    torch.testing.assert_close(found, expected)


def test_a_slice_has_the_same_features_in_any_batch(untouched_rng):
    images = np.random.default_rng(0).random((18, 1, 48, 64), dtype=np.float32)
    for space in (ClassifierSpace(untrained_judges()), SpectrumSpace()):
        whole, threads = space(images), torch.get_num_threads()
        assert whole.dtype == np.float64
        np.testing.assert_array_equal(space(images), whole)
        np.testing.assert_allclose(space(images[3:4]), whole[3:4], atol=1e-5)
        assert torch.get_num_threads() == threads


def test_classifier_space_names_its_encoder():
    first, second = (ClassifierSpace(untrained_judges(seed)) for seed in (0, 1))
    assert (first.name, first.what) == ("classifier", "images")
    assert first.facts["encoder sha256"] == first.judges.digest
    assert first.facts["encoder sha256"] != second.facts["encoder sha256"]
    assert "2 x 2 pixels" in first.facts["preprocessing"]
    with pytest.raises(RequestError, match="NaN"):
        first(np.full((1, 1, 48, 64), np.nan, np.float32))


@pytest.fixture(scope="module")
def label_model(tmp_path_factory):
    return write_label_model(tmp_path_factory.mktemp("models") / "labels")


def label_maps(count=3, channels=9, shape=SHAPE):
    labels = np.random.default_rng(1).integers(0, channels, (count, *shape))
    return np.moveaxis(np.eye(channels, dtype=np.float32)[labels], -1, 1)


def test_autoencoder_features_are_averaged_latents(label_model):
    space, maps = AutoencoderSpace.open(label_model), label_maps()
    vae = AutoencoderKL.from_pretrained(label_model / "vae").eval()
    with torch.inference_mode():
        latents = vae.encode(torch.from_numpy(maps)).latent_dist.mean.numpy()
    # 16 x 24 latents: three cells of rows overlap by a row or two, four of columns do not.
    rows = [latents[:, :, start:stop] for start, stop in ((0, 6), (5, 11), (10, 16))]
    cells = [[cell.mean(axis=(2, 3)) for cell in np.split(row, GRID[1], axis=3)] for row in rows]
    expected = np.moveaxis(np.asarray(cells), (0, 1), (2, 3)).reshape(3, -1)
    np.testing.assert_allclose(space(maps), expected, rtol=1e-4, atol=1e-6)
    assert space.schema == BRAIN9
    assert (space.name, space.what) == ("autoencoder", "labels")


def test_autoencoder_space_scales_its_latents(label_model, tmp_path):
    plain = AutoencoderSpace.open(label_model)
    scaled = shutil.copytree(label_model, tmp_path / "scaled")
    config = scaled / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_bytes()), "scaling_factor": 2.5}))
    record = json.loads((scaled / "synthgen.json").read_bytes())
    record["files"]["vae/config.json"] = file_digest(config)
    (scaled / "synthgen.json").write_text(json.dumps(sealed(record)))
    maps = label_maps()
    np.testing.assert_allclose(AutoencoderSpace.open(scaled)(maps), 2.5 * plain(maps), rtol=1e-5)


def test_autoencoder_hash_changes_with_its_weights(label_model, tmp_path):
    other = AutoencoderSpace.open(write_label_model(tmp_path / "other", seed=1))
    space = AutoencoderSpace.open(label_model)
    weights = label_model / "vae" / "diffusion_pytorch_model.safetensors"
    assert space.facts["encoder sha256"] == file_digest(weights)
    assert space.facts["encoder sha256"] != other.facts["encoder sha256"]
    assert "AutoencoderKL" in space.facts["encoder"]


def test_autoencoder_space_refuses_other_maps(label_model):
    space = AutoencoderSpace.open(label_model)
    with pytest.raises(SchemaError, match="9 channels, got 5"):
        space(label_maps(channels=5))
    with pytest.raises(RequestError, match=r"\(n, 9, 64, 96\), got an array of \(3, 9, 32, 32\)"):
        space(label_maps(shape=(32, 32)))
    with pytest.raises(RequestError, match="NaN"):
        space(np.full((1, 9, *SHAPE), np.nan, np.float32))


def test_foreign_and_damaged_label_models_are_named(label_model, tmp_path):
    with pytest.raises(StoreError, match="no such file"):
        AutoencoderSpace.open(tmp_path)
    broken = shutil.copytree(label_model, tmp_path / "broken")
    with (broken / "vae" / "diffusion_pytorch_model.safetensors").open("ab") as stream:
        stream.write(b"0")
    with pytest.raises(StoreError, match="damaged"):
        AutoencoderSpace.open(broken)
    config = {**json.loads((label_model / "vae" / "config.json").read_bytes()), "_class_name": "X"}
    foreign = shutil.copytree(label_model, tmp_path / "foreign")
    (foreign / "vae" / "config.json").write_text(json.dumps(config))
    record = json.loads((foreign / "synthgen.json").read_bytes())
    record["files"]["vae/config.json"] = file_digest(foreign / "vae" / "config.json")
    (foreign / "synthgen.json").write_text(json.dumps(sealed(record)))
    with pytest.raises(StoreError, match="no autoencoder that is known here"):
        AutoencoderSpace.open(foreign)


class Moments(nn.Module):
    """Weighted mean and mean square of an image."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))

    def forward(self, image):
        return torch.stack([image.mean((1, 2, 3)), image.square().mean((1, 2, 3))], 1) * self.weight


class Flat(nn.Module):
    def forward(self, image):
        return image.mean((1, 2, 3))


class Pixels(nn.Module):
    def forward(self, image):
        return image.mean(1)


class Root(nn.Module):
    def forward(self, image):
        return (image.mean((2, 3)) - 2).sqrt()


def export(module, path, batch=torch.export.Dim.DYNAMIC):
    size = 2 if batch is None else batch
    example = torch.zeros(2, 1, 16, 24)
    shapes = None if size == 2 else ({0: batch},)
    torch.export.save(torch.export.export(module.eval(), (example,), dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(2).random((19, 1, 16, 24), dtype=np.float32)


def test_own_encoder_gives_its_features(tmp_path, images):
    path = export(Moments(), tmp_path / "moments.pt2")
    space = ModuleSpace.open(path)
    expected = np.stack([images.mean((1, 2, 3)), (images**2).mean((1, 2, 3))], axis=1)
    np.testing.assert_allclose(space(images), expected, rtol=1e-5)
    np.testing.assert_array_equal(space(images[:1]), space(images)[:1])
    assert space(images).dtype == np.float64
    assert (space.name, space.title, space.what) == ("encoder", "encoder moments.pt2", "images")
    other = ModuleSpace.open(export(Moments(2.0), tmp_path / "other.pt2"))
    assert space.facts["encoder sha256"] == file_digest(path)
    assert space.facts["encoder sha256"] != other.facts["encoder sha256"]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Flat(), r"features \(16, d\) of 16 slices, got \(16,\)"),
        (Pixels(), r"features \(16, d\) of 16 slices, got \(16, 16, 24\)"),
        (Root(), "NaN"),
    ],
)
def test_own_encoder_must_return_vectors(tmp_path, images, module, message):
    space = ModuleSpace.open(export(module, tmp_path / "wrong.pt2"))
    with pytest.raises(RequestError, match=message):
        space(images)


def test_own_encoder_must_take_the_slices(tmp_path, images):
    space = ModuleSpace.open(export(Moments(), tmp_path / "encoder.pt2"))
    with pytest.raises(RequestError, match=r"does not take images of 24 x 16 pixels \(.*16"):
        space(images.swapaxes(2, 3))
    with pytest.raises(RequestError, match=r"\(19, 16, 24\)"):
        space(images[:, 0])
    fixed = ModuleSpace.open(export(Moments(), tmp_path / "fixed.pt2", batch=None))
    with pytest.raises(RequestError, match="with a dynamic batch size") as caught:
        fixed(images)
    assert "\n" not in str(caught.value)


def test_features_must_be_finite_vectors():
    good = np.ones((3, 2))
    assert require_features(good, 3, "toy") is good
    for bad in (np.ones(3), np.ones((2, 2)), np.ones((3, 0)), np.full((3, 2), np.inf)):
        with pytest.raises(RequestError, match="toy"):
            require_features(bad, 3, "toy")
