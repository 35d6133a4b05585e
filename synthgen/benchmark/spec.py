"""What a benchmark compares: arms, budget, seeds, tissues, test subjects, and where data are from.

`plan_benchmark` turns a request into a `Spec` and opened sources, and refuses what would make
the comparison worthless, test subjects that an ancestor of the synthetic data saw first of all.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

from synthgen.benchmark.arms import REFERENCE, Arm, Part, Stage, build_arms
from synthgen.benchmark.trainers import trainer_settings
from synthgen.core.errors import GeometryError, LeakageError, RequestError, StoreError
from synthgen.core.input_files import read_json
from synthgen.core.manifest import digest, provenance, write_atomic
from synthgen.core.tissue_groups import DEFAULT_TISSUES, TissueGroups
from synthgen.data.rows import open_source
from synthgen.data.sources import MODALITIES
from synthgen.recipe.benchmark import BudgetRecipe, ProxyRecipe

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from synthgen.data.rows import Entry, Source
    from synthgen.recipe import Recipe
    from synthgen.recipe.benchmark import BenchmarkRecipe

FORMAT = "synthgen-benchmark/1"
SPEC = "spec.json"
_SPLITS = ("train", "val", "test")
_HELD_OUT = ("val", "test")


@dataclass(frozen=True)
class Request:
    """What the user asked for; see the options of `synthgen benchmark nnunet`.

    Attributes:
        kinds: arms.
        real: the training store.
        synthetic: the generated dataset; None if no arm needs one.
        test: subjects or splits; the held-out ones if empty.
        modalities: all shared ones if empty.
        tissues: what is segmented.
        ratios: of hybrid arms.
        few: slices of the arm `few`; the recipe's if None.
        trainer: "nnunet", "proxy", "imgx" or "hidiff".
        recipe: of the last two.
        budget: "smoke", "short" or "paper".
        repeats: training seeds; the budget's if None.
        margin: of non-inferiority; the recipe's if None.
    """

    kinds: tuple[str, ...]
    real: Path
    synthetic: Path | None = None
    test: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    tissues: tuple[str, ...] = DEFAULT_TISSUES
    ratios: tuple[float, ...] = (1.0,)
    few: int | None = None
    trainer: str = "nnunet"
    recipe: Recipe | None = None
    budget: str = "smoke"
    repeats: int | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Spec:
    """A benchmark, as `spec.json` holds it.

    Attributes:
        arms: `real` first.
        seeds: training seeds.
        margin: of non-inferiority, in Dice.
        trainer: "nnunet", "proxy", "imgx" or "hidiff".
        budget_name: name of the budget.
        budget: its numbers.
        proxy: numbers of the proxy trainer.
        tissues: group names, background first.
        groups: group of each channel of the label schema.
        test: test subjects, sorted.
        modalities: modalities of cases and test volumes, sorted.
        nsd_tolerance_mm: of the surface Dice.
        sources: name to digest, ancestors and number of samples.
        versions: of the software, for people.
        settings: of "imgx" or "hidiff": their section of a recipe, as plain data.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    margin: float
    trainer: str
    budget_name: str
    budget: BudgetRecipe
    proxy: ProxyRecipe
    tissues: tuple[str, ...]
    groups: tuple[int, ...]
    test: tuple[str, ...]
    modalities: tuple[str, ...]
    nsd_tolerance_mm: float
    sources: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def arm(self, name: str) -> Arm:
        """Return an arm.

        Raises:
            RequestError: there is none of that name.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise RequestError(f"no arm '{name}'; there are {', '.join(a.name for a in self.arms)}")

    @property
    def stores(self) -> tuple[str, ...]:
        """Names of the stores that any arm draws from, sorted."""
        return tuple(sorted({store for arm in self.arms for store in arm.stores}))

    @property
    def fixed(self) -> dict[str, Any]:
        """What all trainings of one folder share."""
        names = ["trainer", "budget_name", "budget", "tissues", "groups", "test", "modalities"]
        names += ["nsd_tolerance_mm"] + (["proxy"] if self.trainer == "proxy" else [])
        names += ["settings"] if self.settings else []
        body = self.to_json()
        return {name: body[name] for name in names}

    def run_hash(self, arm: Arm, seed: int) -> str:
        """Return the digest of all that decides one training."""
        mixed = any(store != REFERENCE for store in arm.stores)
        used = {n: s["digest"] for n, s in self.sources.items() if mixed or n == REFERENCE}
        body = {"format": FORMAT, "arm": asdict(arm), "seed": seed, "sources": used}
        return digest(body | self.fixed)

    def require_same(self, other: Spec, out: Path) -> None:
        """Refuse to continue a folder that holds another benchmark.

        More arms and seeds, or another margin, are no other benchmark.

        Raises:
            RequestError: naming what differs.
        """
        there, here = self.fixed, other.fixed
        numbers = {"budget": "the budget's numbers", "settings": "the trainer's settings"}
        other_names = [name for name in there if there[name] != here.get(name)]
        differing = [
            f"{name}: there {there[name]}, asked {here.get(name)}"
            for name in other_names
            if name not in numbers
        ] or [numbers[name] for name in other_names]
        differing += [
            f"the {name} data"
            for name in {*self.sources} & {*other.sources}
            if self.sources[name]["digest"] != other.sources[name]["digest"]
        ]
        if differing:
            raise RequestError(
                f"{out} holds another benchmark ({'; '.join(differing)}); choose another --out"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document."""
        body = asdict(self)
        body |= {"budget": self.budget.model_dump(mode="json")}
        body |= {"proxy": self.proxy.model_dump(mode="json"), "format": FORMAT}
        ratios = {a.name: p.share / (1 - p.share) for a in self.arms for p in _mixed(a)}
        plain: dict[str, Any] = json.loads(json.dumps(body | {"ratio": ratios}))
        return plain

    def write(self, out: Path) -> None:
        """Write `spec.json`, atomically."""
        text = json.dumps(self.to_json(), indent=1, sort_keys=True)
        write_atomic(out / SPEC, text.encode() + b"\n")

    @classmethod
    def read(cls, out: Path) -> Spec:
        """Read `spec.json`.

        Raises:
            StoreError: absent, damaged or of another format.
        """
        path = out / SPEC
        try:
            raw = read_json(path)
            if raw.pop("format") != FORMAT:
                raise StoreError(f"{path}: expected format '{FORMAT}'")
            raw.pop("ratio")
            arms = tuple(_read_arm(arm) for arm in raw.pop("arms"))
            budget = BudgetRecipe.model_validate_json(json.dumps(raw.pop("budget")))
            proxy = ProxyRecipe.model_validate_json(json.dumps(raw.pop("proxy")))
            lists = {k: tuple(v) for k, v in raw.items() if isinstance(v, list)}
            return cls(arms=arms, budget=budget, proxy=proxy, **(raw | lists))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{path}: not a readable benchmark ({error})") from error


