"""`synthgen train labels|images|angiograms RECIPE`: train a generator on real data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from synthgen.images.angiogram.sources import AngiogramSources
    from synthgen.recipe import Recipe

app = typer.Typer(no_args_is_help=True, help="Train a generator on real data.")

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


@app.command("angiograms")
def angiograms(
    recipe: RecipeArgument,
    *,
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of angiograms or retina photographs: XCAD (trainA/B/C), DRIVE, CHASE, or "
            "plain pictures. Manual masks are not read."
        ),
    ],
    backgrounds: Annotated[
        Path | None,
        typer.Option(help="Folder of pictures without vessels. Default: those of --data."),
    ] = None,
    exclude: Annotated[
        str | None,
        typer.Option(help="Subjects to leave out, by comma: those that will be tested on."),
    ] = None,
    override: OverrideOption = None,
    out: Annotated[Path, typer.Option(help="Folder of the model.")] = Path(
        "work/models/angiograms"
    ),
    resume: ResumeOption = False,
    max_minutes: MinutesOption = None,
) -> None:
    """Train the angiogram generator and segmenter (DARL), without manual labels."""
    document = _load(recipe, override, "angiograms")
    from synthgen.images.angiogram.train import train_angiograms

    sources = _sources(document, data, backgrounds, exclude)
    train_angiograms(document, sources, out, resume=resume, max_minutes=max_minutes)
    print(f"model: {out}")


def _sources(
    recipe: "Recipe", data: Path, backgrounds: Path | None, exclude: str | None
) -> "AngiogramSources":
    """Read the pictures that a recipe asks for, and hand over what draws its trees."""
    from synthgen.cli.generation import by_comma
    from synthgen.data.vessel_images import read_vessel_images
    from synthgen.images.angiogram.sources import AngiogramSources
    from synthgen.labels.vessels import VesselGenerator

    section = recipe.angiograms.data if recipe.angiograms else None
    if section is None:  # _load has seen to that
        raise TypeError("a recipe without angiograms")
    left_out = by_comma(exclude)
    grounds = None
    if section.background == "pool" and backgrounds is None:
        grounds = read_vessel_images(data, role="backgrounds", exclude=left_out)
    elif backgrounds is not None:
        grounds = read_vessel_images(backgrounds)
    preset = section.masks
    return AngiogramSources(
        read_vessel_images(data, exclude=left_out),
        grounds,
        read_vessel_images(data, role="masks")
        if preset == "pool"
        else lambda shape: VesselGenerator(preset, shape),
    )


def _load(
    recipe: str, override: list[str] | None, section: Literal["labels", "images", "angiograms"]
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
