"""Run the command line as a module: `accelerate launch -m synthgen labels ...`."""

from __future__ import annotations

from synthgen.cli import main

if __name__ == "__main__":
    main()
