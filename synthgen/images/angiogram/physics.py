"""A renderer of angiograms that needs no training: attenuation along the ray, then a camera.

X-rays: Beer-Lambert, I = I_b exp(-mu L), with I_b the background and L the length of the ray
inside contrasted vessels. XCAD's angiograms (Ma et al., ICCV 2021) show a mu of 0.03
to 0.065 per pixel of a 512-pixel frame (two pictures, measured under their manual masks).

Fundus: log I = log I_b - a (1 - exp(-L / l)), which is Beer-Lambert for thin vessels and
saturates for wide ones, because light that is scattered around them reaches the camera too.
Ridges found without masks (Sato et al. 1998) in ten photographs of CHASE_DB1, children 01 to 05,
in a 512-pixel frame: log contrast 0.15, 0.25, 0.34, 0.42, 0.51 at widths of 1.5, 3, 5, 7, 10 px,
which a = 0.6, l = 5.6 px fits; photographs differ by a third.
Arteries are lighter, and wide vessels show a central light reflex.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import ndimage

from synthgen.core.errors import RequestError
from synthgen.core.manifest import digest
from synthgen.core.rng import Stream
from synthgen.images.angiogram.backgrounds import chest_from, fundus_from
from synthgen.images.angiogram.camera import (
    FUNDUS_CAMERA,
    XRAY_CAMERA,
    Camera,
    composite,
    expose,
)
from synthgen.images.angiogram.distractors import (
    InstrumentRanges,
    LesionRanges,
    instruments,
    lesions,
    tip,
)
from synthgen.images.angiogram.fields import (
    FRAME,
    Circle,
    Range,
    between,
    inside,
    sign,
    slow,
)
from synthgen.images.angiogram.fundus import FundusRanges, fundus
from synthgen.images.angiogram.randomise import Looks, randomise
from synthgen.images.angiogram.xray import ChestRanges, chest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from synthgen.core.rng import SampleKey
    from synthgen.core.vessels import Floats, VesselMaps
    from synthgen.images.angiogram.backgrounds import Background

Kind = Literal["coronary", "retina"]

_THIN = 3.0  # pixels of a 512-pixel frame: unlabelled vessels never look thicker, even end-on


@dataclass(frozen=True)
class CoronaryRanges:
    """How the coronary picture varies.

    Attributes:
        attenuation: displayed log contrast per pixel of path, for a frame of 512 pixels.
        filling: standard deviation of its slow variation along the tree, as a logarithm.
        fading: share of the contrast that is lost from the tree's start to its far end.
        hidden: attenuation of vessels too thin to be labelled, as a share.
        camera: the detector.
        chest: the scene, where no pool is given.
        instruments: what else is drawn.
    """

    attenuation: Range = (0.028, 0.065)
    filling: Range = (0.0, 0.2)
    fading: Range = (0.0, 0.4)
    hidden: Range = (0.3, 1.0)
    camera: Camera = XRAY_CAMERA
    chest: ChestRanges = field(default_factory=ChestRanges)
    instruments: InstrumentRanges = field(default_factory=InstrumentRanges)


@dataclass(frozen=True)
class RetinaRanges:
    """How the retinal picture varies.

    Attributes:
        darkness: log contrast `a` of an endlessly wide vein.
        saturation: path `l` in pixels, for a frame of 512 pixels.
        artery: contrast of arteries as a share of that of veins.
        reflex: share of the contrast that the central reflex of a wide artery takes away.
        hidden: contrast of vessels too thin to be labelled, as a share.
        filling: standard deviation of the contrast's slow variation, as a logarithm.
        camera: the camera.
        fundus: the scene, where no pool is given.
        lesions: what else is drawn.
    """

    darkness: Range = (0.45, 0.85)
    saturation: Range = (4.0, 8.0)
    artery: Range = (0.6, 0.9)
    reflex: Range = (0.0, 1.3)
    hidden: Range = (0.3, 1.0)
    filling: Range = (0.0, 0.2)
    camera: Camera = FUNDUS_CAMERA
    fundus: FundusRanges = field(default_factory=FundusRanges)
    lesions: LesionRanges = field(default_factory=LesionRanges)


class PhysicsRenderer:
    """Paints drawn vessel trees without any training; see `AngiogramRenderer`.

    Args:
        kind: X-ray picture of the heart, or photograph of the fundus.
        backgrounds: real pictures to paint on, one drawn per sample; without, scenes are made up.
        ranges: how the pictures vary; by default those of `kind`.
        looks: randomise the finished picture's appearance.

    Raises:
        RequestError: an empty pool, or ranges of the other kind.

    Examples:
        >>> PhysicsRenderer("coronary").subjects
        ()
    """

    name = "physics"

    def __init__(
        self,
        kind: Kind,
        backgrounds: Sequence[Background] | None = None,
        *,
        ranges: CoronaryRanges | RetinaRanges | None = None,
        looks: Looks | None = None,
    ) -> None:
        own = CoronaryRanges if kind == "coronary" else RetinaRanges
        self._ranges = own() if ranges is None else ranges
        if not isinstance(self._ranges, own):
            raise RequestError(
                f"a {kind} renderer needs {own.__name__}, got {type(ranges).__name__}"
            )
        if backgrounds is not None and not backgrounds:
            raise RequestError(
                "the pool of backgrounds is empty: give at least one, or none at all"
            )
        self._kind, self._looks = kind, looks
        self._pool = tuple(backgrounds or ())

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the bytes of its images."""
        numbers = hashlib.blake2b(repr((self._ranges, self._looks)).encode(), digest_size=8)
        return {
            "renderer": self.name,
            "kind": self._kind,
            "ranges": numbers.hexdigest(),
            "randomised": self._looks is not None,
            "backgrounds": digest([b.digest for b in self._pool]) if self._pool else None,
        }

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects whose pictures are painted on."""
        return tuple(sorted({b.subject for b in self._pool if b.subject}))

    def render(self, maps: VesselMaps, keys: Sequence[SampleKey]) -> Floats:
        """Paint a batch; see `AngiogramRenderer.render`.

        Raises:
            RequestError: another number of keys than of trees, or a background of another size.
        """
        if len(keys) != len(maps.coverage):
            raise RequestError(f"got {len(keys)} keys but {len(maps.coverage)} vessel trees")
        images = np.empty((len(keys), 1, *maps.coverage.shape[1:]), np.float32)
        for index, key in enumerate(keys):
            tree = _Tree.of(maps, index)
            rng, scene = key.numpy(Stream.RENDER), key.numpy(Stream.BACKGROUND)
            if isinstance(self._ranges, CoronaryRanges):
                image = self._coronary(tree, self._ranges, rng, scene)
            else:
                image = self._retina(tree, self._ranges, rng, scene)
            if self._looks is not None:
                image = randomise(rng, image, self._looks)
            images[index, 0] = image * inside(tree.field, image.shape)
        return images

    def _coronary(
        self,
        tree: _Tree,
        ranges: CoronaryRanges,
        rng: np.random.Generator,
        scene: np.random.Generator,
    ) -> Floats:
        """An X-ray picture of the heart."""
        shape = tree.path.shape
        if self._pool:
            chosen = self._pool[scene.integers(len(self._pool))]
            level = chest_from(chosen, shape, mirrored=sign(scene) > 0)
        else:
            level = chest(scene, shape, ranges.chest)
        per_pixel = between(rng, ranges.attenuation) * FRAME / max(shape)
        thin = np.minimum(tree.hidden, _THIN * max(shape) / FRAME)
        path = tree.path + between(rng, ranges.hidden) * thin
        dense = per_pixel * path * _filling(rng, tree.path, ranges)
        dense += instruments(scene, tree.path, per_pixel, ranges.instruments)
        return (composite if self._pool else expose)(rng, level, dense, ranges.camera)

    def _retina(
        self,
        tree: _Tree,
        ranges: RetinaRanges,
        rng: np.random.Generator,
        scene: np.random.Generator,
    ) -> Floats:
        """A photograph of the fundus in green light."""
        shape = tree.path.shape
        view = tree.field if tree.field[2] > 0 else _circumscribed(shape)
        if self._pool:
            chosen = self._pool[scene.integers(len(self._pool))]
            turn, mirrored = between(scene, (0.0, 2 * np.pi)), sign(scene) > 0
            level = fundus_from(chosen, shape, view, tree.disc, turn=turn, mirrored=mirrored)
        else:
            level = fundus(scene, shape, view, tree.disc, ranges.fundus)
        dense = _blood(rng, tree, ranges) - lesions(scene, shape, view, ranges.lesions)
        return (composite if self._pool else expose)(rng, level, dense, ranges.camera)


@dataclass(frozen=True)
class _Tree:
    """The maps of one sample, `(X, Y)` each, and its circles."""

    path: Floats
    hidden: Floats
    vein: Floats
    disc: Circle
    field: Circle

    @classmethod
    def of(cls, maps: VesselMaps, index: int) -> _Tree:
        """Take one sample of a batch."""
        disc, view = (tuple(map(float, circles[index])) for circles in (maps.disc, maps.field))
        return cls(
            maps.path_length[index],
            maps.hidden_path_length[index],
            maps.vein_path_length[index],
            (disc[0], disc[1], disc[2]),
            (view[0], view[1], view[2]),
        )


def _filling(rng: np.random.Generator, path: Floats, ranges: CoronaryRanges) -> Floats:
    """Concentration of the contrast agent: it varies slowly, and fades away from the start."""
    filling = np.exp(between(rng, ranges.filling) * slow(rng, path.shape, 6))
    fading = between(rng, ranges.fading)
    start = tip(path)
    if start is not None:
        x, y = np.ogrid[: path.shape[0], : path.shape[1]]
        away = np.hypot(x - start[0, 0], y - start[0, 1]) / max(path.shape)
        filling *= 1 - fading * np.minimum(away, 1)
    varied: Floats = filling.astype(np.float32)
    return varied


def _blood(rng: np.random.Generator, tree: _Tree, ranges: RetinaRanges) -> Floats:
    """Log contrast of retinal vessels: veins darker, arteries with a brighter core."""
    shape = tree.path.shape
    scale = max(shape) / FRAME
    varied = between(rng, ranges.filling) * slow(rng, shape, 6)
    dark = between(rng, ranges.darkness) * np.exp(varied, dtype=np.float32)
    depth = np.float32(between(rng, ranges.saturation) * scale)
    lighter, reflex = between(rng, ranges.artery), between(rng, ranges.reflex)
    hidden = between(rng, ranges.hidden)
    vein, artery = tree.vein, np.maximum(tree.path - tree.vein, 0)
    dense: Floats = (1 - np.exp(-vein / depth)) * (1 - 0.6 * reflex * _core(vein, scale))
    dense += lighter * (1 - np.exp(-artery / depth)) * (1 - reflex * _core(artery, scale))
    dense += hidden * (1 - np.exp(-tree.hidden / depth))
    blood: Floats = dark * dense
    return blood


def _core(path: Floats, scale: float) -> Floats:
    """1 along the middle of wide vessels, falling to 0 at half of their radius."""
    widest = 2 * int(np.ceil(min(float(path.max()), 16 * scale) / 2)) + 1
    diameter = ndimage.maximum_filter(path, widest)
    # At a distance d from the axis the chord is 2 sqrt(r^2 - d^2): 0.87 diameters at r / 2.
    middle = np.clip((path / np.maximum(diameter, 1e-6) - 0.87) / 0.11, 0, 1)
    wide = np.clip((diameter / scale - 2.5) / 2.5, 0, 1)
    core: Floats = (middle * wide).astype(np.float32)
    return core


def _circumscribed(shape: tuple[int, ...]) -> Circle:
    """The smallest circle around a frame."""
    return ((shape[0] - 1) / 2, (shape[1] - 1) / 2, float(np.hypot(shape[0], shape[1])) / 2)
