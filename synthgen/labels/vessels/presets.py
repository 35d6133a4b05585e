"""The numbers of the presets. A pair is the range of a uniform draw.

Lengths are pixels of the reference picture (512 x 512 coronary and ssvs, 584 x 565 retina) and
scale with the smaller side. Fitted to public manual masks: see `benchmarks/realism_vessels.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """How a grown skeleton becomes a tube.

    Attributes:
        shortest: height below which a side subtree is dropped.
        keep: probability of keeping one all the same.
        leaf: radii of leaves before the tree is scaled to its root's radius, most of them thin.
        exponent: Murray's exponent.
        passes: smoothing passes along main chains.
        jitter: spread of the lognormal noise of the radii.
        floor: smallest radius.
        thinnest: radius in pixels of the picture (it does not scale) from which a vessel can be
            labelled.
        lesions: mean number of stenoses and ectasias of a tree.
    """

    shortest: Range
    keep: float
    leaf: Range
    exponent: Range
    passes: int
    jitter: float
    floor: float
    thinnest: float
    lesions: float


@dataclass(frozen=True)
class Coronary:
    """A tree on an ellipsoid's cap, seen from outside. The ellipsoid's first semi-axis is 1.

    Attributes:
        reference: smaller side of the reference picture.
        axes: the second and third semi-axis.
        cap: angle from the pole to the edge of the cap.
        attractors: number of them, for the great vessels.
        twigs: number of attractors that come when the great vessels stand; what grows towards
            them leaves thick vessels as thin ones, as in Kreitner et al. 2024.
        twig_influence: distance at which those pull.
        root: polar angle of the ostium, in units of `cap`.
        trunk: length of the vessel before the ostium's first fork.
        bend: standard deviation of the trunk's curvature.
        step: growth step.
        influence: distance at which attractors pull.
        kill: distance at which they die.
        memory: direction memory.
        side: the same for side branches.
        noise: direction noise.
        tilt: largest rotation of the cap's axis about x and about y, radians.
        extent: longer side of the whole tree's box, as a share of the picture's smaller side.
        length: mean, standard deviation, smallest and largest labelled length.
        radius: radius at the root.
        shape: from skeleton to tube.
    """

    reference: int = 512
    axes: tuple[Range, Range] = ((0.75, 0.95), (1.15, 1.4))
    cap: Range = (0.8, 1.3)
    attractors: tuple[int, int] = (40, 120)
    twigs: tuple[int, int] = (60, 120)
    twig_influence: float = 0.35
    root: Range = (1.0, 1.3)
    trunk: Range = (0.15, 0.75)
    bend: float = 2.0
    step: float = 0.03
    influence: Range = (0.45, 0.8)
    kill: float = 0.055
    memory: Range = (1.0, 2.4)
    side: Range = (1.5, 2.5)
    noise: Range = (0.25, 0.55)
    tilt: Range = (0.785, 0.61)
    extent: Range = (0.55, 0.85)
    length: tuple[float, float, float, float] = (1850, 330, 1000, 2900)
    radius: Range = (8.0, 10.8)
    shape: Shape = Shape(
        shortest=(0.08, 0.2),
        keep=0.05,
        leaf=(0.8, 1.25),
        exponent=(2.2, 2.6),
        passes=4,
        jitter=0.055,
        floor=0.5,
        thinnest=1.15,
        lesions=0.4,
    )


@dataclass(frozen=True)
class Eye:
    """One way to take the photograph of a retina. R is the radius of the field of view.

    Attributes:
        disc: distance of the optic disc from the centre of the field, in R.
        disc_radius: in R.
        fovea: distance from the disc to the fovea, in R.
        domain: radius of the domain of the attractors, in R; beyond 1 vessels leave the field.
        attractors: number of them, for arteries and for veins each.
        twigs: number of attractors that come when the great vessels stand; what grows towards
            them leaves thick vessels as thin ones.
        twig_influence: distance at which those pull.
        influence: distance at which attractors pull.
        kill: distance at which they die.
        memory: direction memory.
        side: the same for side branches.
        noise: direction noise.
        apart: distance from the arteries within which no attractor of the veins lies.
        arcade: strength of the heading field round the fovea.
        radius: radius of the widest root.
        labelled: labelled share of the tree's length.
        shape: from skeleton to tube.
    """

    disc: Range
    disc_radius: Range
    fovea: Range
    domain: float
    attractors: tuple[int, int]
    twigs: tuple[int, int]
    twig_influence: float
    influence: Range
    kill: float
    memory: Range
    side: Range
    noise: Range
    apart: float
    arcade: Range
    radius: Range
    labelled: Range
    shape: Shape


@dataclass(frozen=True)
class Retina:
    """Arterial and venous forests of four roots each on a disc.

    Attributes:
        reference: smaller side of the reference picture.
        field: radius of the field of view.
        hollow: distance from the fovea, in R, at which half of the attractors are refused, and
            the softness of that border.
        step: growth step.
        artery: radius of the arteries beside the drawn one.
        vein: radius of the veins beside the drawn one.
        macula: photographs centred between macula and disc, as DRIVE's.
        nerve: photographs centred on the disc, as CHASE's.
        nerve_share: share of the draws that are centred on the disc.
    """

    reference: int = 565
    field: float = 270.0
    hollow: Range = (0.17, 0.035)
    step: float = 3.0
    artery: float = 0.95
    vein: float = 1.1
    macula: Eye = Eye(
        disc=(0.55, 0.72),
        disc_radius=(0.12, 0.15),
        fovea=(0.62, 0.76),
        domain=1.2,
        attractors=(160, 220),
        twigs=(74, 134),
        twig_influence=60.0,
        influence=(90, 126),
        kill=7.6,
        memory=(1.5, 2.5),
        side=(-0.7, 0.7),
        noise=(0.71, 1.01),
        apart=14.0,
        arcade=(0.1, 0.3),
        radius=(3.7, 4.7),
        labelled=(0.95, 1.0),
        shape=Shape(
            shortest=(15.5, 24.5),
            keep=0.08,
            leaf=(0.46, 2.0),
            exponent=(2.27, 2.57),
            passes=4,
            jitter=0.055,
            floor=0.6,
            thinnest=0.5,
            lesions=0.0,
        ),
    )
    nerve: Eye = Eye(
        disc=(0.0, 0.25),
        disc_radius=(0.17, 0.22),
        fovea=(0.95, 1.1),
        domain=1.18,
        attractors=(88, 128),
        twigs=(45, 85),
        twig_influence=62.0,
        influence=(110, 150),
        kill=7.5,
        memory=(2.8, 3.8),
        side=(-0.8, 0.8),
        noise=(0.69, 0.99),
        apart=26.0,
        arcade=(0.1, 0.3),
        radius=(4.3, 5.7),
        labelled=(0.96, 1.0),
        shape=Shape(
            shortest=(40, 120),
            keep=0.26,
            leaf=(0.33, 1.9),
            exponent=(2.12, 2.42),
            passes=3,
            jitter=0.055,
            floor=0.6,
            thinnest=0.5,
            lesions=0.0,
        ),
    )
    nerve_share: float = 0.5


@dataclass(frozen=True)
class Ssvs:
    """Warped rectangles, the masks of SSVS (Ma et al. 2021), as a historical baseline.

    Attributes:
        reference: smaller side of the reference picture.
        thickness: of the trunk.
        length: of the trunk.
        row: its first row.
        column: its first column.
        depth: levels of rectangles, equal odds.
        child: thickness and length of a child beside its parent's.
        grid: control points of the warp along each axis.
        warp: standard deviation of their shifts, as a share of the picture.
        rotated: share of the masks that are rotated.
        rotation: largest angle of rotation, radians.
    """

    reference: int = 512
    thickness: tuple[int, int] = (15, 19)
    length: tuple[int, int] = (350, 449)
    row: tuple[int, int] = (10, 249)
    column: tuple[int, int] = (2, 79)
    depth: tuple[int, int] = (3, 4)
    child: Range = (0.25, 0.75)
    grid: int = 4
    warp: Range = (0.09, 0.13)
    rotated: float = 0.5
    rotation: float = 0.5236


PRESETS: dict[str, Coronary | Retina | Ssvs] = {
    "coronary": Coronary(),
    "retina": Retina(),
    "ssvs": Ssvs(),
}
