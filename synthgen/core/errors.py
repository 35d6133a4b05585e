"""The domain errors of synthgen, each tied to one exit code of the command line."""

from __future__ import annotations

_LONGEST = 4000
"""Characters of a message."""


class SynthgenError(Exception):
    """Base of every error that synthgen raises on purpose.

    The message is one line: what was expected, what came, which file, what to do. Line breaks and
    terminal codes, which a file's content or name may hold, are written out; length is bounded.
    """

    exit_code = 3

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class RequestError(SynthgenError, ValueError):
    """A request that cannot be met: an unknown style, a folder of another identity."""

    exit_code = 2


class RecipeError(RequestError):
    """A recipe that is malformed, or names an unknown key or value."""


class SchemaError(SynthgenError, ValueError):
    """Labels or partial-volume maps that break their label schema."""


class GeometryError(SynthgenError, ValueError):
    """Shapes, spacings or affines that are unusable or disagree."""


class StoreError(SynthgenError, OSError):
    """A store, shard, model folder or image file that is missing, foreign or damaged."""


class LeakageError(SynthgenError, ValueError):
    """A real subject that stands on both sides of a train-test split."""
