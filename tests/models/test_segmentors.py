"""Segmentors that HiDiff refines: logits as the library's, maps of every level, round trips."""

from __future__ import annotations

import pytest
import torch

from synthgen.core.errors import RequestError
from synthgen.models.segmentors import Segmentor

SWIN = (12, 12, 24, 48, 96, 192)


def build(kind, rank=2, channels=(4, 8, 16), strides=None, **more):
    strides = strides or ((2,) * rank,) * (len(channels) - 1)
    return Segmentor(kind, rank, 1, 3, channels=channels, strides=strides, **more).eval()


@pytest.mark.parametrize(
    ("kind", "channels", "strides", "size"),
    [
        ("unet", (4, 8, 16), ((2, 2), (2, 2)), (16, 12)),
        ("unet", (4, 8), ((2, 2, 1),), (8, 8, 5)),
        ("dynunet", (4, 8, 16), ((2, 2), (2, 1)), (16, 12)),
        ("dynunet", (4, 8, 8), ((2, 2, 1), (2, 2, 2)), (16, 16, 16)),
        ("imgx", (4, 8, 16), ((2, 2), (2, 2)), (16, 12)),
        ("swinunetr", SWIN, ((2, 2),) * 5, (64, 64)),
    ],
)
def test_there_is_a_map_for_every_level(kind, channels, strides, size):
    more = {"num_blocks": 1, "num_heads": 2, "head_dim": 4} if kind == "imgx" else {}
    network = build(kind, len(size), channels, strides, **more)
    with torch.no_grad():
        seen = network(torch.rand(2, 1, *size))
    assert seen.logits.shape == (2, 3, *size)
    for found, width, factors in zip(seen.features, channels, network.feature_strides, strict=True):
        assert found.shape == (2, width, *(s // f for s, f in zip(size, factors, strict=True)))


@pytest.mark.parametrize("kind", ["unet", "swinunetr"])
def test_logits_are_those_of_the_library(kind):
    network = build(kind, channels=SWIN if kind == "swinunetr" else (4, 8, 16))
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(network(image).logits, network.network(image), atol=1e-5)


@pytest.mark.parametrize("kind", ["unet", "dynunet"])
def test_a_segmentor_is_saved_and_loaded(kind, tmp_path):
    network, image = build(kind), torch.rand(1, 1, 16, 16)
    network.save_pretrained(tmp_path)
    loaded = Segmentor.from_pretrained(tmp_path, local_files_only=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(image).logits, network(image).logits)


def test_gradients_reach_every_parameter():
    for kind in ("unet", "dynunet", "imgx"):
        network = build(kind).train()
        network(torch.rand(1, 1, 16, 16)).logits.square().sum().backward()
        assert all(p.grad is not None for p in network.parameters()), kind


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "unet", "strides": ((2, 2),)}, "3 levels has 2 transitions.*got 1"),
        ({"kind": "unet", "strides": ((2, 2), (2, 2, 2))}, "has 2 numbers"),
        ({"kind": "dynunet", "channels": (4, 8)}, "at least 3 levels, got 2"),
        ({"kind": "swinunetr"}, r"f a multiple of 12.*got \(4, 8, 16\)"),
    ],
)
def test_levels_that_a_kind_cannot_have_are_refused(settings, message):
    with pytest.raises(RequestError, match=message):
        build(**settings)
