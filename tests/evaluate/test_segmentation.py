import warnings

import numpy as np
import pytest
import torch
from monai.metrics import (
    ConfusionMatrixMetric,
    DiceMetric,
    HausdorffDistanceMetric,
    MeanIoU,
    SurfaceDiceMetric,
    SurfaceDistanceMetric,
)
from scipy import ndimage

from synthgen.core.errors import GeometryError, SchemaError
from synthgen.evaluate.segmentation import centreline_dice, mask_metrics, overlap

SHAPES = [(40, 33), (18, 16, 14)]


def blobs(seed, shape):
    rng = np.random.default_rng(seed)
    return ndimage.gaussian_filter(rng.normal(size=shape), 2) > 0.02


def batch(mask):
    """Turn a mask into MONAI's `(B, C, *S)`, padded so that the border of the image is outside."""
    return torch.from_numpy(np.pad(mask, 1)[None, None].astype(np.float32))


def value(metric, predicted, reference, **call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own future
        metric(batch(predicted), batch(reference), **call)
        found = metric.aggregate()
    return float(found[0] if isinstance(found, list) else found)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_overlap_equals_monai_and_the_formulas(seed, shape):
    predicted, reference = blobs(seed, shape), blobs(seed + 100, shape)
    found = mask_metrics(predicted, reference)
    assert found["dice"] == pytest.approx(value(DiceMetric(), predicted, reference))
    assert found["iou"] == pytest.approx(value(MeanIoU(), predicted, reference))
    for name in ("precision", "recall"):
        metric = ConfusionMatrixMetric(metric_name=name)
        assert found[name] == pytest.approx(value(metric, predicted, reference))
    tp, fp = (predicted & reference).sum(), (predicted & ~reference).sum()
    fn = (~predicted & reference).sum()
    assert found["dice"] == pytest.approx(2 * tp / (predicted.sum() + reference.sum()))
    assert found["iou"] == pytest.approx(tp / (tp + fp + fn))
    assert found["precision"] == pytest.approx(tp / (tp + fp))


@pytest.mark.parametrize(("shape", "spacing"), [((40, 33), (1.0, 2.5)), ((18, 16, 14), (1, 1, 3))])
@pytest.mark.parametrize("seed", range(3))
def test_surfaces_equal_monai(seed, shape, spacing):
    predicted, reference = blobs(seed, shape), blobs(seed + 100, shape)
    found = mask_metrics(predicted, reference, spacing=spacing, tolerance=1.5)
    steps = {"spacing": [float(s) for s in spacing]}
    hd95 = HausdorffDistanceMetric(percentile=95)
    asd, nsd = SurfaceDistanceMetric(symmetric=True), SurfaceDiceMetric([1.5])
    # MONAI's distances are float32.
    assert found["hd95"] == pytest.approx(value(hd95, predicted, reference, **steps), rel=1e-5)
    assert found["asd"] == pytest.approx(value(asd, predicted, reference, **steps), rel=1e-5)
    assert found["nsd"] == pytest.approx(value(nsd, predicted, reference, **steps), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_masks_agree_perfectly(shape):
    mask = blobs(0, shape)
    assert mask_metrics(mask, mask) == {
        "dice": 1, "iou": 1, "precision": 1, "recall": 1, "cldice": 1, "betti0_error": 0,
        "hd95": 0, "asd": 0, "nsd": 1,
    }  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_turning_both_masks_changes_no_overlap(shape):
    a, b = blobs(1, shape), blobs(2, shape)
    here, there = mask_metrics(a, b), mask_metrics(a.T, b.T)
    for name in here.keys() - {"cldice"}:  # thinning has a direction
        assert here[name] == pytest.approx(there[name])


def bars(*columns, shape=(40, 40)):
    mask = np.zeros(shape, bool)
    for column in columns:
        mask[5:35, column - 1 : column + 2] = True
    return mask


def test_centreline_dice_of_a_vessel_of_two():
    """All of the prediction's centreline is right, half of the reference's was found."""
    assert centreline_dice(bars(10), bars(10, 30)) == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert centreline_dice(bars(10), bars(30)) == 0


def test_centreline_dice_ignores_width():
    thin = bars(10)
    wide = ndimage.binary_dilation(thin, iterations=2)
    assert centreline_dice(thin, wide) == pytest.approx(1, abs=0.05)
    assert overlap(thin, wide).dice < 0.8


def test_betti_zero_counts_pieces_that_touch_at_corners_as_one():
    corner = np.zeros((10, 10), bool)
    corner[2, 2] = corner[3, 3] = True
    assert mask_metrics(corner, bars(2, shape=(10, 10)))["betti0_error"] == 0
    assert mask_metrics(bars(5, 15, 25), bars(10))["betti0_error"] == 2


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rule_for_empty_masks(shape):
    mask, empty = blobs(0, shape), np.zeros(shape, bool)
    pieces = ndimage.label(mask, np.ones((3,) * len(shape)))[1]
    nothing = dict.fromkeys(mask_metrics(mask, mask))
    assert mask_metrics(empty, empty) == nothing | {"betti0_error": 0}
    zero = {"dice": 0, "iou": 0, "cldice": 0, "nsd": 0, "betti0_error": pieces}
    assert mask_metrics(empty, mask) == nothing | zero | {"recall": 0}
    assert mask_metrics(mask, empty) == nothing | zero | {"precision": 0}


def test_one_spacing_serves_all_axes():
    a, b = blobs(0, (40, 33)), blobs(1, (40, 33))
    assert mask_metrics(a, b, spacing=2)["hd95"] == pytest.approx(2 * mask_metrics(a, b)["hd95"])


def test_what_cannot_be_compared_is_refused():
    mask = bars(10)
    with pytest.raises(SchemaError, match=r"prediction .* uint8 from 0 to 255"):
        mask_metrics(mask.astype(np.uint8) * 255, mask)
    with pytest.raises(GeometryError, match=r"\(40, 40\), got \(39, 40\)"):
        mask_metrics(mask[1:], mask)
    with pytest.raises(GeometryError, match=r"\(X, Y, Z\), got \(40,\)"):
        mask_metrics(mask[0], mask[0])
    with pytest.raises(GeometryError, match="2 positive spacings"):
        mask_metrics(mask, mask, spacing=(1, 1, 1))
