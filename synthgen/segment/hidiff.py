"""HiDiff as a segmenter: a segmentor's mask, and what the Bernoulli diffusion makes of it.

Chen et al. 2024, arXiv:2407.03548. Deviations: the noise of an image is one field, drawn from its
key, which all windows see, and what windows find is averaged at every step, as logits; the
segmentor looks at every window once, not once a step.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from synthgen.core.errors import SchemaError
from synthgen.core.input_files import unusable
from synthgen.core.model_folder import RECORD, REMEDY, read_model_folder, write_model_folder
from synthgen.core.rng import Stream
from synthgen.diffusion.bernoulli import BernoulliScheduler
from synthgen.models.hidiff import HiDiffRefiner
from synthgen.models.hidiff_deploy import DeployedRefiner
from synthgen.models.loading import load_network
from synthgen.models.segmentors import Segmentor
from synthgen.runtime import place, tensor_files
from synthgen.segment.hidiff_masks import MaskForm
from synthgen.segment.hidiff_networks import HiDiffNetworks, refine
from synthgen.segment.use import SegmenterUse
from synthgen.segment.windows import at_least, sliding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from synthgen.core.rng import SampleKey
    from synthgen.core.schema import LabelSchema
    from synthgen.models.darl_networks import DTypeName
    from synthgen.models.hidiff import Trunks

KIND = "hidiff"


class HiDiffSegmenter:
    """Finds tissues; see `synthgen.segment.Segmenter`.

    Args:
        networks: of a trained model, in eval mode.
        use: tissues, channels, window.
        digest: of the model's files.
        subjects: real subjects that it saw.

    Raises:
        SchemaError: networks of other tissues, channels or rank than `use` says.
    """

    def __init__(
        self,
        networks: HiDiffNetworks,
        use: SegmenterUse,
        digest: str = "",
        subjects: Sequence[str] = (),
    ) -> None:
        self._networks, self._digest = networks, digest
        self._form = mask_form(use, networks.scheduler)
        _require_fit(networks, use, self._form)
        self._weight = next(networks.segmentor.parameters())
        self._refiner = _runner(networks)
        self.use = use
        self.subjects = tuple(subjects)

    @property
    def schema(self) -> LabelSchema:
        """Background and the tissues."""
        return self.use.schema

    @property
    def identity(self) -> Mapping[str, Any]:
        """Digest of the model, precision, window, steps, and how binary sums are made."""
        facts = {
            "model": self._digest,
            "dtype": str(self._weight.dtype).removeprefix("torch."),
            "window": list(self.use.window),
            "steps": self._networks.scheduler.timesteps.tolist(),
        }
        if isinstance(self._refiner, DeployedRefiner):
            facts["binary"] = self._refiner.backend
        return facts

    def predict(self, images: Tensor, keys: Sequence[SampleKey] = ()) -> Tensor:
        """Return what the last step finds, `(B, C, *S)`; see `steps`."""
        return self.steps(images, keys)[-1]

    @torch.inference_mode()
    def steps(self, images: Tensor, keys: Sequence[SampleKey]) -> Tensor:
        """Return what each step of the refinement finds.

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
        found = []
        for image, key in zip(images, keys, strict=True):
            shown = self._shown(image)
            windows = _Windows(self._networks, self._refiner, self.use)
            prior = self._form.prior(windows.segment(shown))

            def predict(
                mask: Tensor,
                t: Tensor,
                shown: Tensor = shown,
                prior: Tensor = prior,
                windows: _Windows = windows,
            ) -> Tensor:
                return windows.refine(shown, mask, prior, t)

            steps = refine(self._networks.scheduler, predict, prior, [key.torch(Stream.NOISE)])
            found.append(torch.stack([self._tissues(step, image) for step in steps]))
        return torch.cat(found, dim=1)

    @torch.inference_mode()
    def prior(self, images: Tensor) -> Tensor:
        """Return what the segmentor alone finds, `(B, C, *S)`; nothing is drawn.

        Raises:
            RequestError: images of another form.
        """
        self.use.check(images)
        found = []
        for image in images:
            logits = _Windows(self._networks, self._refiner, self.use).segment(self._shown(image))
            found.append(self._tissues(self._form.prior(logits), image))
        return torch.cat(found)

    def _shown(self, image: Tensor) -> Tensor:
        """Return `(1, Ci, *S)` on the networks' device, at least as large as a window."""
        return at_least(image[None], self.use.window).to(self._weight.device)

    def _tissues(self, masks: Tensor, image: Tensor) -> Tensor:
        """Return probabilities `(1, C, *S)`, what was padded cut off."""
        sides: list[Any] = [slice(side) for side in image.shape[1:]]
        return self._form.probabilities(masks[(..., *sides)]).cpu()

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu", dtype: DTypeName = "float32") -> Self:
        """Load a model folder that `train hidiff` wrote, and check every file of it.

        Raises:
            StoreError: not such a folder, or a missing or damaged file, which is named.
            SchemaError: its segmentor and its refiner were not made for one another.
        """
        model = read_model_folder(folder, KIND)
        record = model.record
        with unusable(folder, REMEDY):
            segmentor = load_network(Segmentor, folder / "segmentor")
            refiner = load_network(HiDiffRefiner, folder / "refiner")
            scheduler = BernoulliScheduler.from_pretrained(
                folder / "scheduler", local_files_only=True
            )
        with unusable(folder / RECORD, REMEDY):
            use = SegmenterUse.from_json(record["use"])
            features, subjects = tuple(record["features"]), tuple(record["subjects"])
            scheduler.set_timesteps(int(record["num_inference_steps"]))
        for network in (segmentor, refiner):
            # Rounded thresholds would turn signs: a binary refiner casts its real layers itself.
            if network is segmentor or not refiner.config.binary:
                # Module.to, for diffusers' `to` objects on stderr to any dtype at all.
                torch.nn.Module.to(network, dtype=getattr(torch, dtype))
            place(network, torch.device(device)).eval()
        with unusable(folder / RECORD, REMEDY):
            try:
                networks = HiDiffNetworks(segmentor, refiner, scheduler, features)
                return cls(networks, use, model.digest, subjects)
            except SchemaError as error:
                raise SchemaError(f"{folder}: {error}") from error


