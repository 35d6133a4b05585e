"""The segmenter: steps, keys, windows, and a model folder that gives the same again."""

from __future__ import annotations

import json
from dataclasses import replace

import monai.inferers  # noqa: F401 - its import draws from a global generator
import pytest
import torch
from made_up_labelled import VOLUMES, imgx_recipe
from torch import nn

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import VESSEL
from synthgen.runtime import place
from synthgen.segment import windows
from synthgen.segment.imgx import ImgXNetworks, ImgXSegmenter, save_imgx
from synthgen.segment.imgx_step import build_network, inference_scheduler
from synthgen.segment.use import SegmenterUse

KEYS = [SampleKey(5, i) for i in range(2)]
TISSUES = ("background", "csf", "gm", "wm")


def use_of(section, **changes):
    n = section.data.spatial_dims
    plain = SegmenterUse(TISSUES, False, ("image",), n, (1.0,) * n, section.window_size, 0.5)
    return replace(plain, **changes)


def networks_of(section, *, tissues=4, twin=True):
    """Return networks whose time conditioning is awake."""
    made = []
    for number in range(1 + twin):
        network = build_network(section, 1, tissues, twin=number == 1).eval()
        draws = torch.Generator().manual_seed(number)
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draws)
        made.append(place(network, torch.device("cpu")))
    return ImgXNetworks(made[0], inference_scheduler(section), made[1] if twin else None, False)


def segmenter(**overrides):
    section = imgx_recipe(**overrides).imgx
    return ImgXSegmenter(networks_of(section), use_of(section))


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("overrides", "shape"),
    [({}, (32, 32)), ({}, (40, 27)), ({"strategy": "self_condition"}, (32, 40)),
     (VOLUMES, (16, 20, 12)), ({"schedule__sampler": "ddim"}, (32, 33))],
    ids=["one window", "windows", "self-conditioned", "volume", "ddim"],
)  # fmt: skip
def test_steps_are_probabilities_and_predict_is_the_last(overrides, shape):
    model = segmenter(**overrides)
    batch = images(2, 1, *shape)
    steps = model.steps(batch, KEYS)
    assert steps.shape == (5, 2, 4, *shape)
    assert steps.dtype == torch.float32
    torch.testing.assert_close(steps.sum(dim=2), torch.ones(5, 2, *shape))
    assert torch.equal(model.predict(batch, KEYS), steps[-1])
    assert model.schema.names == TISSUES
    twin = model.twin().predict(batch)
    torch.testing.assert_close(twin.sum(dim=1), torch.ones(2, *shape))


def test_a_sample_depends_on_its_image_and_key_alone(untouched_rng):
    model, batch = segmenter(), images(2, 1, 36, 32)
    both = model.predict(batch, KEYS)
    assert torch.equal(model.predict(batch[1:], KEYS[1:]), both[1:])
    assert not torch.equal(model.predict(batch[1:], KEYS[:1]), both[1:])


@pytest.mark.parametrize(
    ("overrides", "shape"), [({}, (56, 50)), (VOLUMES, (24, 20, 16))], ids=["2D", "3D"]
)
def test_windows_share_one_noise_whatever_their_batches(overrides, shape, monkeypatch):
    model, batch = segmenter(**overrides), images(1, 1, *shape)
    found = []
    for together in (1, 3):
        # The default of a keyword stands in the function.
        monkeypatch.setitem(windows.sliding.__kwdefaults__, "together", together)
        found.append(model.steps(batch, KEYS[:1]))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)


class Perfect(nn.Module):
    """Knows the mask: it stands in the image, as a whole number of quarters."""

    def __init__(self, config):
        super().__init__()
        self.weight, self.config = nn.Parameter(torch.zeros(())), config
        self.seen = []

    def forward(self, image, mask, log_snr):
        self.seen.append((mask, log_snr))
        labels = (image[:, 0] * 4).round().long()
        # Exactly 0 and 1 behind a softmax in float32.
        return 1000.0 * nn.functional.one_hot(labels, 4).movedim(-1, 1)


@pytest.mark.parametrize(
    ("overrides", "shape"), [({}, (45, 70)), (VOLUMES, (20, 31, 16))], ids=["2D", "3D"]
)
def test_a_perfect_denoiser_gives_the_mask_exactly_through_windows(overrides, shape):
    section = imgx_recipe(**overrides).imgx
    networks = networks_of(section)
    perfect = Perfect(networks.unet.config)
    model = ImgXSegmenter(replace(networks, unet=perfect), use_of(section))
    labels = torch.randint(4, (1, 1, *shape), generator=torch.Generator().manual_seed(0))
    steps = model.steps(labels / 4, KEYS[:1])
    wanted = nn.functional.one_hot(labels[:, 0], 4).movedim(-1, 1).float()
    assert all(torch.equal(step, wanted) for step in steps)
    snr = [round(float(told[0]), 1) for _, told in perfect.seen]
    assert sorted(set(snr)) == [-10.1, -5.7, -2.5, 0.1, 9.2]
    assert snr == sorted(snr)  # from noise to mask


