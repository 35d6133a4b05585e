"""Time one optimiser step of every trainer on one core: fp32 and bf16 autocast, in turn.

Steps are those of the trainers themselves, at the batch size of the recipe, on a few batches that
were made before, so that making batches is timed apart; nothing is learned that would matter.
Every stage runs in forked processes of its own: one for the times, one for each precision for the
memory it needs. GFLOP are counted, forward and backward, and set against what large bf16 products
reach in the same run. `--compile` adds torch.compile of the label denoiser.

    python benchmarks/speed_training.py --store work/store --vessels data/CHASE_DB1 --compile

Prints tables and writes `benchmarks/results/speed_training-DATE.json`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from timing import alternate, cell, gain, gflop, peaks, read_result, spread, write_result

from synthgen.cli.train import _labelled, _sources
from synthgen.data.loaders import prefetch
from synthgen.data.store import TrainingStore
from synthgen.images.angiogram.darl_step import DarlStep
from synthgen.images.angiogram.sources import prepare
from synthgen.images.angiogram.train import build_parts
from synthgen.images.spade_step import SpadeStep
from synthgen.images.train_spade import (
    ImageAugment,
    ImageBatches,
    PvAugment,
    acquisition_augment,
    build_networks,
)
from synthgen.labels.build import build_autoencoder, condition_names
from synthgen.labels.condition import ConditionScale
from synthgen.labels.latents import LatentBatches, encode_slices
from synthgen.labels.train import TrainPlan, build_pipeline, label_batches, preview_batch
from synthgen.labels.train_autoencoder import AutoencoderStep
from synthgen.labels.train_diffusion import DiffusionStep
from synthgen.models.classifier import ModalityDatasetClassifier
from synthgen.recipe import find_recipe, load_recipe
from synthgen.runtime import build_accelerator
from synthgen.segment.hidiff_masks import MaskForm
from synthgen.segment.hidiff_networks import (
    HiDiffNetworks,
    build_refiner,
    build_scheduler,
    build_segmentor,
)
from synthgen.segment.hidiff_step import HiDiffStep
from synthgen.segment.imgx_step import ImgxStep, build_network
from synthgen.segment.training_data import patches_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerate import Accelerator

    from synthgen.data.loaders import Batches
    from synthgen.models.autoencoder import Autoencoder
    from synthgen.recipe import Recipe
    from synthgen.training.loop import TrainStep

Found = TypeVar("Found")
Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
KEPT = 2
"""Batches that are made before and taken in turn."""
LATENTS = 64
"""Slices in the latent cache: more change no time."""


class Kept:
    """Batches made before."""

    def __init__(self, batches: Batches[Any]) -> None:
        self._made = [batches.batch(number) for number in range(KEPT)]

    def batch(self, number: int) -> object:
        """Return one of them."""
        return self._made[number % KEPT]


@dataclass(frozen=True)
class Stage:
    """One training: its batches, how its step is built, how many samples a step takes.

    `per_round` steps are a round where steps take turns at different work.
    """

    batches: Batches[Any]
    build: Callable[[Accelerator, Batches[Any]], TrainStep]
    batch_size: int
    first_step: int = 0
    per_round: int = 1


def labels_stages(recipe: Recipe, store: TrainingStore, folder: Path) -> dict[str, Stage]:
    """Return autoencoder and diffusion of the label generator."""
    section = recipe.labels
    plan = TrainPlan(section, store, folder, False, None)
    preview = preview_batch(plan)
    train = section.autoencoder.train
    maps = label_batches(plan, train)

    def autoencoder(accelerator: Accelerator, batches: Batches[Any]) -> TrainStep:
        vae = build_autoencoder(section.autoencoder, store.schema.channels, train.seed)
        return AutoencoderStep(
            vae, section.autoencoder, store.schema, batches, preview, accelerator
        )

    vae = build_autoencoder(section.autoencoder, store.schema.channels, train.seed)
    vae.eval().requires_grad_(False)
    small = section.diffusion.train
    indices = [int(i) for i in store.slice_indices("train")[:LATENTS]]
    cache = encode_slices(vae, maps, indices, 1, small.seed, build_accelerator("fp32"))
    latents = LatentBatches(
        cache, small.batch_size, small.seed, latents=section.diffusion.latents,
        lesion_share=section.lesion_share,
    )  # fmt: skip
    scale = ConditionScale.measure(
        condition_names(section.diffusion, store.schema), cache.fractions, cache.position, cache.csf
    )

    def diffusion(accelerator: Accelerator, batches: Batches[Any]) -> TrainStep:
        pipeline = build_pipeline(section, vae, store.schema, cache.mu.shape[1:])
        return DiffusionStep(pipeline, section.diffusion, batches, scale, preview, accelerator)

    return {
        "labels: autoencoder": Stage(maps, autoencoder, train.batch_size),
        "labels: diffusion": Stage(latents, diffusion, small.batch_size),
    }


def images_stage(recipe: Recipe, store: TrainingStore) -> Stage:
    """Return the SPADE VAE-GAN."""
    section = recipe.images
    train = section.train
    batches = ImageBatches(
        store,
        "train",
        train.batch_size,
        train.seed,
        PvAugment(**section.pair_augment.model_dump()),
        ImageAugment(**section.contrast_augment.model_dump(exclude={"acquisition"})),
        acquisition_augment(section),
        lesion_probability=section.sampling.lesion_probability,
    )

    def build(accelerator: Accelerator, given: Batches[Any]) -> TrainStep:
        sizes = len(batches.modalities), len(batches.datasets)
        classifier = ModalityDatasetClassifier(
            *sizes, section.classifier.arch, section.classifier.width
        )
        networks = build_networks(section, store, classifier)
        return SpadeStep(section, given, networks, accelerator, modalities=sizes[0])

    return Stage(batches, build, train.batch_size)


def angiograms_stage(recipe: Recipe, pictures: Path) -> Stage:
    """Return DARL."""
    section = recipe.angiograms
    data = prepare(section, _sources(recipe, pictures, None, None))
    for number in range(KEPT):
        data.pairs.batch(number)  # renders its pictures

    def build(accelerator: Accelerator, batches: Batches[Any]) -> TrainStep:
        return DarlStep(section, batches, build_parts(section), accelerator, pairs=data.pairs)

    return Stage(data.pools, build, section.train.batch_size)


def segmenter_stages(imgx: Recipe, hidiff: Recipe, store: Path) -> dict[str, Stage]:
    """Return ImgX and HiDiff once both of its networks learn."""
    one, _ = _labelled(imgx.imgx, [str(store)], None, None)
    two, _ = _labelled(hidiff.hidiff, [str(store)], None, None)

    def build_imgx(accelerator: Accelerator, batches: Batches[Any]) -> TrainStep:
        network = build_network(imgx.imgx, len(one.channels), len(one.tissues), twin=False)
        return ImgxStep(imgx.imgx, batches, network, accelerator)

    def build_hidiff(accelerator: Accelerator, batches: Batches[Any]) -> TrainStep:
        section, channels = hidiff.hidiff, len(two.channels)
        scheduler = build_scheduler(section.schedule)
        form = MaskForm(len(two.tissues), two.overlapping, scheduler.exclusive)
        networks = HiDiffNetworks(
            build_segmentor(section, channels, form),
            build_refiner(section, channels, form),
            scheduler,
            section.features,
        )
        return HiDiffStep(section, batches, networks, form, accelerator)

    after = hidiff.hidiff.collaboration
    return {
        "imgx": Stage(
            patches_of(imgx.imgx.data, imgx.imgx.train, one), build_imgx,
            imgx.imgx.train.batch_size,
        ),
        "hidiff": Stage(
            patches_of(hidiff.hidiff.data, hidiff.hidiff.train, two), build_hidiff,
            hidiff.hidiff.train.batch_size, after.warmup, after.every,
        ),
    }  # fmt: skip


class Clocked:
    """A step whose optimisers and moving averages are timed."""

    def __init__(self, stage: Stage, batches: Batches[Any], precision: Precision) -> None:
        self._accelerator = build_accelerator(precision)
        self.step = stage.build(self._accelerator, batches)
        self._number, self._per_round = stage.first_step, stage.per_round
        self.optimiser_s = self.average_s = 0.0
        self._began = 0.0
        for optimizer in self.step.optimizers.values():
            optimizer.optimizer.register_step_pre_hook(lambda *_: self._start())
            optimizer.optimizer.register_step_post_hook(lambda *_: self._stop("optimiser_s"))
        for average in self.step.ema.values():
            average.step = self._clocked(average.step)

    def _start(self) -> None:
        self._began = time.thread_time()

    def _stop(self, into: str) -> None:
        setattr(self, into, getattr(self, into) + time.thread_time() - self._began)

    def _clocked(self, call: Callable[..., None]) -> Callable[..., None]:
        def clocked(parameters: object) -> None:
            self._start()
            call(parameters)
            self._stop("average_s")

        return clocked

    def __call__(self) -> None:
        """Make the steps of one round."""
        for _ in range(self._per_round):
            losses = self.step.step(self._accelerator, self._number)
            self._number += 1
        bad = [name for name, value in losses.items() if not np.isfinite(float(value))]
        if bad:
            raise SystemExit(f"the losses {', '.join(bad)} are not finite")


def times(stage: Stage, rounds: int, *, compiled: bool) -> dict[str, Any]:
    """Return seconds a step by variant, their ratio, shares of the step, GFLOP."""
    kept = Kept(stage.batches)
    calls: dict[str, Clocked] = {name: Clocked(stage, kept, name) for name in PRECISIONS}
    found: dict[str, Any] = {}
    if compiled:
        calls["bf16, compiled"] = Clocked(stage, kept, "bf16")
        network = calls["bf16, compiled"].step.models["denoiser"]
        network.unet.compile()
        began, before = time.perf_counter(), sum(os.times()[:4])
        calls["bf16, compiled"]()
        found["compile_s"] = {
            "wall": time.perf_counter() - began,
            "cpu": sum(os.times()[:4]) - before,  # with the C++ compiler's
        }
    per = stage.per_round
    found["gflop_per_step"] = gflop(calls["fp32"]) / per
    for clocked in calls.values():
        clocked.optimiser_s = clocked.average_s = 0.0
    spent = alternate(calls, rounds)
    for name, clocked in calls.items():
        total = sum(spent[name].cpu) * (rounds + 1) / rounds
        found[name] = {
            "cpu_s": spread(spent[name].cpu, 1 / per),
            "wall_s": spread(spent[name].wall, 1 / per),
            "optimiser_share": clocked.optimiser_s / total,
            "moving_average_share": clocked.average_s / total,
        }
    found["bf16_gain"] = gain(spent["fp32"], spent["bf16"])
    if compiled:
        found["compiled_gain"] = gain(spent["bf16"], spent["bf16, compiled"])
    return found


def making(stage: Stage, rounds: int) -> dict[str, Any]:
    """Return seconds to make one batch."""
    numbers = iter(range(KEPT, KEPT + rounds + 1))
    spent = alternate({"batch": lambda: stage.batches.batch(next(numbers))}, rounds)["batch"]
    return {"cpu_s": spread(spent.cpu), "wall_s": spread(spent.wall)}


def memory(stage: Stage, precision: Precision) -> float:
    """Return by how many MiB three rounds of a training raise the peak of this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clocked = Clocked(stage, Kept(stage.batches), precision)
    for _ in range(3):
        clocked()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


