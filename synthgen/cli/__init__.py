"""The command line. Command modules import nothing heavy until their command runs.

Exit codes: 0 done, 1 bug, 2 bad request, 3 bad data, 4 a gate failed, 130 interrupted by Ctrl-C,
143 by SIGTERM (run it again to resume).
"""

import logging
import sys
from importlib import import_module
from typing import Annotated

import typer

from synthgen import __version__
from synthgen.core.errors import SynthgenError
from synthgen.core.interrupt import Interrupted, interruptible

_COMMANDS = (
    "demo",
    "doctor",
    "info",
    "prepare",
    "train",
    "labels",
    "images",
    "styles",
    "vessels",
    "angiograms",
    "volumes",
    "segment",
    "export",
    "verify",
    "preview",
    "replay",
    "evaluate",
    "redraw",
    "benchmark",
)
"""One module of this package each, in the order of `--help`: a `command` function, or an `app`
where the command has subcommands."""


def _show_version(value: bool) -> None:
    if value:
        print(f"synthgen {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Make synthetic, labelled medical images: label maps first, then images in many styles."""


def build_app() -> typer.Typer:
    """Build the application of all commands."""
    app = typer.Typer(
        name="synthgen",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name in _COMMANDS:
        module = import_module(f"{__name__}.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name=name)(module.command)
    return app


def main() -> None:
    """Run the command line; what goes wrong becomes one line on stderr and an exit code."""
    _log_to_stderr()
    try:
        with interruptible():
            build_app()()
    except SynthgenError as error:
        print(f"synthgen: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Interrupted as stop:
        note = stop.note or "the same command continues where it was"
        print(f"synthgen: interrupted; {note}", file=sys.stderr)
        sys.exit(stop.code)


def _log_to_stderr() -> None:
    """Show progress and warnings of synthgen's own modules."""
    logger = logging.getLogger("synthgen")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
