"""Acquisitions in recipes: checked where they are read, given once, each with its source."""

from __future__ import annotations

import pytest

from synthgen.core.errors import RecipeError
from synthgen.recipe import load_recipe

KEY = "images.protocol_styles"
FLAIR = (
    "{dataset: oasis, modality: flair, "
    "sequence: inversion, tr: 9000, te: 91, field_t: 3, source: x}"
)


def test_a_protocol_style_is_read():
    (style,) = load_recipe("tiny", [f"{KEY}=[{FLAIR}]"]).images.protocol_styles
    assert style.style == "oasis_flair"
    assert style.acquisition.sequence == "inversion"
    assert style.acquisition.ti is None
    assert style.acquisition.field_t == 3.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("te: 91", "te: 9100"), r"'images\.protocol_styles\.0'.*expected 0 < te < tr"),
        (("inversion,", "epi,"), r"'images\.protocol_styles\.0\.sequence'.*got 'epi'"),
        (("field_t: 3,", "field_t: 7,"), "field_t must be 1.5 or 3, got 7"),
        ((", source: x", ""), r"missing key 'images\.protocol_styles\.0\.source'"),
        (("te: 91", "te: 91, flip_deg: 10"), "has no flip_deg of its own, got 10"),
        (("oasis,", "OASIS,"), r"'images\.protocol_styles\.0\.dataset'"),
    ],
)
def test_a_wrong_protocol_is_one_clear_line(change, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe("tiny", [f"{KEY}=[{FLAIR.replace(*change)}]"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [KEY, "images.acquisitions"])
def test_a_style_has_one_acquisition(key):
    overrides = [f"{KEY}=[{FLAIR}]", f"{key}=[{FLAIR}, {FLAIR}]"]
    with pytest.raises(RecipeError, match="more than one acquisition is given for oasis_flair"):
        load_recipe("tiny", overrides)


def test_the_starter_recipe_has_the_styles_of_the_paper():
    images = load_recipe("starter_images").images
    named = {entry.style for entry in images.protocol_styles}
    assert {
        "oasis_t1",
        "oasis_flair",
        "abide_t1",
        "sabre_t1",
        "sabre_flair",
        "brats_flair",
    } <= named
    known = {entry.modality for entry in images.acquisitions}
    assert {entry.modality for entry in images.protocol_styles} <= known


def test_texture_without_grain_is_refused():
    with pytest.raises(RecipeError, match="grain_bands must not be 0"):
        load_recipe("tiny", ["images.losses.texture=1.0"])
    grainy = ["images.generator.grain_bands=2", "images.losses.texture=1.0"]
    assert load_recipe("tiny", grainy).images.losses.texture == 1.0
