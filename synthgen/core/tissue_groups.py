"""Which tissues are compared: channels of the label schema, merged into a few groups.

The mapping, on schema `brain9`: `csf` is csf; `gm` is gm and deep_gm; `wm` is wm, brainstem and
every lesion that is not a tissue of its own. A tissue that is named for itself, such as `wmh`, is
taken out of its group. The hard label of a pixel is the group with the largest summed partial
volume, so that a pixel shared by cortex and thalamus is grey matter whatever lies beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from synthgen.core.schema import LabelSchema

DEFAULT_TISSUES = ("csf", "gm", "wm")
_GROUP_OF = {"csf": "csf", "gm": "gm", "deep_gm": "gm", "wm": "wm", "brainstem": "wm"}
_GROUP_OF_LESIONS = "wm"


@dataclass(frozen=True)
class TissueGroups:
    """Groups of a schema's channels, background first; label values are places in `names`.

    Attributes:
        names: group names.
        group: `(C,)` group of each channel.

    Examples:
        >>> from synthgen.core.schema import BRAIN9
        >>> TissueGroups.of(BRAIN9, ("csf", "gm", "wm", "wmh")).group
        (0, 1, 2, 3, 2, 3, 4, 3, 3)
    """

    names: tuple[str, ...]
    group: tuple[int, ...]

    @classmethod
    def of(
        cls, schema: LabelSchema, tissues: Sequence[str], where: str = "--tissues"
    ) -> TissueGroups:
        """Group the channels of a schema.

        Args:
            schema: of the labels.
            tissues: names of groups or channels, without background.
            where: what messages begin with: an option, or the data's name.

        Raises:
            RequestError: a tissue that is neither a group nor a channel, that stands twice or has
                no channel left; or a channel that belongs to none of the tissues.
        """
        names = (schema.names[0], *tissues)
        if len({*names}) != len(names) or len(names) < 2:
            raise RequestError(f"{where}: expected different tissues, got '{','.join(tissues)}'")
        known = sorted({*_GROUP_OF.values(), *schema.names[1:]})
        unknown = [name for name in tissues if name not in known]
        if unknown:
            raise RequestError(
                f"{where}: schema '{schema.name}' has no tissue '{unknown[0]}'; "
                f"expected some of {', '.join(known)}"
            )
        group = [0]
        for tissue in schema.tissues[1:]:
            home = _GROUP_OF_LESIONS if tissue.lesion else _GROUP_OF.get(tissue.name, "")
            name = tissue.name if tissue.name in tissues else home
            if name not in tissues:
                raise RequestError(
                    f"{where}: '{tissue.name}' of schema '{schema.name}' belongs to none of "
                    f"{', '.join(tissues)}; add {name or tissue.name}"
                )
            group.append(names.index(name))
        empty = [name for place, name in enumerate(names) if place not in group]
        if empty:
            raise RequestError(f"{where}: no channel is left for '{empty[0]}'")
        return cls(names, tuple(group))

    def merge(self, pv: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return the soft labels `(G, *S)` of a PV map `(C, *S)`; both are uint8, sum 255."""
        merged = np.zeros((len(self.names), *pv.shape[1:]), dtype=np.uint8)
        for channel, group in enumerate(self.group):
            merged[group] += pv[channel]
        return merged

    def harden(self, soft: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
        """Return the label map `(*S)` of soft labels `(G, *S)`."""
        labels: npt.NDArray[np.int8] = np.argmax(soft, axis=0).astype(np.int8)
        return labels