def test_neighbouring_windows_see_the_same_noise_where_they_overlap():
    section = imgx_recipe().imgx
    networks = networks_of(section)
    perfect = Perfect(networks.unet.config)
    ImgXSegmenter(replace(networks, unet=perfect), use_of(section)).steps(
        torch.zeros(1, 1, 48, 32), KEYS[:1]
    )
    first = torch.cat([mask for mask, _ in perfect.seen])[:2]
    assert torch.equal(first[0][:, 16:], first[1][:, :16])


def saved(folder, section, **changes):
    networks = networks_of(section)
    use = use_of(section, **changes)
    save_imgx(folder, networks, use, subjects=["a/sub-1"], training={"steps": 3}, card="# Card\n")
    return ImgXSegmenter(networks, use)


def test_model_folder_round_trip(tmp_path):
    made = saved(tmp_path / "m", imgx_recipe().imgx)
    loaded = ImgXSegmenter.load(tmp_path / "m")
    batch = images(2, 1, 40, 32)
    assert torch.equal(loaded.steps(batch, KEYS), made.steps(batch, KEYS))
    assert torch.equal(loaded.twin().predict(batch), made.twin().predict(batch))
    assert loaded.use == made.use
    assert loaded.subjects == loaded.twin().subjects == ("a/sub-1",)
    assert loaded.identity["model"] == loaded.twin().identity["model"] != ""
    assert loaded.identity != loaded.twin().identity
    coarse = ImgXSegmenter.load(tmp_path / "m", dtype="bfloat16")
    assert coarse.identity["dtype"] == "bfloat16"
    assert (coarse.predict(batch, KEYS) - loaded.predict(batch, KEYS)).abs().mean() < 0.05


def test_a_model_without_twin_says_so(tmp_path):
    section = imgx_recipe().imgx
    networks = networks_of(section, twin=False)
    save_imgx(tmp_path / "m", networks, use_of(section), subjects=[], training={}, card="")
    assert not (tmp_path / "m" / "twin").exists()
    loaded = ImgXSegmenter.load(tmp_path / "m")
    with pytest.raises(RequestError, match="without a supervised twin"):
        loaded.twin()


def test_vessels_keep_their_schema_and_regions_have_no_background_channel(tmp_path):
    section = imgx_recipe().imgx
    vessel = use_of(section, tissues=("background", "vessel"))
    assert vessel.schema == VESSEL
    regions = use_of(section, tissues=("whole", "core"), overlapping=True)
    assert regions.schema.names == ("background", "whole", "core")
    model = ImgXSegmenter(networks_of(section, tissues=2), regions)
    batch = images(1, 1, 32, 32)
    for found in (model.predict(batch, KEYS[:1]), model.twin().predict(batch)):
        assert found.shape == (1, 2, 32, 32)
        assert not torch.allclose(found.sum(dim=1), torch.ones(1, 32, 32))


def test_images_of_another_form_are_refused():
    model = segmenter()
    with pytest.raises(RequestError, match=r"\(B, 1, X, Y\).*\(1, 1, 8, 8, 8\).*2-D images"):
        model.predict(images(1, 1, 8, 8, 8), KEYS[:1])
    with pytest.raises(RequestError, match=r"in \[0, 2\]"):
        model.twin().predict(torch.tensor([0.0, 2.0]).view(1, 1, 2, 1))
    with pytest.raises(RequestError, match="one key for each of 2 images, got 0"):
        model.predict(images(2, 1, 32, 32))


def test_damaged_and_foreign_folders_are_refused(tmp_path):
    section = imgx_recipe().imgx
    folder = tmp_path / "m"
    saved(folder, section)
    with pytest.raises(StoreError, match="train imgx"):
        ImgXSegmenter.load(tmp_path / "none")
    (folder / "unet" / "config.json").write_text("{}")
    with pytest.raises(StoreError, match=r"unet/config\.json: damaged"):
        ImgXSegmenter.load(folder)


def test_a_network_of_another_rank_than_the_folder_says_is_refused(tmp_path):
    section = imgx_recipe().imgx
    volume = use_of(imgx_recipe(**VOLUMES).imgx)
    save_imgx(tmp_path / "m", networks_of(section), volume, subjects=[], training={}, card="")
    with pytest.raises(StoreError, match=r"unet: expected.*\(3, 1, 4\).*got \(2, 1, 4\)"):
        ImgXSegmenter.load(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "synthgen.json").read_text())["kind"] == "imgx"
