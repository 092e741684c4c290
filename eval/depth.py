"""Depth errors of rendered views against projected LiDAR, by the usual seven figures."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from geometry.cameras import in_image, project
from geometry.transforms import invert, transform_points

MIN_DEPTH = 0.1
MAX_DEPTH = 80.0
"""Metres of camera z between which LiDAR depth counts; predictions are clamped to the same range."""

METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "delta_1.25", "delta_1.25^2", "delta_1.25^3")


@dataclass(frozen=True)
class SparseDepth:
    """LiDAR in one image: uv (n, 2) centres of the pixels hit, depth (n,) camera z in metres, nearest per pixel."""

    uv: Float[np.ndarray, "n 2"]
    depth: Float[np.ndarray, "n"]


def project_lidar(
    points: Float[np.ndarray, "n 3"],
    ego_from_cam: Float[np.ndarray, "4 4"],
    K: Float[np.ndarray, "3 3"],
    height: int,
    width: int,
    seen: Bool[np.ndarray, "n"] | None = None,
) -> SparseDepth:
    """LiDAR points of the ego frame at LiDAR time on a camera's pixels; of several in one pixel the nearest stays.

    Args:
        ego_from_cam: from the camera, at its own time, to the ego frame at LiDAR time (the car's motion between the
            two is in it).
        K: of the (height, width) image.
        seen: the points that this camera sees, where that is known.
    """
    chosen = points if seen is None else points[seen]
    uv, depth, valid = project(K, transform_points(invert(ego_from_cam), chosen))
    ok = valid & in_image(uv, height, width) & (depth >= MIN_DEPTH) & (depth <= MAX_DEPTH)
    uv, depth = uv[ok], depth[ok]
    pixel = np.floor(uv).astype(np.int64) @ np.array([1, width])
    order = np.argsort(depth, kind="stable")
    _, first = np.unique(pixel[order], return_index=True)
    nearest = np.sort(order[first])
    return SparseDepth(np.floor(uv[nearest]) + 0.5, depth[nearest].astype(np.float64))


class DepthError:
    """The seven figures per image, averaged over images (each image counts once, as in the literature).

    Args:
        median_scaling: multiply each image's prediction by median(truth) / median(prediction) first. Off by default:
            the scale is metric. Named in the result.
    """

    def __init__(self, median_scaling: bool = False) -> None:
        self.median_scaling = median_scaling
        self.sums = np.zeros(len(METRICS))
        self.images = 0
        self.pixels = 0
        self.without_prediction = 0
        self.ratios = 0.0

    def update(self, predicted: Float[np.ndarray, "n"], truth: Float[np.ndarray, "n"]) -> None:
        """Count one image; camera z in metres. Pixels without a finite positive prediction are left out and counted.

        Truth outside [0.1, 80] m is ignored.
        """
        wanted = np.isfinite(truth) & (truth >= MIN_DEPTH) & (truth <= MAX_DEPTH)
        rendered = np.isfinite(predicted) & (predicted > 0)
        self.without_prediction += int((wanted & ~rendered).sum())
        d = truth[wanted & rendered].astype(np.float64)
        p = predicted[wanted & rendered].astype(np.float64)
        if not len(d):
            return
        ratio = float(np.median(d) / np.median(p))
        if self.median_scaling:
            p = p * ratio
        p = p.clip(MIN_DEPTH, MAX_DEPTH)
        self.sums += depth_metrics(p, d)
        self.ratios += ratio
        self.images += 1
        self.pixels += len(d)

    def merge(self, other: "DepthError") -> None:
        """Add another accumulator's images."""
        if other.median_scaling != self.median_scaling:
            raise ValueError("cannot merge depth errors with and without median scaling")
        self.sums += other.sums
        self.images += other.images
        self.pixels += other.pixels
        self.without_prediction += other.without_prediction
        self.ratios += other.ratios

    def compute(self) -> dict[str, Any]:
        """The figures so far; nan without an image."""
        mean = self.sums / self.images if self.images else np.full(len(METRICS), np.nan)
        return {
            **dict(zip(METRICS, map(float, mean), strict=True)),
            "images": self.images,
            "pixels": self.pixels,
            "pixels_without_prediction": self.without_prediction,
            "median_scaling": self.median_scaling,
            "mean_median_ratio": self.ratios / self.images if self.images else float("nan"),
            "range_m": [MIN_DEPTH, MAX_DEPTH],
            "averaging": "mean over images of the mean over pixels",
        }


def depth_metrics(predicted: Float[np.ndarray, "n"], truth: Float[np.ndarray, "n"]) -> Float[np.ndarray, "7"]:
    """Abs Rel, Sq Rel, RMSE, RMSE log and the three accuracies of one image, in the order of METRICS."""
    difference = predicted - truth
    worst = np.maximum(predicted / truth, truth / predicted)
    return np.array(
        [
            np.mean(np.abs(difference) / truth),
            np.mean(difference**2 / truth),
            np.sqrt(np.mean(difference**2)),
            np.sqrt(np.mean((np.log(predicted) - np.log(truth)) ** 2)),
            *(np.mean(worst < 1.25**k) for k in (1, 2, 3)),
        ]
    )
