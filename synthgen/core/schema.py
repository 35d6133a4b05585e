"""Label schemas: which tissue stands in which partial-volume (PV) channel.

Source of the default channels: Fernandez et al. 2022, arXiv:2209.08256 (six healthy tissues
and three lesion classes).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import RequestError, SchemaError
from synthgen.core.input_files import parse_json

SUM_TOLERANCE = 1e-4
"""How far float PV channels may be from summing to 1 (uint8 storage must sum to 255 exactly)."""


@dataclass(frozen=True)
class Tissue:
    """One PV channel: a short name, its value in exported label maps, lesion or not."""

    name: str
    value: int
    lesion: bool = False


@dataclass(frozen=True)
class LabelSchema:
    """Ordered PV channels, `background` first.

    Examples:
        >>> BRAIN9.names[:4]
        ('background', 'csf', 'gm', 'wm')
        >>> BRAIN9.lesions
        ('wmh', 'tumour', 'oedema')
    """

    name: str
    tissues: tuple[Tissue, ...]

    def __post_init__(self) -> None:
        if not self.tissues or self.tissues[0].name != "background":
            raise SchemaError(f"schema '{self.name}': the first tissue must be 'background'")
        for what, entries in (
            ("name", [t.name for t in self.tissues]),
            ("value", [t.value for t in self.tissues]),
        ):
            if len(set(entries)) != len(entries):
                raise SchemaError(f"schema '{self.name}': a tissue {what} stands twice: {entries}")

    @property
    def channels(self) -> int:
        """Number of PV channels, background included."""
        return len(self.tissues)

    @property
    def names(self) -> tuple[str, ...]:
        """Tissue names in channel order."""
        return tuple(t.name for t in self.tissues)

    @property
    def lesions(self) -> tuple[str, ...]:
        """Names of the lesion tissues in channel order."""
        return tuple(t.name for t in self.tissues if t.lesion)

    @property
    def lesion_channels(self) -> tuple[int, ...]:
        """Channel indices of the lesion tissues."""
        return tuple(c for c, t in enumerate(self.tissues) if t.lesion)

    @property
    def is_picture(self) -> bool:
        """Whether maps lie as photographs do, X down, Y to the right, on a background that shows.

        All other maps are slices in RAS; what is painted on them is black outside the tissues.
        """
        return self == VESSEL

    def index(self, tissue: str) -> int:
        """Return the channel of a tissue.

        Raises:
            RequestError: the schema has no tissue of that name.
        """
        if tissue not in self.names:
            raise RequestError(
                f"schema '{self.name}' has no tissue '{tissue}'; it has {', '.join(self.names)}"
            )
        return self.names.index(tissue)

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the schema's JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the canonical JSON text of the schema."""
        tissues = [{"name": t.name, "value": t.value, "lesion": t.lesion} for t in self.tissues]
        return json.dumps({"name": self.name, "tissues": tissues}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Rebuild a schema from `to_json`.

        Raises:
            SchemaError: the text is not the JSON of a schema.
        """
        try:
            raw: dict[str, Any] = parse_json(text)
            tissues = tuple(
                Tissue(str(t["name"]), int(t["value"]), bool(t["lesion"])) for t in raw["tissues"]
            )
            name = str(raw["name"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise SchemaError(f"not the JSON of a label schema: {error}") from error
        outside = [tissue.value for tissue in tissues if not 0 <= tissue.value <= 255]
        if outside:
            raise SchemaError(f"schema '{name}': values lie in 0 .. 255, got {outside[0]}")
        return cls(name, tissues)

    def require_same(self, other: LabelSchema, where: str) -> None:
        """Refuse data of another schema.

        Raises:
            SchemaError: the fingerprints differ; the message names `where` and both schemas.
        """
        if other.fingerprint != self.fingerprint:
            raise SchemaError(
                f"{where}: expected label schema '{self.name}' ({', '.join(self.names)}), "
                f"got '{other.name}' ({', '.join(other.names)})"
            )

    def check(self, pv: npt.NDArray[Any], where: str = "pv") -> None:
        """Check one PV map.

        Args:
            pv: `(C, *S)`; floats in [0, 1] that sum to 1 over C within `SUM_TOLERANCE`, or
                uint8 that sums to 255 exactly.
            where: what the message calls the map, usually a file.

        Raises:
            SchemaError: naming the tissue, the value and the voxel.
        """
        if pv.ndim < 2 or pv.shape[0] != self.channels:
            raise SchemaError(
                f"{where}: expected {self.channels} PV channels ({', '.join(self.names)}), "
                f"got an array of shape {pv.shape}"
            )
        if pv.dtype == np.uint8:
            self._check_sum(pv.sum(axis=0, dtype=np.int32), 255, 0, where)
            return
        # NaN fails both comparisons, so it is caught here as well.
        bad = ~((pv >= 0) & (pv <= 1))
        if bad.any():
            channel, *voxel = (int(i) for i in np.argwhere(bad)[0])
            raise SchemaError(
                f"{where}: pv channel {channel} ('{self.names[channel]}') has value "
                f"{float(pv[(channel, *voxel)]):.6g} at voxel {tuple(voxel)}; "
                "partial volumes must lie in [0, 1]"
            )
        self._check_sum(pv.sum(axis=0, dtype=np.float64), 1.0, SUM_TOLERANCE, where)

    def _check_sum(
        self, total: npt.NDArray[Any], expected: float, tolerance: float, where: str
    ) -> None:
        bad = np.abs(total - expected) > tolerance
        if bad.any():
            voxel = tuple(int(i) for i in np.argwhere(bad)[0])
            raise SchemaError(
                f"{where}: pv channels sum to {float(total[voxel]):.6g} at voxel {voxel}; "
                f"partial volumes must sum to {expected:g}"
            )

    def to_labels(self, pv: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Return the hard label map `(*S)` of a PV map `(C, *S)`: the value of the largest PV."""
        values = np.asarray([t.value for t in self.tissues], dtype=np.uint8)
        labels: npt.NDArray[np.uint8] = values[np.argmax(pv, axis=0)]
        return labels

    def fractions(self, pv: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return each tissue's share `(C,)` of the brain (all that is not background).

        The background entry is the brain's share of the whole field of view. All-background
        maps give zeros.
        """
        total = pv.reshape(self.channels, -1).sum(axis=1, dtype=np.float64)
        brain = total[1:].sum()
        shares = total / brain if brain > 0 else np.zeros(self.channels)
        shares[0] = brain / total.sum()
        return shares


BRAIN9 = LabelSchema(
    "brain9",
    (
        Tissue("background", 0),
        Tissue("csf", 1),
        Tissue("gm", 2),
        Tissue("wm", 3),
        Tissue("deep_gm", 4),
        Tissue("brainstem", 5),
        Tissue("wmh", 6, lesion=True),
        Tissue("tumour", 7, lesion=True),
        Tissue("oedema", 8, lesion=True),
    ),
)
"""The default schema: cerebellar cortex counts as `gm`, cerebellar white matter as `wm`."""

VESSEL = LabelSchema("vessel", (Tissue("background", 0), Tissue("vessel", 1)))
"""Angiograms: the PV of `vessel` is the share of the pixel that vessels cover."""

SCHEMAS = {schema.name: schema for schema in (BRAIN9, VESSEL)}
"""Schemas that a recipe can name."""
