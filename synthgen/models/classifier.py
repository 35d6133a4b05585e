"""Two-head classifier of modality and dataset; its features serve the perceptual loss offline.

Source: Fernandez et al. 2022, arXiv:2209.08256: a DenseNet-121 trunk (Huang et al. 2017,
arXiv:1608.06993) with a second linear head. `arch="small"` is ours: a few strided convolutions
that train in minutes on a CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, assert_never

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

Architecture = Literal["densenet121", "small"]

_DROPOUT = 0.2
_SLOPE = 0.2
_GROUPS = 8


class StyleLogits(NamedTuple):
    """Logits `(B, num_modalities)` and `(B, num_datasets)`."""

    modality: Tensor
    dataset: Tensor


class ModalityDatasetClassifier(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Tell the modality and the dataset of an image.

    Args:
        num_modalities: classes of the first head.
        num_datasets: classes of the second head.
        arch: `densenet121` (6.95 M parameters) or `small`.
        width: channels of the first layer of `small`, a multiple of 8; later layers double it
            up to four times.
        in_channels: image channels.

    Examples:
        >>> import torch
        >>> classifier = ModalityDatasetClassifier(3, 2, arch="small", width=8)
        >>> logits = classifier(torch.zeros(1, 1, 32, 32))
        >>> logits.modality.shape, logits.dataset.shape
        (torch.Size([1, 3]), torch.Size([1, 2]))
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_modalities: int,
        num_datasets: int,
        arch: Architecture = "densenet121",
        width: int = 16,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        self.stages, features = _make_trunk(arch, width, in_channels)
        self.modality_head = nn.Linear(features, num_modalities)
        self.dataset_head = nn.Linear(features, num_datasets)

    def forward(self, image: Tensor) -> StyleLogits:
        """Return the logits of both heads.

        Args:
            image: `(B, in_channels, X, Y)` in [-1, 1].
        """
        pooled = functional.relu(self.features(image)[-1]).mean(dim=(2, 3))
        return StyleLogits(self.modality_head(pooled), self.dataset_head(pooled))

    def features(self, image: Tensor) -> list[Tensor]:
        """Return the feature map of every stage, from fine to coarse (perceptual features).

        Args:
            image: `(B, in_channels, X, Y)` in [-1, 1]. `densenet121` gives five maps at 1/4 to
                1/32 of the size, `small` four at 1/2 to 1/16.
        """
        maps: list[Tensor] = []
        x = image
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _make_trunk(arch: Architecture, width: int, in_channels: int) -> tuple[nn.ModuleList, int]:
    """Return the stages and the channels of the last one."""
    match arch:
        case "densenet121":
            return _densenet_stages(in_channels), 1024
        case "small":
            if width % _GROUPS:
                raise RequestError(
                    f"classifier: width must be a multiple of {_GROUPS}, got {width}"
                )
            return nn.ModuleList(_small_stages(width, in_channels)), 4 * width
        case _:
            assert_never(arch)


def _small_stages(width: int, in_channels: int) -> Iterator[nn.Module]:
    """Yield four strided convolutions; the first has no norm, so that intensities pass."""
    widths = (width, 2 * width, 4 * width, 4 * width)
    for level, (wide, narrow) in enumerate(zip((in_channels, *widths[:-1]), widths, strict=True)):
        layers: list[nn.Module] = [nn.Conv2d(wide, narrow, 3, stride=2, padding=1)]
        if level:
            layers.append(nn.GroupNorm(_GROUPS, narrow))
        yield nn.Sequential(*layers, nn.LeakyReLU(_SLOPE))


def _densenet_stages(in_channels: int) -> nn.ModuleList:
    """Split MONAI's DenseNet-121 trunk behind its stem and its four dense blocks."""
    # MONAI takes seconds to import, and only this architecture needs it.
    from monai.networks.nets.densenet import DenseNet121  # noqa: PLC0415

    trunk = DenseNet121(
        spatial_dims=2, in_channels=in_channels, out_channels=1, dropout_prob=_DROPOUT
    ).features
    layers = dict(trunk.named_children())
    names = [
        ["conv0", "norm0", "relu0", "pool0"],
        ["denseblock1"],
        ["transition1", "denseblock2"],
        ["transition2", "denseblock3"],
        ["transition3", "denseblock4", "norm5"],
    ]
    return nn.ModuleList(nn.Sequential(*(layers[name] for name in stage)) for stage in names)
