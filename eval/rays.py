"""The rays that RayIoU is measured along: a fixed fan of directions, from LiDAR centres of the whole scene."""

from functools import cache

import numpy as np
from jaxtyping import Float

from geometry.transforms import invert, transform_points

MAX_ORIGINS = 8
MAX_ORIGIN_DISTANCE = 39.0
"""Metres along x and along y from the current ego within which a LiDAR centre may serve as an origin."""
_LAST_PITCH = 0.21
_AZIMUTHS = 360


def pitch_angles() -> Float[np.ndarray, "39"]:
    """Pitch of every ring in radians, rising.

    Ten rings below the horizon at -(pi/2 - atan k), k = 1..10 (-45 degrees to -5.71), then constant steps of the last
    gap (0.6296 degrees) while below 0.21 rad, and the one step that passes it.
    """
    angles = [-(np.pi / 2 - np.arctan(k)) for k in range(1, 11)]
    step = angles[-1] - angles[-2]
    while angles[-1] < _LAST_PITCH:
        angles.append(angles[-1] + step)
    return np.array(angles)


@cache
def ray_directions() -> Float[np.ndarray, "14040 3"]:
    """Unit directions of the 39 pitches times 360 azimuths of 1 degree, ego frame, pitch-major; read-only."""
    pitch, azimuth = np.meshgrid(pitch_angles(), np.deg2rad(np.arange(_AZIMUTHS, dtype=np.float64)), indexing="ij")
    directions = [np.cos(pitch) * np.cos(azimuth), np.cos(pitch) * np.sin(azimuth), np.sin(pitch)]
    fan = np.stack(directions, axis=-1).reshape(-1, 3)
    fan.flags.writeable = False
    return fan


def ray_origins(
    global_from_ego: Float[np.ndarray, "frames 4 4"],
    lidar_in_ego: Float[np.ndarray, "frames 3"],
    t: int,
    max_origins: int = MAX_ORIGINS,
) -> Float[np.ndarray, "origins 3"]:
    """LiDAR centres of all keyframes of the scene, seen from keyframe `t`.

    Centres with |x| < 39 m and |y| < 39 m are kept, in time order; of more than `max_origins` those at
    round(linspace(0, n - 1, max_origins)).

    Args:
        global_from_ego: keyframe poses at LiDAR time, float64, metres.
        lidar_in_ego: LiDAR centre in each keyframe's own ego frame, metres; rows that are not finite (a keyframe
            without LiDAR) are left out.
        t: the keyframe whose ego frame the result lives in.

    Returns:
        (n, 3) float64, n <= max_origins, metres, ego frame of `t`. Never empty when keyframe t's own row is finite.
    """
    # Only the motion relative to t is formed: absolute positions of 1e6 m would cost millimetres later.
    current_from_frame = invert(global_from_ego[t]) @ global_from_ego
    centres = transform_points(current_from_frame, lidar_in_ego[:, None].astype(np.float64))[:, 0]
    near = np.isfinite(centres).all(axis=1) & (np.abs(centres[:, :2]) < MAX_ORIGIN_DISTANCE).all(axis=1)
    centres = centres[near]
    if len(centres) > max_origins:
        centres = centres[np.round(np.linspace(0, len(centres) - 1, max_origins)).astype(np.int64)]
    return centres
