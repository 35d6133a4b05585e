"""`synthgen train labels|images|angiograms RECIPE`: train a generator on real data.

`synthgen train distil RECIPE [--teacher MODEL]`: a label model that samples in few steps, or with
its guidance in one network call a step, from one that takes more; needs no data.

`synthgen train imgx|hidiff RECIPE --data PATH`: train a segmenter on labelled images, real,
generated or mixed.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from synthgen.data.labelled import LabelledData
    from synthgen.data.mixture import Mixture
    from synthgen.images.angiogram.sources import AngiogramSources
    from synthgen.recipe import Recipe
    from synthgen.recipe.hidiff import HidiffRecipe
    from synthgen.recipe.imgx import ImgxRecipe

app = typer.Typer(
    no_args_is_help=True, help="Train a generator on real data, or a segmenter on labelled images."
)

Section = Literal["labels", "distil", "images", "angiograms", "imgx", "hidiff"]

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
ExcludeOption = Annotated[
    str | None,
    typer.Option(help="Subjects to leave out, by comma: those that will be tested on."),
]
LabelledOption = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="PATH[=SHARE]",
        help="Labelled images: a folder of `synthgen images` or `angiograms`, a training store or "
        "an nnU-Net raw folder. Several are mixed, evenly unless shares say otherwise.",
    ),
]
ValidateOption = Annotated[
    Path | None,
    typer.Option(
        help="Labelled images of other subjects, scored at the end: split val of a store, "
        "imagesTs of an nnU-Net folder."
    ),
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


@app.command("distil")
def distil(
    recipe: RecipeArgument,
    *,
    override: OverrideOption = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="Label model. Default: work/models/labels, else the shipped one."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the model.")] = Path(
        "work/models/labels_fast"
    ),
    resume: ResumeOption = False,
    max_minutes: MinutesOption = None,
) -> None:
    """Teach a label model to sample with fewer network calls, from its own samples."""
    document = _load(recipe, override, "distil")
    from synthgen.cli.generation import find_model
    from synthgen.labels.distil import distil_labels

    found = find_model(teacher, Path("work"), "labels")
    print(f"teacher: {found.shown}")
    distil_labels(document, found.folder, out, resume=resume, max_minutes=max_minutes)
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
    exclude: ExcludeOption = None,
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


@app.command("imgx")
def imgx(
    recipe: RecipeArgument,
    *,
    data: LabelledOption,
    validate: ValidateOption = None,
    exclude: ExcludeOption = None,
    override: OverrideOption = None,
    out: Annotated[Path, typer.Option(help="Folder of the model.")] = Path("work/models/imgx"),
    resume: ResumeOption = False,
    max_minutes: MinutesOption = None,
) -> None:
    """Train ImgX, diffusion over masks, and its supervised twin, in 2D or 3D."""
    document = _load(recipe, override, "imgx")
    training, validation = _labelled(document.imgx, data, validate, exclude)
    from synthgen.segment.train_imgx import train_imgx

    train_imgx(
        document, training, out, validation=validation, resume=resume, max_minutes=max_minutes
    )
    print(f"model: {out}")


@app.command("hidiff")
def hidiff(
    recipe: RecipeArgument,
    *,
    data: LabelledOption,
    segmentor: Annotated[
        Path | None,
        typer.Option(
            help="Model folder of `train hidiff`, or of `train imgx` with a twin, whose network is "
            "refined. Default: one is trained first."
        ),
    ] = None,
    validate: ValidateOption = None,
    exclude: ExcludeOption = None,
    override: OverrideOption = None,
    out: Annotated[Path, typer.Option(help="Folder of the model.")] = Path("work/models/hidiff"),
    resume: ResumeOption = False,
    max_minutes: MinutesOption = None,
) -> None:
    """Train HiDiff, a segmentation network and the Bernoulli diffusion that refines its masks."""
    document = _load(recipe, override, "hidiff")
    training, validation = _labelled(document.hidiff, data, validate, exclude)
    from synthgen.segment.train_hidiff import train_hidiff

    train_hidiff(
        document,
        training,
        out,
        validation=validation,
        segmentor=segmentor,
        resume=resume,
        max_minutes=max_minutes,
    )
    print(f"model: {out}")


def _labelled(
    section: "ImgxRecipe | HidiffRecipe | None",
    data: list[str],
    validate: Path | None,
    exclude: str | None,
) -> "tuple[Mixture, LabelledData | None]":
    """Open what a segmenter is trained on, and what it is scored on."""
    from synthgen.cli.generation import by_comma
    from synthgen.data.labelled import open_labelled
    from synthgen.data.mixture import Mixture, parse_data

    if section is None:  # _load has seen to that
        raise TypeError("a recipe without the section")
    wanted = section.data
    opened = partial(open_labelled, tissues=wanted.tissues, modalities=wanted.modalities)
    left_out = by_comma(exclude)
    parts = [(opened(path, exclude=left_out), share) for path, share in parse_data(data)]
    return Mixture(parts), None if validate is None else opened(validate, split="val")


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


def _load(recipe: str, override: list[str] | None, section: Section) -> "Recipe":
    """Load a recipe before anything heavy is imported, so that a typo costs no waiting."""
    from synthgen.core.errors import RecipeError
    from synthgen.recipe import find_recipe, load_recipe

    document = load_recipe(recipe, override or ())
    if getattr(document, section) is None:
        raise RecipeError(
            f"{find_recipe(recipe)}: has no section '{section}', which `train {section}` needs"
        )
    return document
