"""What the flow cue and the next keyframe's returns say of the motion of LiDAR returns on movable things.

With its depth measured, two pixels of flow give two metres of motion, but hardly any of them along the view: there the
depth of what is seen where the flow ends tells. What most cars do, drive along the road that the car looks along, is
known by that alone.

A rendered ray does not know how far its surface is: a flow that it learns makes up for the depth that is still wrong
(eq. 9 on a surface that is too far away asks for motion where there is none), and near things, with their many pixels
of flow, drown all others. A return knows its depth, and its motion can be weighed in metres. Not in the paper.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int16, UInt16

from geometry.cameras import in_image, project
from geometry.transforms import invert, transform_points
from storage.schema import FLOW_SCALE
from train.batch import Batch
from train.confidence import pixel_weights
from train.frames import CachedScene
from train.standing import depth_per_pixel, standing_things
from train.things import returns_on_things

PRIOR_M = 3.0
"""Motion per interval that is thought likely, metres: what pixels do not show (motion along the view) is near zero."""
NOISE_WIDTHS = 1 / 176
"""Error of a flow cue that is thought likely, in image widths."""
WORST_FIT_WIDTHS = 2 / 176
"""A return whose cue no motion explains better than this is left out."""
FASTEST_M = 25.0
"""Metres per interval; a solution beyond is a wrong match."""
ITERATIONS = 6
DEPTH_NOISE_M = 0.5
"""Error that is thought likely of the depth where a flow ends: another point of the same thing."""
NEAR_WIDTHS = 2 / 176
"""So near to where a flow ends a return tells its depth, image widths."""
GOALS_AT_ONCE = 256
"""Places whose depth is looked for together."""
WELL_KNOWN_M = 0.5
"""A motion along some direction that is known to this many metres per interval counts by half, a better one by more."""
PATCH_M = 2.0
"""Edge of the cubes that move as one: about a car's width."""


class Ending(NamedTuple):
    """Movable things in the image where flow ends: pixels and depth along the camera's axis, metres.

    `spread`: metres per squared metre of depth by which depth is likely to be off, but by DEPTH_NOISE_M at least.
    """

    pixels: Float64[np.ndarray, "m 2"]
    depth: Float64[np.ndarray, " m"]
    spread: float = 0.0


class Lifted(NamedTuple):
    """Motion of n points, metres per interval, and what it is known by: a motion that is off by e is off by
    sqrt(eᵀ information e) likely errors of what was measured."""

    points: Float64[np.ndarray, "n 3"]
    motion: Float64[np.ndarray, "n 2"]
    information: Float64[np.ndarray, "n 2 2"]


def lifted_spots(
    scene: CachedScene, t: int, min_mask_score: float, sample: Batch, spot_m: float, ground_z: float | None = None
) -> np.ndarray:
    """Spots on movable things of a keyframe, from its returns, or where those things stand, and the sample's cues.

    Args:
        ground_z: height of the ground in the ego frame, metres, on which things are found; None: by LiDAR returns.

    Returns:
        float32 (spots, 9): x, y, z in the reference ego frame, metres; motion x, y, metres per interval; the four
        entries of a matrix A. A motion that is off by e costs sqrt(eᵀ A e) metres: its length where it is well known in
        every direction, less in directions that little is known of.
    """
    assert sample.flow_next is not None
    view, parts, weights = sample.flow_next.view, [], lift_weights(sample)
    for c in np.flatnonzero(sample.camera_valid.numpy() & view.valid.numpy()):
        ref_from_cam, K = sample.ref_from_cam[c].double().numpy(), sample.K[c].double().numpy()
        instances = scene.instances(t, int(c), min_mask_score)
        if ground_z is None:
            points = scene.lidar(t)[0].astype(np.float64)
        else:
            points = standing_things(instances, ref_from_cam, K, ground_z).points(ref_from_cam, K)
        end, ending = scene.flow("next", t, int(c), 0), None
        if end.target_sweep < 0 and scene.has("masks", end.target_frame):
            ending = _ending(scene, end.target_frame, int(c), min_mask_score, ground_z)
        lifted = lift_flow(
            points,
            ref_from_cam,
            K,
            instances,
            sample.flow_next.flow[c].numpy(),
            sample.flow_next.known[c].numpy(),
            view.cam_from_ref[c].double().numpy(),
            view.K[c].double().numpy(),
            float(view.interval[c]),
            ending,
            weights[c] if weights is not None else None,
        )
        parts.append(lifted)
    if not parts:
        return np.zeros((0, 9), dtype=np.float32)
    spots = in_patches(Lifted(*(np.concatenate(column) for column in zip(*parts, strict=True))), spot_m)
    known, directions = np.linalg.eigh(spots.information)
    share = known.clip(0) / (known.clip(0) + 1 / WELL_KNOWN_M**2)
    weight = (directions * share[:, None]) @ directions.transpose(0, 2, 1)
    return np.concatenate([spots.points, spots.motion, weight.reshape(-1, 4)], axis=1).astype(np.float32)


