"""Tiny real model folders, untrained: a label diffusion pipeline and a SPADE pipeline."""

import torch
from diffusers import UNet2DModel

from synthgen.core.schema import BRAIN9
from synthgen.diffusion.schedule import build_training_scheduler
from synthgen.images.spade import SpadePipeline, SpadeRecord
from synthgen.labels.condition import ConditionScale
from synthgen.labels.diffusion import LabelDiffusionPipeline
from synthgen.labels.folder import ModelDetails, write_model
from synthgen.models.autoencoder import build_autoencoder_kl
from synthgen.models.condition import ConditionEmbedding
from synthgen.models.spade import SPADEGenerator
from synthgen.models.style_bank import StyleBank
from synthgen.models.style_encoder import StyleEncoder

SHAPE = (64, 96)
SUBJECTS = ("a/sub-01", "a/sub-02")


def write_label_model(folder, seed=0):
    """Write an untrained label model for maps of `SHAPE`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        unet = UNet2DModel(
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 8),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
            class_embed_type="identity",
            add_attention=False,
        )
        pipeline = LabelDiffusionPipeline(
            vae=build_autoencoder_kl(9, (8, 8, 8), 1, 3, 4, attention=False),
            unet=unet,
            condition_embedding=ConditionEmbedding(4, 32, "class", 2),
            scheduler=build_training_scheduler("epsilon", 1000, "scaled_linear", 0.0015, 0.0195),
            latent_size=(SHAPE[0] // 4, SHAPE[1] // 4),
            sampler="dpm",
            num_inference_steps=4,
            guidance=1.0,
        )
    scale = ConditionScale(("wmh", "tumour", "oedema", "position"), (0.1, 0.2, 0.0, 1.0))
    details = ModelDetails(BRAIN9, SHAPE, scale, SUBJECTS, position=(0.2, 0.9))
    write_model(pipeline, folder, details, training={})
    return folder


def write_image_model(folder, seed=0):
    """Write an untrained image model: fitted styles a_t1 and a_flair, a simulated b_flair."""
    styles = [
        {
            "name": f"{dataset}_{modality}",
            "dataset": dataset,
            "modality": modality,
            "source": source,
        }
        for dataset, modality, source in (
            ("a", "t1", "fitted"),
            ("a", "flair", "fitted"),
            ("b", "flair", "simulated"),
        )
    ]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        codes = {style["name"]: torch.randn(6, 4) for style in styles}
        pipeline = SpadePipeline(
            SPADEGenerator(9, SHAPE, base_channels=2, latent_dim=4, hidden=8, spectral_norm=False),
            StyleEncoder(base_channels=2, latent_dim=4),
            StyleBank.from_codes(styles, codes),
        )
    pipeline.save(folder, SpadeRecord(BRAIN9, ("a/sub-02", "b/sub-03")))
    return folder
