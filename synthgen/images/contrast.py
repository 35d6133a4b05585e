"""The training-free contrast renderer: MR signal equations on partial-volume maps.

Every tissue gets the intensity that its relaxation times give under a protocol; partial volumes
mix them; texture, coil bias, resolution and Rician noise follow. The baseline that a trained
image generator must beat, and a way to render any style without weights.

Signal equations and tissue constants at 1.5 T: `synthgen.core.acquisition`; tumour's T1 shortened
by contrast agent was chosen here. Style "random" draws tissue intensities without any physics
(Billot et al. 2023, doi:10.1016/j.media.2023.102789).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from synthgen.core.acquisition import (
    TISSUES,
    Acquisition,
    PulseSequence,
    TissueConstants,
    null_time,
    signal,
)
from synthgen.core.errors import RequestError, SchemaError
from synthgen.core.rng import SampleKey, Stream
from synthgen.images import Style

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from synthgen.core.schema import LabelSchema

RANDOM = "random"

_NAME = re.compile(r"(?:(?P<dataset>[a-z0-9][a-z0-9-]*)_)?(?P<modality>[a-z0-9]+)")

_TUMOUR_T1_WITH_CONTRAST = 380.0
_TEXTURE_PX = (7.0, 4.0, 1.6, 0.9)


@dataclass(frozen=True)
class Protocol:
    """One pulse sequence.

    Attributes:
        sequence: "gradient", "spin" or "inversion" (the inversion time nulls CSF).
        tr: lowest and highest repetition time in ms.
        te: lowest and highest echo time in ms.
        flip_deg: lowest and highest flip angle.
        reference: the tissue that `level` speaks of.
        level: its intensity relative to the volume's robust maximum (measured on MS patients'
            scans in four modalities; vessels and dura, not in the maps, are what lies above).
        contrast_agent: whether tumour enhances.
    """

    sequence: PulseSequence
    tr: tuple[float, float]
    te: tuple[float, float]
    reference: str
    level: float
    flip_deg: tuple[float, float] = (90.0, 90.0)
    contrast_agent: bool = False


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "t1": Protocol("gradient", (14, 20), (4, 10), "wm", 0.90, (27, 38)),
        "t2": Protocol("spin", (3500, 5500), (75, 100), "csf", 0.93),
        "flair": Protocol("inversion", (8000, 11000), (105, 140), "gm", 0.80),
        "t1ce": Protocol("gradient", (14, 20), (4, 10), "wm", 0.72, (27, 38), True),
        "pd": Protocol("spin", (3000, 4500), (15, 25), "gm", 0.85),
    }
)
"""Protocols by modality."""


class ContrastRenderer:
    """Renders label maps by MR physics; no weights, no subjects.

    A style is a modality (`t1`, `t2`, `flair`, `t1ce`, `pd`, `random`), alone or after any data
    set's name: `oasis_t1`. A name fixes an invented protocol (echo times, noise, resolution), so
    two names look like two scanners; nothing is known of the real one.

    Args:
        schema: the maps' schema; each tissue but the background must be in `TISSUES`.

    Raises:
        RequestError: the schema has a tissue without constants.

    Examples:
        >>> from synthgen.core.schema import BRAIN9
        >>> renderer = ContrastRenderer(BRAIN9)
        >>> pv = torch.zeros(1, 9, 16, 16)
        >>> pv[:, 3] = 1
        >>> renderer.render(pv, ["t1", "flair"], [SampleKey(0, 0)]).shape
        torch.Size([1, 2, 16, 16])
    """

    def __init__(self, schema: LabelSchema) -> None:
        unknown = [name for name in schema.names[1:] if name not in TISSUES]
        if unknown:
            raise RequestError(
                f"the contrast renderer has no constants for {', '.join(unknown)} of schema "
                f"'{schema.name}'; it knows {', '.join(TISSUES)}"
            )
        self._schema = schema

    @property
    def schema(self) -> LabelSchema:
        """The label schema of the maps it paints."""
        return self._schema

    @property
    def styles(self) -> tuple[Style, ...]:
        """The bare modalities; each also works after a data set's name."""
        return tuple(self.style(name) for name in (*PROTOCOLS, RANDOM))

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides its images besides seed, style and labels."""
        return {"renderer": "contrast", "version": 1, "schema": self._schema.fingerprint}

    @property
    def subjects(self) -> tuple[str, ...]:
        """No real subject was seen."""
        return ()

    def style(self, name: str) -> Style:
        """Return the style of a name.

        Raises:
            RequestError: the name's modality is unknown.
        """
        match = _NAME.fullmatch(name)
        modality = match["modality"] if match else ""
        if match is None or modality not in (*PROTOCOLS, RANDOM):
            raise RequestError(
                f"unknown style {name!r}; the contrast renderer knows "
                f"{', '.join((*PROTOCOLS, RANDOM))}, alone or as DATASET_MODALITY (oasis_flair)"
            )
        return Style(name, match["dataset"] or "generic", modality, "simulated")

    def render(self, pv: Tensor, styles: Sequence[str], keys: Sequence[SampleKey]) -> Tensor:
        """Paint a batch.

        Args:
            pv: float32 `(B, C, X, Y)` in [0, 1], summing to 1 over C.
            styles: M style names.
            keys: B keys; an image depends on its own map, key and style name alone.

        Returns:
            float32 `(B, M, X, Y)` in [0, 1] on the CPU, exactly 0 where background pv > 0.5.

        Raises:
            RequestError: an unknown style.
            SchemaError: maps of another number of channels, or one key per map missing.
        """
        if pv.ndim != 4 or pv.shape[1] != self._schema.channels or len(keys) != len(pv):
            raise SchemaError(
                f"expected pv (B, {self._schema.channels}, X, Y) with B keys, got shape "
                f"{tuple(pv.shape)} and {len(keys)} keys"
            )
        chosen = [self.style(name) for name in styles]
        maps = pv.detach().to("cpu", torch.float32).numpy()
        images = [
            [self._paint(m, style, key) for style in chosen]
            for m, key in zip(maps, keys, strict=True)
        ]
        return torch.from_numpy(np.asarray(images, dtype=np.float32))

    def _paint(
        self, pv: npt.NDArray[np.float32], style: Style, key: SampleKey
    ) -> npt.NDArray[np.float32]:
        """Paint one map `(C, X, Y)`."""
        exposure = self.expose(style, key)
        quality, rng = exposure.quality, exposure.rng
        fields = texture_fields(pv.shape[1:], rng)
        image = exposure.mix(pv[1:], fields, exposure.blend(rng))
        image = ndimage.gaussian_filter(image, quality.blur_px, mode="nearest")
        image = image * np.exp(quality.bias * smooth_field(pv.shape[1:], rng))
        image = rician(image, quality.noise, quality.noise_blur_px, rng)
        image = np.clip(image, 0, 1)
        image[pv[0] > 0.5] = 0
        return image.astype(np.float32)

    def expose(self, style: Style, key: SampleKey, axes: int = 2) -> Exposure:
        """Draw how one image of a style is taken.

        Args:
            style: what to paint.
            key: of the sample; the exposure depends on it and on the style's name alone.
            axes: 2 for a slice, 3 for a volume.
        """
        mixed = SampleKey(_hash(f"{key.seed}/{style.name}"), key.index, key.attempt)
        scanner = SampleKey(_hash(style.dataset), 0).numpy(Stream.STYLE)
        means = self._means(style, scanner, mixed.numpy(Stream.STYLE))
        rng = mixed.numpy(Stream.RENDER)
        textures = np.asarray([TISSUES[name].texture for name in self._schema.names[1:]])
        return Exposure(means, textures, Quality.draw(scanner, rng, axes), rng)

    def _means(
        self, style: Style, scanner: np.random.Generator, rng: np.random.Generator
    ) -> npt.NDArray[np.float64]:
        """Return the tissues' intensities, background left out."""
        names = self._schema.names[1:]
        if style.modality == RANDOM:
            means = rng.uniform(0.05, 1.0, len(names))
            return np.asarray(0.92 * means / means.max())
        protocol = PROTOCOLS[style.modality]
        # The scanner chooses a place in each range, the sample moves a little around it.
        place = np.clip(scanner.uniform(0.15, 0.85, 3) + rng.normal(0, 0.06, 3), 0, 1)
        tr, te, flip = (
            low + p * (high - low)
            for p, (low, high) in zip(
                place, (protocol.tr, protocol.te, protocol.flip_deg), strict=True
            )
        )
        ti = null_time(TISSUES["csf"].t1, tr) * rng.uniform(0.92, 1.0)
        acquisition = Acquisition(
            protocol.sequence,
            tr,
            te,
            ti=ti if protocol.sequence == "inversion" else None,
            flip_deg=flip if protocol.sequence == "gradient" else None,
        )
        values = {
            name: signal(acquisition, _varied(name, protocol, rng))
            for name in TISSUES  # all, in one order: a schema does not shift the draws
        }
        level = protocol.level * rng.uniform(0.96, 1.04)
        return level * np.asarray([values[name] for name in names]) / values[protocol.reference]