def lift_weights(sample: Batch) -> Float32[np.ndarray, "cameras h w"] | None:
    """What each pixel's flow counts: the cue's confidence times its mask's score; None where the run does not weigh."""
    assert sample.flow_next is not None
    if sample.flow_next.confidence is None:
        return None
    weights = np.stack([pixel_weights(sample.flow_next, c) for c in range(len(sample.K))])
    if sample.mask_score is not None and sample.instances is not None:
        scores = sample.mask_score.gather(1, sample.instances.flatten(1).long())
        weights = weights * scores.numpy().reshape(weights.shape)
    return weights


def _ending(scene: CachedScene, t: int, c: int, min_mask_score: float, ground_z: float | None) -> Ending | None:
    """Movable things in one of a keyframe's images, by its returns or by where they stand; None where it has none."""
    instances = scene.instances(t, c, min_mask_score)
    if ground_z is not None:
        ego_from_cam, K = (array[c] for array in scene.cameras(t))
        pixels, depth = standing_things(instances, ego_from_cam, K, ground_z)
        return Ending(pixels, depth, depth_per_pixel(ego_from_cam, K, ground_z))
    if not scene.has("lidar", t):
        return None
    uv, depth, inside = scene.returns_in_image(t, c)
    u, v = np.floor(uv[inside]).astype(np.int64).T
    on = returns_on_things(instances[v, u], depth[inside])
    return Ending(uv[inside][on], depth[inside][on])


