"""What DARL is trained on, made from real pictures and a tree generator as a recipe says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from synthgen.core.errors import RequestError
from synthgen.data.pools import Pool, ThreePools
from synthgen.data.vessel_images import VesselImages, scale_to
from synthgen.images.angiogram.background_folder import background_of, without_vessels
from synthgen.images.angiogram.darl_parts import EvenedPairs, EvenedPools
from synthgen.images.angiogram.pairs import RenderedPairs
from synthgen.images.angiogram.physics import PhysicsRenderer
from synthgen.images.angiogram.randomise import Looks
from synthgen.models.contrast import even

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from synthgen.core.rng import SampleKey
    from synthgen.core.vessels import VesselMaps
    from synthgen.images.angiogram.backgrounds import Background
    from synthgen.images.angiogram.darl_parts import Pairs, Pools
    from synthgen.images.angiogram.fields import Circle
    from synthgen.recipe.angiograms import AngiogramRecipe, DataRecipe

_MEASURED = 64
"""Crops whose contrast is measured."""
_FULL = 0.8
"""Share of the crops that have less contrast than those that count."""


class TreeSource(Protocol):
    """Draws vessel trees; sample *i* depends on its key alone."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the trees."""

    def draw(self, keys: Sequence[SampleKey]) -> VesselMaps:
        """Draw one tree a key."""


@dataclass(frozen=True)
class AngiogramSources:
    """Where training data come from.

    Attributes:
        angiograms: real pictures with vessels.
        backgrounds: real pictures without; needed where the recipe asks for a pool of them.
        masks: makes the generator of vessel trees for pictures of a size (X, Y), or drawn masks.
    """

    angiograms: VesselImages
    backgrounds: VesselImages | None
    masks: Callable[[tuple[int, int]], TreeSource] | VesselImages


@dataclass(frozen=True)
class TrainingData:
    """Data ready for training.

    Attributes:
        pools: the three pools.
        pairs: rendered angiograms with their masks, where a loss asks for them.
        trees: what draws masks; None where they are pictures.
        backgrounds: what the trained model will paint on.
        shape: size (X, Y) of the pictures that the model paints.
        identity: digest of pictures and trees.
        subjects: real subjects in it.
        share: contrast share of real crops with many vessels, where contrast is evened; else 1.
    """

    pools: Pools
    pairs: Pairs | None
    trees: TreeSource | None
    backgrounds: tuple[Background, ...]
    shape: tuple[int, int]
    identity: Mapping[str, Any]
    subjects: tuple[str, ...]
    share: float = 1.0


