"""`python -m synthgen.starter MODEL OUT`: pack a trained model for shipping; see `pack_model`."""

import sys
from pathlib import Path

from synthgen.core.errors import SynthgenError
from synthgen.starter.pack import pack_model


def main(arguments: list[str]) -> None:
    """Pack the model folder `arguments[0]` as `arguments[1]`; an error is one line on stderr."""
    if len(arguments) != 2:
        sys.exit("usage: python -m synthgen.starter MODEL OUT")
    try:
        pack_model(Path(arguments[0]), Path(arguments[1]))
    except SynthgenError as error:
        sys.exit(f"synthgen: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