def lift_flow(
    points: Float64[np.ndarray, "n 3"],
    ref_from_cam: Float64[np.ndarray, "4 4"],
    K: Float64[np.ndarray, "3 3"],
    instances: UInt16[np.ndarray, "h w"],
    flow: Int16[np.ndarray, "2 h w"],
    known: Bool[np.ndarray, "h w"],
    target_from_ref: Float64[np.ndarray, "4 4"],
    target_K: Float64[np.ndarray, "3 3"],
    interval: float,
    ending: Ending | None = None,
    weight: Float32[np.ndarray, "h w"] | None = None,
) -> Lifted:
    """Horizontal motion of the points on one camera's movable things that a cue explains.

    Minimises, by Gauss-Newton, the squares of landed - seen - cue, in likely errors of a cue, of how far the point's
    depth in the target image is from that of the things returned there, and of the motion itself, in likely motions.
    `seen` is where the point falls now, `landed` where it falls after `interval` intervals of motion.

    Args:
        points: reference ego frame, metres.
        instances: which movable thing a pixel shows, 0 for none.
        flow, known: the cue in 1 / FLOW_SCALE pixels, and where there is one.
        weight: what the cue's squared errors count, 0..1, pixel by pixel; None: all of them. Depth is not the cue's.
    """
    height, width = instances.shape
    if weight is not None:
        known = known & (weight > 0)
    seen, depth, in_front = project(K, transform_points(invert(ref_from_cam), points))
    inside = np.flatnonzero(in_front & in_image(seen, height, width))
    u, v = np.floor(seen[inside]).astype(np.int64).T
    inside = inside[known[v, u] & returns_on_things(instances[v, u], depth[inside])]
    if interval == 0:
        inside = inside[:0]
    u, v = np.floor(seen[inside]).astype(np.int64).T
    ends = seen[inside] + flow[:, v, u].T.astype(np.float64) / FLOW_SCALE
    share = np.ones(len(inside)) if weight is None else np.sqrt(weight[v, u].astype(np.float64))
    place, (goal, sure) = points[inside], _goals(ends, share, ending, width)

    def measured(motion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is off, (n, 3) in likely errors, and its slope by the motion (n, 3, 2)."""
        landed, slope = _land(place, motion, target_from_ref, target_K, interval)
        return (landed - goal) * sure, slope * sure[..., None]

    found = _fitted(measured, len(inside))
    off, slope = measured(found)
    fits = np.abs(off[:, :2]).max(axis=1) < share * (WORST_FIT_WIDTHS / NOISE_WIDTHS)
    fits &= (np.abs(found) < FASTEST_M).all(axis=1)
    return Lifted(place[fits], found[fits], (slope.transpose(0, 2, 1) @ slope)[fits])


def _goals(
    ends: Float64[np.ndarray, "n 2"], share: Float64[np.ndarray, " n"], ending: Ending | None, width: int
) -> tuple[Float64[np.ndarray, "n 3"], Float64[np.ndarray, "n 3"]]:
    """Pixel and depth that each point should land at, and one over the likely error of each; 0 for a depth that nothing
    tells. `share` of a likely error of the cue counts as one."""
    depth = depth_at(ends, ending, NEAR_WIDTHS * width)
    told = np.isfinite(depth)
    depth = np.where(told, depth, 0.0)
    noise = np.maximum(DEPTH_NOISE_M, (ending.spread if ending else 0.0) * depth**2)
    sure = np.tile(share[:, None] / (NOISE_WIDTHS * width), 2)
    return np.column_stack([ends, depth]), np.column_stack([sure, np.where(told, 1 / noise, 0.0)])


def _fitted(
    measured: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], count: int
) -> Float64[np.ndarray, "count 2"]:
    """Motions of `count` points with the least squares of what is off and of the motion itself, by Gauss-Newton."""
    found, prior = np.zeros((count, 2)), np.eye(2) / PRIOR_M**2
    for _ in range(ITERATIONS):
        off, slope = measured(found)
        back = slope.transpose(0, 2, 1)
        gradient = (back @ off[..., None])[..., 0] + found @ prior
        found = found - np.linalg.solve(back @ slope + prior, gradient[..., None])[..., 0]
        found = np.clip(found, -FASTEST_M, FASTEST_M)
    return found


def depth_at(goal: Float64[np.ndarray, "n 2"], ending: Ending | None, near: float) -> Float64[np.ndarray, " n"]:
    """Median depth of the returns closer than `near` pixels to each goal, metres; nan where there is none."""
    depth = np.full(len(goal), np.nan)
    if ending is None or not len(ending.depth) or not len(goal):
        return depth
    # Column by column of the image: all with all are gigabytes where a LiDAR is dense and much can move.
    by_column = ending.pixels[:, 0].argsort()
    pixels, depths = ending.pixels[by_column], ending.depth[by_column]
    for rows in np.array_split(goal[:, 0].argsort(), -(-len(goal) // GOALS_AT_ONCE)):
        here = goal[rows]
        first = np.searchsorted(pixels[:, 0], here[0, 0] - near)
        last = np.searchsorted(pixels[:, 0], here[-1, 0] + near, side="right")
        close = ((here[:, None] - pixels[None, first:last]) ** 2).sum(axis=-1) < near**2
        some = close.any(axis=1)
        depth[rows[some]] = np.nanmedian(np.where(close[some], depths[None, first:last], np.nan), axis=1)
    return depth


def _land(
    points: np.ndarray, motion: np.ndarray, target_from_ref: np.ndarray, K: np.ndarray, interval: float
) -> tuple[Float64[np.ndarray, "n 3"], Float64[np.ndarray, "n 3 2"]]:
    """Pixel and depth of moved points in the target image, and the derivative of that by their motion; far away with no
    slope for points that end up behind it."""
    moved = points.copy()
    moved[:, :2] += motion * interval
    there = transform_points(target_from_ref, moved)
    ahead = there[:, 2] > 0.1
    depth = np.where(ahead, there[:, 2], 1.0)
    uv = there[:, :2] / depth[:, None]
    rotation = target_from_ref[:3, :2] * interval
    slope = (rotation[None, :2] - uv[..., None] * rotation[None, 2:]) / depth[:, None, None]
    pixels, slope = uv @ K[:2, :2].T + K[:2, 2], K[:2, :2] @ slope
    landed = np.column_stack([np.where(ahead[:, None], pixels, 1e6), there[:, 2]])
    slope = np.concatenate([slope, np.broadcast_to(rotation[2:], (len(points), 1, 2))], axis=1)
    return landed, np.where(ahead[:, None, None], slope, 0.0)


def in_patches(lifted: Lifted, spot_m: float) -> Lifted:
    """One point per cube of `spot_m` metres, with the motion that explains its cube of PATCH_M metres best.

    Near things have many returns, and single ones are wrong: within a patch squared errors count up to a likely
    error, beyond it absolute ones (three rounds of reweighting, from the median).
    """
    if not len(lifted.points):
        return lifted
    _, patch = np.unique(np.floor(lifted.points / PATCH_M).astype(np.int64), axis=0, return_inverse=True)
    patch = patch.reshape(-1)
    prior = np.eye(2) / PRIOR_M**2
    motion = np.stack([np.median(lifted.motion[patch == k], axis=0) for k in range(patch.max() + 1)])
    for _ in range(3):
        off = (lifted.motion - motion[patch])[..., None]
        errors = np.sqrt((off.transpose(0, 2, 1) @ lifted.information @ off)[:, 0, 0].clip(0))
        weighed = lifted.information / np.maximum(errors, 1)[:, None, None]
        information, pull = np.zeros((len(motion), 2, 2)), np.zeros((len(motion), 2, 1))
        np.add.at(information, patch, weighed)
        np.add.at(pull, patch, weighed @ lifted.motion[..., None])
        motion = np.linalg.solve(information + prior, pull)[..., 0]
    _, first = np.unique(np.floor(lifted.points / spot_m).astype(np.int64), axis=0, return_index=True)
    return Lifted(lifted.points[first], motion[patch[first]], information[patch[first]])
