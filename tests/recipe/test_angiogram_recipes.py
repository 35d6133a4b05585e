"""Recipes of angiograms: the paper's numbers, and what does not fit is one clear line."""

from __future__ import annotations

import pytest

from synthgen.core.errors import RecipeError
from synthgen.models import darl
from synthgen.recipe import angiograms, dump, load_recipe


@pytest.mark.parametrize("name", ["darl", "darl_small", "tiny_vessels"])
def test_they_are_read_and_written_back(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.label_schema.name == "vessel"
    path = tmp_path / "r.yaml"
    path.write_text(dump(recipe))
    assert load_recipe(path) == recipe


def test_the_faithful_recipe_has_the_published_numbers():
    darl = load_recipe("darl").angiograms
    weights = darl.losses
    assert (weights.diffusion, weights.adversarial_mask, weights.cycle) == (1.0, 0.2, 5.0)
    assert (weights.dice, weights.cldice, weights.background, weights.pairs) == (0, 0, 0, 0)
    assert (darl.schedule.segment_t, darl.schedule.paint_t) == (200, 2000)
    assert darl.schedule.shared_noise
    assert darl.train.steps == 150 * 1621
    assert darl.train.lr_generator == darl.train.lr_discriminator == 5e-6
    assert darl.reduction == 32


def test_a_recipe_without_angiograms_keeps_its_fingerprint():
    """Model cards and running trainings quote it."""
    assert "angiograms" not in load_recipe("tiny").model_dump(exclude_none=True)
    with_section = load_recipe("tiny_vessels")
    without = with_section.model_copy(update={"angiograms": None})
    assert with_section.fingerprint != without.fingerprint


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.crop=30", "data.crop must be divisible by 4.*got 30"),
        ("noise_predictor.multipliers=[1, 2, 2, 2, 2, 2, 2]", "data.crop must be divisible by 64"),
        ("schedule.segment_t=3000", "at most num_train_timesteps 2000, got 3000"),
        ("use.render_t=3000", "use.render_t must be at most"),
        ("data.masks=pool", "losses.pairs needs vessel trees"),
        ("data.masks=squid", "angiograms.data.masks"),
        ("losses.cycle_kind=l2", "angiograms.losses.cycle_kind"),
        ("losses.cycel=1", "unknown key 'angiograms.losses.cycel'.*did you mean cycle"),
        ("schedule.beta_end=1.5", "angiograms.schedule.beta_end"),
        ("train.lr=1e-3", "unknown key 'angiograms.train.lr'"),
    ],
)
def test_what_does_not_fit_is_one_line(override, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe("tiny_vessels", [f"angiograms.{override}"])
    assert "\n" not in str(caught.value)


def test_two_scales_are_refused():
    overrides = ["angiograms.data.side=64", "angiograms.data.field_diameter=50.0"]
    with pytest.raises(RecipeError, match="give side or field_diameter"):
        load_recipe("tiny_vessels", overrides)


def test_the_ablation_without_diffusion_is_a_null():
    recipe = load_recipe("tiny_vessels", ["angiograms.noise_predictor=null"])
    assert recipe.angiograms.noise_predictor is None
    assert recipe.angiograms.reduction == 4


def test_the_recipe_knows_what_the_generator_shrinks_by():
    assert angiograms.GENERATOR_REDUCTION == darl.GENERATOR_REDUCTION
