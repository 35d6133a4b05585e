"""Spectral normalisation, exact folding of it for export, and weight initialisation.

Spectral normalisation: Miyato et al. 2018, arXiv:1802.05957. Initialisation: Xavier-normal with
gain 0.02, as used for SPADE (Park et al. 2019, arXiv:1903.07291); normal and orthogonal as used
for DARL (Kim et al. 2023, arXiv:2209.14566).
"""

from __future__ import annotations

from typing import Literal, TypeVar, assert_never

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

ModelT = TypeVar("ModelT", bound=ModelMixin)
Scheme = Literal["xavier", "normal", "orthogonal"]


def spectral_conv(conv: nn.Conv2d, *, enabled: bool) -> nn.Conv2d:
    """Put spectral normalisation on a convolution that the caller has just built.

    The state keys of the weight become `parametrizations.weight.original`, `.0._u` and `.0._v`,
    so the power iteration is saved and resumed with the weights.
    """
    if enabled:
        parametrizations.spectral_norm(conv)
    return conv


def folded_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that `model` has in eval mode without its parametrisations.

    Each parametrised weight stands under its plain name, divided by the stored estimate of its
    largest singular value. All tensors are copies; `model` keeps its mode and its weights.
    """
    state = {
        key: value.clone()
        for key, value in model.state_dict().items()
        if "parametrizations." not in key
    }
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        # In training mode, reading a weight would move the power iteration.
        was_training = module.training
        module.eval()
        for tensor_name, _ in module.get_submodule("parametrizations").named_children():
            state[f"{name}.{tensor_name}"] = getattr(module, tensor_name).detach().clone()
        module.train(was_training)
    return state


def fold_spectral_norm(model: ModelT) -> ModelT:
    """Return an equal model, in eval mode, with the spectral norm multiplied into the weights.

    The copy gives the same outputs in eval mode, is built with `spectral_norm=False`, and costs
    less per forward pass. Fold in float32, before any cast: in bfloat16 the singular values
    would be rounded. `model` is left as it is.

    Args:
        model: one of our models whose constructor has a `spectral_norm` setting.
    """
    # Not from_config: it takes positionally given settings for defaults and drops them.
    settings = {k: v for k, v in model.config.items() if not k.startswith("_")}
    settings["spectral_norm"] = False
    with torch.device("meta"):
        folded: ModelT = type(model)(**settings)
    folded.load_state_dict(folded_state(model), assign=True)
    folded.eval()
    return folded


def initialise_weights(
    model: nn.Module,
    generator: torch.Generator,
    *,
    gain: float = 0.02,
    scheme: Scheme = "xavier",
) -> None:
    """Draw all convolution and linear weights in place; biases become zero.

    Args:
        model: module to initialise; spectrally normalised weights are drawn as well.
        generator: CPU generator, the only source of the draw.
        gain: gain of `xavier` and `orthogonal` weights, standard deviation of `normal` ones
            (0.02 in the papers on SPADE; DARL has `normal` 0.02 and `orthogonal` 1).
        scheme: the distribution.
    """
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        weight = _raw_weight(module)
        drawn = torch.empty(weight.shape)
        match scheme:
            case "xavier":
                nn.init.xavier_normal_(drawn, gain=gain, generator=generator)
            case "normal":
                nn.init.normal_(drawn, std=gain, generator=generator)
            case "orthogonal":
                nn.init.orthogonal_(drawn, gain=gain, generator=generator)
            case _:
                assert_never(scheme)
        with torch.no_grad():
            weight.copy_(drawn)
            if module.bias is not None:
                module.bias.zero_()


def _raw_weight(module: nn.Conv2d | nn.Linear) -> Tensor:
    """Return the trainable tensor behind `module.weight`."""
    if parametrize.is_parametrized(module, "weight"):
        return module.get_parameter("parametrizations.weight.original")
    return module.weight
