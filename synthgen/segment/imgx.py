"""ImgX as a segmenter: a mask found step by step out of noise, and the supervised twin beside it.

Fu et al. 2023, arXiv:2303.06040 and arXiv:2308.16355. Deviations: the noise of an image is one
field, drawn from its key, which all windows see; what windows find is averaged at every step, as
probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.input_files import unusable
from synthgen.core.model_folder import RECORD, REMEDY, read_model_folder, write_model_folder
from synthgen.core.rng import Stream
from synthgen.models.imgx import ImgXUNet
from synthgen.models.loading import load_network
from synthgen.runtime import place, tensor_files
from synthgen.segment.strategies import MaskProcess, sample_masks
from synthgen.segment.use import SegmenterUse
from synthgen.segment.windows import at_least, sliding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from diffusers import SchedulerMixin

    from synthgen.core.rng import SampleKey
    from synthgen.core.schema import LabelSchema
    from synthgen.models.darl_networks import DTypeName

KIND = "imgx"
_SCHEDULERS = {kind.__name__: kind for kind in (DDPMScheduler, DDIMScheduler)}


@dataclass(frozen=True)
class ImgXNetworks:
    """What a model folder holds.

    Attributes:
        unet: predicts clean masks.
        scheduler: of the inference.
        twin: the supervised twin, if it was trained.
        clip: `unet` sees states cut off at [-1, 1].
    """

    unet: nn.Module
    scheduler: SchedulerMixin
    twin: nn.Module | None
    clip: bool


class ImgXSegmenter:
    """Finds tissues; see `synthgen.segment.Segmenter`.

    Args:
        networks: of a trained model, in eval mode.
        use: tissues, channels, window.
        digest: of the model's files.
        subjects: real subjects that it saw.
    """

    def __init__(
        self,
        networks: ImgXNetworks,
        use: SegmenterUse,
        digest: str = "",
        subjects: Sequence[str] = (),
    ) -> None:
        self._networks, self._digest = networks, digest
        self._process = MaskProcess(
            networks.scheduler.alphas_cumprod, not use.overlapping, networks.clip
        )
        self._weight = next(networks.unet.parameters())
        self.use = use
        self.subjects = tuple(subjects)

    @property
    def schema(self) -> LabelSchema:
        """Background and the tissues."""
        return self.use.schema

    @property
    def identity(self) -> Mapping[str, Any]:
        """Digest of the model, precision, window."""
        dtype = str(self._weight.dtype).removeprefix("torch.")
        return {"model": self._digest, "dtype": dtype, "window": list(self.use.window)}

    def predict(self, images: Tensor, keys: Sequence[SampleKey] = ()) -> Tensor:
        """Return what the last step finds, `(B, C, *S)`; see `steps`."""
        return self.steps(images, keys)[-1]

    @torch.inference_mode()
    def steps(self, images: Tensor, keys: Sequence[SampleKey]) -> Tensor:
        """Return what each step finds.

        Args:
            images: float32 `(B, Ci, *S)` in [0, 1], of any size.
            keys: B keys, of which the noise is drawn.

        Returns:
            Probabilities, float32 `(K, B, C, *S)` on the CPU: summing to 1 over C, or, where
            regions overlap, of each region alone.

        Raises:
            RequestError: images of another form, or another number of keys.
        """
        self.use.check(images, keys)
        found = [self._steps(one[None], key) for one, key in zip(images, keys, strict=True)]
        return torch.cat(found, dim=1)

    def twin(self) -> TwinSegmenter:
        """Return the supervised twin.

        Raises:
            RequestError: the model has none.
        """
        if self._networks.twin is None:
            raise RequestError("this model was trained without a supervised twin")
        return TwinSegmenter(self._networks.twin, self.use, self._digest, self.subjects)

    def _steps(self, shown: Tensor, key: SampleKey) -> Tensor:
        """Return what each step finds in one image `(1, Ci, *S)`: `(K, 1, C, *S)`."""
        use, unet = self.use, self._networks.unet
        seen = at_least(shown, use.window).to(self._weight.device)
        channels = seen.shape[1]

        def find(mask: Tensor, t: Tensor) -> Tensor:
            log_snr = self._process.log_snr(t)

            def ask(window: Tensor) -> Tensor:
                logits = unet(
                    window[:, :channels], window[:, channels:], log_snr.expand(len(window))
                )
                return self._process.probabilities(logits)

            return sliding(torch.cat([seen, mask], dim=1), use.window, use.overlap, ask)

        found = sample_masks(
            find,
            self._process,
            self._networks.scheduler,
            [key.torch(Stream.NOISE)],
            (len(use.tissues), *seen.shape[2:]),
            device=seen.device,
            self_conditioned=self_conditioned(unet),
        )
        return _cut(found, shown).cpu()

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu", dtype: DTypeName = "float32") -> Self:
        """Load a model folder that `train imgx` wrote, and check every file of it.

        Raises:
            StoreError: not such a folder, or a missing or damaged file, which is named.
        """
        model = read_model_folder(folder, KIND)
        record = model.record
        with unusable(folder / RECORD, REMEDY):
            use = SegmenterUse.from_json(record["use"])
            clip, subjects = bool(record["clip"]), tuple(record["subjects"])
        twin = (folder / "twin").is_dir()
        with unusable(folder, REMEDY):
            unets = {
                name: load_network(ImgXUNet, folder / name) for name in ("unet", *["twin"] * twin)
            }
            settings = DDPMScheduler.load_config(folder / "scheduler", local_files_only=True)
            scheduler = _SCHEDULERS[settings["_class_name"]].from_config(settings)
        for name, unet in unets.items():
            _require_fit(unet, use, folder / name)
            # Module.to, for diffusers' `to` objects on stderr to any dtype at all.
            nn.Module.to(unet, dtype=getattr(torch, dtype))
            place(unet, torch.device(device)).eval()
        networks = ImgXNetworks(unets["unet"], scheduler, unets.get("twin"), clip)
        return cls(networks, use, model.digest, subjects)


class TwinSegmenter:
    """The supervised twin: the same network without mask and time; it draws nothing.

    Args:
        network: in eval mode.
        use: tissues, channels, window.
        digest: of the model's files.
        subjects: real subjects that it saw.
    """

    def __init__(
        self, network: nn.Module, use: SegmenterUse, digest: str, subjects: tuple[str, ...]
    ) -> None:
        self._network, self._digest = network, digest
        self._weight = next(network.parameters())
        self.use, self.subjects = use, subjects

    @property
    def schema(self) -> LabelSchema:
        """Background and the tissues."""
        return self.use.schema

    @property
    def identity(self) -> Mapping[str, Any]:
        """Digest of the model, precision, window."""
        dtype = str(self._weight.dtype).removeprefix("torch.")
        return {
            "model": self._digest,
            "twin": True,
            "dtype": dtype,
            "window": list(self.use.window),
        }

    @torch.inference_mode()
    def predict(self, images: Tensor, keys: Sequence[SampleKey] = ()) -> Tensor:
        """Return probabilities, float32 `(B, C, *S)`; `keys` are not looked at.

        Raises:
            RequestError: images of another form.
        """
        self.use.check(images)
        return torch.cat([self._one(image[None]) for image in images])

    def _one(self, image: Tensor) -> Tensor:
        def ask(window: Tensor) -> Tensor:
            logits: Tensor = self._network(window)
            return logits.sigmoid() if self.use.overlapping else logits.softmax(dim=1)

        seen = at_least(image, self.use.window).to(self._weight.device)
        return _cut(sliding(seen, self.use.window, self.use.overlap, ask), image).cpu()


class ImgXPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is untyped
    """The file format of a model folder; `ImgXSegmenter` is what segments.

    Args:
        unet: predicts clean masks.
        scheduler: of the inference.
        twin: the supervised twin.
    """

    _optional_components: ClassVar[list[str]] = ["twin"]

    def __init__(
        self, unet: nn.Module, scheduler: SchedulerMixin, twin: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, twin=twin)


def save_imgx(
    folder: Path,
    networks: ImgXNetworks,
    use: SegmenterUse,
    *,
    subjects: Sequence[str],
    training: Mapping[str, Any],
    card: str,
) -> None:
    """Write the model folder whole or not at all; an older one is replaced.

    Args:
        folder: the model folder.
        networks: as trained.
        use: tissues, channels, window.
        subjects: real subjects in the training data.
        training: facts of the training, for people.
        card: text of `card.md`.

    Raises:
        StoreError: it cannot be written; an older folder stays.
    """
    pipeline = ImgXPipeline(networks.unet, networks.scheduler, networks.twin)
    write_model_folder(
        folder,
        tensor_files()(pipeline.save_pretrained),
        kind=KIND,
        schema=use.schema,
        card=card,
        record={
            "use": use.to_json(),
            "clip": networks.clip,
            "subjects": list(subjects),
            "training": dict(training),
        },
    )


def self_conditioned(unet: nn.Module) -> bool:
    """Tell whether a network also sees what it found in the step before."""
    settings: Any = unet.config
    return bool(settings["mask_channels"] == 2 * settings["out_channels"])


def _cut(found: Tensor, image: Tensor) -> Tensor:
    """Cut off what was padded."""
    for axis in range(2, image.ndim):
        found = found.narrow(axis - image.ndim, 0, image.shape[axis])
    return found


def _require_fit(unet: nn.Module, use: SegmenterUse, folder: Path) -> None:
    settings: Any = unet.config
    names = ("spatial_dims", "in_channels", "out_channels")
    expected = (use.spatial_dims, len(use.channels), len(use.tissues))
    found = tuple(settings[name] for name in names)
    if found != expected:
        raise StoreError(
            f"{folder}: expected a network of {', '.join(names)} = {expected} as synthgen.json "
            f"says, got {found}; copy the model again or train it again"
        )
