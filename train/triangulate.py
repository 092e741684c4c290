"""Points that two flow cues and the ego-motion alone give: what stands still, seen from where the car was and will be.

Where there is no LiDAR these are a camera-only run's returns: measured in the keyframe's images, along a ray from
the camera. A rendered flow (eq. 9) says the same by way of a volume; said as a depth it can teach the image side alone,
at a tenth of the cost. Not in the paper.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int16

from geometry.cameras import camera_directions
from storage.schema import FLOW_SCALE
from train.batch import FlowTarget
from train.confidence import pixel_weights

NOISE_WIDTHS = 1 / 176
"""Error of a flow cue that is thought likely, in image widths."""
WORST_FIT_WIDTHS = 1 / 176
"""A pixel whose cues no depth explains better than this moves, or its cues are wrong."""
SURE = 0.15
"""Relative error of a depth that is still taken."""
NEAREST_M = 1.0
"""What is nearer than this is a wrong match, or the own car."""
ITERATIONS = 6
STRIDE = 2
"""Of the pixels, along both axes: neighbours say the same."""


class Towards(NamedTuple):
    """One flow cue of a camera and the image it ends in."""

    flow: Int16[np.ndarray, "2 h w"]
    """In 1 / FLOW_SCALE pixels."""
    known: Bool[np.ndarray, "h w"]
    target_from_ref: Float64[np.ndarray, "4 4"]
    target_K: Float64[np.ndarray, "3 3"]
    weight: Float32[np.ndarray, "h w"] | None = None
    """What its squared errors count, 0..1; None: all of them."""


class Triangulated(NamedTuple):
    """n pixels of a camera that have a depth."""

    points: Float64[np.ndarray, "n 3"]
    """Reference ego frame, metres."""
    depth: Float64[np.ndarray, " n"]
    """Along the camera's axis, metres."""
    error: Float64[np.ndarray, " n"]
    """Of the logarithm of the depth, where the cues are off by NOISE_WIDTHS."""


def triangulated_returns(
    ref_from_cam: Float64[np.ndarray, "cameras 4 4"],
    K: Float64[np.ndarray, "cameras 3 3"],
    camera_valid: Bool[np.ndarray, " cameras"],
    movable: Bool[np.ndarray, "cameras h w"],
    targets: list[FlowTarget],
    stride: int = STRIDE,
) -> Float32[np.ndarray, "n 6"]:
    """Points on no movable thing that the flow cues of a keyframe's cameras give: x, y, z of each, and of the camera
    that it was measured from; reference ego frame, metres."""
    found = [np.zeros((0, 6), dtype=np.float32)]
    for c in np.flatnonzero(camera_valid):
        towards = [_towards(target, int(c)) for target in targets if target.view.valid[c]]
        points = triangulate(ref_from_cam[c], K[c], ~movable[c], towards, stride).points
        origins = np.broadcast_to(ref_from_cam[c, :3, 3], points.shape)
        found.append(np.concatenate([points, origins], axis=1).astype(np.float32))
    return np.concatenate(found)


def _towards(target: FlowTarget, c: int) -> Towards:
    geometry = (target.view.cam_from_ref[c].double().numpy(), target.view.K[c].double().numpy())
    return Towards(target.flow[c].numpy(), target.known[c].numpy(), *geometry, pixel_weights(target, c))


