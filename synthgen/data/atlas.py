"""Tissue maps for volumes that have none: an atlas-guided mixture model.

A Gaussian mixture over all modalities at once, whose class weights are an atlas of tissue
frequencies at every voxel (Ashburner and Friston 2005, doi:10.1016/j.neuroimage.2005.02.018),
fitted by expectation-maximisation; then a Potts neighbourhood term solved by mean field
(Zhang et al. 2001, doi:10.1109/42.906424) and two-class partial volume at borders
(Shattuck et al. 2001, doi:10.1006/nimg.2000.0730).

Deviations: no bias field and no non-linear registration (images are taken as bias-corrected,
the atlas as smooth); the neighbourhood term acts after the fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage, optimize

from synthgen.core.errors import GeometryError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LOWEST_OVERLAP = 0.75
"""Dice of brain mask and aligned atlas below which the atlas does not fit."""

_PRIOR_FLOOR = 0.01  # chance of every tissue anywhere: atlases are means of few subjects
_SUBSAMPLE = 60_000  # voxels used for the fit

Float = npt.NDArray[np.float32]


def align_prior(
    prior: Float,
    prior_affine: npt.NDArray[np.float64],
    brain: npt.NDArray[np.bool_],
    affine: npt.NDArray[np.float64],
) -> Float:
    """Bring an atlas onto a subject's grid.

    World coordinates first. The atlas is then moved, tilted and scaled (translation, rotation
    and one scale per axis) to the position where its brain overlaps the subject's best.

    Args:
        prior: tissue frequencies `(K, *P)` without background, summing to at most 1.
        prior_affine: `(4, 4)`, atlas voxel to mm.
        brain: `(X, Y, Z)`.
        affine: `(4, 4)`, subject voxel to mm.

    Returns:
        `(K, X, Y, Z)`; 0 where the atlas has nothing.

    Raises:
        GeometryError: an empty brain, or overlap (Dice) below `LOWEST_OVERLAP` after all.
    """
    stride = max(1, round(4 / float(np.linalg.norm(affine[:3, :3], axis=0).min())))
    voxels = np.argwhere(brain)
    if voxels.size == 0:
        raise GeometryError("the brain mask is empty; expected some brain voxels")
    coarse = ndimage.uniform_filter(brain.astype(np.float32), stride)[
        (slice(None, None, stride),) * 3
    ]
    points = np.indices(coarse.shape).reshape(3, -1) * stride
    world = affine[:3, :3] @ points + affine[:3, 3:]
    atlas = ndimage.gaussian_filter(prior.sum(axis=0), 1.0)
    to_atlas = np.linalg.inv(prior_affine)
    center = (affine[:3, :3] @ voxels.mean(axis=0) + affine[:3, 3])[:, None]

    def dice(parameters: npt.NDArray[np.float64]) -> float:
        move = _similarity(parameters, center)
        there = to_atlas[:3] @ (move @ np.vstack([world, np.ones(world.shape[1])]))
        values = ndimage.map_coordinates(atlas, there, order=1, mode="constant")
        target = coarse.ravel()
        total = float((values + target).sum())
        return 2 * float(np.minimum(values, target).sum()) / total

    fit = _fit_pose(dice)
    overlap = dice(fit)
    if overlap < LOWEST_OVERLAP:
        raise GeometryError(
            f"the atlas overlaps the brain by a Dice of {overlap:.2f} only (expected at "
            f"least {LOWEST_OVERLAP}); check the orientation in the affine and the brain mask"
        )
    matrix = to_atlas @ _similarity(fit, center) @ affine
    return np.stack(
        [
            ndimage.affine_transform(
                channel, matrix[:3, :3], matrix[:3, 3], brain.shape, output=np.float32, order=1
            )
            for channel in prior.astype(np.float32, copy=False)
        ]
    )


def _similarity(
    parameters: npt.NDArray[np.float64], center: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the 4 x 4 world map for (shift / 10 mm, angle / 0.1 rad, log scale / 0.1)."""
    shift, angle, log_scale = parameters[:3] * 10, parameters[3:6] * 0.1, parameters[6:] * 0.1
    rotation = np.eye(3)
    for axis, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        turn = np.eye(3)
        cosine, sine = np.cos(angle[axis]), np.sin(angle[axis])
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = cosine, -sine, sine, cosine
        rotation = turn @ rotation
    move = np.eye(4)
    move[:3, :3] = np.diag(np.exp(log_scale)) @ rotation
    move[:3, 3] = center[:, 0] + shift - move[:3, :3] @ center[:, 0]
    return move


