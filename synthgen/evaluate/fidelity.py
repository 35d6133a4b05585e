"""How far two samples of feature vectors are from each other.

All functions take the generated sample first and the real one second, as `(n, d)` arrays of
finite numbers on one scale; nothing here knows images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist, pdist

from synthgen.core.errors import RequestError

Features = npt.NDArray[np.float64]

NEIGHBOURS = 5
"""k of precision, recall, density and coverage (Naeem et al. 2020, section 4)."""

PER_DIMENSION = 2
"""Fewest rows for each dimension that a covariance is estimated from."""


class Manifolds(NamedTuple):
    """How two samples cover each other.

    Attributes:
        precision: share of generated rows that lie in a neighbourhood of a real row.
        recall: share of real rows that lie in a neighbourhood of a generated row.
        density: mean number of real neighbourhoods that a generated row lies in, over k; may
            exceed 1.
        coverage: share of real rows whose neighbourhood holds a generated row.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def frechet_distance(generated: Features, real: Features) -> float:
    """Return the Fréchet distance of two Gaussians fitted to the samples.

    `|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)` (Dowson and Landau 1982,
    doi:10.1016/0047-259X(82)90077-X; for images Heusel et al. 2017, arXiv:1706.08500). The trace
    of the root is the sum of the roots of the eigenvalues, which needs no matrix root.

    Args:
        generated: `(n, d)`.
        real: `(m, d)`.

    Raises:
        RequestError: fewer than 2 d rows on a side: the covariance would be singular or nearly.
    """
    _require(generated, real, PER_DIMENSION * generated.shape[1])
    gap = generated.mean(axis=0) - real.mean(axis=0)
    first, second = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (generated, real))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    crossed = np.linalg.eigvalsh(root @ second @ root)
    overlap = np.sqrt(np.clip(crossed, 0, None)).sum()
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2 * overlap)


def kernel_distance(generated: Features, real: Features) -> float:
    """Return the kernel distance: unbiased squared MMD with the kernel `(x.y / d + 1)^3`.

    Binkowski et al. 2018, arXiv:1801.01401, section 4.1. May be slightly below 0.
    """
    _require(generated, real, 2)
    width = generated.shape[1]
    return _unbiased(*((a @ b.T / width + 1) ** 3 for a, b in _pairs(generated, real)))


def rbf_mmd(generated: Features, real: Features, bandwidth: float) -> float:
    """Return the unbiased squared MMD with the kernel `exp(-|x - y|^2 / (2 bandwidth^2))`.

    Gretton et al. 2012, "A Kernel Two-Sample Test", JMLR 13, Lemma 6.

    Args:
        generated: `(n, d)`.
        real: `(m, d)`.
        bandwidth: see `median_bandwidth`.
    """
    _require(generated, real, 2)
    scale = -0.5 / bandwidth**2
    kernels = (np.exp(scale * cdist(a, b, "sqeuclidean")) for a, b in _pairs(generated, real))
    return _unbiased(*kernels)


def median_bandwidth(real: Features) -> float:
    """Return the median distance between real rows (Gretton et al. 2012, section 8).

    Raises:
        RequestError: fewer than two rows, or most of them are equal.
    """
    _require(real, real, 2)
    median = float(np.median(pdist(real)))
    if not median > 0:
        raise RequestError("more than half of the real rows have the same features")
    return median


def manifolds(generated: Features, real: Features, neighbours: int = NEIGHBOURS) -> Manifolds:
    """Return precision and recall, density and coverage.

    A row's neighbourhood is the ball that reaches its k-th nearest row of its own sample
    (Kynkaanniemi et al. 2019, arXiv:1904.06991; Naeem et al. 2020, arXiv:2002.09797).

    Args:
        generated: `(n, d)`.
        real: `(m, d)`.
        neighbours: k.

    Raises:
        RequestError: no more than k rows on a side.
    """
    _require(generated, real, neighbours + 1)
    across = cdist(real, generated)  # (m, n)
    around_real, around_generated = (_radii(rows, neighbours) for rows in (real, generated))
    inside = across < around_real[:, None]
    return Manifolds(
        float(inside.any(axis=0).mean()),
        float((across < around_generated[None]).any(axis=1).mean()),
        float(inside.sum(axis=0).mean() / neighbours),
        float((across.min(axis=1) < around_real).mean()),
    )


def _radii(rows: Features, neighbours: int) -> Features:
    """Return the distance of each row to its k-th nearest other row."""
    radii: Features = np.partition(cdist(rows, rows), neighbours, axis=1)[:, neighbours]
    return radii


def _pairs(generated: Features, real: Features) -> tuple[tuple[Features, Features], ...]:
    return (generated, generated), (real, real), (generated, real)


def _unbiased(first: Features, second: Features, crossed: Features) -> float:
    """Return the unbiased squared MMD of kernel matrices; the diagonals do not count."""
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (first, second)]
    return float(within[0] + within[1] - 2 * crossed.mean())


def _require(generated: Features, real: Features, least: int) -> None:
    for name, rows in (("generated", generated), ("real", real)):
        if rows.ndim != 2 or rows.shape[1] != real.shape[1]:
            raise RequestError(f"{name} features: expected (n, {real.shape[-1]}), got {rows.shape}")
        if not np.isfinite(rows).all():
            raise RequestError(f"{name} features: expected finite numbers, got NaN or infinity")
        if len(rows) < least:
            raise RequestError(f"{name} features: needs at least {least} rows, got {len(rows)}")
