"""The built-in source `mni152`: the MNI152 T1 and tissue maps that the nilearn package carries.

Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033: ICBM 2009a nonlinear symmetric. The
files are read from the installed package; nothing is downloaded and nilearn is not imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from synthgen.core.errors import RequestError, StoreError
from synthgen.data.nifti import read_image

if TYPE_CHECKING:
    from synthgen.core.geometry import Grid

NAME = "mni152"
_FILE = "mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"


@dataclass(frozen=True)
class Template:
    """The template at 1 mm in RAS.

    Attributes:
        t1: `(X, Y, Z)` float32, skull-stripped.
        maps: `(3, X, Y, Z)` float32: CSF, GM, WM, summing to 1 in the brain, 0 outside.
        brain: `(X, Y, Z)` bool.
        grid: geometry of all three.
    """

    t1: npt.NDArray[np.float32]
    maps: npt.NDArray[np.float32]
    brain: npt.NDArray[np.bool_]
    grid: Grid


def template_file(kind: str) -> Path:
    """Return the path of one template file: "t1", "gm" or "wm".

    Raises:
        RequestError: nilearn is not installed.
        StoreError: this nilearn does not carry the file.
    """
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise RequestError(
            "source 'mni152' is read from the nilearn package, which is not installed; "
            'install it with: pip install "synthgen[mni152]"'
        )
    path = Path(spec.origin).parent / "datasets" / "data" / _FILE.format(kind=kind)
    if not path.is_file():
        raise StoreError(f"{path}: no such file; expected nilearn >= 0.11 to carry it")
    return path


def load_mni152() -> Template:
    """Load the template; CSF is what grey and white matter leave of the brain.

    Raises:
        RequestError: nilearn is not installed.
        StoreError: its files are missing or damaged.
    """
    t1 = read_image(template_file("t1"))
    gm, wm = (read_image(template_file(kind)).data / np.float32(255) for kind in ("gm", "wm"))
    brain = t1.data > 0
    total = np.maximum(gm + wm, 1)
    gm, wm = np.where(brain, gm / total, 0), np.where(brain, wm / total, 0)
    maps = np.stack([np.where(brain, 1 - gm - wm, 0), gm, wm]).astype(np.float32)
    return Template(t1.data, np.clip(maps, 0, 1), brain, t1.grid)
