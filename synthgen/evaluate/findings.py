"""What the sections of a report share: collecting numbers with floors, and refusing the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from synthgen.core.errors import RequestError
from synthgen.evaluate.metric import Better, Floor, Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass
class Findings:
    """Collects the metrics of a section, and a line for those that were refused."""

    metrics: list[Metric] = field(default_factory=list)
    _refused: dict[str, list[str]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        title: str,
        measure: Callable[[], Floor],
        better: Better = "lower",
        *,
        ideal: float = 0.0,
        unit: str = "",
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        """Measure, or note why not."""
        try:
            floor = measure()
        except RequestError as error:
            self.refuse(title, str(error))
            return
        self.metrics.append(
            Metric(
                name,
                title,
                floor.value,
                floor.reference,
                floor.low,
                floor.high,
                better,
                floor.n,
                ideal,
                unit,
                provenance or {},
            )
        )

    def refuse(self, title: str, reason: str) -> None:
        """Note that a number was not computed."""
        self._refused.setdefault(reason, []).append(title)

    @property
    def refused(self) -> tuple[str, ...]:
        """One line for each reason."""
        return tuple(f"{', '.join(titles)}: {reason}" for reason, titles in self._refused.items())
