"""How far each pixel may be away, from the LiDAR points around it; and what of that is ground."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64, UInt8
from scipy.spatial import cKDTree

from geometry.cameras import in_image, pixel_centres, project, unproject
from geometry.transforms import invert, transform_points
from pipelines.cues.depth_bounds import DepthBounds
from pipelines.cues.ranges import check_numbers

NEIGHBOURS = 8
"""Nearest points that a pixel looks at."""


@dataclass(frozen=True)
class DepthRule:
    """How sparse points speak for the pixels around them. Distances in the image are shares of its width.

    reach: pixels farther than this from every point stay unknown. colour: difference (0..255) at which a point's say
    has fallen to 0.6. plausible: points with at least this share of the strongest say bound the depth. relative: what
    depth itself may be wrong by. hidden: a point that lies this much (a share) farther than two beside it is taken for
    something that the camera does not see (the LiDAR looks over things from the roof). least_say: below this, a pixel
    is too unlike every point near it. gap: pixels this many times farther from every point than three
    quarters of the pixels are may show something infinitely far.
    """

    reach: float = 0.035
    colour: float = 10.0
    plausible: float = 0.4
    relative: float = 0.03
    hidden: float = 0.15
    least_say: float = 0.02
    gap: float = 1.6

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("reach", "colour"), shares=("plausible",))


def ground_plane(points: Float[np.ndarray, "n 3"], cell: float = 2.0, radius: float = 40.0) -> Float[np.ndarray, "3"]:
    """Ground as z = a x + b y + c (ego frame, metres): a plane through cells' lowest points, without outliers."""
    near = points[np.hypot(points[:, 0], points[:, 1]) < radius]
    if len(near) < 10:
        return np.array([0.0, 0.0, float(near[:, 2].min()) if len(near) else 0.0])
    _, which = np.unique(np.floor(near[:, :2] / cell).astype(np.int64), axis=0, return_inverse=True)
    which = which.ravel()
    order = np.lexsort((near[:, 2], which))
    lowest = near[order[np.unique(which[order], return_index=True)[1]]]
    plane = np.array([0.0, 0.0, np.quantile(lowest[:, 2], 0.25)])
    design = np.column_stack([lowest[:, :2], np.ones(len(lowest))])
    for bound in (1.0, 0.6, 0.4, 0.3, 0.2, 0.2):
        close = np.abs(lowest[:, 2] - design @ plane) < bound
        if close.sum() < 10:
            break
        plane = np.linalg.lstsq(design[close], lowest[close, 2], rcond=None)[0]
    return plane


def height_above(points: Float[np.ndarray, "n 3"], ground: Float[np.ndarray, "3"]) -> Float[np.ndarray, " n"]:
    """Metres above the ground plane of points in the ego frame."""
    return points[:, 2] - (points[:, :2] @ ground[:2] + ground[2])