def _fit_pose(
    dice: Callable[[npt.NDArray[np.float64]], float],
) -> npt.NDArray[np.float64]:
    """Search shift and scale, then everything; a round head says little about its rotation."""
    cost = np.repeat((0.0, 2e-3, 1e-3), 3)
    start = np.zeros(9)
    for chosen in (np.asarray([0, 1, 2, 6, 7, 8]), np.arange(9)):

        def loss(part: npt.NDArray[np.float64], chosen: npt.NDArray[np.int64] = chosen) -> float:
            pose = start.copy()
            pose[chosen] = part
            return float(cost @ pose**2) - dice(pose)

        start[chosen] = optimize.minimize(
            loss,
            start[chosen],
            method="Powell",
            options={"xtol": 0.02, "ftol": 1e-3, "maxiter": 6},
        ).x
    return start


def atlas_tissue_maps(
    images: Mapping[str, npt.NDArray[Any]],
    brain: npt.NDArray[np.bool_],
    prior: Float,
    *,
    iterations: int = 25,
    coupling: float = 0.5,
    sweeps: int = 3,
) -> Float:
    """Estimate tissue maps from whatever modalities there are.

    Args:
        images: modality -> `(X, Y, Z)`, bias-corrected, any unit; at least one.
        brain: `(X, Y, Z)`.
        prior: `(K, X, Y, Z)` tissue frequencies on the same grid (see `align_prior`).
        iterations: EM iterations.
        coupling: weight of each of the six neighbours in the Potts term.
        sweeps: mean-field sweeps.

    Returns:
        float32 `(K, X, Y, Z)`: sums to 1 inside the brain, 0 outside.

    Raises:
        GeometryError: no image, shapes that disagree, an empty brain, or values that are not
            finite.
    """
    features = _features(images, brain)
    if prior.shape[1:] != brain.shape:
        raise GeometryError(
            f"expected a prior of shape (K, {brain.shape}), got {prior.shape}; use align_prior"
        )
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    inside = brain[box]
    log_prior = np.log(_complete_prior(prior[(slice(None), *box)], inside))  # (K, N)
    means, covariances = _fit_mixture(features, log_prior, iterations)
    evidence = _log_gaussians(features, means, covariances) + log_prior
    posterior = _potts(evidence, inside, coupling, sweeps)
    mixed = _partial_volume(posterior, features, means, covariances, inside)
    out = np.zeros((prior.shape[0], *brain.shape), dtype=np.float32)
    out[(slice(None), *box)][:, inside] = mixed
    return out


def _features(images: Mapping[str, npt.NDArray[Any]], brain: npt.NDArray[np.bool_]) -> Float:
    """Return robustly standardised intensities `(D, N)` of the brain's voxels."""
    if not images:
        raise GeometryError("tissue maps need at least one image; got none")
    if not brain.any():
        raise GeometryError("the brain mask is empty; expected some brain voxels")
    rows = []
    for modality, image in images.items():
        if image.shape != brain.shape:
            raise GeometryError(
                f"{modality}: expected the brain mask's shape {brain.shape}, got {image.shape}"
            )
        values = image[brain].astype(np.float32)
        if not np.isfinite(values).all():
            raise GeometryError(f"{modality}: NaN or infinite voxels inside the brain")
        low, high = np.percentile(values, (0.5, 99.5))
        if high <= low:
            raise GeometryError(f"{modality}: constant ({low:g}) inside the brain")
        rows.append((np.clip(values, low, high) - low) / (high - low))
    return np.stack(rows).astype(np.float32)


def _complete_prior(prior: Float, inside: npt.NDArray[np.bool_]) -> Float:
    """Return `(K, N)` class weights: normalised, floored, extended to where the atlas ends."""
    total = prior.sum(axis=0)
    nearest = ndimage.distance_transform_edt(
        total < 0.2, return_distances=False, return_indices=True
    )
    weights = prior[(slice(None), *(axis[inside] for axis in nearest))]
    weights = weights / np.maximum(weights.sum(axis=0), 1e-6) + _PRIOR_FLOOR
    normalised: Float = (weights / weights.sum(axis=0)).astype(np.float32)
    return normalised


