"""Which stored images a keyframe is compared with, and the geometry of looking at it from there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32

from geometry.cameras import scale_intrinsics
from geometry.transforms import invert
from storage.schema import SceneTable
from train.settings import NeighbourConfig

KEYFRAME = -1
"""Sweep slot that stands for the keyframe itself."""


@dataclass(frozen=True)
class Neighbour:
    """An image set of the scene: keyframe `t`, or the sweep in slot `sweep` after it."""

    t: int
    sweep: int = KEYFRAME


@dataclass(frozen=True)
class ViewGeometry:
    """One neighbour as the current keyframe's cameras see it; invalid cameras hold identities.

    cam_from_ref: float32 (C, 4, 4), the neighbour's camera (at its own time) from the current ego frame, metres.
    K: float32 (C, 3, 3) in render pixels. interval: float32 (C,), time from the current image of the same camera to
    the neighbour's, in keyframe intervals (negative: earlier). valid: bool (C,).
    """

    cam_from_ref: Float32[np.ndarray, "cameras 4 4"]
    K: Float32[np.ndarray, "cameras 3 3"]
    interval: Float32[np.ndarray, " cameras"]
    valid: Bool[np.ndarray, " cameras"]


def neighbour_poses(table: SceneTable, neighbour: Neighbour) -> tuple[np.ndarray, ...]:
    """(valid, timestamp_us, global_from_ego, ego_from_cam, K) of a neighbour's cameras, K as stored."""
    if neighbour.sweep == KEYFRAME:
        index: tuple[int, ...] = (neighbour.t,)
        arrays = (
            table.camera_valid,
            table.camera_timestamp_us,
            table.camera_global_from_ego,
            table.ego_from_cam,
            table.K,
        )
    else:
        index = (neighbour.t, neighbour.sweep)
        arrays = (
            table.sweep_valid,
            table.sweep_timestamp_us,
            table.sweep_global_from_ego,
            table.sweep_ego_from_cam,
            table.sweep_K,
        )
    return tuple(np.asarray(array)[index] for array in arrays)


def view_geometry(
    table: SceneTable, t: int, neighbour: Neighbour | None, render_scale: float, keyframe_interval_s: float
) -> ViewGeometry:
    """The neighbour's cameras relative to keyframe `t`'s ego frame. None, or a camera missing at either end: invalid.

    Products are taken in float64, where global coordinates of 1e6 m keep their millimetres; only the result, a few
    metres long, is float32.

    Args:
        render_scale: render size / network size.
        keyframe_interval_s: the interval that object flow is stated in.
    """
    cameras = table.camera_valid.shape[1]
    cam_from_ref, K = np.tile(np.eye(4), (cameras, 1, 1)), np.tile(np.eye(3), (cameras, 1, 1))
    interval, valid = np.zeros(cameras), np.zeros(cameras, dtype=bool)
    if neighbour is not None:
        there, times, global_from_ego, ego_from_cam, neighbour_K = neighbour_poses(table, neighbour)
        valid = there.astype(bool) & np.asarray(table.camera_valid[t], dtype=bool)
        if neighbour.sweep == KEYFRAME:
            neighbour_K = scale_intrinsics(neighbour_K, render_scale, render_scale)
        global_from_cam = global_from_ego[valid] @ ego_from_cam[valid]
        cam_from_ref[valid] = invert(global_from_cam) @ np.asarray(table.global_from_ego[t], dtype=np.float64)
        K[valid] = neighbour_K[valid]
        elapsed = (times[valid] - table.camera_timestamp_us[t][valid]) * 1e-6
        interval[valid] = elapsed / keyframe_interval_s
    return ViewGeometry(
        cam_from_ref=cam_from_ref.astype(np.float32),
        K=K.astype(np.float32),
        interval=interval.astype(np.float32),
        valid=valid,
    )


def candidates(
    table: SceneTable,
    t: int,
    direction: Literal["earlier", "later"],
    rule: NeighbourConfig,
    usable: Callable[[Neighbour], bool],
) -> tuple[list[Neighbour], Float[np.ndarray, " candidates"]]:
    """The stored images before or after keyframe `t` that the rule allows, nearest in time first, and how far the ego
    car was from where it is at `t`, metres.

    Images too far off count among `max_frames` like all others: else, where a road comes back to a place, those of
    another passage, minutes later, would be found.
    """
    found: list[Neighbour] = []
    distances: list[float] = []
    passed = 0
    for neighbour in _in_time(table, t, direction, rule.sweeps):
        there, _, poses, _, _ = neighbour_poses(table, neighbour)
        if not there.any():
            continue
        if passed == rule.max_frames:
            break
        passed += 1
        offset = poses[int(np.argmax(there)), :3, 3] - table.global_from_ego[t][:3, 3]
        distance = float(np.linalg.norm(offset))
        if distance <= rule.max_m and usable(neighbour):
            found.append(neighbour)
            distances.append(distance)
    return found, np.asarray(distances, dtype=np.float64)


def _in_time(table: SceneTable, t: int, direction: Literal["earlier", "later"], sweeps: bool) -> Iterator[Neighbour]:
    """Keyframes and sweeps before or after keyframe `t`, nearest in time first."""
    slots = range(table.sweep_valid.shape[1] if sweeps else 0)
    if direction == "later":
        yield from (Neighbour(t, p) for p in slots)
        yield from (Neighbour(k, p) for k in range(t + 1, table.length) for p in (KEYFRAME, *slots))
    else:
        yield from (Neighbour(k, p) for k in range(t - 1, -1, -1) for p in (*reversed(slots), KEYFRAME))


def draw_neighbour(
    table: SceneTable,
    t: int,
    direction: Literal["earlier", "later"],
    rule: NeighbourConfig,
    usable: Callable[[Neighbour], bool],
    rng: np.random.Generator,
) -> Neighbour | None:
    """One neighbour, drawn with probability proportional to the rule's Gaussian of its ego distance; None: no image.

    A car that stands has many candidates at distance zero: all equally likely. One so fast that even the nearest is far
    out in the Gaussian's tail gets the nearest.
    """
    found, distances = candidates(table, t, direction, rule, usable)
    if not found:
        return None
    exponent = -0.5 * ((distances - rule.mean_m) / rule.sigma_m) ** 2
    weights = np.exp(exponent - exponent.max())
    return found[int(rng.choice(len(found), p=weights / weights.sum()))]
