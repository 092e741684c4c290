"""Poses from KITTI's GPS/IMU records (OXTS): Mercator metres and roll, pitch, yaw, as its documentation has them."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from geometry.transforms import from_rotation_translation, invert
from pipelines.datasets.kitti_files import read_rows
from pipelines.datasets.records import DataError

EARTH_RADIUS_M = 6_378_137.0
COLUMNS = 30
"""Of a record: latitude, longitude (degrees), altitude (m), roll, pitch, yaw (rad), velocities to the north and the
east, forward, to the left, up (m/s), then accelerations, rates and the receiver's state."""
LATITUDE, LONGITUDE, ALTITUDE, ROLL, PITCH, YAW, NORTH, EAST = range(8)
_LIMITS = {LATITUDE: ("latitude", 85.0), LONGITUDE: ("longitude", 180.0)}
_LEAST_WAY_M = 20.0
_JUMP_M = 20.0
"""What a step may be longer than twice the way at its speed: positions do jump by metres when satellites come back."""


def read_oxts(path: Path) -> Float[np.ndarray, "n 30"]:
    """The records of a sequence, one per frame number.

    Raises:
        DataError: missing or empty file, a line that is not 30 numbers, a pose that is not finite or not on Earth.
    """
    rows = read_rows(path, COLUMNS, "GPS/IMU table")
    wrong = np.flatnonzero(~np.isfinite(rows[:, : EAST + 1]).all(axis=1))
    if wrong.size:
        i = int(wrong[0])
        raise DataError(
            f"{path}: line {i + 1} has a position, an angle or a velocity that is not finite "
            f"({', '.join(f'{v:g}' for v in rows[i, : EAST + 1])}; {wrong.size} such lines); restore this file"
        )
    for column, (name, limit) in _LIMITS.items():
        beyond = np.flatnonzero(np.abs(rows[:, column]) > limit)
        if beyond.size:
            i = int(beyond[0])
            raise DataError(
                f"{path}: line {i + 1} has {name} {rows[i, column]:g}, expected degrees of at most {limit:g}; "
                "restore this file"
            )
    return rows


def mercator(latitude: np.ndarray, longitude: np.ndarray, scale: float) -> Float[np.ndarray, "n 2"]:
    """East and north (m) of points in degrees. With `scale` the cosine of a latitude, metres are true metres there."""
    east = scale * EARTH_RADIUS_M * np.deg2rad(longitude)
    north = scale * EARTH_RADIUS_M * np.log(np.tan(np.pi / 4 + np.deg2rad(latitude) / 2))
    return np.stack([east, north], axis=-1)


def oxts_poses(rows: Float[np.ndarray, "n 30"]) -> Float[np.ndarray, "n 4 4"]:
    """start_from_imu (n, 4, 4) float64: the IMU's frame (x forward, y left, z up) at each record, in that at the first.

    The scale of the map is that of the first record's latitude. R = Rz(yaw) Ry(pitch) Rx(roll): yaw is 0 towards the
    east and grows counter-clockwise, pitch is positive with the front down, roll with the left side up.
    """
    scale = float(np.cos(np.deg2rad(rows[0, LATITUDE])))
    places = np.column_stack([mercator(rows[:, LATITUDE], rows[:, LONGITUDE], scale), rows[:, ALTITUDE]])
    places -= places[0]  # millions of metres less before anything is multiplied
    map_from_imu = np.stack(
        [
            from_rotation_translation(attitude(*angles), place)
            for angles, place in zip(rows[:, ROLL : YAW + 1], places, strict=True)
        ]
    )
    return invert(map_from_imu[0]) @ map_from_imu


def attitude(roll: float, pitch: float, yaw: float) -> Float[np.ndarray, "3 3"]:
    """Rz(yaw) Ry(pitch) Rx(roll), angles in radians."""
    (cr, cp, cy), (sr, sp, sy) = np.cos([roll, pitch, yaw]), np.sin([roll, pitch, yaw])
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def check_steps(path: Path, rows: Float[np.ndarray, "n 30"], interval_s: float) -> None:
    """DataError naming the first record of `path` that lies too far from the one before for the speeds of both.

    A record of zeros is a place on Earth too: in the Gulf of Guinea.
    """
    scale = float(np.cos(np.deg2rad(rows[0, LATITUDE])))
    places = np.column_stack([mercator(rows[:, LATITUDE], rows[:, LONGITUDE], scale), rows[:, ALTITUDE]])
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    speed = np.hypot(rows[:, NORTH], rows[:, EAST])
    allowed = _JUMP_M + 2 * interval_s * np.maximum(speed[1:], speed[:-1])
    wrong = np.flatnonzero(steps > allowed)
    if wrong.size:
        i = int(wrong[0])
        raise DataError(
            f"{path}: line {i + 2} lies {steps[i]:.0f} m from line {i + 1}, where {interval_s:g} s at the recorded "
            f"speeds ({speed[i]:.1f} and {speed[i + 1]:.1f} m/s) allow {allowed[i]:.0f} m ({wrong.size} such steps); "
            "restore this file, or correct frame_interval_s"
        )


def oxts_interval(rows: Float[np.ndarray, "n 30"]) -> float | None:
    """Seconds from one record to the next, as the way driven and the speeds recorded along it say.

    None for less than 20 m of way, where the noise of both would decide.
    """
    scale = float(np.cos(np.deg2rad(rows[0, LATITUDE])))
    way = float(np.linalg.norm(np.diff(mercator(rows[:, LATITUDE], rows[:, LONGITUDE], scale), axis=0), axis=1).sum())
    speed = np.hypot(rows[:, NORTH], rows[:, EAST])
    pace = float(((speed[1:] + speed[:-1]) / 2).sum())
    return way / pace if way >= _LEAST_WAY_M and pace > 0 else None
