"""Training-free volumes: real brains, deformed, with lesions laid in, painted by MR physics.

Labels first, then pixels, as SynthSeg does (Billot et al. 2023,
doi:10.1016/j.media.2023.102789): one deformation of the brain's partial volumes gives the label
map, and the same partial volumes give the image. Contrast is that of
`synthgen.images.contrast.ContrastRenderer`; a volume adds slices of several mm, which 2-D
sequences have, in their own direction and with their own noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.core.schema import BRAIN9
from synthgen.core.tissue_groups import TissueGroups
from synthgen.data.augment import HOSTS
from synthgen.data.deform import Warp, WarpRange, read_at
from synthgen.data.lesion_shapes import PlacedLesions, draw_blobs, place_mask
from synthgen.data.real_volumes import VolumeLayout, VolumeSample, brain_box, require_styles
from synthgen.images.contrast import ContrastRenderer, rician, smooth_field, texture_fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from synthgen.data.anatomies import Anatomies, Anatomy
    from synthgen.images import Style
    from synthgen.images.contrast import Exposure

WARP = WarpRange(
    rotate_deg=12.0,
    scale=0.10,
    shear=0.04,
    shift_mm=3.0,
    elastic_mm=6.0,
    grid_mm=32.0,
    flip_probability=0.5,
)
"""How far brains are deformed."""

_BLOB_TISSUE = "wmh"
_SLAB = 16  # planes handled at a time where several float copies are needed
_FIELD_POINTS = 24  # of a bias field along an axis; a cubic needs no more
_THICK = {"t1": 0.25, "t1ce": 0.25}
"""Chance of thick slices: T1 is mostly taken in 3-D."""
_THICK_OTHERWISE = 0.6
_THICKNESS_MM = (2.0, 5.0)
_AXIAL = 0.7
_FWHM = 2.355  # of a Gaussian, in standard deviations
_GAMMA = 0.25
"""Standard deviation of the log of a scan's exponent."""
_DARKER = {"t2": 0.3}
"""Its mean where it is not 0: four patients' scans have white matter at 0.27 to 0.33 of the robust
maximum of T2, the protocols have it at 0.4."""
_NOISE_GAIN = (0.6, 1.8)
_STRIP_MM = 2.5
"""Largest depth to which skull stripping takes the fluid at the brain's rim, which is as thick as
`synthgen.data.tissue.trim_csf` leaves it."""

Maps = npt.NDArray[np.float32]


