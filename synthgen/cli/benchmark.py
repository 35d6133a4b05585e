"""`synthgen benchmark nnunet`: do networks trained on synthetic slices work on real subjects?

Exit code 3: a training failed; the report is there and says which.
"""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthgen.cli.generation import (
    JsonOption,
    WorkspaceOption,
    by_comma,
    duration,
    progress_on_stderr,
)
from synthgen.core.errors import RecipeError, RequestError
from synthgen.core.manifest import MANIFEST
from synthgen.core.workspace import Workspace

if TYPE_CHECKING:
    from synthgen.benchmark.run import Outcome

app = typer.Typer(no_args_is_help=True, help="Compare training data by what networks learn.")

FAILED = 3
_ARMS = "real, synthetic, hybrid, few, contrast, pretrain"


class Budget(StrEnum):
    """The budgets of `recipes/benchmark.yaml`."""

    SMOKE = "smoke"
    SHORT = "short"
    PAPER = "paper"


class Trainer(StrEnum):
    """What is trained."""

    NNUNET = "nnunet"
    PROXY = "proxy"
    IMGX = "imgx"
    HIDIFF = "hidiff"


_SEGMENTERS = (Trainer.IMGX, Trainer.HIDIFF)


@app.callback()
def _group() -> None:
    """Keep `nnunet` a subcommand."""


@app.command("nnunet")
def nnunet(  # noqa: PLR0913 - one parameter per option
    *,
    train: Annotated[
        str,
        typer.Option(
            help=f"Arms, joined by commas: {_ARMS}. `real` always runs: it is what the others are "
            "compared with."
        ),
    ],
    test: Annotated[
        str | None,
        typer.Option(
            help="Test subjects of the store, or splits, joined by commas. Default: val,test."
        ),
    ] = None,
    real: Annotated[
        Path | None, typer.Option(help="The training store. Default: WORKSPACE/store.")
    ] = None,
    synthetic: Annotated[
        Path | None,
        typer.Option(help="Generated images. Default: the one folder in WORKSPACE/images."),
    ] = None,
    modality: Annotated[
        str | None,
        typer.Option(
            help="Modalities, joined by commas; each slice image is a case. Default: all "
            "that training and test data share."
        ),
    ] = None,
    tissues: Annotated[
        str, typer.Option(help="What is segmented; add wmh for lesions.")
    ] = "csf,gm,wm",
    ratio: Annotated[
        str, typer.Option(help="Synthetic cases for each real one, an arm `hybrid` each.")
    ] = "1",
    few: Annotated[
        int | None, typer.Option(min=1, help="Real slices of the arm `few`. Default: 20.")
    ] = None,
    budget: Annotated[Budget, typer.Option(help="Length and size; see the recipe.")] = Budget.SMOKE,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Training seeds of each arm. Default: the budget's.")
    ] = None,
    trainer: Annotated[
        Trainer,
        typer.Option(
            help="nnU-Net v2 itself; proxy, a small network with soft labels; imgx or hidiff with "
            "the recipe imgx_small or hidiff_small."
        ),
    ] = Trainer.NNUNET,
    margin: Annotated[
        float | None, typer.Option(help="Loss of Dice that counts as none. Default: 0.01.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder. Default: WORKSPACE/benchmarks/TRAINER-BUDGET.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--override",
            help="benchmark.key.path=value of the recipe `benchmark`; imgx.key.path=value or "
            "hidiff.key.path=value of the trainer's.",
        ),
    ] = None,
    workspace: WorkspaceOption = Path("work"),
    as_json: JsonOption = False,
) -> None:
    """Train the same network on each kind of data, test all on the same real subjects.

    The same command continues a benchmark that was interrupted, and adds arms or repeats to it.
    """
    place, arms = Workspace(workspace), by_comma(train)
    from synthgen.recipe import load_recipe

    own = [text for text in override or () if text.startswith(f"{trainer.value}.")]
    rest = [text for text in override or () if text not in own]
    recipe = load_recipe("benchmark", rest).benchmark
    network = load_recipe(f"{trainer.value}_small", own) if trainer in _SEGMENTERS else None
    if recipe is None:
        raise RecipeError("-o: the section 'benchmark' must stay")
    if margin is not None and margin <= 0:
        raise RequestError(f"--margin: expected a Dice above 0, got {margin:g}")
    needed = {*arms} & {"synthetic", "hybrid", "contrast", "pretrain"}
    from synthgen.benchmark.spec import Request, plan_benchmark

    request = Request(
        kinds=arms,
        real=real or place.store,
        synthetic=_synthetic(synthetic, place) if needed else None,
        test=by_comma(test),
        modalities=tuple(m.lower() for m in by_comma(modality)),
        tissues=by_comma(tissues),
        ratios=_numbers(ratio),
        few=few,
        trainer=trainer.value,
        recipe=network,
        budget=budget.value,
        repeats=repeats,
        margin=margin,
    )
    spec, sources = plan_benchmark(request, recipe)
    folder = out or place.benchmark(f"{trainer.value}-{budget.value}")
    from synthgen.benchmark.report import write_report
    from synthgen.benchmark.run import prepare_benchmark, train_benchmark

    with progress_on_stderr("cases", "slices") as progress:
        prepare_benchmark(spec, sources, folder, progress)
    with progress_on_stderr("training", "steps") as progress:
        outcome = train_benchmark(spec, folder, progress)
    page = write_report(folder)
    print(_json(outcome, page) if as_json else _text(outcome, page))
    if outcome.failed:
        raise typer.Exit(FAILED)


def _synthetic(named: Path | None, place: Workspace) -> Path:
    """Return the generated dataset: the one named, else the only one of the workspace."""
    if named is not None:
        return named
    folder = place.images("x").parent
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(path) for path in found)
        raise RequestError(f"which dataset? name one with --synthetic: {names}")
    raise RequestError(
        f"no synthetic dataset in {folder}; `synthgen labels --n 200`, then `synthgen images "
        "--style STYLE` make one (`synthgen styles list` names styles)"
    )


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in by_comma(text))
    except ValueError as error:
        raise RequestError(f"--ratio: expected numbers such as 0.5,1,2, got '{text}'") from error


def _json(outcome: "Outcome", page: Path) -> str:
    return json.dumps({**asdict(outcome), "out": str(outcome.out), "report": str(page)})


def _text(outcome: "Outcome", page: Path) -> str:
    kept = f", {len(outcome.kept)} were there" if outcome.kept else ""
    lines = [f"{outcome.out}: {len(outcome.trained)} trained in {duration(outcome.seconds)}{kept}"]
    lines += [f"FAILED {name}: {reason}" for name, reason in outcome.failed.items()]
    return "\n".join([*lines, str(page)])
