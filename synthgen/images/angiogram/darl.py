"""A trained DARL model as a renderer of angiograms, and as the segmenter that checks them.

Kim et al. 2023, arXiv:2209.14566: path B paints a drawn mask on a vessel-free background, path A
finds vessels. The model folder holds backgrounds, so nothing else is needed to paint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from scipy import ndimage
from torch import Tensor, nn

from synthgen.core.errors import RequestError
from synthgen.core.input_files import unusable
from synthgen.core.model_folder import RECORD, REMEDY, read_card, read_shape, write_model_folder
from synthgen.core.rng import SampleKey, Stream
from synthgen.core.schema import VESSEL, LabelSchema
from synthgen.images.angiogram.background_file import read_backgrounds, write_backgrounds
from synthgen.images.angiogram.backgrounds import chest_from, fundus_from
from synthgen.images.angiogram.fields import between, circle, inside, sign
from synthgen.models.contrast import even_locally
from synthgen.models.darl_inference import PathA, next_multiple, pad_to
from synthgen.models.darl_networks import (
    KIND,
    DarlNetworks,
    DarlUse,
    DTypeName,
    load_networks,
    read_use,
    reduction,
)
from synthgen.runtime import tensor_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    from synthgen.core.vessels import Floats, VesselMaps
    from synthgen.images.angiogram.backgrounds import Background

_WHOLE_PX, _REACH_PX = 2.0, 5.0
"""What is painted counts whole up to so far from a vessel, and not at all beyond."""
_GRAIN_PX = 2.0
"""Standard deviation of the blur that takes the grain out of a background."""


@dataclass(frozen=True)
class DarlRecord:
    """What a model folder says beside its weights (`synthgen.json`).

    Attributes:
        use: how it is used.
        shape: size (X, Y) of the pictures it paints.
        subjects: real subjects in its training data.
        training: steps, data and recipe, for people.
        card: text of `card.md`.
    """

    use: DarlUse
    shape: tuple[int, int]
    subjects: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""


class AngiogramPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is untyped
    """Paint vessel trees on real backgrounds, and find vessels in angiograms.

    Args:
        generator: segments; paints too, unless there is a `painter`.
        scheduler: the noise schedule.
        noise_predictor: None for a model without diffusion.
        painter: a generator that only paints; None where one does both.
    """

    name = "darl"
    _optional_components: ClassVar[list[str]] = ["noise_predictor", "painter"]

    def __init__(
        self,
        generator: nn.Module,
        scheduler: DDPMScheduler,
        noise_predictor: nn.Module | None = None,
        painter: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            generator=generator,
            scheduler=scheduler,
            noise_predictor=noise_predictor,
            painter=painter,
        )
        self._networks = DarlNetworks(generator, scheduler, noise_predictor, painter)
        self._record: DarlRecord | None = None
        self._backgrounds: tuple[Background, ...] = ()
        self._digest = ""
        self._path_a: PathA | None = None

    @property
    def record(self) -> DarlRecord:
        """How it is used, what it saw.

        Raises:
            RequestError: the pipeline was loaded by `from_pretrained`, which does not read them.
        """
        if self._record is None:
            raise RequestError(
                "this pipeline has no backgrounds; load it with AngiogramPipeline.load(folder)"
            )
        return self._record

    @property
    def schema(self) -> LabelSchema:
        """The label schema of the trees it paints."""
        return VESSEL

    @property
    def shape(self) -> tuple[int, int]:
        """Size (X, Y) of the pictures it was trained on; trees should be drawn in it."""
        return self.record.shape

    @property
    def masks(self) -> str:
        """Preset of the vessel trees that it was trained with, or "pool" for drawn masks."""
        return str(self.record.training["masks"])

    @property
    def subjects(self) -> tuple[str, ...]:
        """Real subjects in its training data, those of its backgrounds among them."""
        return self.record.subjects

    @property
    def identity(self) -> Mapping[str, Any]:
        """Digest of weights and backgrounds, and the precision: all that decides the bytes."""
        dtype = next(self._networks.generator.parameters()).dtype
        return {
            "renderer": self.name,
            "model": self._digest,
            "dtype": str(dtype).removeprefix("torch."),
        }

    @torch.no_grad()
    def render(self, maps: VesselMaps, keys: Sequence[SampleKey]) -> Floats:
        """Paint a batch; see `synthgen.images.angiogram.AngiogramRenderer.render`.

        Background, its turn, t and noise are drawn from each sample's own key.

        Raises:
            RequestError: another number of keys than of trees, or, where backgrounds are no
                round photographs, trees of another size than they.
        """
        if len(keys) != len(maps.coverage):
            raise RequestError(f"got {len(keys)} keys but {len(maps.coverage)} vessel trees")
        use, shape = self.record.use, (maps.coverage.shape[1], maps.coverage.shape[2])
        device = next(self._networks.generator.parameters()).device
        grounds = np.stack([self._ground(maps, i, key) for i, key in enumerate(keys)])
        generators = [key.torch(Stream.NOISE) for key in keys]
        steps = [torch.randint(use.render_t, (1,), generator=g) for g in generators]
        noise = None
        if use.render_t > 1:
            noise = torch.stack([torch.randn((1, *shape), generator=g) for g in generators])
        shown = [torch.from_numpy(array[:, None]).float() * 2 - 1 for array in (grounds, maps.mask)]
        evened = None
        if use.contrast == "even":
            evened = even_locally(shown[0], use.crop, use.share)
        painted, _ = self._networks.paint(
            self._fit(shown[0] if evened is None else evened.images).to(device),
            self._fit(shown[1]).to(device),
            torch.cat(steps).to(device),
            None if noise is None else self._fit(noise).to(device),
        )
        painted = painted[..., : shape[0], : shape[1]].float().cpu()
        if evened is not None:
            painted = evened.back(painted, shown[0])
        image = ((painted + 1) / 2).clamp(0, 1).numpy()
        if use.keep_background:
            pairs = zip(image[:, 0], grounds, maps.mask, strict=True)
            image = np.stack([_on_background(*pair) for pair in pairs])[:, None]
        seen = np.stack([inside(circle(row), shape) for row in maps.field])[:, None]
        result: Floats = image * seen
        return result

    def segment(self, images: Floats | Tensor) -> Floats:
        """Return the probability of vessel, float32 `(B, 1, X, Y)` in [0, 1]: path A at t = 0.

        Args:
            images: `(B, 1, X, Y)` in [0, 1], of the scale of its training pictures.

        Raises:
            RequestError: not single-channel, not in [0, 1], or too small.
        """
        if self._path_a is None:
            use = self.record.use
            self._path_a = PathA(self._networks, use.segment, use.crop, contrast=use.contrast)
        found: Floats = self._path_a(torch.as_tensor(images)).numpy()
        return found

    def _fit(self, images: Tensor) -> Tensor:
        """Mirror the edges up to a size that the networks take."""
        factor = reduction(self._networks.noise_predictor)
        x, y = (next_multiple(side, factor) for side in images.shape[-2:])
        return pad_to(images, (x, y))

    def _ground(self, maps: VesselMaps, index: int, key: SampleKey) -> Floats:
        """Return the background `(X, Y)` of one sample, turned and moved onto its field of view."""
        scene = key.numpy(Stream.BACKGROUND)
        chosen = self._backgrounds[scene.integers(len(self._backgrounds))]
        shape = (maps.coverage.shape[1], maps.coverage.shape[2])
        view, disc = circle(maps.field[index]), circle(maps.disc[index])
        if view[2] > 0:
            turn, mirrored = between(scene, (0.0, 2 * np.pi)), sign(scene) > 0
            return fundus_from(chosen, shape, view, disc, turn=turn, mirrored=mirrored)
        return chest_from(chosen, shape, mirrored=sign(scene) > 0)

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu", dtype: DTypeName = "float32") -> Self:
        """Load a model folder and check every file of it.

        Args:
            folder: what `save` wrote.
            device: where the networks run.
            dtype: "float32", or "bfloat16", faster and coarser.

        Raises:
            StoreError: not such a folder, or a missing or damaged file, which is named.
        """
        networks, model = load_networks(folder, device=device, dtype=dtype)
        pipeline = cls(
            networks.generator, networks.scheduler, networks.noise_predictor, networks.painter
        )
        raw = model.record
        with unusable(folder / RECORD, REMEDY):
            pipeline._record = DarlRecord(
                read_use(raw),
                read_shape(raw),
                tuple(raw["subjects"]),
                raw["training"],
                read_card(folder),
            )
        pipeline._backgrounds = read_backgrounds(folder)
        pipeline._digest = model.digest
        return pipeline

    def save(self, folder: Path, record: DarlRecord, backgrounds: Sequence[Background]) -> None:
        """Write the model folder whole or not at all; an older one is replaced.

        Args:
            folder: the model folder.
            record: what it says beside the weights.
            backgrounds: what it will paint on.

        Raises:
            RequestError: no background.
            StoreError: it cannot be written; an older folder stays.
        """
        if not backgrounds:
            raise RequestError("a model without backgrounds cannot paint; give at least one")

        def write(target: Path) -> None:
            self.save_pretrained(target)
            write_backgrounds(target, backgrounds)

        write_model_folder(
            folder,
            tensor_files()(write),
            kind=KIND,
            schema=VESSEL,
            card=record.card,
            record={
                "use": record.use.to_json(),
                "shape": list(record.shape),
                "subjects": list(record.subjects),
                "training": dict(record.training),
            },
        )


def _on_background(painted: Floats, ground: Floats, mask: npt.NDArray[np.bool_]) -> Floats:
    """Keep what was painted on vessels and near them; elsewhere the background as it was.

    On vessels stands the background's grain too, which a generator that works at a quarter of the
    size cannot make; and as vessels only darken what lies behind them, nothing gets brighter. SSVS
    (Ma et al. 2021) keeps the background as well.
    """
    far = ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)
    share = np.clip((_REACH_PX - far) / (_REACH_PX - _WHOLE_PX), 0, 1)
    smooth = ndimage.gaussian_filter(ground, _GRAIN_PX)
    darker = share * np.minimum(painted - smooth, 0)
    kept: Floats = np.clip(ground + darker, 0, 1).astype(np.float32)
    return kept