@dataclass(frozen=True)
class Quality:
    """Image quality: of the scanner, varied a little by the sample.

    Attributes:
        blur_px: standard deviation of the resolution along each axis, in pixels of 1 mm.
        bias: largest log of the coil bias.
        noise: standard deviation of the noise, in units of the robust maximum.
        noise_blur_px: correlation of the noise.
    """

    blur_px: tuple[float, ...]
    bias: float
    noise: float
    noise_blur_px: float

    @classmethod
    def draw(cls, scanner: np.random.Generator, rng: np.random.Generator, axes: int) -> Quality:
        """Draw the quality of an image of so many axes."""
        blur = scanner.uniform(0.35, 0.65, axes) * rng.uniform(0.9, 1.1, axes)
        return cls(
            blur_px=tuple(float(b) for b in blur),
            bias=float(rng.uniform(0.02, 0.12)),
            noise=float(scanner.uniform(0.014, 0.030) * rng.uniform(0.8, 1.2)),
            noise_blur_px=float(scanner.uniform(0.35, 0.6)),
        )


@dataclass(frozen=True)
class Exposure:
    """How one image is taken.

    Attributes:
        means: `(T,)` intensity of each tissue, background left out, robust maximum 1.
        textures: `(T,)` relative texture of each tissue.
        quality: of the image.
        rng: what draws the rest.
    """

    means: npt.NDArray[np.float64]
    textures: npt.NDArray[np.float64]
    quality: Quality
    rng: np.random.Generator

    def blend(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """Draw each tissue's blend `(T, 4)` of the texture fields, of unit length."""
        weights = rng.normal(0, 1, (len(self.means), len(_TEXTURE_PX)))
        return np.asarray(weights / np.linalg.norm(weights, axis=1, keepdims=True))

    def mix(
        self,
        tissues: npt.NDArray[np.float32],
        fields: npt.NDArray[np.floating[Any]],
        blend: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.float64]:
        """Mix textured tissues by partial volume, voxel by voxel.

        Args:
            tissues: partial volumes `(T, *S)`, background left out.
            fields: `texture_fields` there, `(4, *S)`.
            blend: of `blend`.

        Returns:
            Intensities `(*S)`, 0 or more.
        """
        per_tissue = self.textures.reshape(-1, *[1] * (tissues.ndim - 1))
        gains = 1 + per_tissue * np.einsum("tf,f...->t...", blend, fields)
        mixed: npt.NDArray[np.float64] = np.einsum("t,t...,t...->...", self.means, gains, tissues)
        return np.maximum(mixed, 0)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _varied(name: str, protocol: Protocol, rng: np.random.Generator) -> TissueConstants:
    """Return a tissue's constants as they vary between people (some 3 %)."""
    tissue = TISSUES[name]
    factors = np.exp(rng.normal(0, 0.03, 4))
    enhanced = protocol.contrast_agent and name == "tumour"
    t1 = _TUMOUR_T1_WITH_CONTRAST if enhanced else tissue.t1
    return TissueConstants(
        t1 * factors[0],
        tissue.t2 * factors[1],
        tissue.t2_star * factors[2],
        tissue.density * float(np.sqrt(factors[3])),
        tissue.texture,
    )


def texture_fields(
    shape: tuple[int, ...], rng: np.random.Generator, pixels_per_mm: float = 1.0
) -> npt.NDArray[np.float64]:
    """Draw the fields that tissues' textures are blends of: two smooth and two fine, `(4, *S)`."""
    return np.stack([_noise(shape, sigma * pixels_per_mm, rng) for sigma in _TEXTURE_PX])


def _noise(
    shape: tuple[int, ...], sigma_px: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return Gaussian noise of unit variance, correlated over `sigma_px`."""
    white = rng.standard_normal(shape)
    smooth = ndimage.gaussian_filter(white, sigma_px, mode="wrap")
    return np.asarray(smooth / max(float(smooth.std()), 1e-12))


def smooth_field(shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a cubic polynomial field with values in [-1, 1]."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    powers = [p for p in itertools.product(range(4), repeat=len(axes)) if 0 < sum(p) < 4]
    terms = [math.prod(x**i for x, i in zip(axes, p, strict=True)) for p in powers]
    field = np.tensordot(rng.normal(0, 1, len(terms)), np.stack(terms), axes=1)
    return np.asarray(field / max(float(np.abs(field).max()), 1e-12))


def rician(
    image: npt.NDArray[np.floating[Any]], sigma: float, blur_px: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Add noise to both parts of the complex signal and take the magnitude."""
    real, imaginary = (sigma * _noise(image.shape, blur_px, rng) for _ in range(2))
    return np.asarray(np.hypot(image + real, imaginary))
