"""`synthgen demo`: the main job from start to end, offline, on a CPU."""

import time
from pathlib import Path
from typing import Annotated

import typer

STYLES = ("oasis_t1", "oasis_flair", "lesjak2017-cross-sectional_t2")
"""Two protocol styles of the paper's data sets and one that was fitted on scans."""


def command(
    *,
    out: Annotated[Path, typer.Option(help="Folder of everything.")] = Path("work/demo"),
    n: Annotated[int, typer.Option(min=1, help="Labelled slices to generate.")] = 16,
) -> None:
    """Generate a labelled dataset in three styles with the shipped models; check and draw it.

    Label maps with lesions, images, verification, contact sheet and report. What is there already
    is kept, so a second run continues or repeats the first.
    """
    start = time.monotonic()
    images = out / "images" / "+".join(STYLES)
    report = out / "reports" / "demo"
    size = ("--batch-size", 8, "--shard-size", 16)
    speed = ("--threads", 2, "--workspace", out)
    _run("labels", "--n", n, "--slice", "0.4:0.85", "--lesion", "wmh=0:0.02", *size, *speed)
    _run("images", "--style", ",".join(STYLES), *size, *speed)
    _run("verify", images)
    _run("preview", images)
    _run("evaluate", "overview", images, "--out", report)
    print(
        f"\ndone in {time.monotonic() - start:.0f} s: {n} labelled slices in {len(STYLES)} styles\n"
        f"  contact sheet  {images / 'preview.png'}\n"
        f"  report         {report / 'report.html'}\n"
        f"  images+labels  {images}\n"
        f"  labels         {out / 'labels'}\n"
        "`synthgen info models` shows what the shipped models saw and how good they are; "
        "`synthgen train` makes your own."
    )


def _run(*arguments: str | int | Path) -> None:
    """Show one command line and run it in this process."""
    from synthgen.cli import build_app

    words = [str(argument) for argument in arguments]
    print(f"\n$ synthgen {' '.join(words)}", flush=True)
    code = build_app()(words, standalone_mode=False)
    if code:
        raise typer.Exit(code)