class VolumeGenerator:
    """Draws labelled volumes; volume i is a function of (sources, settings, seed, i).

    Args:
        anatomies: the brains, of schema `brain9`.
        styles: what to paint, see `ContrastRenderer`; a bare modality is another scanner for each
            volume, after a data set's name (`oasis_t1`) it is the same one.
        layout: grid and labels.
        seed: seed of the draws.
        lesions: chance that lesions are laid in, beside those that a brain has: those of a
            patient of the sources if there are masks without a brain, else blobs.

    Raises:
        RequestError: an unknown style or tissue, no style or one twice, a wrong chance.
    """

    real = False

    def __init__(
        self,
        anatomies: Anatomies,
        styles: Sequence[str],
        layout: VolumeLayout,
        *,
        seed: int = 0,
        lesions: float = 0.5,
    ) -> None:
        if not 0 <= lesions <= 1:
            raise RequestError(f"--lesions: expected a chance in [0, 1], got {lesions:g}")
        anatomies.schema.require_same(BRAIN9, "volumes")
        require_styles(styles)
        self.styles, self.layout = tuple(styles), layout
        self.label_names = TissueGroups.of(BRAIN9, layout.tissues).names
        self._anatomies, self._seed, self._chance = anatomies, seed, lesions
        self._physics = ContrastRenderer(BRAIN9)
        self._styles = tuple(self._physics.style(name) for name in styles)
        self.modalities = tuple(style.modality for style in self._styles)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects behind the volumes."""
        return self._anatomies.subjects

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the volumes besides layout and styles."""
        return {
            "source": "painted",
            "version": 1,
            "renderer": self._physics.identity["version"],
            "files": self._anatomies.fingerprint(),
            "seed": self._seed,
            "lesions": self._chance,
        }

    def name(self, index: int) -> str:
        """Return the plain name of a volume."""
        return f"v{index:05d}"

    def styles_of(self, _index: int) -> tuple[str, ...]:
        """Return the styles of a volume: all."""
        return self.styles

    def sample(self, index: int) -> VolumeSample:
        """Draw one volume.

        Raises:
            StoreError: an unreadable source.
            GeometryError: a source on different grids.
            SchemaError: a source's labels that do not fit.
        """
        key = SampleKey(self._seed, index)
        anatomy = self._anatomies.load(self._whose(key))
        rng = key.numpy(Stream.CONDITION)
        lesions = self._lesions(anatomy, rng) if rng.random() < self._chance else None
        rng = key.numpy(Stream.AUGMENT)
        spacing = self.layout.spacing_mm
        pv = self._warped(anatomy, lesions, rng)
        pv = _stripped(pv, rng.uniform(0, _STRIP_MM) / spacing)
        pv = pv[(slice(None), *self.layout.box(pv))]
        images, slices = self._painted(pv, key)
        lesion_ml = float(pv[list(BRAIN9.lesion_channels)].sum(dtype=np.float64))
        x, y, z = (-spacing * (n - 1) / 2 for n in pv.shape[1:])
        return VolumeSample(
            images,
            self.layout.harden(pv, BRAIN9),
            (x, y, z),
            "",
            anatomy.subject,
            slices,
            {
                "lesions": lesions.origin if lesions else "",
                "lesion_ml": round(lesion_ml * spacing**3 / 1000, 2),
            },
        )

    def _whose(self, key: SampleKey) -> int:
        """Deal the brains: each once before any a second time, in another order every round."""
        count = len(self._anatomies.scans)
        lap, place = divmod(key.index, count)
        return int(SampleKey(key.seed, lap).numpy(Stream.SPLIT).permutation(count)[place])

    def _lesions(self, anatomy: Anatomy, rng: np.random.Generator) -> PlacedLesions | None:
        masks = self._anatomies.lesions
        if masks:
            return place_mask(self._anatomies.load_lesions(int(rng.integers(len(masks)))), rng)
        white = BRAIN9.index("wm")
        if white not in anatomy.channels:
            return None
        return draw_blobs(
            anatomy.maps[anatomy.channels.index(white)],
            anatomy.maps.sum(axis=0, dtype=np.uint16) > 127,
            anatomy.spacing_mm,
            rng,
            tissue=_BLOB_TISSUE,
        )

    def _warped(
        self, anatomy: Anatomy, lesions: PlacedLesions | None, rng: np.random.Generator
    ) -> Maps:
        """Return the deformed partial volumes `(9, X, Y, Z)`."""
        spacing = self.layout.spacing_mm
        warp = Warp.draw(rng, WARP, anatomy.extent_mm)
        size = [max(2, round(extent / spacing)) for extent in anatomy.extent_mm]
        axes = [spacing * (np.arange(n, dtype=np.float64) - (n - 1) / 2) for n in size]
        sources = _Sources.of(anatomy, lesions, spacing)
        pv = np.zeros((BRAIN9.channels, *size), dtype=np.float32)
        for start in range(0, size[0], _SLAB):
            slab = slice(start, start + _SLAB)
            points = warp.points([axes[0][slab], axes[1], axes[2]])
            pv[1:, slab] = sources.read(points)[1:]
        total = pv[1:].sum(axis=0)
        pv[1:] /= np.maximum(total, 1)  # rounding of the 8-bit maps
        pv[0] = np.maximum(1 - total, 0)
        return pv

    def _painted(self, pv: Maps, key: SampleKey) -> tuple[dict[str, Maps], dict[str, float]]:
        """Paint every style; tissues have the same texture fields in all of them."""
        spacing = self.layout.spacing_mm
        box = brain_box(pv[0] < 1, 2)
        inside = pv[(slice(None), *box)]
        fields = texture_fields(inside.shape[1:], key.numpy(Stream.TEXTURE), 1 / spacing)
        images, slices = {}, {}
        for style in self._styles:
            exposure = self._physics.expose(_scanner(style, key), key, axes=3)
            scan = _Scan.draw(style, exposure, spacing)
            image = scan.take(_ideal(inside, fields, exposure, scan.gamma), exposure)
            image[inside[0] > 0.5] = 0
            images[style.name] = np.zeros(pv.shape[1:], dtype=np.float32)
            images[style.name][box] = image
            slices[style.name] = round(scan.thickness_mm, 2)
        return images, slices