def _runner(networks: HiDiffNetworks) -> HiDiffRefiner | DeployedRefiner:
    """Return the refiner as it runs: on a CPU a binary one computes with bits or integers."""
    settings: Any = networks.refiner.config
    weight = next(networks.segmentor.parameters())
    if settings["binary"] and weight.device.type == "cpu":
        return DeployedRefiner(networks.refiner, len(networks.scheduler), dtype=weight.dtype)
    return networks.refiner


class _Windows:
    """One image, window by window; what the segmentor saw is kept for the steps."""

    def __init__(
        self,
        networks: HiDiffNetworks,
        refiner: HiDiffRefiner | DeployedRefiner,
        use: SegmenterUse,
    ) -> None:
        self._networks, self._refiner, self._use = networks, refiner, use
        self._dtype = next(networks.segmentor.parameters()).dtype
        self._trunks: list[Trunks] = []

    def segment(self, image: Tensor) -> Tensor:
        """Return the segmentor's logits `(1, K, *S)`."""

        def ask(window: Tensor) -> Tensor:
            logits: Tensor
            logits, maps = self._networks.segmentor(window.to(self._dtype))
            features = [maps[i] for i in self._networks.features]
            self._trunks.append(self._refiner.prepare(features, window.shape[2:]))
            return logits.float()

        return sliding(image, self._use.window, self._use.overlap, ask)

    def refine(self, image: Tensor, mask: Tensor, prior: Tensor, t: Tensor) -> Tensor:
        """Return the refiner's logits `(1, K, *S)`; `segment` was called before."""
        # The windows come in the same order every time.
        trunks = iter(self._trunks)
        ends = list(itertools.accumulate((image.shape[1], mask.shape[1])))

        def ask(window: Tensor) -> Tensor:
            shown, noisy, beside = window.tensor_split(ends, dim=1)
            steps = t.expand(len(window))
            logits = self._refiner.refine(shown, noisy, beside, steps, next(trunks))
            return logits.float()

        seen = torch.cat([image, mask, prior], dim=1)
        return sliding(seen, self._use.window, self._use.overlap, ask)


class HiDiffPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is untyped
    """The file format of a model folder; `HiDiffSegmenter` is what segments.

    Args:
        segmentor: finds the mask that is refined.
        refiner: finds where it is wrong.
        scheduler: of the inference.
    """

    def __init__(
        self, segmentor: Segmentor, refiner: HiDiffRefiner, scheduler: BernoulliScheduler
    ) -> None:
        super().__init__()
        self.register_modules(segmentor=segmentor, refiner=refiner, scheduler=scheduler)


def save_hidiff(
    folder: Path,
    networks: HiDiffNetworks,
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
    pipeline = HiDiffPipeline(networks.segmentor, networks.refiner, networks.scheduler)
    write_model_folder(
        folder,
        tensor_files()(pipeline.save_pretrained),
        kind=KIND,
        schema=use.schema,
        card=card,
        record={
            "use": use.to_json(),
            "features": list(networks.features),
            "num_inference_steps": len(networks.scheduler.timesteps),
            "subjects": list(subjects),
            "training": dict(training),
        },
    )


def mask_form(use: SegmenterUse, scheduler: BernoulliScheduler) -> MaskForm:
    """Return how a model's tissues become mask channels."""
    return MaskForm(len(use.tissues), use.overlapping, scheduler.exclusive)


def _require_fit(networks: HiDiffNetworks, use: SegmenterUse, form: MaskForm) -> None:
    settings: Any = networks.segmentor.config
    names = ("spatial_dims", "in_channels", "out_channels")
    expected = (use.spatial_dims, len(use.channels), form.channels)
    found = tuple(settings[name] for name in names)
    if found != expected:
        raise SchemaError(
            f"expected a segmentor of {', '.join(names)} = {expected} for {', '.join(use.tissues)}"
            f", got {found}"
        )
