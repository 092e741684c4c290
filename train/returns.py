"""Which returns a step casts rays to: the keyframe's own, and what other keyframes saw of what stands still."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from geometry.grid import VoxelGrid
from geometry.transforms import invert, transform_points
from storage.schema import SceneTable
from train.frames import CachedScene

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
    """From where each was measured."""


class Measured(NamedTuple):
    """All returns of one keyframe, in its ego frame, metres."""

    points: Float32[np.ndarray, "n 3"]
    origins: Float32[np.ndarray, "n 3"]
    still: Bool[np.ndarray, " n"]
    """On nothing that could move."""


def lidar_returns(scene: CachedScene, t: int, min_mask_score: float, masks: bool) -> Measured:
    """The LiDAR's returns of a keyframe; without masks everything is taken to stand still."""
    points, origin = scene.lidar(t)
    origins = np.broadcast_to(np.nan_to_num(origin), points.shape)
    still = ~scene.movable_returns(t, min_mask_score) if masks else np.ones(len(points), dtype=bool)
    return Measured(points, origins, still)


def still_returns(scene: CachedScene, t: int, min_mask_score: float) -> Float32[np.ndarray, "m 3"]:
    """The keyframe's LiDAR returns that one of its images shows on no movable thing.

    What no image shows may lie on anything and is left out.
    """
    points, _ = scene.lidar(t)
    shown = np.zeros(len(points), dtype=bool)
    for c in np.flatnonzero(scene.table.camera_valid[t]):
        shown[scene.returns_in_image(t, int(c))[2]] = True
    return points[shown & ~scene.movable_returns(t, min_mask_score)]


def movable_obstacles(scene: CachedScene, t: int, min_mask_score: float) -> Float32[np.ndarray, "m 3"]:
    """Where movable things are at a keyframe, by its LiDAR returns on them."""
    return scene.derived(
        "moving", t, min_mask_score,
        lambda: thinned(scene.lidar(t)[0][scene.movable_returns(t, min_mask_score)], NEAR_MOTION_M / 2),
    )  # fmt: skip


class Raised(NamedTuple):
    """That at least a `share` of what is drawn, where there is so much, lies higher than `above_z` (ego frame, m)."""

    share: float
    above_z: float


def drawn_order(
    points: Float32[np.ndarray, "n _columns"], count: int, rng: np.random.Generator, raised: Raised | None
) -> Int[np.ndarray, " n"]:
    """All rows (x, y, z, ...) in random order, those first that `raised` asks for of the first `count`."""
    order = rng.permutation(len(points))
    if raised is None or not raised.share:
        return order
    leading = order[points[order, 2] > raised.above_z][: round(raised.share * count)]
    leads = np.zeros(len(points), dtype=bool)
    leads[leading] = True
    return np.concatenate([leading, order[~leads[order]]])


def draw_returns(
    measured: Measured,
    grid: VoxelGrid,
    count: int,
    rng: np.random.Generator,
    own: bool = True,
    raised: Raised | None = None,
) -> Returns:
    """`count` of the returns inside the volume, without replacement, padded where there are fewer."""
    inside = np.flatnonzero(grid.contains(measured.points.astype(np.float64)))
    chosen = inside[drawn_order(measured.points[inside], count, rng, raised)[:count]]
    (points, valid), (origins, _) = (padded(of_all[chosen], count) for of_all in (measured.points, measured.origins))
    return Returns(points, valid, torch.full((count,), own), origins)


def padded(
    rows: Float32[np.ndarray, "n columns"], count: int
) -> tuple[Float32[Tensor, "count columns"], Bool[Tensor, " count"]]:
    """The rows, at most `count` of them, with zeros after them up to `count`; and which are rows."""
    filled = np.zeros((count, rows.shape[1]), dtype=np.float32)
    filled[: len(rows)] = rows
    return torch.from_numpy(filled), torch.arange(count) < len(rows)


def filled(returns: Returns, count: int) -> Returns:
    """The returns with padding after them up to `count`."""
    missing = count - len(returns.points)
    return Returns(*(torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) for part in returns))


def draw_with_neighbours(
    measured: Callable[[int], Measured],
    table: SceneTable,
    t: int,
    others: list[int],
    obstacles: Float32[np.ndarray, "m 3"],
    grid: VoxelGrid,
    count: int,
    own_share: float,
    rng: np.random.Generator,
    raised: Raised | None = None,
) -> Returns:
    """`count` returns: `own_share` of them the keyframe's, the rest shared among the keyframes `others`.

    From where the car was at another time it saw what is hidden now, but also things that have moved since. Of those
    keyframes only what stands still is taken, and no ray that passes near `obstacles`, where movable things are now.
    """
    if not others:
        return draw_returns(measured(t), grid, count, rng, raised=raised)
    own = round(count * own_share)
    ego_from_global = invert(np.asarray(table.global_from_ego[t], dtype=np.float64))
    parts = [draw_returns(measured(t), grid, own, rng, raised=raised)]
    for n, k in enumerate(others):
        # Shares that differ by one at most and sum to what is left.
        share = (count - own) * (n + 1) // len(others) - (count - own) * n // len(others)
        there = measured(k)
        ego_from_there = ego_from_global @ np.asarray(table.global_from_ego[k], dtype=np.float64)
        # Some lie outside the volume: enough are drawn that the rest will do, and only these are moved.
        still = np.flatnonzero(there.still)
        few = still[drawn_order(there.points[still], 3 * share, rng, raised)[: 3 * share]]
        points, origins = (
            transform_points(ego_from_there, place[few].astype(np.float64)).astype(np.float32)
            for place in (there.points, there.origins)
        )
        drawn = draw_returns(Measured(points, origins, there.still[few]), grid, share, rng, False, raised)
        crossing = passes_near(drawn.points.numpy(), drawn.origins.numpy(), obstacles, NEAR_MOTION_M)
        parts.append(drawn._replace(valid=drawn.valid & ~torch.from_numpy(crossing)))
    return Returns(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def thinned(points: Float32[np.ndarray, "n 3"], edge: float) -> Float32[np.ndarray, "m 3"]:
    """One of the points in each cube of `edge` metres that holds any."""
    _, first = np.unique(np.floor(points / edge).astype(np.int64), axis=0, return_index=True)
    return points[first]


def passes_near(
    points: Float32[np.ndarray, "n 3"],
    origins: Float32[np.ndarray, "n 3"],
    obstacles: Float32[np.ndarray, "m 3"],
    radius: float,
) -> Bool[np.ndarray, " n"]:
    """Which of the segments from `origins` to `points` pass an obstacle closer than `radius`, metres."""
    if not len(obstacles):
        return np.zeros(len(points), dtype=bool)
    along = points - origins
    length = (along * along).sum(axis=1)[:, None]
    inner = along @ obstacles.T - (along * origins).sum(axis=1)[:, None]
    share = np.clip(inner / np.maximum(length, 1e-6), 0.0, 1.0)
    # |obstacle - origin - share * along|², multiplied out: no array of n x m x 3.
    distance = (obstacles * obstacles).sum(axis=1)[None] - 2 * origins @ obstacles.T
    squared = distance + (origins * origins).sum(axis=1)[:, None] - share * (2 * inner - share * length)
    return (squared < radius * radius).any(axis=1)
