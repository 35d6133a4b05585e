"""Experiments: which arms to compare on which test data, as documents for `synthgen benchmark`.

A document in `recipes/experiments/` holds one experiment at three sizes: `smoke` and `short` on
small open data, `paper` on the data sets of its source, for those who have them. It also holds
what was published, with where that is known from; a number that no source at hand gives is null.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from synthgen.core.errors import RecipeError
from synthgen.core.input_files import read_text
from synthgen.recipe.base import Count, Positive, Probability, Strict
from synthgen.recipe.messages import describe
from synthgen.recipe.yaml12 import MAX_BYTES, parse

Arm = Literal["real", "synthetic", "hybrid", "few", "contrast", "pretrain"]
Budget = Literal["smoke", "short", "paper"]
Name = Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Names = Annotated[tuple[Name, ...], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]
_SYNTHETIC = {"synthetic", "hybrid", "contrast", "pretrain"}


class PublishedResult(Strict):
    """What was published about one model.

    Attributes:
        model: its name in the publication.
        arm: the arm that stands for it here.
        trained_on: its training data.
        tested_on: its test data.
        dice: mean Dice of each tissue; null where no source at hand gives it.
        outcome: what was said of it.
        source: where that is known from.
    """

    model: Text
    arm: Arm
    trained_on: Text
    tested_on: Text
    dice: dict[Name, Probability] | None
    outcome: Text
    source: Text


class ExperimentRun(Strict):
    """One experiment at one size.

    Attributes:
        data: what the real store holds, and how to prepare it.
        maps: label maps to generate, each painted in every style.
        lesions: lesion requests of the generated maps, as `synthgen labels --lesion` takes them.
        styles: styles to paint them in.
        modality: modalities of training and test images.
        tissues: what is segmented.
        test: test subjects, or splits.
        few: real slices of the arm `few`; null without that arm.
        repeats: training seeds of each arm.
        note: what a reader of its numbers must know.
    """

    data: Text
    maps: Count
    lesions: tuple[Text, ...]
    styles: Names
    modality: Names
    tissues: Names
    test: Names
    few: Count | None
    repeats: Count
    note: Text


class ExperimentRuns(Strict):
    """The sizes of an experiment, named as the budgets of the benchmark."""

    smoke: ExperimentRun
    short: ExperimentRun
    paper: ExperimentRun


class Experiment(Strict):
    """An experiment.

    Attributes:
        name: of the document.
        question: what it asks.
        source: the publication it follows.
        train: arms; `real` is what the others are compared with.
        ratio: synthetic cases for each real one, an arm `hybrid` each; empty without that arm.
        margin: loss of Dice that counts as none.
        runs: data and sizes.
        published: what is known of the publication's own results.
    """

    name: Name
    question: Text
    source: Text
    train: Annotated[tuple[Arm, ...], Field(min_length=2)]
    ratio: tuple[Positive, ...]
    margin: Annotated[float, Field(gt=0, lt=1)]
    runs: ExperimentRuns
    published: tuple[PublishedResult, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "real" not in self.train or len({*self.train}) != len(self.train):
            raise ValueError("train needs the arm 'real', and each arm once")
        if not _SYNTHETIC & {*self.train}:
            raise ValueError("train needs an arm with synthetic data")
        if bool(self.ratio) != ("hybrid" in self.train):
            raise ValueError("ratio belongs to the arm 'hybrid': give both or none")
        for budget in ("smoke", "short", "paper"):
            if (getattr(self.runs, budget).few is None) == ("few" in self.train):
                raise ValueError(f"runs.{budget}.few belongs to the arm 'few': give both or none")
        return self

    def options(self, budget: Budget) -> dict[str, str]:
        """Return the options of `synthgen benchmark nnunet`, data paths excepted.

        Args:
            budget: the size.

        Returns:
            Option to value, such as `--train` to `real,synthetic`.
        """
        run: ExperimentRun = getattr(self.runs, budget)
        options = {
            "--train": ",".join(self.train),
            "--test": ",".join(run.test),
            "--modality": ",".join(run.modality),
            "--tissues": ",".join(run.tissues),
            "--margin": f"{self.margin:g}",
            "--repeats": str(run.repeats),
            "--budget": budget,
        }
        if self.ratio:
            options["--ratio"] = ",".join(f"{ratio:g}" for ratio in self.ratio)
        if run.few is not None:
            options["--few"] = str(run.few)
        return options


def load_experiment(path_or_name: str | Path) -> Experiment:
    """Load and check an experiment.

    Args:
        path_or_name: a YAML file, or the name of an experiment that comes with synthgen.

    Raises:
        RecipeError: not found, not YAML, or an unknown, missing or unusable key; one line that
            names the file and the key's path.
    """
    path, known = Path(path_or_name), list_experiments()
    if not path.is_file():
        if str(path_or_name) not in known:
            raise RecipeError(
                f"no experiment '{path_or_name}': neither a file nor one of "
                f"{', '.join(known) or '(none)'}"
            )
        path = known[str(path_or_name)]
    try:
        text = read_text(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: not readable as text ({error})") from error
    raw = parse(text, str(path))
    try:
        return Experiment.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise RecipeError(f"{path}: {describe(error, Experiment, {})}") from error
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{path}: holds a value that is not plain data ({error})") from error


def list_experiments() -> dict[str, Path]:
    """Return the experiments that come with synthgen: name to file, sorted by name."""
    package = Path(__file__).resolve().parent.parent
    # A wheel carries the recipes inside the package; a checkout has them beside it.
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted((folder / "experiments").glob("*.yaml"))}
    return {}