def _fit_mixture(
    features: Float, log_prior: Float, iterations: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Fit means `(K, D)` and covariances `(K, D, D)` by EM on an even subsample."""
    step = max(1, features.shape[1] // _SUBSAMPLE)
    x = features[:, ::step].astype(np.float64)
    logs = log_prior[:, ::step].astype(np.float64)
    floor = 1e-3 * np.eye(len(x))
    # Where the atlas is sure, it labels the voxel: squared weights start the classes apart.
    responsibility = np.exp(2 * logs)
    means = covariances = np.empty(0)
    for _ in range(iterations + 1):
        mass = responsibility.sum(axis=1) + 1e-9
        means = responsibility @ x.T / mass[:, None]
        offset = x[None] - means[:, :, None]  # (K, D, n)
        covariances = np.einsum("kn,kdn,ken->kde", responsibility, offset, offset, optimize=True)
        covariances = covariances / mass[:, None, None] + floor
        joint = _log_gaussians(x, means, covariances) + logs
        joint -= joint.max(axis=0)
        responsibility = np.exp(joint)
        responsibility /= responsibility.sum(axis=0)
    return means, covariances


def _log_gaussians(
    x: npt.NDArray[Any], means: npt.NDArray[np.float64], covariances: npt.NDArray[np.float64]
) -> npt.NDArray[Any]:
    """Return log densities `(K, N)` up to a constant."""
    out = np.empty((len(means), x.shape[1]), dtype=x.dtype)
    for k, (mean, covariance) in enumerate(zip(means, covariances, strict=True)):
        factor = np.linalg.cholesky(np.linalg.inv(covariance))
        white = factor.T.astype(x.dtype) @ (x - mean.astype(x.dtype)[:, None])
        out[k] = -0.5 * (white**2).sum(axis=0) + np.log(np.diag(factor)).sum()
    return out


def _softmax(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    shifted = np.exp(logits - logits.max(axis=0))
    result: npt.NDArray[Any] = shifted / shifted.sum(axis=0)
    return result


_CROSS = ndimage.generate_binary_structure(3, 1).astype(np.float32)
_CROSS[1, 1, 1] = 0


def _potts(evidence: Float, inside: npt.NDArray[np.bool_], coupling: float, sweeps: int) -> Float:
    """Mean field of the Potts model: neighbours vote with their posteriors."""
    posterior = _softmax(evidence)
    volume = np.zeros(inside.shape, dtype=np.float32)
    for _ in range(sweeps):
        votes = np.empty_like(posterior)
        for k, channel in enumerate(posterior):
            volume[inside] = channel
            votes[k] = ndimage.convolve(volume, _CROSS, mode="constant")[inside]
        posterior = _softmax(evidence + coupling * votes)
    return posterior


def _partial_volume(
    posterior: Float,
    features: Float,
    means: npt.NDArray[np.float64],
    covariances: npt.NDArray[np.float64],
    inside: npt.NDArray[np.bool_],
) -> Float:
    """Mix the two locally strongest tissues by where the intensity lies between their means."""
    volume = np.zeros(inside.shape, dtype=np.float32)
    local = np.empty_like(posterior)
    for k, channel in enumerate(posterior):
        volume[inside] = channel
        local[k] = ndimage.uniform_filter(volume, 3, mode="constant")[inside]
    first, second = np.argsort(local, axis=0)[-1:-3:-1]
    noise = np.linalg.inv(np.tensordot(local.mean(axis=1), covariances, axes=1))
    columns = np.arange(features.shape[1])
    gap = (means[first] - means[second]).T  # (D, N)
    direction = noise @ gap
    length = np.maximum((gap * direction).sum(axis=0), 1e-6)
    share = ((features - means[second].T) * direction).sum(axis=0) / length
    share = np.clip(share, 0, 1).astype(np.float32)
    mixed = np.zeros_like(posterior)
    mixed[first, columns] = share
    mixed[second, columns] += 1 - share
    # Only at borders of tissues that intensity can tell apart: elsewhere keep the posterior.
    border = local[second, columns] / np.maximum(local[first, columns], 1e-6)
    weight = np.clip(3 * border, 0, 1) * np.clip(length / 4 - 0.5, 0, 1)
    blended = weight * mixed + (1 - weight) * posterior
    maps: Float = (blended / blended.sum(axis=0)).astype(np.float32)
    return maps