def _mixed(arm: Arm) -> list[Part]:
    return [p for s in arm.stages for p in s.parts if p.share < 1 and p.store != REFERENCE]


def _read_arm(raw: Mapping[str, Any]) -> Arm:
    stages = [Stage(s["until"], tuple(Part(**p) for p in s["parts"])) for s in raw["stages"]]
    return Arm(raw["name"], tuple(stages))


@dataclass(frozen=True)
class Sources:
    """The opened data of a benchmark.

    Attributes:
        real: the training store, all splits.
        synthetic: the generated dataset, None if no arm needs one.
        groups: tissues of the labels.
    """

    real: Source
    synthetic: Source | None
    groups: TissueGroups


def plan_benchmark(request: Request, recipe: BenchmarkRecipe) -> tuple[Spec, Sources]:
    """Check a request and open its data.

    Raises:
        RequestError: an unknown arm, subject, modality or tissue, or nothing to train or test on.
        LeakageError: test subjects that an ancestor of the synthetic data saw.
        StoreError: missing or damaged data.
        SchemaError: synthetic data of another label schema.
        GeometryError: synthetic slices of another size.
    """
    few = recipe.few if request.few is None else request.few
    arms = build_arms(request.kinds, request.ratios, few)
    settings = trainer_settings(request, arms)
    stores = {store for arm in arms for store in arm.stores} - {REFERENCE}
    budget: BudgetRecipe = getattr(recipe.budgets, request.budget)
    repeats = budget.repeats if request.repeats is None else request.repeats
    real = open_source(request.real)
    synthetic = _open_synthetic(request.synthetic, real) if stores else None
    groups = TissueGroups.of(real.schema, request.tissues)
    test = _test_subjects(request, real)
    painted = synthetic if "synthetic" in stores else None
    modalities = _modalities(request, real, painted, test)
    if synthetic is not None:
        refuse_leaks(test, synthetic.ancestors, synthetic.name)
    opened = {REFERENCE: real} | ({} if synthetic is None else {"synthetic": synthetic})
    spec = Spec(
        arms=arms,
        seeds=tuple(range(repeats)),
        margin=recipe.margin if request.margin is None else request.margin,
        trainer=request.trainer,
        budget_name=request.budget,
        budget=budget,
        proxy=recipe.proxy,
        tissues=groups.names,
        groups=groups.group,
        test=test,
        modalities=modalities,
        nsd_tolerance_mm=recipe.nsd_tolerance_mm,
        sources={name: _facts(source) for name, source in opened.items()},
        versions=provenance() | {"nnunetv2": _version("nnunetv2")},
        settings=settings,
    )
    return spec, Sources(real, synthetic, groups)


