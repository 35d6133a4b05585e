import pytest

from synthgen.core.errors import RecipeError
from synthgen.recipe import load_recipe


@pytest.mark.parametrize("name", ["brainspade2d", "small", "starter_labels", "tiny"])
def test_every_recipe_trains_labels(name):
    assert load_recipe(name).labels is not None


def test_the_papers_numbers():
    labels = load_recipe("brainspade2d").labels
    vae, diffusion = labels.autoencoder, labels.diffusion
    losses = vae.losses
    assert (losses.l1, losses.kl, losses.multi_resolution, losses.adversarial) == (
        1.0, 1e-6, 0.002, 0.005,
    )  # fmt: skip
    assert (vae.train.lr, vae.discriminator.lr, vae.train.lr_decay) == (5e-5, 1e-4, 0.999995)
    assert vae.train.batch_size * vae.train.accumulation == 256
    assert (diffusion.target, diffusion.loss, diffusion.condition.mode) == (
        "epsilon",
        "l1",
        "concat",
    )
    assert (diffusion.beta_schedule, diffusion.beta_start, diffusion.beta_end) == (
        "scaled_linear", 0.0015, 0.0195,
    )  # fmt: skip
    assert (labels.sampling.sampler, labels.sampling.steps, labels.sampling.eta) == (
        "ddim",
        50,
        1.0,
    )
    assert labels.sampling.background_threshold == 0.075


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("labels.autoencoder.kind=diffusers", "patch_size other than 1 needs kind: patch"),
        ("labels.autoencoder.norm_groups=7", "multiple of norm_groups"),
        ("labels.diffusion.attention=[true]", "one value for each of block_out_channels"),
        ("labels.sampling.sampler=euler", "sampler euler does not fit target v"),
        ("labels.diffusion.target=flow", "does not fit|flow"),
        ("labels.diffusion.train.lr=-1", "labels.diffusion.train.lr"),
        ("labels.diffusion.train.lrr=1", "unknown key 'labels.diffusion.train.lrr'.*lr"),
        ("labels.diffusion.condition.dropout=2", "labels.diffusion.condition.dropout"),
        ("labels.autoencoder.head=sigmoid", "labels.autoencoder.head"),
    ],
)
def test_an_unusable_setting_is_named(override, message):
    overrides = [override]
    if "flow" in override:
        overrides.append("labels.sampling.sampler=ddim")
    with pytest.raises(RecipeError, match=message):
        load_recipe("tiny", overrides)
