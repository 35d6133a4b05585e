"""The peer's networks, rebuilt from parts with random weights: what they cost, not what they draw.

brainSPADE as released (Fernandez et al. 2022, arXiv:2209.08256): a label U-Net of 556 352 771
parameters (planes and one cross-attention token), a VAE of width 64, a SPADE generator with
ngf 64 and codes of 256; 192 x 256, latents 3 x 48 x 64, seven tissues, eager fp32, one slice at a
time. Its pipeline takes 84 DDIM steps, its training script 1000 ancestral ones. Our SPADE blocks
skip work that the released ones do twice, so the peer is a little faster here than in truth, and
its files (7 MB a slice) are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from monai.networks.nets import DiffusionModelUNet

from synthgen.models.autoencoder import BrainSpadeAutoencoder
from synthgen.models.spade import SPADEGenerator

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = {"84 steps": 84, "1000 steps": 1000}
TISSUES, SHAPE, LATENT = 7, (192, 256), (3, 48, 64)
_WIDTHS = (256, 512, 768, 1024)


def peer_stages() -> dict[str, Callable[[], object]]:
    """Return one U-Net step, one decoding and one painting, each of one slice."""
    unet = DiffusionModelUNet(
        spatial_dims=2,
        in_channels=2 * LATENT[0],
        out_channels=LATENT[0],
        num_res_blocks=2,
        channels=_WIDTHS,
        attention_levels=(False, True, True, True),
        num_head_channels=_WIDTHS,
        with_conditioning=True,
        cross_attention_dim=4,
        resblock_updown=True,
        norm_eps=1e-6,
    ).eval()
    vae = BrainSpadeAutoencoder(TISSUES, TISSUES).eval()
    spade = SPADEGenerator(
        TISSUES, SHAPE, base_channels=64, latent_dim=256, pv_resize="nearest"
    ).eval()
    x_t, t, token = torch.zeros(1, 6, *LATENT[1:]), torch.zeros(1), torch.zeros(1, 1, 4)
    z, code = torch.zeros(1, *LATENT), torch.zeros(1, 256)
    # Nothing repeats in it: the peer convolves the background like all else.
    pv = torch.rand(1, TISSUES, *SHAPE).softmax(dim=1)
    return {
        "u-net step": lambda: unet(x_t, t, token),
        "decoder": lambda: vae.decode(z).sample,
        "spade": lambda: spade(pv, code)[0],
    }


def peer_seconds(stages: dict[str, float], steps: int) -> float:
    """Return the seconds of one labelled slice from those of its parts."""
    return steps * stages["u-net step"] + stages["decoder"] + stages["spade"]