def triangulate(
    ref_from_cam: Float64[np.ndarray, "4 4"],
    K: Float64[np.ndarray, "3 3"],
    still: Bool[np.ndarray, "h w"],
    towards: list[Towards],
    stride: int = 1,
) -> Triangulated:
    """Depth of the pixels at which the cues together know one.

    Minimises, by Gauss-Newton in the logarithm of the depth, the squares of landed - seen - cue over all cues that the
    pixel has, each counting by its weight: a cue of weight 1/4 is one with twice the likely error, one of weight 0 is
    none. Left out: pixels whose cues do not fit (WORST_FIT_WIDTHS), that know little (SURE), or whose depth has no
    sense.
    """
    width = still.shape[1]
    noise = NOISE_WIDTHS * width
    rows, columns = np.nonzero(_every(still, stride))
    seen = np.column_stack([columns, rows]) + 0.5
    along = camera_directions(K, seen)
    goals = [seen + t.flow[:, rows, columns].T.astype(np.float64) / FLOW_SCALE for t in towards]
    weights = [1.0 if t.weight is None else t.weight[rows, columns].astype(np.float64) for t in towards]
    # What counts for nothing tells nothing, not even that the cues do not fit.
    known = [t.known[rows, columns] & (weight > 0) for t, weight in zip(towards, weights, strict=True)]
    lines = [_line(t, ref_from_cam, along) for t in towards]
    depth = _first_guess(lines, goals, known, towards, weights)

    def measured(depth: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each cue: what is off (n, 2) and its slope by the log of the depth (n, 2), pixels, and where it counts."""
        cues = zip(lines, towards, goals, known, strict=True)
        return [_landing(*line, t.target_K, goal, depth, there) for line, t, goal, there in cues]

    for _ in range(ITERATIONS):
        gradient, curvature = np.zeros(len(depth)), np.zeros(len(depth))
        for (off, slope, counts), weight in zip(measured(depth), weights, strict=True):
            gradient += np.where(counts, weight * (off * slope).sum(axis=1), 0.0)
            curvature += np.where(counts, weight * (slope * slope).sum(axis=1), 0.0)
        step = gradient / np.maximum(curvature, 1e-9)
        depth = depth * np.exp(-np.clip(step, -1.0, 1.0))
    information, worst, cues = np.zeros(len(depth)), np.zeros(len(depth)), np.zeros(len(depth), dtype=int)
    for (off, slope, counts), weight in zip(measured(depth), weights, strict=True):
        information += np.where(counts, weight * (slope * slope).sum(axis=1), 0.0)
        worst = np.maximum(worst, np.where(counts, np.abs(off).max(axis=1), 0.0))
        cues += counts
    error = noise / np.sqrt(np.maximum(information, 1e-12))
    good = (cues > 0) & (worst < WORST_FIT_WIDTHS * width) & (error < SURE) & (depth > NEAREST_M)
    points = ref_from_cam[:3, 3] + depth[good, None] * (along[good] @ ref_from_cam[:3, :3].T)
    return Triangulated(points, depth[good], error[good])


def _every(mask: Bool[np.ndarray, "h w"], stride: int) -> Bool[np.ndarray, "h w"]:
    thinned = np.zeros_like(mask)
    first = stride // 2
    thinned[first::stride, first::stride] = mask[first::stride, first::stride]
    return thinned


def _line(
    towards: Towards, ref_from_cam: np.ndarray, along: np.ndarray
) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "n 3"]]:
    """A pixel's ray in the target camera: where it starts, and what a metre of depth adds."""
    target_from_cam = towards.target_from_ref @ ref_from_cam
    return target_from_cam[:3, 3], along @ target_from_cam[:3, :3].T


def _first_guess(
    lines: list, goals: list, known: list, towards: list[Towards], weights: list
) -> Float64[np.ndarray, " n"]:
    """The depth at which the ray comes nearest to the goals' rays, linear in it: each equation is multiplied out by the
    depth in the target image."""
    count = len(goals[0]) if goals else 0
    above, below = np.zeros(count), np.full(count, 1e-9)
    for (start, more), goal, there, t, weight in zip(lines, goals, known, towards, weights, strict=True):
        n = camera_directions(t.target_K, goal)
        fixed, slope = start[:2] - n[:, :2] * start[2], more[:, :2] - n[:, :2] * more[:, 2:]
        above -= np.where(there, weight * (fixed * slope).sum(axis=1), 0.0)
        below += np.where(there, weight * (slope * slope).sum(axis=1), 0.0)
    return np.clip(above / below, 0.5, 500.0)


def _landing(
    start: np.ndarray, more: np.ndarray, K: np.ndarray, goal: np.ndarray, depth: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Bool[np.ndarray, " n"]]:
    there = start + depth[:, None] * more
    ahead = there[:, 2] > 0.1
    z = np.where(ahead, there[:, 2], 1.0)[:, None]
    uv = there[:, :2] / z
    slope = (more[:, :2] - uv * more[:, 2:]) / z * depth[:, None]
    return uv @ K[:2, :2].T + K[:2, 2] - goal, slope @ K[:2, :2].T, known & ahead
