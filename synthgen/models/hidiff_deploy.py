"""HiDiff's binary refiner as it runs: whole numbers in place of simulated signs.

Source: Chen et al. 2024 (HiDiff), arXiv:2407.03548, section III. Every block equals its simulation
but for the rounding of float32 (`synthgen.models.hidiff_integer`). Three ways to the same sums:
`popcount` counts bits (needs numba), `int8` is oneDNN's convolution of 8-bit integers as torch
brings it, `reference` is any torch. The two fast ones need a CPU.
"""

from __future__ import annotations

import copy
import logging
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, cast

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from synthgen.core.errors import RequestError
from synthgen.models.hidiff_binary import BinaryBlock
from synthgen.models.hidiff_integer import Folded, IntegerBlock, fold, tabulate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.models.hidiff import HiDiffRefiner, Trunks

logger = logging.getLogger(__name__)

Backend = Literal["popcount", "int8", "reference"]

_LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
_TEST_TOLERANCE = 1e-4


class TimeTable(nn.Module):
    """A linear map of the time embedding, looked up.

    Args:
        table: `(T, N)`, its result at every step.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, t: Tensor) -> Tensor:
        """Return `(B, N)` of steps t `(B,)`."""
        return cast("Tensor", self.table)[t]  # buffers are untyped


class DeployedRefiner(nn.Module):
    """A trained binary refiner, ready to run on a CPU; called as `HiDiffRefiner` is.

    Args:
        refiner: binary; it is left as it is.
        num_steps: T, the number of steps of the schedule: t is in 0 .. T - 1.
        backend: how sums are made; the fastest that works here if None.
        dtype: of the convolutions that are real: the first, the last and the conditions. All else
            is float32; bfloat16 is faster and rounds their results.

    Raises:
        RequestError: a real-valued refiner.

    Examples:
        >>> from synthgen.models.hidiff import HiDiffRefiner
        >>> refiner = HiDiffRefiner(2, 1, 1, (8, 16), ((2, 2),), num_heads=0, binary=True)
        >>> ready = DeployedRefiner(refiner, 10, backend="reference")
        >>> image = mask = prior = torch.zeros(2, 1, 16, 12)
        >>> ready(image, mask, prior, torch.tensor([0, 9])).shape
        torch.Size([2, 1, 16, 12])
    """

    def __init__(
        self,
        refiner: HiDiffRefiner,
        num_steps: int,
        *,
        backend: Backend | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if not refiner.config.binary:
            raise RequestError(
                "expected a binary refiner (binary: true), got a real-valued one; run that as it is"
            )
        backend = backend or best_backend()
        net = copy.deepcopy(refiner).float().cpu().eval().requires_grad_(requires_grad=False)
        steps = torch.arange(num_steps)
        embeddings = tabulate(net.time, get_timestep_embedding(steps, net.time_waves))
        _replace(net, embeddings, backend)
        for part in (net.stem, net.trunks, net.conditions, net.head):
            part.to(dtype)
        self.finish = _finish(net.norm, backend)
        layout = _LAYOUTS[net.config.spatial_dims]
        self.net: HiDiffRefiner = net.to(memory_format=layout)
        self.config, self.backend, self._layout = refiner.config, backend, layout

    @torch.no_grad()
    def forward(
        self,
        image: Tensor,
        y_t: Tensor,
        prior: Tensor,
        t: Tensor,
        features: Sequence[Tensor] = (),
    ) -> Tensor:
        """Return the logits `(B, K, *S)`, as `HiDiffRefiner.forward` does."""
        return self.refine(image, y_t, prior, t, self.prepare(features, image.shape[2:]))

    @torch.no_grad()
    def prepare(self, features: Sequence[Tensor], size: Sequence[int]) -> Trunks:
        """Return what the steps on one picture share, as `HiDiffRefiner.prepare` does."""
        last = [feature.float().contiguous(memory_format=self._layout) for feature in features]
        return self.net.prepare(last, size)

    @torch.no_grad()
    def refine(
        self, image: Tensor, y_t: Tensor, prior: Tensor, t: Tensor, trunks: Trunks
    ) -> Tensor:
        """Return what `forward` does, of features that `prepare` has seen."""
        net = self.net
        conditions = {
            level: block(trunk, t).float()
            for level, block, trunk in zip(net.feature_levels, net.conditions, trunks, strict=True)
        }
        joined = torch.cat([part.to(net.stem.weight.dtype) for part in (image, y_t, prior)], 1)
        x = net.stem(joined.contiguous(memory_format=self._layout))
        skips: list[Tensor] = []
        for level, (block, shrink) in enumerate(zip(net.encoder, net.shrinks, strict=True)):
            x = self._join(level, block(x, t), conditions, t)
            skips.append(x)
            x = shrink(x, t)
        x = self._middle(x, conditions, t)
        for enlarge, block in zip(net.enlarges, net.decoder, strict=True):
            skip = skips.pop()
            x = block(enlarge(x, t, size=skip.shape[2:]), t, beside=skip)
        logits: Tensor = net.head(self.finish(x).to(net.head.weight.dtype)).float()
        return logits

    def _middle(self, x: Tensor, conditions: dict[int, Tensor], t: Tensor) -> Tensor:
        """Return the coarsest map; see `HiDiffRefiner`."""
        net = self.net
        first, second = net.middle
        x = self._join(len(net.encoder), first(x, t), conditions, t)
        if len(net.x_former):
            into_segmenter, into_diffusion = net.x_former
            x = into_diffusion(into_segmenter(x, conditions[len(net.encoder)], t), x, t)
        result: Tensor = second(x, t)
        return result

    def _join(self, level: int, x: Tensor, conditions: dict[int, Tensor], t: Tensor) -> Tensor:
        if str(level) not in self.net.joins:
            return x
        joined: Tensor = self.net.joins[str(level)](x, t, beside=conditions[level])
        return joined


@cache
def best_backend() -> Backend:
    """Return the fastest way to sums that is installed and gives the right ones; the log tells."""
    tried: tuple[Backend, ...] = ("popcount", "int8")
    for backend in tried:
        if backend == "popcount" and find_spec("numba") is None:
            logger.info("binary refiner: no numba; pip install 'synthgen[numba]' makes it faster")
            continue
        if _works(backend):
            logger.info("binary refiner: %s", backend)
            return backend
        logger.warning("binary refiner: %s does not work on this machine", backend)
    return "reference"


@torch.no_grad()
def _works(backend: Backend) -> bool:
    """Return whether a small block, borders included, gives what the reference does."""
    generator = torch.Generator().manual_seed(0)
    for kernel in ((3, 3), (3, 3, 3)):
        known = _made_up(kernel, generator)
        x = torch.randn(1, known.signs.shape[1], *(5, 7, 6)[: len(kernel)], generator=generator)
        t = torch.zeros(1, dtype=torch.long)
        expected = IntegerBlock(known, integers=False)(x, t)
        try:
            got = _block(known, backend)(x, t)
        except (RuntimeError, AttributeError):  # a torch without the call
            return False
        if float((got - expected).abs().max()) > _TEST_TOLERANCE:
            return False
    return True


def _made_up(kernel: tuple[int, ...], generator: torch.Generator) -> Folded:
    """Return a block of 70 channels, more than a word, with made-up constants."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    width = 70
    return Folded(
        signs=torch.where(draw(width, width, *kernel) >= 0, 1.0, -1.0),
        scale=draw(width).abs() / width,
        bias=draw(width),
        slope=draw(width),
        threshold=draw(1, width),
        before=draw(1, width),
        after=draw(1, width),
        stride=(1,) * len(kernel),
    )


def _block(folded: Folded, backend: Backend) -> nn.Module:
    if backend == "popcount":
        from synthgen.models.hidiff_bits import PopcountBlock  # noqa: PLC0415 - needs numba

        return PopcountBlock(folded)
    return IntegerBlock(folded, integers=backend == "int8")


def _finish(norm: nn.GroupNorm, backend: Backend) -> nn.Module:
    if backend == "popcount":
        from synthgen.models.hidiff_bits import NormSilu  # noqa: PLC0415 - needs numba

        return NormSilu(norm)
    return nn.Sequential(norm, nn.SiLU())


def _replace(parent: nn.Module, embeddings: Tensor, backend: Backend) -> None:
    """Put deployed blocks and tables in the place of binary blocks and time heads below.

    Time heads are what the layout calls `time`: linear maps of the embedding.
    """
    for name, child in list(parent.named_children()):
        if isinstance(child, BinaryBlock):
            setattr(parent, name, _block(fold(child, embeddings), backend))
        elif name == "time" and isinstance(child, nn.Linear):
            setattr(parent, name, TimeTable(tabulate(child, embeddings)))
        else:
            _replace(child, embeddings, backend)
