"""Cases: one label map with the images that stand beside it as channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from synthgen.data.rows import Entry, Picture, Source

ALONE = "image"
"""Channel name of a set whose images differ in modality."""


@dataclass(frozen=True)
class Case:
    """One case of a sample.

    Attributes:
        name: unique plain name.
        style: style of its image; of its channels, joined by `+`.
        modality: their modalities, likewise.
        pictures: which images of the sample are its channels.
    """

    name: str
    style: str
    modality: str
    pictures: tuple[int, ...]


@dataclass(frozen=True)
class CaseTable:
    """The cases of a source.

    Attributes:
        channels: channel names, in order.
        cases: (sample, its cases), samples without any left out.
        left_out: how many samples have none, by reason.
    """

    channels: tuple[str, ...]
    cases: tuple[tuple[Entry, tuple[Case, ...]], ...]
    left_out: Mapping[str, int]

    @property
    def count(self) -> int:
        """Number of cases."""
        return sum(len(cases) for _, cases in self.cases)


def case_table(source: Source, channels: Sequence[str]) -> CaseTable:
    """Divide a source into cases. Label maps without any image are cases without channels.

    Args:
        source: samples.
        channels: styles or modalities that become the channels of one case; if empty, every
            image is a case of its own.

    Raises:
        RequestError: a channel twice, unknown, or that several styles answer to; or two
            images of a sample whose names are the same.
    """
    pictures = list(dict.fromkeys(p for entry in source.entries for p in entry.pictures))
    if channels:
        return _stacked(source, tuple(channels), pictures)
    if not pictures:
        return CaseTable((), tuple((e, (Case(e.name, "", "", ()),)) for e in source.entries), {})
    cases = tuple(
        (entry, tuple(_alone(entry, k) for k in range(len(entry.pictures))))
        for entry in source.entries
        if entry.pictures
    )
    for _, alone in cases:
        if len({case.name for case in alone}) < len(alone):
            raise RequestError(f"{source.name}: two images would be called '{alone[0].name}'")
    without = len(source.entries) - len(cases)
    left_out = {"samples without an image": without} if without else {}
    return CaseTable((_common_name(pictures),), cases, left_out)


def facts_of(entry: Entry, case: Case) -> dict[str, str | int | float]:
    """Return what a metadata table says of a case."""
    place: dict[str, int | float] = {}
    if entry.position is not None:
        place = {"z": entry.z, "position": round(entry.position, 6)}
    return {
        "case": case.name,
        "style": case.style,
        "modality": case.modality,
        "subject": entry.subject,
        "split": entry.split,
        "group": entry.group,
        "index": entry.index,
        **place,
        **{f"lesion_{name}": share for name, share in entry.lesions.items()},
    }


def _alone(entry: Entry, k: int) -> Case:
    picture = entry.pictures[k]
    # A subject's dataset stands in the sample's name already.
    kind = picture.modality if entry.subject else picture.style
    return Case(f"{entry.name}_{kind}", picture.style, picture.modality, (k,))


def _common_name(pictures: Sequence[Picture]) -> str:
    modalities = {p.modality for p in pictures}
    if len(modalities) == 1 and "" not in modalities:
        return modalities.pop().upper()
    return pictures[0].style if len(pictures) == 1 else ALONE


def _stacked(source: Source, channels: tuple[str, ...], pictures: Sequence[Picture]) -> CaseTable:
    if len({*channels}) < len(channels):
        raise RequestError(f"--channels: a channel stands twice in {','.join(channels)}")
    for channel in channels:
        _require_known(source, channel, pictures)
    cases = []
    for entry in source.entries:
        chosen = [_find(entry.pictures, channel) for channel in channels]
        found = tuple(k for k in chosen if k is not None)
        if len(found) == len(channels):
            stack = [entry.pictures[k] for k in found]
            style = "+".join(p.style for p in stack)
            modality = "+".join(p.modality for p in stack)
            cases.append((entry, (Case(entry.name, style, modality, found),)))
    if not cases:
        raise RequestError(f"{source.name}: no sample has all of {', '.join(channels)}")
    without = len(source.entries) - len(cases)
    left_out = {"samples without every channel": without} if without else {}
    modalities = {p.modality for p in pictures}
    names = tuple(c.upper() if c in modalities else c for c in channels)
    return CaseTable(names, tuple(cases), left_out)


def _answers(picture: Picture, channel: str) -> bool:
    return channel in (picture.style, picture.modality)


def _find(pictures: Sequence[Picture], channel: str) -> int | None:
    return next((k for k, p in enumerate(pictures) if _answers(p, channel)), None)


def _require_known(source: Source, channel: str, pictures: Sequence[Picture]) -> None:
    known = sorted({p.style for p in pictures} | {p.modality for p in pictures if p.modality})
    if not any(_answers(p, channel) for p in pictures):
        raise RequestError(
            f"--channels: {source.name} has no style or modality '{channel}'; "
            f"it has {', '.join(known) or 'no images'}"
        )
    for entry in source.entries:
        several = [p.style for p in entry.pictures if _answers(p, channel)]
        if len(several) > 1:
            raise RequestError(
                f"--channels: '{channel}' stands for {' and for '.join(several)}; name one of them"
            )
