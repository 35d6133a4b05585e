"""The passes that every preset shares: from a placed skeleton to a `VesselTree`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from synthgen.labels.vessels import radii, view
from synthgen.labels.vessels.tree import Branches, VesselTree, path_length

if TYPE_CHECKING:
    import numpy.typing as npt

    from synthgen.labels.vessels.presets import Shape
    from synthgen.labels.vessels.radii import Skeleton
    from synthgen.labels.vessels.tree import Floats

STENOSIS, ECTASIA = (0.3, 0.8), (0.2, 0.5)
"""Share of the radius that a lesion takes or adds; three lesions of four are stenoses."""


@dataclass(frozen=True)
class Tube:
    """A smoothed tube, and the radii by which it is decided what is labelled.

    Attributes:
        skeleton: nodes in pixels, final radii.
        rank: `(n,)` Murray's radii, before smoothing: never wider than the parent's.
        thinnest: radius in pixels from which a vessel can be labelled.
    """

    skeleton: Skeleton
    rank: Floats
    thinnest: float

    def tree(
        self,
        vein: npt.NDArray[np.bool_],
        budget: float,
        shape: tuple[int, int],
        disc: npt.NDArray[np.float32],
        field: npt.NDArray[np.float32],
    ) -> VesselTree:
        """Finish: decide what is labelled within `budget` pixels of length."""
        nodes, parent = self.skeleton.nodes, self.skeleton.parent
        return VesselTree(
            nodes.astype(np.float32),
            self.skeleton.radius.astype(np.float32),
            parent.astype(np.int32),
            Branches.of(parent).of_node.astype(np.int32),
            vein,
            view.visible(nodes, parent, self.rank, budget, self.thinnest),
            shape,
            disc,
            field,
        )


def lay_tube(numbers: Shape, skeleton: Skeleton, scale: float, rng: np.random.Generator) -> Tube:
    """Smooth a skeleton, roughen its radii and add lesions.

    Args:
        numbers: of the preset.
        skeleton: nodes `(n, 3)` and Murray's radii, in pixels.
        scale: pixels of the picture for one of the reference picture.
        rng: draws jitter and lesions.
    """
    rank = np.maximum(skeleton.radius, numbers.floor * scale)
    tube = radii.smooth(replace(skeleton, radius=rank), numbers.passes)
    tube = radii.jitter(tube, numbers.jitter, rng)
    depths = [
        rng.uniform(*STENOSIS) if rng.random() < 0.75 else -rng.uniform(*ECTASIA)
        for _ in range(int(rng.poisson(numbers.lesions)))
    ]
    if depths:
        along = path_length(tube.nodes, tube.parent)
        chains = radii.chains_of(tube.parent, rank)
        tube = radii.add_lesions(tube, along, chains, depths, rng)
    return Tube(tube, rank, numbers.thinnest)
