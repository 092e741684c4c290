"""Checks of flow that need no truth: validity, confidence, forward-backward consistency, warped images."""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from eval.labels import bilinear
from geometry.cameras import pixel_centres

IDENTITY_LEVELS = 3.0
"""Grey levels by which image and next image must differ on a pixel for a warp to prove anything there."""
EDGE_PX = 511.5
"""Stored flow reaches 511.98 px; what lies this far out is taken for saturated."""


def endpoints(flow: Float[np.ndarray, "2 h w"]) -> Float[np.ndarray, "h w 2"]:
    """Where each pixel's centre goes."""
    return pixel_centres(*flow.shape[1:]) + np.moveaxis(flow, 0, -1)


def valid_share(flow: Float[np.ndarray, "2 h w"], movable: Bool[np.ndarray, "h w"] | None) -> float:
    """Share of pixels with a flow that is not at the end of the stored range.

    A cue that exists only inside masks (tracks, on nuScenes) is judged there.
    """
    known = ~np.isnan(flow).any(axis=0) & (np.nan_to_num(np.abs(flow)).max(axis=0) < EDGE_PX)
    if movable is not None and movable.any() and not known[~movable].any():
        known = known[movable]
    return float(known.mean()) if known.size else float("nan")


def confident_share(flow: Float[np.ndarray, "2 h w"], confidence: UInt8[np.ndarray, "h w"], least: int = 128) -> float:
    """Share of pixels with a flow whose confidence is at least `least` of 255; nan without any flow."""
    known = ~np.isnan(flow).any(axis=0)
    return float((confidence[known] >= least).mean()) if known.any() else float("nan")


def round_trip(
    forward: Float[np.ndarray, "2 h w"], backward: Float[np.ndarray, "2 h w"]
) -> tuple[float, Float[np.ndarray, "h w"]]:
    """Share of pixels that do not come back, and |forward + backward| in pixels, nan where it cannot be said.

    A pixel has not come back where |f + b|^2 > 0.01 (|f|^2 + |b|^2) + 0.5 (Sundaram, Brox and Keutzer 2010).
    """
    there = np.moveaxis(forward, 0, -1).astype(np.float64)
    back = bilinear(np.moveaxis(backward, 0, -1).astype(np.float64), endpoints(forward).astype(np.float64))
    error = np.linalg.norm(there + back, axis=-1)
    known = ~np.isnan(error)
    bound = 0.01 * ((there**2).sum(axis=-1) + (back**2).sum(axis=-1)) + 0.5
    share = float((error[known] ** 2 > bound[known]).mean()) if known.any() else float("nan")
    return share, error


def warp_errors(
    image: UInt8[np.ndarray, "h w 3"], target: UInt8[np.ndarray, "h w 3"], flow: Float[np.ndarray, "2 h w"]
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Mean absolute colour difference (grey levels) to the target before and after warping it by the flow; nan where
    there is no flow or it leaves the image."""
    warped = bilinear(target.astype(np.float64), endpoints(flow).astype(np.float64))
    after = np.abs(warped - image).mean(axis=-1)
    before = np.abs(target.astype(np.float64) - image).mean(axis=-1)
    return np.where(np.isnan(after), np.nan, before), after


def photometric_ratio(before: Float[np.ndarray, "h w"], after: Float[np.ndarray, "h w"]) -> float:
    """Error after warping over error before, on pixels where standing still is visibly wrong; nan with too few."""
    judged = ~np.isnan(after) & (np.nan_to_num(before) > IDENTITY_LEVELS)
    if judged.sum() < 50:
        return float("nan")
    return float(after[judged].mean() / before[judged].mean())
