"""`synthgen demo`: the main job from start to end, offline, on a CPU."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

LABELS_SHARE = 0.6
"""Share of the training minutes that the label generator gets: soft maps are the harder half."""


def command(
    *,
    out: Annotated[Path, typer.Option(help="Folder of everything.")] = Path("work/demo"),
    minutes: Annotated[float, typer.Option(min=0.01, help="Most minutes of training.")] = 1.5,
    n: Annotated[int, typer.Option(min=1, help="Labelled slices to generate.")] = 16,
) -> None:
    """Prepare, train a tiny model, generate a labelled dataset, verify it and draw it.

    Everything comes from the MNI152 template that the nilearn package carries: no download.
    What is there already is kept, so a second run continues or repeats the first.
    """
    start = time.monotonic()
    prepared, models = out / "store", out / "models"
    if not (prepared / "store.h5").is_file():
        _run("prepare", "mni152", "--out", prepared)
    for kind, share in (("labels", LABELS_SHARE), ("images", 1 - LABELS_SHARE)):
        if not (models / kind / "model_index.json").is_file():
            where = ("--store", prepared, "--out", models / kind, "--resume")
            _run("train", kind, "tiny", *where, "--max-minutes", f"{share * minutes:g}")
    styles = _fitted_styles(models / "images")
    images = out / "images" / "+".join(styles)
    size = ("--batch-size", 8, "--shard-size", 16)
    _run("labels", "--n", n, "--slice", "0.25:0.85", *size, "--workspace", out)
    _run("images", "--style", ",".join(styles), *size, "--workspace", out)
    _run("verify", images)
    _run("preview", images)
    print(
        f"\ndone in {time.monotonic() - start:.0f} s: {n} labelled slices\n"
        f"  contact sheet  {images / 'preview.png'}\n"
        f"  images+labels  {images}\n"
        f"  labels         {out / 'labels'}\n"
        f"  models         {models / 'labels'}, {models / 'images'}\n"
        f"  training       {out / 'runs'} (losses.jsonl, sheets)\n"
        "The models are tiny and saw one template for a minute: they show the way, not the "
        "quality. `synthgen train labels small` trains better ones on your own store."
    )


def _run(*arguments: str | int | Path) -> None:
    """Show one command line and run it in this process."""
    from synthgen.cli import build_app

    words = [str(argument) for argument in arguments]
    print(f"\n$ synthgen {' '.join(words)}", flush=True)
    code = build_app()(words, standalone_mode=False)
    if code:
        raise typer.Exit(code)


def _fitted_styles(model: Path) -> list[str]:
    """Return the style names of the model that was just trained."""
    bank = json.loads((model / "style_bank" / "config.json").read_bytes())
    return [style["name"] for style in bank["styles"]]