def _scanner(style: Style, key: SampleKey) -> Style:
    """Return a bare modality's style at the scanner of this volume alone."""
    if style.name != style.modality:
        return style
    dataset = f"volume-{key.seed}-{key.index}"
    return replace(style, name=f"{dataset}_{style.modality}", dataset=dataset)


@dataclass(frozen=True)
class _Sources:
    """Tissue maps and lesions to read at any place."""

    tissues: Tensor  # (K, X, Y, Z)
    channels: tuple[int, ...]
    spacing_mm: float
    lesions: Tensor | None  # (1, X, Y, Z)
    lesion_channel: int
    from_mm: Tensor  # (4, 4)

    @classmethod
    def of(cls, anatomy: Anatomy, lesions: PlacedLesions | None, spacing_mm: float) -> _Sources:
        """Low-pass filter what output voxels of this size would alias."""
        step = spacing_mm / anatomy.spacing_mm
        maps = np.stack([_thinned(m.astype(np.float32) / 255, step) for m in anatomy.maps])
        mask, channel, from_mm = None, 0, np.eye(4)
        if lesions is not None:
            channel, from_mm = BRAIN9.index(lesions.tissue), lesions.from_mm
            mask = torch.from_numpy(np.pad(_thinned(lesions.mask, step), 1))[None]
            from_mm = from_mm.copy()
            from_mm[:3, 3] += 1
        return cls(
            torch.from_numpy(maps),
            anatomy.channels,
            anatomy.spacing_mm,
            mask,
            channel,
            torch.from_numpy(from_mm).float(),
        )

    def read(self, points: Tensor) -> Maps:
        """Return the tissues at points `(3, *S)` in mm: `(9, *S)`, background left at 0."""
        middle = (torch.tensor(self.tissues.shape[1:]) - 1).reshape(3, 1, 1, 1) / 2
        found = read_at(self.tissues, points / self.spacing_mm + middle).numpy()
        pv = np.zeros((BRAIN9.channels, *found.shape[1:]), dtype=np.float32)
        pv[list(self.channels)] = found
        if self.lesions is not None:
            voxels = torch.tensordot(self.from_mm[:3, :3], points, 1)
            voxels += self.from_mm[:3, 3].reshape(3, 1, 1, 1)
            mask = read_at(self.lesions, voxels)[0].numpy()
            for host, share in HOSTS.items():
                moved = share * mask * pv[host]
                pv[host] -= moved
                pv[self.lesion_channel] += moved
        return pv


def _thinned(volume: Maps, step: float) -> Maps:
    """Low-pass filter a volume of which every `step`-th voxel will be read."""
    if step <= 1:
        return volume
    filtered: Maps = ndimage.gaussian_filter(volume, 0.5 * float(np.sqrt(step**2 - 1)))
    return filtered


def _stripped(pv: Maps, depth: float) -> Maps:
    """Take the fluid that lies less than `depth` voxels below the brain's surface away."""
    csf = BRAIN9.index("csf")
    box = brain_box(pv[0] <= 0.5, 2)
    distance = ndimage.distance_transform_edt(pv[0][box] <= 0.5)
    taken = pv[csf][box] * np.clip(depth + 0.5 - distance, 0, 1).astype(np.float32)
    out = pv.copy()
    out[csf][box] -= taken
    out[0][box] += taken
    return out