def prepare(recipe: AngiogramRecipe, sources: AngiogramSources) -> TrainingData:
    """Scale pictures, take vessels out where asked, and build the pools.

    Raises:
        RequestError: a pool that the recipe asks for is missing or empty, or pictures are too
            small.
        StoreError: a background that is one of the angiograms.
    """
    data, train = recipe.data, recipe.train
    angiograms = _scaled(_some(sources.angiograms, "angiograms"), data)
    grounds = _grounds(sources, angiograms, data)
    shape = _square(angiograms)
    masks, trees, drawn = _masks(sources, data, shape)
    pools = ThreePools(
        Pool.of(angiograms),
        None if data.background == "self" else Pool.of(grounds),
        masks,
        crop=data.crop,
        batch_size=train.batch_size,
        seed=train.seed,
        decimate=data.decimate,
        shared_flips=data.shared_flips,
    )
    identity = {
        "angiograms": _digest(angiograms),
        "backgrounds": None if data.background == "self" else _digest(grounds),
        "masks": drawn,
    }
    pixel = 2 if data.decimate else 1
    chosen = _spread(grounds, recipe.use.backgrounds, shape, pixel)
    pairs: Pairs | None = None
    if recipe.losses.pairs and trees is not None:
        pairs = RenderedPairs(
            trees.draw,
            PhysicsRenderer("retina" if data.masks == "retina" else "coronary", looks=Looks()),
            pictures=recipe.losses.pair_pictures,
            crop=data.crop,
            batch_size=train.batch_size,
            seed=train.seed,
            decimate=data.decimate,
        )
    small = (-(-shape[0] // pixel), -(-shape[1] // pixel))
    ready = TrainingData(pools, pairs, trees, chosen, small, identity, pools.subjects)
    if data.contrast == "as_is":
        return ready
    return replace(
        ready,
        pools=EvenedPools(pools),
        pairs=None if pairs is None else EvenedPairs(pairs),
        share=_typical_share(pools, train.batch_size),
    )


def _typical_share(pools: ThreePools, batch_size: int) -> float:
    """Return the contrast share of real crops with many vessels, from keys that no step uses.

    That of the upper fifth: painted vessels then darken CHASE's ground as ridges in real
    photographs do, by a quarter at a width of 3 pixels; the median leaves them at 0.6 of it.
    """
    last = 2**31 // batch_size
    crops = [pools.batch(last + i).angiograms for i in range(-(-_MEASURED // batch_size))]
    return round(float(even(torch.cat(crops)).share.quantile(_FULL)), 3)


def _some(images: VesselImages, what: str) -> VesselImages:
    if not len(images):
        raise RequestError(f"the pool of {what} is empty; name a folder that holds some")
    return images


def _scaled(images: VesselImages, data: DataRecipe) -> VesselImages:
    if data.side is not None:
        return scale_to(images, side=data.side)
    if data.field_diameter is not None:
        return scale_to(images, field_diameter=data.field_diameter)
    return images


def _grounds(sources: AngiogramSources, angiograms: VesselImages, data: DataRecipe) -> VesselImages:
    """Return vessel-free pictures: real ones, or the angiograms with their vessels taken out."""
    if data.background == "pool":
        if sources.backgrounds is None:
            raise RequestError(
                "the recipe asks for a pool of backgrounds (data.background: pool) and there is "
                "none; give a folder of them, or override it with `inpainted` or `self`"
            )
        return _scaled(_some(sources.backgrounds, "backgrounds"), data)
    return without_vessels(angiograms)


def _masks(
    sources: AngiogramSources, data: DataRecipe, shape: tuple[int, int]
) -> tuple[Any, TreeSource | None, Any]:
    """Return what the pools take for masks, the trees behind it, and what tells it from others."""
    if isinstance(sources.masks, VesselImages):
        if data.masks != "pool":
            raise RequestError(f"the recipe asks for drawn trees (data.masks: {data.masks})")
        pictures = _scaled(_some(sources.masks, "masks"), data)
        return Pool.of(pictures), None, _digest(pictures)
    if data.masks == "pool":
        raise RequestError(
            "the recipe asks for a pool of masks (data.masks: pool) and there is none; give a "
            "folder of them, or override it with the name of a preset"
        )
    trees = sources.masks(shape)
    return trees.draw, trees, dict(trees.identity)


def _square(images: VesselImages) -> tuple[int, int]:
    """Return the largest square that fits into all pictures."""
    side = min(min(image.shape) for image in images.images)
    return side, side


def _spread(
    images: VesselImages, most: int, shape: tuple[int, int], pixel: int
) -> tuple[Background, ...]:
    """Choose pictures evenly over the list, of `shape`, every other pixel if `pixel` is 2."""
    count = min(most, len(images))
    return tuple(
        _background(images, int(i), shape, pixel)
        for i in np.linspace(0, len(images) - 1, count).round()
    )


def _background(images: VesselImages, index: int, shape: tuple[int, int], pixel: int) -> Background:
    whole = background_of(images, index)
    image = whole.image
    if whole.field[2] == 0:
        # Without a round field it must have the size of the trees: its middle is taken.
        x, y = ((own - wanted) // 2 for own, wanted in zip(image.shape, shape, strict=True))
        image = image[x : x + shape[0], y : y + shape[1]]
    return replace(
        whole,
        image=image[::pixel, ::pixel],
        name=images.names[index],
        field=_divided(whole.field, pixel),
        disc=_divided(whole.disc, pixel),
    )


def _divided(view: Circle, pixel: int) -> Circle:
    return view[0] / pixel, view[1] / pixel, view[2] / pixel


def _digest(images: VesselImages) -> str:
    told = hashlib.sha256()
    for name, image in zip(images.identities, images.images, strict=True):
        told.update(f"{name} {image.shape}".encode())
        told.update(np.rint(image * 255).astype(np.uint8).tobytes())
    return told.hexdigest()[:16]