def refuse_leaks(test: Collection[str], ancestors: Collection[str], name: str) -> None:
    """Refuse test subjects that the models, styles or label maps behind a dataset saw.

    Raises:
        LeakageError: naming them.
    """
    seen = sorted({*test} & {*ancestors})
    if seen:
        raise LeakageError(
            f"{name}: its models, styles or label maps were made from the test subjects "
            f"{listed(seen)}; test on others with --test, or train without them"
        )


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return names for people, the first `most` of many."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _open_synthetic(path: Path | None, real: Source) -> Source:
    if path is None:
        raise RequestError("these arms need a generated dataset; name one with --synthetic")
    source = open_source(path, spacing_mm=real.spacing_mm)
    real.schema.require_same(source.schema, source.name)
    if source.shape != real.shape:
        raise GeometryError(
            f"{source.name}: expected slices of {real.shape} pixels as in {real.name}, "
            f"got {source.shape}"
        )
    return source


def _modalities_of(entries: Collection[Entry]) -> set[str]:
    return {p.modality for entry in entries for p in entry.pictures} - {""}


def _test_subjects(request: Request, real: Source) -> tuple[str, ...]:
    """Return the subjects that were named, by id, last part of the id or split."""
    known: dict[str, set[str]] = {}
    for entry in real.entries:
        if _modalities_of([entry]) & ({*request.modalities} or {*MODALITIES.values()}):
            for name in (entry.subject, entry.subject.rpartition("/")[2], f":{entry.split}"):
                known.setdefault(name, set()).add(entry.subject)
    found: set[str] = set()
    for name in request.test or _HELD_OUT:
        subjects = known.get(f":{name}" if name in _SPLITS else name, set())
        if name not in _SPLITS and len(subjects) != 1:
            raise RequestError(
                f"--test: '{name}' is {'not a subject' if not subjects else 'ambiguous: one'} "
                f"of {real.name} with {_kind(request)}{_or_else(subjects, real)}"
            )
        found |= subjects
    if not found:
        raise RequestError(
            f"{real.name}: no subject with {_kind(request)} in split "
            f"{' or '.join(request.test or _HELD_OUT)}; name others with --test or --modality"
        )
    return tuple(sorted(found))


def _kind(request: Request) -> str:
    return f"{' or '.join(request.modalities)} images".lstrip()


def _or_else(subjects: set[str], real: Source) -> str:
    choices = sorted(subjects or {e.subject for e in real.entries if e.pictures})
    return f"; there are {listed(choices)}"


def _modalities(
    request: Request, real: Source, synthetic: Source | None, test: Sequence[str]
) -> tuple[str, ...]:
    """Return the modalities that every test subject, training and the synthetic set have."""
    shared = _modalities_of(training_entries(real, test))
    for subject in test:
        shared &= _modalities_of([e for e in real.entries if e.subject == subject])
    if synthetic is not None:
        shared &= _modalities_of(synthetic.entries)
    wanted = {*request.modalities} or shared
    if not wanted or wanted - shared:
        missing = f"--modality {','.join(sorted(wanted - shared))}: " if wanted else ""
        raise RequestError(
            f"{missing}real training slices, {'' if synthetic is None else 'synthetic images, '}"
            f"and all test subjects ({listed(test)}) must have a modality; they share "
            f"{', '.join(sorted(shared)) or 'none'}"
        )
    return tuple(sorted(wanted))


def training_entries(real: Source, test: Sequence[str]) -> list[Entry]:
    """Return the real slices to train on: split "train" without the test subjects."""
    return [e for e in real.entries if e.split == "train" and e.subject not in test]


def _facts(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "digest": digest(dict(source.identity)),
        "ancestors": list(source.ancestors),
        "n": len(source.entries),
        "facts": dict(source.facts),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
