"""`synthgen train labels|images RECIPE`: train a generator on a training store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from synthgen.recipe import Recipe

app = typer.Typer(no_args_is_help=True, help="Train a generator on a training store.")

RecipeArgument = Annotated[
    str, typer.Argument(help="A YAML file, or a recipe's name (see `synthgen info recipes`).")
]
OverrideOption = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", help="key.path=value, such as labels.diffusion.train.lr=1e-4"),
]
StoreOption = Annotated[Path, typer.Option(help="The training store that `prepare` wrote.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue the run from its last checkpoint.")
]
MinutesOption = Annotated[
    float | None,
    typer.Option(min=0.01, help="Stop after this long, save, and write the model as it is."),
]


@app.command("labels")
def labels(
    recipe: RecipeArgument,
    *,
    override: OverrideOption = None,
    store: StoreOption = Path("work/store"),
    out: Annotated[Path, typer.Option(help="Folder of the model.")] = Path("work/models/labels"),
    resume: ResumeOption = False,
    max_minutes: MinutesOption = None,
) -> None:
    """Train the label generator: the autoencoder, then diffusion in its latent."""
    document = _load(recipe, override, "labels")
    from synthgen.labels.train import train_labels

    train_labels(document, store, out, resume=resume, max_minutes=max_minutes)
    print(f"model: {out}")


@app.command("images")
def images(
    recipe: RecipeArgument,
    *,
    override: OverrideOption = None,
    store: StoreOption = Path("work/store"),
    out: Annotated[Path, typer.Option(help="Folder of the model.")] = Path("work/models/images"),
    resume: ResumeOption = False,
    max_minutes: MinutesOption = None,
) -> None:
    """Train the image generator: the critic's classifier, SPADE, then the style bank."""
    document = _load(recipe, override, "images")
    from synthgen.images.train_spade import train_images

    train_images(document, store, out, resume=resume, max_minutes=max_minutes)
    print(f"model: {out}")


def _load(
    recipe: str, override: list[str] | None, section: Literal["labels", "images"]
) -> "Recipe":
    """Load a recipe before anything heavy is imported, so that a typo costs no waiting."""
    from synthgen.core.errors import RecipeError
    from synthgen.recipe import find_recipe, load_recipe

    document = load_recipe(recipe, override or ())
    if getattr(document, section) is None:
        raise RecipeError(
            f"{find_recipe(recipe)}: has no section '{section}', which `train {section}` needs"
        )
    return document
