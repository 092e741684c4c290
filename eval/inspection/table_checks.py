"""Checks of a scene's table: times and poses. They need no pixels, so every keyframe is looked at."""

import numpy as np
from jaxtyping import Float

from geometry.transforms import invert
from storage.schema import SceneTable

LEAST_SPEED = 2.0
"""m/s below which a pose does not tell the time."""


def camera_offsets_ms(table: SceneTable) -> Float[np.ndarray, "T C"]:
    """Camera time less LiDAR time, milliseconds; nan where the camera has no image."""
    offset = (table.camera_timestamp_us - table.timestamp_us[:, None]) / 1000.0
    return np.where(table.camera_valid, offset, np.nan)


def accelerations(table: SceneTable) -> Float[np.ndarray, " T"]:
    """Length of the ego car's acceleration at each keyframe, m/s^2, from its two neighbours; nan at both ends."""
    seconds = (table.timestamp_us - table.timestamp_us[0]) * 1e-6
    place = table.global_from_ego[:, :3, 3] - table.global_from_ego[0, :3, 3]
    found = np.full(len(seconds), np.nan)
    if len(seconds) >= 3:
        step = np.maximum(np.diff(seconds), 1e-6)
        velocity = np.diff(place, axis=0) / step[:, None]
        middle = (step[1:] + step[:-1]) / 2
        found[1:-1] = np.linalg.norm(np.diff(velocity, axis=0), axis=1) / middle
    return found


def pose_times_ms(table: SceneTable) -> Float[np.ndarray, "T C"]:
    """By how many milliseconds each camera's ego pose is ahead of the ego path at the camera's own time.

    The path runs through the keyframes' LiDAR-time poses, with its slope at the keyframe itself; along the direction
    of driving a difference in place is a difference in time. nan where the car is slower than `LEAST_SPEED`, at the
    ends of the scene, and without an image.
    """
    found = np.full(table.camera_valid.shape, np.nan)
    seconds = (table.timestamp_us - table.timestamp_us[0]) * 1e-6
    for t in range(1, table.length - 1):
        ego_from_global = invert(table.global_from_ego[t])
        before, after = (ego_from_global @ table.global_from_ego[k] for k in (t - 1, t + 1))
        s, e = seconds[t - 1] - seconds[t], seconds[t + 1] - seconds[t]
        if not s < 0 < e:
            continue
        # A parabola through three places: its slope and half its curvature at the keyframe.
        curve = np.linalg.solve(np.array([[s, s * s], [e, e * e]]), np.stack([before[:3, 3], after[:3, 3]]))
        speed = float(np.linalg.norm(curve[0]))
        if speed < LEAST_SPEED:
            continue
        for c in np.flatnonzero(table.camera_valid[t]):
            lag = (table.camera_timestamp_us[t, c] - table.timestamp_us[t]) * 1e-6
            expected = curve[0] * lag + curve[1] * lag * lag
            own = (ego_from_global @ table.camera_global_from_ego[t, c])[:3, 3]
            found[t, c] = 1000.0 * float((own - expected) @ curve[0]) / speed**2
    return found
