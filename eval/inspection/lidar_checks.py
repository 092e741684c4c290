"""Checks of LiDAR: levelness, and whether its depth edges fall on edges of the image."""

import numpy as np
from jaxtyping import Float, UInt8

AZIMUTH_DEG, ELEVATION_DEG = 0.4, 0.8
"""Cells of the range image that neighbours are found in."""
SHIFTS_DEG = np.linspace(-2.5, 2.5, 41)
"""Sideways shifts that alignment tries, degrees."""


def ground_tilt(points: Float[np.ndarray, "n 3"], radius_m: float = 25.0, cell_m: float = 2.0) -> float:
    """Degrees between the ego frame's horizontal and the ground around the car; nan where too little is seen.

    The ground is a plane through the low points of cells, fitted by re-weighted least absolute distances.
    """
    near = points[np.hypot(points[:, 0], points[:, 1]) < radius_m]
    if len(near) < 100:
        return float("nan")
    _, which = np.unique(np.floor(near[:, :2] / cell_m).astype(np.int64), axis=0, return_inverse=True)
    order = np.lexsort((near[:, 2], which.ravel()))
    first = np.unique(which.ravel()[order], return_index=True)[1]
    low = near[order[first]]
    low = low[low[:, 2] < np.quantile(low[:, 2], 0.25) + 0.8]
    if len(low) < 20:
        return float("nan")
    design, weight = np.column_stack([low[:, :2], np.ones(len(low))]), np.ones(len(low))
    plane = np.zeros(3)
    for _ in range(10):
        scaled = np.sqrt(weight)[:, None]
        plane = np.linalg.lstsq(design * scaled, low[:, 2] * scaled[:, 0], rcond=None)[0]
        weight = 1 / np.maximum(np.abs(low[:, 2] - design @ plane), 0.03) ** 2
    return float(np.degrees(np.arctan(np.hypot(plane[0], plane[1]))))


def depth_edges(points: Float[np.ndarray, "n 3"], origin: Float[np.ndarray, "3"]) -> Float[np.ndarray, "k 3"]:
    """Points (ego frame, metres) on the silhouette of near things: neighbours along a scan line whose ranges jump.

    An edge lies half-way between the directions of the two, at the nearer one's range. Only jumps of 20 % and 1 m, from
    less than 40 m, count.
    """
    ray = points - origin
    distance = np.linalg.norm(ray, axis=1)
    ray, distance = ray[distance > 1], distance[distance > 1]
    azimuth = np.degrees(np.arctan2(ray[:, 1], ray[:, 0]))
    elevation = np.degrees(np.arcsin(ray[:, 2] / distance))
    shape = round(90 / ELEVATION_DEG) + 1, round(360 / AZIMUTH_DEG)
    row = np.clip((elevation + 45) / ELEVATION_DEG, 0, shape[0] - 1).astype(int)
    column = ((azimuth + 180) / AZIMUTH_DEG).astype(int) % shape[1]
    image = np.full((3, *shape), np.nan)
    order = np.argsort(-distance)  # the nearest is written last
    image[:, row[order], column[order]] = np.stack([distance, azimuth, elevation])[:, order]
    beside = np.roll(image, -1, axis=2)
    near, far = np.fmin(image[0], beside[0]), np.fmax(image[0], beside[0])
    with np.errstate(invalid="ignore"):
        jump = ~np.isnan(image[0] + beside[0]) & (far > 1.2 * near + 1.0) & (near < 40)
    turn = (beside[1] - image[1] + 180) % 360 - 180
    middle, height, r = np.radians(image[1] + turn / 2)[jump], np.radians(image[2][jump]), near[jump]
    direction = [np.cos(height) * np.cos(middle), np.cos(height) * np.sin(middle), np.sin(height)]
    return origin + r[:, None] * np.stack(direction, axis=1)


def edge_strength(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """Sideways gradient in relation to what is usual around: 1 is a pixel like its neighbours."""
    grey = image.astype(np.float64).mean(axis=-1)
    smooth = (np.roll(grey, 1, axis=0) + 2 * grey + np.roll(grey, -1, axis=0)) / 4
    slope = np.abs(np.gradient(smooth, axis=1))
    return slope / (_box(_box(slope, 15, 0), 31, 1) + 2.0)


def _box(values: np.ndarray, width: int, axis: int) -> np.ndarray:
    """Mean of `width` neighbours along an axis, fewer at the borders."""
    values = np.moveaxis(values, axis, 0)
    total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    index = np.arange(len(values))
    low, high = np.maximum(index - width // 2, 0), np.minimum(index + width // 2 + 1, len(values))
    return np.moveaxis((total[high] - total[low]) / (high - low)[:, None], 0, axis)


def alignment_scores(
    edges: Float[np.ndarray, "n 2"], strength: Float[np.ndarray, "h w"], fx: float
) -> Float[np.ndarray, "2 shifts"]:
    """Sum of image edge strength at LiDAR edges (px) moved sideways by each of `SHIFTS_DEG`, and how many stay inside.

    Scores of several images add up (targetless calibration after Levinson and Thrun 2013).
    """
    u = edges[:, 0] + fx * np.tan(np.radians(SHIFTS_DEG))[:, None]
    inside = (u >= 0) & (u < strength.shape[1])
    column = np.clip(u, 0, strength.shape[1] - 1).astype(int)
    found = strength[np.floor(edges[:, 1]).astype(int)[None], column]
    return np.stack([(found * inside).sum(axis=1), inside.sum(axis=1).astype(np.float64)])


def best_shift(scores: Float[np.ndarray, "2 shifts"], least: int = 20, clear: float = 1.25) -> float:
    """The shift in degrees with the best mean strength; nan with fewer than `least` edges or no peak `clear` times the
    median."""
    if scores[1].min() < least:
        return float("nan")
    mean = scores[0] / scores[1]
    if mean.max() < clear * np.median(mean):
        return float("nan")
    return float(SHIFTS_DEG[int(mean.argmax())])
