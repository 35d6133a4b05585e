"""A segmentor out of another model folder, for HiDiff to refine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synthgen.core.errors import GeometryError, RequestError
from synthgen.core.input_files import unusable
from synthgen.core.model_folder import RECORD, REMEDY, read_model_folder
from synthgen.models.imgx import ImgXUNet
from synthgen.models.loading import load_network
from synthgen.models.segmentors import Segmentor
from synthgen.segment import hidiff, imgx
from synthgen.segment.use import SegmenterUse

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


@dataclass(frozen=True)
class Borrowed:
    """A trained segmentor.

    Attributes:
        network: with its weights.
        digest: of the model folder that it came from.
        subjects: real subjects that it saw.
    """

    network: Segmentor
    digest: str
    subjects: tuple[str, ...]


def borrow_segmentor(folder: Path, empty: Segmentor, use: SegmenterUse) -> Borrowed:
    """Load the segmentor of a HiDiff model, or the supervised twin of an ImgX model.

    Args:
        folder: the model folder.
        empty: the segmentor that the recipe asks for; gets the weights.
        use: tissues and channels that it must have been trained for.

    Raises:
        SchemaError: of another label schema.
        GeometryError: for images of another rank.
        RequestError: a model without segmentor, or of another kind, other channels or other
            levels than the recipe's.
        StoreError: not a model folder, or damaged.
    """
    model = read_model_folder(folder)
    kind = model.record["kind"]
    place = {hidiff.KIND: folder / "segmentor", imgx.KIND: folder / "twin"}.get(kind)
    if place is None or not place.is_dir():
        raise RequestError(
            f"{folder}: expected a model of `train hidiff`, or of `train imgx` with a twin, got "
            f"one of kind '{kind}'" + (" without a twin" if place else "")
        )
    with unusable(folder / RECORD, REMEDY):
        theirs = SegmenterUse.from_json(model.record["use"])
        subjects = tuple(model.record["subjects"])
    if theirs.spatial_dims != use.spatial_dims:
        raise GeometryError(
            f"{folder}: its segmentor is for {theirs.spatial_dims}-D images, the data are "
            f"{use.spatial_dims}-D"
        )
    use.schema.require_same(theirs.schema, str(folder))
    source: type[nn.Module] = Segmentor if kind == hidiff.KIND else ImgXUNet
    with unusable(place, REMEDY):
        found = load_network(source, place)
    target = empty if kind == hidiff.KIND else empty.network
    try:
        target.load_state_dict(found.state_dict())
    except RuntimeError as error:
        wanted: Any = empty.config
        raise RequestError(
            f"{place}: its weights do not fit the recipe's segmentor ('{wanted['kind']}' of "
            f"{wanted['out_channels']} outputs, channels {list(wanted['channels'])}); set "
            "hidiff.segmentor to what it was trained with"
        ) from error
    return Borrowed(empty, model.digest, subjects)
