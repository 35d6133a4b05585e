"""The training-free renderer: MR contrast in the right order, one sample at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from synthgen.core.errors import RequestError, SchemaError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9, LabelSchema, Tissue
from synthgen.images.contrast import ContrastRenderer

KEYS = [SampleKey(11, i) for i in range(6)]
ALL = ["t1", "t2", "flair", "t1ce", "pd", "random"]


def stripes(batch=1, width=10, length=24):
    """Return maps in which channel c fills columns c * width .. (c + 1) * width."""
    pv = torch.zeros(batch, 9, 9 * width, length)
    for c in range(9):
        pv[:, c, c * width : (c + 1) * width] = 1
    return pv


def tissue_means(style, keys=KEYS, width=10):
    """Return tissue name -> mean intensity in the middle of its stripe, over all keys."""
    images = ContrastRenderer(BRAIN9).render(stripes(len(keys)), [style], keys)[:, 0]
    return {
        name: float(images[:, c * width + 3 : (c + 1) * width - 3].mean())
        for c, name in enumerate(BRAIN9.names)
    }


@pytest.mark.parametrize("dataset", ["", "oasis_", "site-b_"])
def test_t1_shows_white_over_grey_over_fluid(dataset):
    m = tissue_means(dataset + "t1")
    assert m["csf"] < m["wmh"] < m["gm"] < m["deep_gm"] < m["wm"]
    assert m["tumour"] < m["gm"]


def test_t2_shows_the_reverse():
    m = tissue_means("t2")
    assert m["csf"] > m["wmh"] > m["gm"] > m["wm"]
    assert m["oedema"] > m["gm"]


def test_flair_darkens_fluid_and_lights_up_lesions():
    m = tissue_means("flair")
    assert m["csf"] < 0.25 * m["wm"]
    assert m["wm"] < m["gm"] < m["wmh"]
    assert m["oedema"] > m["gm"]


def test_contrast_agent_enhances_tumour():
    assert tissue_means("t1ce")["tumour"] > 1.2 * tissue_means("t1ce")["wm"]


def test_partial_volume_lies_between_its_tissues():
    pv = torch.zeros(6, 9, 32, 32)
    pv[:, 2], pv[:, 3] = 0.5, 0.5
    mixed = float(ContrastRenderer(BRAIN9).render(pv, ["t1"], KEYS).mean())
    m = tissue_means("t1")
    assert mixed == pytest.approx((m["gm"] + m["wm"]) / 2, rel=0.06)  # textures and bias


@pytest.mark.parametrize("style", ALL)
def test_images_lie_in_range_and_vanish_outside(style):
    pv = stripes(6)
    pv[:, 0, 40:44], pv[:, 4, 40:44] = 0.6, 0.4  # mostly background: outside as well
    image = ContrastRenderer(BRAIN9).render(pv, [style], KEYS)
    assert image.shape == (6, 1, 90, 24)
    assert image.dtype == torch.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert image[pv[:, :1] > 0.5].abs().max() == 0
    inside = image[pv[:, :1] <= 0.5]
    assert inside.mean() > 0.1
    assert (image[:, 0, 33:37].std(dim=(1, 2)) > 1e-3).all()  # not flat


def test_a_sample_depends_on_its_own_map_key_and_style_alone():
    renderer = ContrastRenderer(BRAIN9)
    together = renderer.render(stripes(6), ["t1", "random", "t2"], KEYS)
    for i in (0, 3, 5):
        alone = renderer.render(stripes(1), ["t2", "t1"], KEYS[i : i + 1])
        assert torch.equal(alone[0, 0], together[i, 2])
        assert torch.equal(alone[0, 1], together[i, 0])
    assert not torch.equal(together[0], together[1])


def test_attempt_seed_and_name_change_the_image():
    renderer = ContrastRenderer(BRAIN9)
    images = [
        renderer.render(stripes(), [style], [key])
        for style, key in [
            ("t1", SampleKey(0, 0)),
            ("t1", SampleKey(0, 0, 1)),
            ("t1", SampleKey(1, 0)),
            ("oasis_t1", SampleKey(0, 0)),
        ]
    ]
    for i, a in enumerate(images):
        for b in images[i + 1 :]:
            assert not torch.equal(a, b)


def test_random_style_draws_tissues_anew():
    order = set()
    for key in KEYS:
        m = tissue_means("random", [key])
        order.add(tuple(sorted(BRAIN9.names[1:], key=m.__getitem__)))
    assert len(order) > 3


def test_global_generators_and_arguments_are_untouched():
    pv = stripes(2)
    copy, before = pv.clone(), torch.get_rng_state()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    ContrastRenderer(BRAIN9).render(pv, ALL, KEYS[:2])
    assert torch.equal(pv, copy)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


@pytest.mark.parametrize("name", ["oasis_ct", "ct", "", "T1", "a_b_t1x", "_t1"])
def test_unknown_style_is_refused_with_the_choice(name):
    with pytest.raises(RequestError, match=r"unknown style .*t1, t2, flair, t1ce, pd, random"):
        ContrastRenderer(BRAIN9).render(stripes(), [name], KEYS[:1])


def test_styles_and_identity():
    renderer = ContrastRenderer(BRAIN9)
    assert [s.name for s in renderer.styles] == ALL
    assert {s.source for s in renderer.styles} == {"simulated"}
    assert renderer.style("site-b_flair").dataset == "site-b"
    assert renderer.style("site-b_flair").modality == "flair"
    assert renderer.subjects == ()
    assert renderer.identity["schema"] == BRAIN9.fingerprint


def test_foreign_maps_and_schemas_are_refused():
    with pytest.raises(SchemaError, match=r"\(1, 4, 8, 8\)"):
        ContrastRenderer(BRAIN9).render(torch.ones(1, 4, 8, 8) / 4, ["t1"], KEYS[:1])
    with pytest.raises(RequestError, match="liver"):
        ContrastRenderer(LabelSchema("x", (Tissue("background", 0), Tissue("liver", 1))))


def test_empty_map_gives_an_empty_image():
    pv = torch.zeros(1, 9, 16, 16)
    pv[:, 0] = 1
    assert ContrastRenderer(BRAIN9).render(pv, ["t1"], KEYS[:1]).abs().max() == 0