class Switch:
    """Batches that come from elsewhere at each turn."""

    def __init__(self, batches: Batches[Any]) -> None:
        self.source = batches

    def batch(self, number: int) -> object:
        """Return a batch."""
        return self.source.batch(number)


def made_ahead_or_not(stage: Stage, steps: int, rounds: int) -> dict[str, Any]:
    """Return seconds a step, batches included, made in a thread and made in line.

    The CPU time is that of the process, both threads: a thread needs a second core to gain.
    """
    switch, accelerator = Switch(stage.batches), build_accelerator("bf16")
    step = stage.build(accelerator, switch)
    spent: dict[str, dict[str, list[float]]] = {}
    for number in range(1 + rounds):
        for name in ("in line", "made ahead"):
            wall, cpu = time.perf_counter(), time.process_time()
            with ExitStack() as stack:
                switch.source = stage.batches
                if name == "made ahead":
                    switch.source = stack.enter_context(prefetch(stage.batches, number * steps))
                for place in range(number * steps, (number + 1) * steps):
                    step.step(accelerator, place)
            if number:
                taken = spent.setdefault(name, {"wall_s": [], "cpu_s": []})
                taken["wall_s"].append((time.perf_counter() - wall) / steps)
                taken["cpu_s"].append((time.process_time() - cpu) / steps)
    return {name: {k: spread(v) for k, v in taken.items()} for name, taken in spent.items()}


