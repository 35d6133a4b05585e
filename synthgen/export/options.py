"""What a user may choose of an export. An option left at None takes its format's default."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True)
class ExportOptions:
    """Options of one export.

    Attributes:
        dataset_id: nnU-Net's dataset id, 1 to 999; 1 to 10 are the Medical Decathlon's.
        name: name after `DatasetXXX_`.
        channels: styles or modalities that become the channels of one case; by default every
            image is a case of its own, with one channel.
        file_ending: ".png" or ".nii.gz".
        bits: 8 or 16, of the grey values of a PNG.
    """

    dataset_id: int | None = None
    name: str | None = None
    channels: tuple[str, ...] = ()
    file_ending: str | None = None
    bits: int | None = None

    def require_only(self, understood: Collection[str], to: str) -> None:
        """Refuse options that a format would ignore.

        Raises:
            RequestError: naming the option.
        """
        for field in fields(self):
            if getattr(self, field.name) not in (None, ()) and field.name not in understood:
                raise RequestError(
                    f"--{field.name.replace('_', '-')} means nothing to --to {to}; leave it out"
                )
