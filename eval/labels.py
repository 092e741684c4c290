"""Quality of cue labels, against ground truth where there is some and by self-consistency where there is none.

Every figure is {"value", "count"}: a mean or a ratio and what it was taken over, so that figures of blocks pool exactly
(metrics.md, "Label quality"). Numpy only: the labelling code calls this on every block.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

Figure = dict[str, float | None]


def figure(total: int | float | np.number, count: int | float | np.number) -> Figure:
    """total / count with its weight; the value is None where there was nothing to count."""
    return {"value": float(total) / float(count) if count > 0 else None, "count": float(count)}


def flow_figures(
    flow: Float[np.ndarray, "2 height width"],
    truth: Float[np.ndarray, "2 height width"],
    moving: Bool[np.ndarray, "height width"] | None = None,
    outlier_px: float = 3.0,
    outlier_relative: float = 0.05,
) -> dict[str, Figure]:
    """End-point error of a flow against true flow, both in pixels of one grid, NaN = unknown.

    Returns:
        epe: mean end-point error, px, where both are known. zero_epe: the same of zero flow, for scale.
        fl_all: share of those pixels whose error exceeds both bounds (KITTI: 3 px and 5 % of the true length).
        coverage: share of pixels with a true correspondence that the flow covers.
        invented: share of pixels without one (hidden or outside in the target) where the flow claims one.
        epe_moving, coverage_moving: on moving pixels, when `moving` is given.
    """
    known = ~np.isnan(truth).any(axis=0)
    claimed = ~np.isnan(flow).any(axis=0)
    both = known & claimed
    error = np.zeros(known.shape)
    error[both] = np.linalg.norm(flow[:, both].astype(np.float64) - truth[:, both], axis=0)
    length = np.zeros(known.shape)
    length[known] = np.linalg.norm(truth[:, known].astype(np.float64), axis=0)
    outlier = both & (error > outlier_px) & (error > outlier_relative * length)
    figures = {
        "epe": figure(error[both].sum(), both.sum()),
        "zero_epe": figure(length[both].sum(), both.sum()),
        "fl_all": figure(outlier.sum(), both.sum()),
        "coverage": figure(both.sum(), known.sum()),
        "invented": figure((claimed & ~known).sum(), (~known).sum()),
    }
    if moving is not None:
        figures["epe_moving"] = figure(error[both & moving].sum(), (both & moving).sum())
        figures["zero_epe_moving"] = figure(length[both & moving].sum(), (both & moving).sum())
        figures["coverage_moving"] = figure((both & moving).sum(), (known & moving).sum())
    return figures


def mask_figures(
    instance: Integer[np.ndarray, "height width"],
    true_instance: Integer[np.ndarray, "height width"],
    moving: Bool[np.ndarray, "height width"],
    min_pixels: int = 20,
) -> dict[str, Figure]:
    """Masks of moving things against the true ones, on one pixel grid; ids are 0 for background.

    Returns:
        iou: of the union of all masks with the moving pixels.
        precision, recall: pixels of the masks that move, moving pixels inside the masks.
        instance_recall: share of true moving instances (of `min_pixels` or more) met by a mask at IoU > 0.5.
        instance_precision: share of masks that meet a true moving instance of any size at IoU > 0.5. (Instances do not
            overlap, so above 0.5 a match is one to one.)
    """
    found = instance > 0
    common = (found & moving).sum()
    true_ids, true_flat = np.unique(np.where(moving, true_instance, 0), return_inverse=True)
    ids, flat = np.unique(instance, return_inverse=True)
    table = np.zeros((len(true_ids), len(ids)), np.int64)
    np.add.at(table, (true_flat.ravel(), flat.ravel()), 1)
    union = table.sum(axis=1, keepdims=True) + table.sum(axis=0, keepdims=True) - table
    matched = (table / union > 0.5) & (true_ids[:, None] > 0) & (ids[None] > 0)
    large = (true_ids > 0) & (table.sum(axis=1) >= min_pixels)
    return {
        "iou": figure(common, (found | moving).sum()),
        "precision": figure(common, found.sum()),
        "recall": figure(common, moving.sum()),
        "instance_recall": figure((matched.any(axis=1) & large).sum(), large.sum()),
        "instance_precision": figure(matched.any(axis=0).sum(), (ids > 0).sum()),
    }


def bilinear(
    image: Float[np.ndarray, "height width channels"], uv: Float[np.ndarray, "*points 2"]
) -> Float[np.ndarray, "*points channels"]:
    """Samples at continuous pixel positions (pixel centres at +0.5); NaN outside the image or where uv is NaN."""
    height, width = image.shape[:2]
    u, v = uv[..., 0], uv[..., 1]
    with np.errstate(invalid="ignore"):
        inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    x = np.clip(np.where(inside, u, 0.5) - 0.5, 0, width - 1)
    y = np.clip(np.where(inside, v, 0.5) - 0.5, 0, height - 1)
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
    bottom = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
    return np.where(inside[..., None], top * (1 - fy) + bottom * fy, np.nan)


def _endpoints(flow: Float[np.ndarray, "2 height width"]) -> Float[np.ndarray, "height width 2"]:
    height, width = flow.shape[1:]
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([u + flow[0], v + flow[1]], axis=-1)


def round_trip_figures(
    forward: Float[np.ndarray, "2 height width"], backward: Float[np.ndarray, "2 height width"]
) -> dict[str, Figure]:
    """Forward-backward consistency of two flows (px of one grid): mean length of forward + backward at its end."""
    there = _endpoints(forward)
    back = bilinear(np.moveaxis(backward, 0, -1).astype(np.float64), there)
    error = np.linalg.norm(np.moveaxis(forward, 0, -1) + back, axis=-1)
    known = ~np.isnan(error)
    return {"round_trip_px": figure(error[known].sum(), known.sum())}


def photometric_figures(
    image: UInt8[np.ndarray, "height width 3"],
    target: UInt8[np.ndarray, "height width 3"],
    flow: Float[np.ndarray, "2 height width"],
) -> dict[str, Figure]:
    """Mean absolute colour difference (0..1) between an image and its target warped by the flow (px of that grid).

    `identity` is the same of the unwarped target on the same pixels: a flow worth having lies below it.
    """
    warped = bilinear(target.astype(np.float64), _endpoints(flow))
    known = ~np.isnan(warped).any(axis=-1)
    own = image[known].astype(np.float64)
    count = known.sum()
    return {
        "warp_error": figure(np.abs(warped[known] - own).mean(axis=-1).sum() / 255.0, count),
        "identity_error": figure(np.abs(target[known] - own).mean(axis=-1).sum() / 255.0, count),
    }


def static_flow_figures(
    flow: Float[np.ndarray, "n 2"],
    static_flow: Float[np.ndarray, "n 2"],
    masked: Bool[np.ndarray, " n"],
) -> dict[str, Figure]:
    """Measured flow against what LiDAR depth and ego-motion predict, at LiDAR points in masks and outside them, pixels.

    Outside masks the world should stand still, so `static_residual_px` judges flow without any ground truth;
    inside, `masked_residual_px` should be clearly larger.
    """
    residual = np.linalg.norm(flow.astype(np.float64) - static_flow, axis=-1)
    known = ~np.isnan(residual)
    outside, inside = known & ~masked, known & masked
    return {
        "static_residual_px": figure(residual[outside].sum(), outside.sum()),
        "masked_residual_px": figure(residual[inside].sum(), inside.sum()),
    }


def _is_figure(value: object) -> bool:
    return isinstance(value, Mapping) and set(value) == {"value", "count"}


def summarise(qualities: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Pool the quality dictionaries of many blocks, or the figures of many frames.

    Figures are averaged by their counts (which pools ratios exactly), nested dictionaries are pooled key by key, plain
    numbers are added up, anything else is dropped.
    """
    gathered: dict[str, list[Any]] = {}
    for quality in qualities:
        for key, value in quality.items():
            gathered.setdefault(key, []).append(value)
    pooled: dict[str, Any] = {}
    for key, values in gathered.items():
        if all(_is_figure(v) for v in values):
            known = [v for v in values if v["value"] is not None]
            pooled[key] = figure(sum(v["value"] * v["count"] for v in known), sum(v["count"] for v in known))
        elif all(isinstance(v, Mapping) for v in values):
            pooled[key] = summarise(values)
        elif all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            pooled[key] = sum(values)
    return pooled