def encoded(stages: dict[str, Stage], vae: Autoencoder, rounds: int) -> dict[str, Any]:
    """Return seconds for a batch of latents from the cache, and for encoding one on the fly."""
    maps, latents = stages["labels: autoencoder"], stages["labels: diffusion"]
    count = latents.batch_size / maps.batch_size

    @torch.inference_mode()
    def fly() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            for number in range(round(count)):
                pv = maps.batches.batch(number).pv
                vae.encode(pv.to(memory_format=torch.channels_last)).latent_dist.mean.float()

    spent = alternate({"cached": lambda: latents.batches.batch(1), "on the fly": fly}, rounds)
    return {name: {"cpu_s": spread(s.cpu)} for name, s in spent.items()}


def apart(call: Callable[[], Found]) -> Found:
    """Return what a call returns in a forked process, so that memory and threads are its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(call()))
    process.start()
    sender.close()
    try:
        found: Found = receiver.recv()
    except EOFError as error:
        raise SystemExit("a measurement failed; see above") from error
    process.join()
    return found


def stage_figures(
    stage: Stage, rounds: int, peak: dict[str, float], *, compiled: bool
) -> dict[str, Any]:
    """Return all figures of one stage, each measured in a process of its own."""
    found = apart(lambda: times(stage, rounds, compiled=compiled))
    for variant in (*PRECISIONS, *(["bf16, compiled"] if compiled else [])):
        rate = found["gflop_per_step"] / found[variant]["cpu_s"]["median"]
        found[variant] |= {"gflop_per_cpu_s": rate, "share_of_bf16_peak": rate / peak["bf16"]}
    found["batch_size"] = stage.batch_size
    found["batch"] = apart(lambda: making(stage, rounds))
    found["memory_mib"] = {
        precision: apart(lambda p=precision: memory(stage, p)) for precision in PRECISIONS
    }
    return found


def show(name: str, found: dict[str, Any]) -> None:
    """Print one part."""
    if "gflop_per_step" not in found:
        print(f"\n{name}: {found}")
        return
    print(f"\n{name}: {found['gflop_per_step']:.0f} GFLOP a step of {found['batch_size']}")
    for variant in [v for v in (*PRECISIONS, "bf16, compiled") if v in found]:
        line = found[variant]
        print(
            f"  {variant:16} {cell(line['cpu_s']):>24} CPU s, {line['gflop_per_cpu_s']:5.0f} "
            f"GFLOP/s = {line['share_of_bf16_peak']:.0%} of bf16 peak; "
            f"optimiser {line['optimiser_share']:.1%}, average {line['moving_average_share']:.1%}"
        )
    print(f"  bf16 gain {cell(found['bf16_gain'])}; batch {cell(found['batch']['cpu_s'], 3)} CPU s")
    memory_mib = ", ".join(f"{k} {v:.0f} MiB" for k, v in found["memory_mib"].items())
    print(f"  memory {memory_mib}")
    if "compiled_gain" in found:
        took = found["compile_s"]
        print(f"  compiled {cell(found['compiled_gain'])} over bf16; {took['cpu']:.0f} s once")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True, help="a training store")
    parser.add_argument("--vessels", type=Path, help="retina photographs; without, no DARL")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--only", nargs="*", help="parts, such as imgx; those of today's file stay. Default: all"
    )
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    args = arguments()
    torch.set_num_threads(1)
    recipes = {
        name: load_recipe(find_recipe(name))
        for name in ("small", "starter_images", "darl_small", "imgx_small", "hidiff_small")
    }
    peak = peaks()
    with tempfile.TemporaryDirectory() as folder, TrainingStore.open(args.store) as store:
        labels = labels_stages(recipes["small"], store, Path(folder))
        stages = labels | {"images": images_stage(recipes["starter_images"], store)}
        if args.vessels:
            stages["angiograms"] = angiograms_stage(recipes["darl_small"], args.vessels)
        stages |= segmenter_stages(recipes["imgx_small"], recipes["hidiff_small"], args.store)
        recipe = recipes["small"].labels.autoencoder
        vae = build_autoencoder(recipe, store.schema.channels, 0).eval()
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            name: lambda n=name, s=stage: stage_figures(
                s, args.rounds, peak, compiled=args.compile and n == "labels: diffusion"
            )
            for name, stage in stages.items()
        }
        parts["latents"] = lambda: apart(lambda: encoded(labels, vae, args.rounds))
        parts["made ahead"] = lambda: apart(
            lambda: made_ahead_or_not(stages["imgx"], 3, args.rounds)
        )
        store.close()  # a forked process must not share a file with its parent
        done: dict[str, Any] = read_result("speed_training").get("parts", {}) if args.only else {}
        for name in [n for n in parts if not args.only or n in args.only]:
            done[name] = parts[name]()
            show(name, done[name])
            write_result(
                "speed_training",
                {"rounds": args.rounds, "peak_gflop_per_cpu_s": peak, "parts": done},
            )


if __name__ == "__main__":
    main()