def _ideal(pv: Maps, fields: npt.NDArray[np.float64], exposure: Exposure, gamma: float) -> Maps:
    """Return what a perfect scanner sees, with the coil's bias: `(X, Y, Z)`."""
    shape = pv.shape[1:]
    blend = exposure.blend(exposure.rng)
    image = np.empty(shape, dtype=np.float32)
    for start in range(0, shape[0], _SLAB):
        slab = slice(start, start + _SLAB)
        image[slab] = exposure.mix(pv[1:, slab], fields[:, slab], blend) ** gamma
    points = tuple(min(n, _FIELD_POINTS) for n in shape)
    coarse = smooth_field(points, exposure.rng).astype(np.float32)
    factors = [n / p for n, p in zip(shape, points, strict=True)]
    bias = ndimage.zoom(coarse, factors, order=1, output=np.float32)
    image *= np.exp(np.float32(exposure.quality.bias) * bias)
    return image


@dataclass(frozen=True)
class _Scan:
    """How a volume is scanned: slices of a thickness, stacked along an axis.

    Partial volumes are as soft as a scan already, so that it blurs by a share of what a slice's
    renderer does. Exponents of the intensities: Billot et al. 2023, section 3.2.
    """

    spacing_mm: float
    thickness_mm: float
    axis: int
    offset: float  # of the first slice's middle, in slices
    softness: float
    noise_gain: float
    gamma: float

    @classmethod
    def draw(cls, style: Style, exposure: Exposure, spacing_mm: float) -> _Scan:
        rng = exposure.rng
        thick = rng.random() < _THICK.get(style.modality, _THICK_OTHERWISE)
        thickness = rng.uniform(*_THICKNESS_MM)
        axial, other, offset = rng.random(), int(rng.integers(2)), rng.random()
        return cls(
            spacing_mm,
            max(float(thickness), spacing_mm) if thick else spacing_mm,
            2 if axial < _AXIAL else other,
            float(offset),
            softness=float(rng.random()),
            noise_gain=float(np.exp(rng.uniform(*np.log(_NOISE_GAIN)))),
            gamma=float(np.exp(_DARKER.get(style.modality, 0.0) + _GAMMA * rng.standard_normal())),
        )

    def take(self, ideal: Maps, exposure: Exposure) -> Maps:
        """Return the scan of `(X, Y, Z)` on the same grid: resolution, slices, noise."""
        quality, rng = exposure.quality, exposure.rng
        sigma = self.softness * np.asarray(quality.blur_px) / self.spacing_mm
        thick = self.thickness_mm > self.spacing_mm
        if thick:
            sigma[self.axis] = self.thickness_mm / _FWHM / self.spacing_mm
        image: npt.NDArray[Any] = ndimage.gaussian_filter(ideal, sigma, mode="nearest")
        size, step = image.shape[self.axis], self.thickness_mm / self.spacing_mm
        count = max(1, math.ceil((size - 1) / step - self.offset) + 1)
        if thick:
            middles = step * (self.offset + np.arange(count))
            image = _along(image, _linear(middles, size), self.axis)
        noise_blur = quality.noise_blur_px / self.spacing_mm
        # A coarser voxel is the mean of several.
        noise = self.noise_gain * quality.noise / max(1.0, self.spacing_mm)
        image = rician(image, noise, noise_blur, rng).astype(np.float32)
        if thick:
            image = _along(image, _linear(np.arange(size) / step - self.offset, count), self.axis)
        return np.clip(image, 0, 1)


def _linear(places: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float32]:
    """Return the weights `(len(places), count)` that interpolate `count` values at places."""
    inside = np.clip(places, 0, count - 1)
    weights = np.maximum(1 - np.abs(inside[:, None] - np.arange(count)), 0)
    return np.asarray(weights, dtype=np.float32)


def _along(
    image: npt.NDArray[np.float32], weights: npt.NDArray[np.float32], axis: int
) -> npt.NDArray[np.float32]:
    """Apply weights `(n, m)` to an axis of length m."""
    out = torch.tensordot(torch.from_numpy(image), torch.from_numpy(weights), ([axis], [1]))
    return np.ascontiguousarray(out.movedim(-1, axis).numpy())
