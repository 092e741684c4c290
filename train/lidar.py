"""Which LiDAR returns a step casts rays to: the keyframe's own, and what other keyframes saw of what stands still."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from geometry.grid import VoxelGrid
from geometry.transforms import invert, transform_points
from train.frames import CachedScene
from train.settings import RaysConfig

NEAR_MOTION_M = 1.0
"""A ray from another time that passes a moving thing's return closer than this may go through where the thing is."""


class Returns(NamedTuple):
    """The returns of one step, in the current ego frame, metres."""

    points: Float[Tensor, "returns 3"]
    valid: Bool[Tensor, " returns"]
    """False for padding."""
    own: Bool[Tensor, " returns"]
    """Measured at the current keyframe."""
    origins: Float[Tensor, "returns 3"]
    """Where the LiDAR was."""


def draw_returns(
    points: Float[np.ndarray, "n 3"],
    origin: Float[np.ndarray, "3"],
    grid: VoxelGrid,
    count: int,
    rng: np.random.Generator,
    own: bool = True,
) -> Returns:
    """`count` of the returns inside the volume, without replacement, padded where there are fewer."""
    inside = np.flatnonzero(grid.contains(points.astype(np.float64)))
    chosen = rng.permutation(inside)[:count]
    drawn, valid = np.zeros((count, 3), dtype=np.float32), np.zeros(count, dtype=bool)
    drawn[: len(chosen)], valid[: len(chosen)] = points[chosen], True
    origins = np.tile(np.nan_to_num(np.asarray(origin, dtype=np.float32)), (count, 1))
    return Returns(
        torch.from_numpy(drawn), torch.from_numpy(valid), torch.full((count,), own), torch.from_numpy(origins)
    )


def draw_with_neighbours(
    scene: CachedScene,
    t: int,
    others: list[int],
    grid: VoxelGrid,
    rays: RaysConfig,
    min_mask_score: float,
    rng: np.random.Generator,
) -> Returns:
    """`rays.lidar` returns: `rays.lidar_own` of them the keyframe's, the rest shared among the keyframes `others`.

    From where the car was at another time the LiDAR saw what is hidden now, but also things that have moved since.
    Returns on movable things of those keyframes are left out, and so are rays that pass where a movable thing is now.
    """
    points, origin = scene.lidar(t)
    if not others:
        return draw_returns(points, origin, grid, rays.lidar, rng)
    own = round(rays.lidar * rays.lidar_own)
    moving = scene.derived(
        "moving", t, min_mask_score,
        lambda: thinned(points[scene.movable_returns(t, min_mask_score)], NEAR_MOTION_M / 2),
    )  # fmt: skip
    ego_from_global = invert(np.asarray(scene.table.global_from_ego[t], dtype=np.float64))
    parts = [draw_returns(points, origin, grid, own, rng)]
    for n, k in enumerate(others):
        # Shares that differ by one at most and sum to what is left.
        count = (rays.lidar - own) * (n + 1) // len(others) - (rays.lidar - own) * n // len(others)
        then, its_origin = scene.lidar(k)
        ego_from_then = ego_from_global @ np.asarray(scene.table.global_from_ego[k], dtype=np.float64)
        # Some lie outside the volume: enough are drawn that the rest will do, and only these are moved.
        few = rng.permutation(np.flatnonzero(~scene.movable_returns(k, min_mask_score)))[: 3 * count]
        still = transform_points(ego_from_then, then[few].astype(np.float64))
        start = transform_points(ego_from_then, its_origin.astype(np.float64)[None])[0]
        drawn = draw_returns(still.astype(np.float32), start, grid, count, rng, own=False)
        crossing = torch.from_numpy(passes_near(drawn.points.numpy(), start, moving, NEAR_MOTION_M))
        parts.append(drawn._replace(valid=drawn.valid & ~crossing))
    return Returns(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def thinned(points: Float32[np.ndarray, "n 3"], edge: float) -> Float32[np.ndarray, "m 3"]:
    """One of the points in each cube of `edge` metres that holds any."""
    _, first = np.unique(np.floor(points / edge).astype(np.int64), axis=0, return_index=True)
    return points[first]


def passes_near(
    points: Float32[np.ndarray, "n 3"],
    origin: Float[np.ndarray, "3"],
    obstacles: Float32[np.ndarray, "m 3"],
    radius: float,
) -> Bool[np.ndarray, " n"]:
    """Which of the segments from `origin` to `points` pass an obstacle closer than `radius`, metres."""
    if not len(obstacles):
        return np.zeros(len(points), dtype=bool)
    along, there = (points - origin).astype(np.float32), (obstacles - origin).astype(np.float32)
    length = (along * along).sum(axis=1)[:, None]
    inner = along @ there.T
    share = np.clip(inner / np.maximum(length, 1e-6), 0.0, 1.0)
    # |there - share * along|², multiplied out: no array of n x m x 3.
    squared = (there * there).sum(axis=1)[None] - share * (2 * inner - share * length)
    return (squared < radius * radius).any(axis=1)
