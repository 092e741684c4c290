"""Paths and speeds against step-by-step integration, and turns against their geometry."""

import numpy as np
import pytest

from pipelines.synth.trajectories import Path, Speed, Trajectory, standing, turning_path


def integrate(path: Path, distance: float, steps: int = 40_000) -> np.ndarray:
    """x, y, heading by small straight steps, midpoint rule."""
    x, y, heading = path.start
    step = distance / steps
    ends = np.cumsum(path.lengths)
    for k in range(steps):
        s = (k + 0.5) * step
        piece = int(np.searchsorted(ends, s))
        curvature = path.curvatures[piece] if s > 0 and piece < len(ends) else 0.0
        middle = heading + 0.5 * curvature * step
        x, y, heading = x + step * np.cos(middle), y + step * np.sin(middle), heading + curvature * step
    return np.array([x, y, heading])


@pytest.mark.parametrize("distance", [-3.0, 0.0, 4.0, 9.5, 17.0, 40.0])
def test_poses_are_the_integral_of_curvature(distance: float) -> None:
    path = Path((1.0, -2.0, 0.4), (5.0, 6.0, 3.0, 8.0), (0.0, 0.15, 0.0, -0.08))
    np.testing.assert_allclose(path.pose(distance)[0], integrate(path, distance), atol=1e-3)


def test_curvature_by_piece() -> None:
    path = Path((0.0, 0.0, 0.0), (5.0, 6.0), (0.0, 0.15))
    assert [path.curvature(s) for s in (-1.0, 4.9, 5.1, 11.5)] == [0.0, 0.0, 0.15, 0.0]


def test_a_path_that_begins_with_an_arc_comes_from_a_straight() -> None:
    path = Path((0.0, 0.0, 0.0), (100.0,), (0.1,))
    np.testing.assert_allclose(path.pose([-4.0, 0.0])[:, 1:], 0.0, atol=1e-12)
    np.testing.assert_allclose(path.pose(-4.0)[0, 0], -4.0)


def test_distance_is_the_integral_of_speed() -> None:
    speed = Speed(8.0, (1.0, 2.0, 1.5, 2.0), (0.0, -4.0, 0.0, 1.5))
    t = np.linspace(-2, 10, 120_001)
    travelled = np.concatenate([[0.0], np.cumsum(0.5 * np.diff(t) * (speed.speed(t)[1:] + speed.speed(t)[:-1]))])
    start = np.interp(0.0, t, travelled)
    np.testing.assert_allclose(speed.distance(t), travelled - start, atol=1e-3)
    np.testing.assert_allclose(speed.speed([0.5, 2.0, 3.5, 5.0, 9.0]), [8.0, 4.0, 0.0, 0.75, 3.0])


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("heading", [0.0, np.pi / 2, 2.5])
def test_turns_end_on_the_street_they_turn_into(left: bool, heading: float) -> None:
    """Before the turn on the line through the corner along the heading, after it on the line square to it."""
    corner = np.array([3.0, 7.0])
    path = turning_path((3.0, 7.0), heading, 9.0, left)
    length = path.lengths[0]
    before, after = path.pose([length - 20.0, length + path.lengths[1] + 20.0])
    forward = np.array([np.cos(heading), np.sin(heading)])
    side = np.array([-forward[1], forward[0]]) * (1 if left else -1)
    np.testing.assert_allclose(before[:2] - corner, -29.0 * forward, atol=1e-9)
    np.testing.assert_allclose(after[:2] - corner, 29.0 * side, atol=1e-9)
    assert after[2] - heading == pytest.approx(np.pi / 2 * (1 if left else -1))


def test_a_trajectory_starts_at_its_offset_and_may_stand() -> None:
    moving = Trajectory(Path((0.0, 0.0, 0.0)), Speed(2.0), 5.0)
    np.testing.assert_allclose(moving.pose([0.0, 3.0])[:, 0], [5.0, 11.0])
    assert not moving.parked
    still = standing(1.0, 2.0, 0.3)
    assert still.parked
    np.testing.assert_allclose(still.pose([-5.0, 9.0]), [[1.0, 2.0, 0.3]] * 2)