def depth_bounds(
    points: Float[np.ndarray, "n 3"],
    ground: Float[np.ndarray, "3"],
    cam_from_ego: Float[np.ndarray, "4 4"],
    K: Float[np.ndarray, "3 3"],
    image: UInt8[np.ndarray, "height width 3"],
    rule: DepthRule,
) -> tuple[DepthBounds, Int32[np.ndarray, "height width"]]:
    """Depth of each pixel from the points nearest to it in place and colour.

    Args:
        points: ego frame, metres.
        ground: see ground_plane.
        cam_from_ego: at the image's own time.
        K: of `image`.
        image: RGB.

    Returns:
        The bounds, and the index of the point that each pixel goes by; -1 where the depth is unknown.
    """
    height, width = image.shape[:2]
    uv, z, front = project(K, transform_points(cam_from_ego, points))
    kept = front & in_image(uv, height, width)
    uv, z, which = uv[kept], z[kept], np.flatnonzero(kept)
    unknown = np.full((height, width), np.nan)
    if len(z) < NEIGHBOURS:
        return DepthBounds(unknown, unknown, unknown, unknown), np.full((height, width), -1, np.int32)
    reach = rule.reach * width
    visible = _visible(uv, z, reach / 2, rule.hidden)
    uv, z, which = uv[visible], z[visible], which[visible]
    centres = pixel_centres(height, width).reshape(-1, 2)
    distance, index = _nearest(uv, centres, reach)
    there = np.isfinite(distance)
    say = _say(image, uv, index, distance / reach, rule.colour)
    inverse = (1.0 / z)[index]
    leader = say.argmax(axis=0)[None]
    strongest, best = (np.take_along_axis(values, leader, axis=0)[0] for values in (say, inverse))
    agrees = (say >= rule.plausible * strongest) & there
    # What agrees with the best point in depth too is averaged: a surface between scan lines.
    weight = np.where(agrees & (np.abs(inverse / np.maximum(best, 1e-9) - 1) < rule.hidden), say, 0.0)
    known = there.any(axis=0) & (strongest > max(rule.least_say, 1e-12))
    mean = np.where(known, (weight * inverse).sum(axis=0) / np.where(known, weight.sum(axis=0), 1.0), np.nan)
    lower = np.where(agrees, inverse, np.inf).min(axis=0) * (1 - rule.relative)
    upper = np.where(agrees, inverse, -np.inf).max(axis=0) * (1 + rule.relative)
    # Where no point is as near as scan lines lie, nothing came back: perhaps the sky.
    spacing = np.quantile(distance[0, there[0]], 0.75) if there.any() else 0.0
    lower = np.where(distance[0] > rule.gap * spacing, 0.0, lower)
    shape = (height, width)
    chosen = which[np.take_along_axis(index, leader, axis=0)[0]]
    bounds = DepthBounds(
        mean.reshape(shape),
        np.where(known, lower, np.nan).reshape(shape),
        np.where(known, upper, np.nan).reshape(shape),
        _height(mean, centres, K, cam_from_ego, ground).reshape(shape),
    )
    return bounds, np.where(known, chosen, -1).astype(np.int32).reshape(shape)


def _nearest(
    uv: Float[np.ndarray, "n 2"], at: Float[np.ndarray, "m 2"], reach: float
) -> tuple[Float[np.ndarray, "neighbours m"], Int64[np.ndarray, "neighbours m"]]:
    """Distance (inf = farther than `reach`) and index (then 0) of the points nearest to each place, nearest first."""
    distance, index = cKDTree(uv).query(at, k=NEIGHBOURS, distance_upper_bound=reach)
    # Neighbours first: numpy is many times slower along short last axes.
    distance, index = np.ascontiguousarray(distance.T), np.ascontiguousarray(index.T)
    return distance, np.where(np.isfinite(distance), index, 0)


def _say(
    image: UInt8[np.ndarray, "height width 3"],
    uv: Float[np.ndarray, "n 2"],
    index: Int64[np.ndarray, "neighbours m"],
    distance: Float[np.ndarray, "neighbours m"],
    colour: float,
) -> Float[np.ndarray, "neighbours m"]:
    """What each neighbour's word weighs at each pixel, by its distance (in units of the reach) and colour."""
    own = image[np.floor(uv[:, 1]).astype(int), np.floor(uv[:, 0]).astype(int)].astype(np.float32)
    unlike = np.zeros(index.shape, np.float32)
    for channel in range(3):
        unlike += (image[..., channel].reshape(1, -1) - own[index, channel]) ** 2
    say = np.exp(-2 * np.where(np.isfinite(distance), distance, 0.0) ** 2 - unlike / (6 * colour**2))
    return np.where(np.isfinite(distance), say, 0.0)


def _visible(
    uv: Float[np.ndarray, "n 2"], z: Float[np.ndarray, " n"], radius: float, hidden: float
) -> Bool[np.ndarray, " n"]:
    """False for points that lie close beside, and well behind, two or more others."""
    distance, index = _nearest(uv, uv, radius)
    nearer = np.isfinite(distance) & (z[index] < z * (1 - hidden))
    return nearer.sum(axis=0) < 2


def _height(
    inverse: Float[np.ndarray, " n"],
    uv: Float[np.ndarray, "n 2"],
    K: Float[np.ndarray, "3 3"],
    cam_from_ego: Float[np.ndarray, "4 4"],
    ground: Float[np.ndarray, "3"],
) -> Float[np.ndarray, " n"]:
    return height_above(transform_points(invert(cam_from_ego), unproject(K, uv, 1.0 / inverse)), ground)
