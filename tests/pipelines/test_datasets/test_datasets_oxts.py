"""Poses from GPS/IMU records: hand-computed steps, KITTI's own equations written out, and records that cannot be."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pipelines.datasets.oxts import check_steps, oxts_interval, oxts_poses, read_oxts
from pipelines.datasets.records import DataError

METRES_PER_DEGREE = math.pi * 6378137 / 180


def records(*first_six: tuple[float, ...]) -> np.ndarray:
    rows = np.zeros((len(first_six), 30))
    rows[:, :6] = first_six
    return rows


@pytest.mark.parametrize(
    ("step", "yaw", "expected"),
    [
        ((0.0, 1e-5), 0.0, (1e-5 * METRES_PER_DEGREE * math.cos(math.radians(49)), 0)),  # east, facing east
        ((1e-5, 0.0), math.pi / 2, (1e-5 * METRES_PER_DEGREE, 0)),  # north, facing north
        ((0.0, 1e-5), math.pi / 2, (0, -1e-5 * METRES_PER_DEGREE * math.cos(math.radians(49)))),  # east lies right
    ],
)
def test_a_small_step(step: tuple[float, float], yaw: float, expected: tuple[float, float]) -> None:
    poses = oxts_poses(records((49, 8.4, 100, 0, 0, yaw), (49 + step[0], 8.4 + step[1], 103, 0, 0, yaw)))
    np.testing.assert_array_equal(poses[0], np.eye(4))
    np.testing.assert_allclose(poses[1, :3, 3], [*expected, 3], atol=1e-6)
    np.testing.assert_allclose(poses[1, :3, :3], np.eye(3), atol=1e-12)


def test_signs_of_the_angles() -> None:
    level = (49, 8.4, 100, 0, 0, 0)
    front_down, left_up, to_the_left = oxts_poses(
        records(level, (49, 8.4, 100, 0, 0.1, 0), (49, 8.4, 100, 0.1, 0, 0), (49, 8.4, 100, 0, 0, 0.1))
    )[1:]
    assert front_down[2, 0] == pytest.approx(-math.sin(0.1))
    assert left_up[2, 1] == pytest.approx(math.sin(0.1))
    assert to_the_left[1, 0] == pytest.approx(math.sin(0.1))


def test_against_the_documented_equations() -> None:
    """Place from Mercator at the first latitude's scale, R = Rz Ry Rx, everything relative to the first pose."""
    rng = np.random.default_rng(2)
    rows = records(
        *(
            (49 + 1e-4 * i, 8.4 - 2e-4 * i, 110 + i, *rng.uniform(-0.2, 0.2, 2), rng.uniform(-math.pi, math.pi))
            for i in range(5)
        )
    )
    absolute = []
    scale = math.cos(rows[0, 0] * math.pi / 180)
    for latitude, longitude, altitude, roll, pitch, yaw in rows[:, :6]:
        pose = np.eye(4)
        pose[0, 3] = scale * longitude * math.pi * 6378137 / 180
        pose[1, 3] = scale * 6378137 * math.log(math.tan((90 + latitude) * math.pi / 360))
        pose[2, 3] = altitude
        pose[:3, :3] = Rotation.from_euler("ZYX", [yaw, pitch, roll]).as_matrix()
        absolute.append(pose)
    expected = [np.linalg.solve(absolute[0], pose) for pose in absolute]
    np.testing.assert_allclose(oxts_poses(rows), expected, atol=1e-6)
    assert np.linalg.norm(expected[-1][:3, 3]) > 50


def test_the_interval_is_the_way_over_the_speed() -> None:
    rows = records(*((49, 8.4 + 1e-5 * i, 100, 0, 0, 0) for i in range(40)))
    step = 1e-5 * METRES_PER_DEGREE * math.cos(math.radians(49))
    rows[:, 7] = step / 0.1
    assert oxts_interval(rows) == pytest.approx(0.1, rel=1e-6)
    rows[:, 6], rows[:, 7] = 0.8 * step / 0.2, 0.6 * step / 0.2
    assert oxts_interval(rows) == pytest.approx(0.2, rel=1e-6)
    assert oxts_interval(rows[:10]) is None, "7 m are too little to tell"
    rows[:, 6:8] = 0
    assert oxts_interval(rows) is None


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        (1, "nan", r"0000\.txt: line 2 has a position, an angle or a velocity that is not finite \(49, nan, 100"),
        (5, "inf", r"line 2 has .*not finite"),
        (0, "95", r"line 2 has latitude 95, expected degrees of at most 85"),
        (1, "-181", r"line 2 has longitude -181"),
        (2, "high", r"line 2 is '49 8\.4 high.*expected 30 numbers"),
        (29, "", r"line 2 is .*expected 30 numbers"),
    ],
)
def test_records_that_cannot_be(tmp_path: Path, column: int, value: str, complaint: str) -> None:
    path = tmp_path / "0000.txt"
    lines = [["49", "8.4", "100", *["0"] * 27] for _ in range(3)]
    lines[1][column] = value
    path.write_text("".join(" ".join(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=complaint):
        read_oxts(path)


def test_a_step_too_long_for_its_speeds(tmp_path: Path) -> None:
    metre = 1 / (METRES_PER_DEGREE * math.cos(math.radians(49)))
    rows = records(*((49, 8.4 + 3 * metre * i, 100, 0, 0, 0) for i in range(6)))
    rows[:, 7] = 30
    check_steps(tmp_path / "0000.txt", rows, 0.1)
    jumped = rows.copy()
    jumped[3:, 1] += 22 * metre  # 25 m, where 20 m and twice 3 m are put up with
    check_steps(tmp_path / "0000.txt", jumped, 0.1)
    jumped[3:, 1] += 2 * metre
    with pytest.raises(
        DataError, match=r"0000\.txt: line 4 lies 27 m from line 3, where 0\.1 s .*30\.0 m/s\) allow 26 m"
    ):
        check_steps(tmp_path / "0000.txt", jumped, 0.1)
    rows[2] = 0
    # Straight through the Earth it would be less; on the map of the first latitude it is this far.
    with pytest.raises(DataError, match=r"line 3 lies \d{7} m from line 2.* \(2 such steps\); restore this file"):
        check_steps(tmp_path / "0000.txt", rows, 0.1)


def test_missing_and_empty_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0000\.txt: GPS/IMU table is missing"):
        read_oxts(tmp_path / "0000.txt")
    (tmp_path / "0000.txt").touch()
    with pytest.raises(DataError, match=r"GPS/IMU table is empty"):
        read_oxts(tmp_path / "0000.txt")
