"""MR acquisitions: pulse sequences, and the signal that each makes of a tissue.

Sources. Relaxation times at 1.5 T: BrainWeb (Kwan et al. 1999, doi:10.1109/42.816072) for CSF,
grey and white matter; at 3 T: Wansapura et al. 1999
(doi:10.1002/(SICI)1522-2586(199904)9:4<531::AID-JMRI4>3.0.CO;2-L) for grey and white matter. The
others were chosen here: deep grey matter and brainstem between grey and white matter; white
matter lesions so that they look as bright in each modality as on scans of patients (BrainWeb's T2
of 237 ms saturates FLAIR at 1.5 T); tumour and oedema with long times. Acquisitions see CSF with
a T1 of 4300 ms at either field (Rooney et al. 2007, doi:10.1002/mrm.21122), which the inversion
times of clinical FLAIR null; BrainWeb's 2569 ms would leave it bright.
Signal equations: Bernstein, King, Zhou, Handbook of MRI Pulse Sequences (2004), chapters 14 and
17; MP-RAGE: Deichmann et al. 2000 (doi:10.1006/nimg.2000.0601), in its steady state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from synthgen.core.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PulseSequence = Literal["gradient", "inversion_gradient", "spin", "inversion"]
"""Spoiled gradient echo, MP-RAGE, spin echo, inversion recovery spin echo (FLAIR)."""


@dataclass(frozen=True)
class TissueConstants:
    """Relaxation times in ms, proton density relative to water, relative texture."""

    t1: float
    t2: float
    t2_star: float
    density: float
    texture: float


TISSUES: Mapping[str, TissueConstants] = MappingProxyType(
    {
        "csf": TissueConstants(2569, 329, 58, 1.0, 0.07),  # BrainWeb
        "gm": TissueConstants(833, 83, 69, 0.86, 0.05),  # BrainWeb
        "wm": TissueConstants(500, 70, 61, 0.77, 0.03),  # BrainWeb
        "deep_gm": TissueConstants(650, 72, 58, 0.82, 0.05),
        "brainstem": TissueConstants(590, 76, 62, 0.79, 0.04),
        "wmh": TissueConstants(950, 115, 90, 0.78, 0.08),
        "tumour": TissueConstants(1400, 125, 90, 0.88, 0.15),
        "oedema": TissueConstants(1100, 130, 100, 0.87, 0.08),
    }
)
"""Constants of the tissues at 1.5 T, by name."""

CSF_T1 = 4300.0
"""T1 of CSF in ms that acquisitions see, at either field strength."""

_RELAXATION: Mapping[float, Mapping[str, TissueConstants]] = MappingProxyType(
    {
        1.5: {**TISSUES, "csf": replace(TISSUES["csf"], t1=CSF_T1)},
        3.0: {
            name: replace(TISSUES[name], t1=t1, t2=t2, t2_star=t2_star)
            for name, t1, t2, t2_star in (
                ("csf", CSF_T1, 329, 50),
                ("gm", 1331, 110, 47),  # Wansapura
                ("wm", 832, 80, 47),  # Wansapura
                ("deep_gm", 1060, 84, 42),
                ("brainstem", 960, 90, 45),
                ("wmh", 1450, 200, 65),
                ("tumour", 1900, 190, 65),
                ("oedema", 1600, 210, 72),
            )
        },
    }
)
"""Constants by field strength in tesla."""

_READOUTS = 160
"""Excitations after one inversion of MP-RAGE: 128 to 192 are usual."""

_SPACING = 2.3
"""Distance of the excitations, in echo times: median of five sites of ABIDE II
(doi:10.1038/sdata.2017.10, table 2)."""


@dataclass(frozen=True)
class Acquisition:
    """One pulse sequence with its parameters.

    Attributes:
        sequence: which equation holds; see `PulseSequence`.
        tr: repetition time in ms; for `inversion_gradient` from inversion to inversion.
        te: echo time in ms; of a train with varying flip angles, the one of equal contrast.
        ti: inversion time in ms; for `inversion_gradient` to the centre of k-space. None of an
            `inversion` nulls CSF. Sequences without inversion have none.
        flip_deg: flip angle of gradient echoes; None for the others, which excite by 90 degrees.
        field_t: field strength, 1.5 or 3 tesla.

    Raises:
        RequestError: parameters that no scanner can have.
    """

    sequence: PulseSequence
    tr: float
    te: float
    ti: float | None = None
    flip_deg: float | None = None
    field_t: float = 1.5

    def __post_init__(self) -> None:
        wrong = ""
        if not 0 < self.te < self.tr:
            wrong = f"expected 0 < te < tr, got te {self.te:g} and tr {self.tr:g}"
        elif self.ti is not None and not self.inverts:
            wrong = f"sequence {self.sequence} has no inversion time, got ti {self.ti:g}"
        elif self.ti is None and self.sequence == "inversion_gradient":
            wrong = "sequence inversion_gradient needs its inversion time ti"
        elif self.ti is not None and not 0 < self.ti < self.tr:
            wrong = f"expected 0 < ti < tr, got ti {self.ti:g} and tr {self.tr:g}"
        elif self.flip_deg is not None and not self.flips:
            wrong = f"sequence {self.sequence} has no flip_deg of its own, got {self.flip_deg:g}"
        elif self.flips and not 0 < (self.flip_deg or 0) < 90:
            wrong = f"sequence {self.sequence} needs flip_deg in (0, 90), got {self.flip_deg}"
        elif self.field_t not in _RELAXATION:
            wrong = f"field_t must be 1.5 or 3, got {self.field_t:g}"
        if wrong:
            raise RequestError(f"acquisition: {wrong}")

    @property
    def inverts(self) -> bool:
        """Whether an inversion comes first."""
        return self.sequence in ("inversion", "inversion_gradient")

    @property
    def flips(self) -> bool:
        """Whether it is a gradient echo, excited by a flip angle of its own."""
        return self.sequence in ("gradient", "inversion_gradient")

    @property
    def angle(self) -> float:
        """Angle of excitation in radians."""
        return math.radians(90.0 if self.flip_deg is None else self.flip_deg)

    @property
    def inversion_time(self) -> float:
        """Inversion time in ms: `ti`, or the one that nulls CSF."""
        return null_time(CSF_T1, self.tr) if self.ti is None else self.ti


def null_time(t1: float, tr: float) -> float:
    """Return the inversion time in ms at which a tissue of this T1 gives no signal."""
    return float(t1 * math.log(2 / (1 + math.exp(-tr / t1))))


def signal(acquisition: Acquisition, tissue: TissueConstants) -> float:
    """Return the magnitude signal of one tissue, in units of fully relaxed water."""
    tr, te = acquisition.tr, acquisition.te
    recovered = math.exp(-tr / tissue.t1)
    match acquisition.sequence:
        case "gradient":
            angle = acquisition.angle
            steady = math.sin(angle) * (1 - recovered) / (1 - math.cos(angle) * recovered)
            value = steady * math.exp(-te / tissue.t2_star)
        case "inversion_gradient":
            value = _mprage(acquisition, tissue.t1) * math.exp(-te / tissue.t2_star)
        case "spin":
            value = (1 - recovered) * math.exp(-te / tissue.t2)
        case "inversion":
            inverted = 1 - 2 * math.exp(-acquisition.inversion_time / tissue.t1) + recovered
            value = abs(inverted) * math.exp(-te / tissue.t2)
    return tissue.density * value


def _mprage(acquisition: Acquisition, t1: float) -> float:
    """Return the transverse magnetisation at the centre of k-space, without T2* decay.

    Magnetisation relaxes freely after the inversion, then to a lower level and faster under the
    train of excitations, then freely: each phase is m -> level + (m - level) * decay. A cycle ends
    where the next one begins, which fixes m.
    """
    angle, spacing = acquisition.angle, _SPACING * acquisition.te
    ti, tr = acquisition.inversion_time, acquisition.tr
    half = min(spacing * _READOUTS / 2, ti, tr - ti)
    driven_rate = 1 / t1 - math.log(math.cos(angle)) / spacing
    excited = math.exp(-spacing / t1)
    driven = (1 - excited) / (1 - math.cos(angle) * excited)
    train = math.exp(-half * driven_rate)
    phases = (
        (1.0, math.exp(-(ti - half) / t1)),
        (driven, train),
        (driven, train),
        (1.0, math.exp(-(tr - ti - half) / t1)),
    )
    offset, slope = 0.0, -1.0  # of the inverted magnetisation, as a function of m before it
    centre = (0.0, 0.0)
    for number, (level, decay) in enumerate(phases):
        offset, slope = level + (offset - level) * decay, slope * decay
        if number == 1:
            centre = offset, slope
    before = offset / (1 - slope)
    return abs(centre[0] + centre[1] * before) * math.sin(angle)


def tissue_signals(acquisition: Acquisition, tissues: Sequence[str]) -> list[float]:
    """Return each tissue's magnitude signal, 0 for `background`.

    Raises:
        RequestError: a tissue without constants.
    """
    constants = _RELAXATION[acquisition.field_t]
    unknown = [name for name in tissues if name != "background" and name not in constants]
    if unknown:
        raise RequestError(
            f"no relaxation times are known for {', '.join(unknown)}; there are "
            f"{', '.join(constants)}"
        )
    return [
        0.0 if name == "background" else signal(acquisition, constants[name]) for name in tissues
    ]
