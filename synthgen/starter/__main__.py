"""`python -m synthgen.starter MODEL OUT ABOUT.md`: pack a model for shipping, see `pack_model`."""

import sys
from pathlib import Path

from synthgen.core.errors import SynthgenError
from synthgen.starter.pack import pack_model


def main(arguments: list[str]) -> None:
    """Pack a model folder; an error is one line on stderr."""
    if len(arguments) != 3:
        sys.exit("usage: python -m synthgen.starter MODEL OUT ABOUT.md")
    folder, out, about = map(Path, arguments)
    try:
        pack_model(folder, out, about)
    except SynthgenError as error:
        sys.exit(f"synthgen: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
