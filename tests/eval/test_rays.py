"""The fan of rays, by its published numbers, and which LiDAR centres serve as origins."""

import numpy as np
import pytest

from eval.rays import pitch_angles, ray_directions, ray_origins
from geometry.transforms import yaw_transform


def test_pitches() -> None:
    pitch = np.rad2deg(pitch_angles())
    assert len(pitch) == 39
    assert pitch[0] == pytest.approx(-45.0)
    assert pitch[1] == pytest.approx(-26.565, abs=1e-3)
    assert pitch[9] == pytest.approx(-5.7106, abs=1e-4)
    np.testing.assert_allclose(np.diff(pitch[8:]), 0.6296, atol=1e-4)
    assert np.deg2rad(pitch[-2]) < 0.21 <= np.deg2rad(pitch[-1])


def test_directions_are_unit_and_cover_every_degree() -> None:
    directions = ray_directions()
    assert directions.shape == (14040, 3)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0)
    np.testing.assert_allclose(directions[0], [np.sqrt(0.5), 0.0, -np.sqrt(0.5)], atol=1e-12)
    np.testing.assert_allclose(directions[90], [0.0, np.sqrt(0.5), -np.sqrt(0.5)], atol=1e-12)
    assert len(np.unique(directions.round(9), axis=0)) == 14040


def _drive(n: int, step: float) -> np.ndarray:
    return np.stack([yaw_transform(0.0, np.array([1e6 + step * k, -2e6, 0.0])) for k in range(n)])


def test_origins_are_seen_from_the_current_frame_and_near() -> None:
    origins = ray_origins(_drive(5, 20.0), np.tile([1.0, 0.0, 1.8], (5, 1)), t=2)
    # Centres lie at x = 1 + 20 (k - 2): -39 (not < 39), -19, 1, 21, 41.
    np.testing.assert_allclose(origins, [[-19, 0, 1.8], [1, 0, 1.8], [21, 0, 1.8]], atol=1e-9)


def test_origins_follow_turns() -> None:
    poses = np.stack([np.eye(4), yaw_transform(np.pi / 2, np.array([10.0, 0.0, 0.0]))])
    origins = ray_origins(poses, np.tile([0.0, 0.0, 2.0], (2, 1)), t=1)
    # Frame 0's centre lies 10 m behind in x of the world: to the left of an ego that looks along +y.
    np.testing.assert_allclose(origins, [[0, 10, 2], [0, 0, 2]], atol=1e-9)


def test_at_most_eight_evenly_spread() -> None:
    origins = ray_origins(_drive(20, 1.0), np.zeros((20, 3)), t=0)
    want = [round(v) for v in np.linspace(0, 19, 8)]
    np.testing.assert_allclose(origins[:, 0], want, atol=1e-6)


def test_keyframes_without_lidar_give_no_origin() -> None:
    centres = np.zeros((3, 3))
    centres[1] = np.nan
    assert len(ray_origins(_drive(3, 1.0), centres, t=0)) == 2
