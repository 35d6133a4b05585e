import pytest
import torch

from synthgen.core.schema import BRAIN9
from synthgen.labels.build import build_autoencoder, build_unet, num_parameters
from synthgen.models.autoencoder import (
    BrainSpadeAutoencoder,
    PatchAutoencoder,
    apply_head,
    build_autoencoder_kl,
)
from synthgen.recipe import load_recipe


@pytest.fixture(scope="module")
def paper():
    return load_recipe("brainspade2d").labels


def test_paper_autoencoder_has_the_published_size(paper):
    with torch.device("meta"):
        assert num_parameters(build_autoencoder(paper.autoencoder, 7, 0)) == 12_299_246
        assert num_parameters(build_autoencoder(paper.autoencoder, 6, 0)) == 12_298_093
        assert num_parameters(build_autoencoder(paper.autoencoder, 9, 0)) == 12_301_552


def test_diffusers_autoencoder_has_the_measured_size():
    with torch.device("meta"):
        assert num_parameters(build_autoencoder_kl(7, (64, 128, 256), 2, 3, 32)) == 13_857_155


def test_paper_unets_have_the_published_sizes(paper):
    assert len(BRAIN9.lesions) == 3
    recipe = paper.diffusion
    with torch.device("meta"):
        assert num_parameters(build_unet(recipe, 3, 3, 0)) == 387_243_523
    unconditional = recipe.model_copy(
        update={
            "block_out_channels": (256, 512, 1024),
            "attention": (False, True, True),
            "resample": "conv",
            "condition": recipe.condition.model_copy(update={"mode": "none"}),
        }
    )
    with torch.device("meta"):
        assert num_parameters(build_unet(unconditional, 3, 3, 0)) == 256_410_115


@pytest.mark.parametrize("recipe", ["brainspade2d", "small", "tiny"])
def test_initial_weights_depend_on_the_seed_alone(recipe, untouched_rng):
    settings = load_recipe(recipe).labels.autoencoder
    narrow = settings.model_copy(
        update={"block_out_channels": (8,) * len(settings.block_out_channels), "norm_groups": 4}
    )
    one, two, other = (build_autoencoder(narrow, 9, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


AUTOENCODERS = {
    "diffusers": lambda: build_autoencoder_kl(7, (4, 4, 4), 1, 3, 4, attention=False),
    "patch": lambda: PatchAutoencoder(7, 7, (8, 8), 1, 3, 4, patch_size=2, attention=False),
    "brainspade": lambda: BrainSpadeAutoencoder(7, 7, (4, 4, 4), 1, 3, 4),
}


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_a_slice_becomes_a_small_latent_and_returns(kind):
    vae = AUTOENCODERS[kind]().eval()
    with torch.inference_mode():
        posterior = vae.encode(torch.zeros(1, 7, 192, 256)).latent_dist
        assert posterior.mean.shape == posterior.logvar.shape == (1, 3, 48, 64)
        assert vae.decode(posterior.mean).sample.shape == (1, 7, 192, 256)


@pytest.mark.parametrize("kind", ["patch", "brainspade"])
def test_scaling_factor_and_weights_survive_saving(kind, tmp_path):
    vae = AUTOENCODERS[kind]()
    vae.register_to_config(scaling_factor=1.625)
    vae.save_pretrained(tmp_path)
    loaded = type(vae).from_pretrained(tmp_path)
    assert loaded.config.scaling_factor == 1.625
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in vae.state_dict().items())


def test_brainspade_posterior_is_the_one_of_monai():
    vae = BrainSpadeAutoencoder(3, 3, (4, 4), 1, 2, 4).eval()
    pv = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mu, sigma = vae.net.encode(pv)
    posterior = vae.encode(pv).latent_dist
    torch.testing.assert_close(posterior.mean, mu)
    torch.testing.assert_close(posterior.std, sigma)


@pytest.mark.parametrize("head", ["softmax", "linear"])
def test_a_head_gives_partial_volumes(head):
    raw = 3 * torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    pv = apply_head(raw.bfloat16(), head, background_threshold=0.075)
    assert pv.dtype == torch.float32
    assert pv.min() >= 0
    assert (pv.sum(dim=1) - 1).abs().max() < 1e-6


def test_linear_head_clamps_fills_background_and_normalises():
    raw = torch.tensor([[0.3, 0.07, 0.02], [0.2, 1.4, -3.0], [0.0, 0.0, 0.0]])  # (pixel, channel)
    pv = apply_head(raw.T.reshape(1, 3, 3, 1), "linear", background_threshold=0.075)
    expected = torch.tensor([[1.0, 0, 0], [0.2 / 1.2, 1.0 / 1.2, 0], [1.0, 0, 0]])
    torch.testing.assert_close(pv.reshape(3, 3).T, expected)


def test_a_low_temperature_sharpens_the_softmax_head():
    raw = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1)
    sharp = apply_head(raw, "softmax", temperature=0.5)
    torch.testing.assert_close(sharp[:, 1], torch.sigmoid(torch.tensor([[[4.0]]])))
    torch.testing.assert_close(sharp, apply_head(2 * raw, "softmax"))
