"""Depth from moved cameras: what a rendered or cast volume must show after the car has moved."""

from typing import Any

import numpy as np
import pytest

from eval.novel import MOVES, Move, cast_depth, moved_view, rendered_depth
from eval.predict import Prediction
from eval.views import View
from geometry.cameras import project
from geometry.grid import VoxelGrid
from geometry.transforms import invert, transform_points

SIZE = (24, 48)
GRID = VoxelGrid.from_voxel_size((-20.0, -20.0, -1.0), (20.0, 20.0, 5.0), 0.5)


@pytest.fixture
def front(log: Any) -> View:
    """The front camera of the log, 1.5 m above the origin, at 24x48."""
    return View(0, np.array([[24.0, 0, 24], [0, 24.0, 12], [0, 0, 1]]), log.ego_from_cam(0))


def wall(x: float) -> np.ndarray:
    """Occupied from `x` metres ahead to one metre behind that."""
    centres = GRID.centres()[..., 0]
    return (centres > x) & (centres < x + 1)


def test_a_move_takes_points_of_the_moved_car_to_where_they_are() -> None:
    forward = Move("", forward=2.0, left=1.0).ego_from_moved()
    np.testing.assert_allclose(transform_points(forward, np.array([[3.0, 0.0, 1.0]])), [[5.0, 1.0, 1.0]])
    # After a turn to the left, what is straight ahead of the car is ahead and to the left of where it was.
    turned = transform_points(Move("", turn=90.0).ego_from_moved(), np.array([[3.0, 0.0, 1.0]]))
    np.testing.assert_allclose(turned, [[0.0, 3.0, 1.0]], atol=1e-12)
    assert {move.name for move in MOVES} >= {"forward 2 m", "turned left 10°"}


def test_a_cast_wall_is_nearer_after_moving_forward(front: View) -> None:
    for move, distance in ((Move(""), 10.0), (Move("", forward=2.0), 8.0), (Move("", left=3.0), 10.0)):
        depth = cast_depth(wall(10.0), GRID, moved_view(front, move, SIZE, SIZE), SIZE)
        # Camera z, so the whole wall is at one depth; above it, and beside it, there is nothing.
        seen = depth[np.isfinite(depth)]
        assert len(seen) > 300
        np.testing.assert_allclose(seen, distance, atol=1e-9)
        assert np.isnan(depth[0]).all()


def test_a_turned_camera_sees_a_post_where_projection_says(front: View) -> None:
    post = np.zeros(GRID.shape, dtype=bool)
    post[60:62, 40:42, :10] = True  # 10 to 11 m ahead, 0 to 1 m to the left
    for turn in (-10.0, 10.0):
        view = moved_view(front, Move("", turn=turn), SIZE, SIZE)
        depth = cast_depth(post, GRID, view, SIZE)
        uv, z, _ = project(view.K, transform_points(invert(view.ego_from_cam), np.array([[10.0, 0.5, 1.5]])))
        columns = np.flatnonzero(np.isfinite(depth[12]))
        assert abs(columns.mean() + 0.5 - uv[0, 0]) < 1.5
        assert np.nanmin(depth[12]) == pytest.approx(z[0], abs=0.3)


def test_inside_matter_depth_is_zero_and_misses_are_nan(front: View) -> None:
    assert (cast_depth(np.ones(GRID.shape, dtype=bool), GRID, front, SIZE) == 0).all()
    assert np.isnan(cast_depth(np.zeros(GRID.shape, dtype=bool), GRID, front, SIZE)).all()


def test_a_rendered_plane_agrees_with_geometry_after_a_move(front: View, known_network: type) -> None:
    """The distance field of the plane x = 10, rendered from 2 m ahead: 8 m everywhere."""
    network = known_network(10.0 - GRID.centres()[..., 0], np.zeros((*GRID.shape, 2)), GRID)
    prediction = Prediction(wall(10.0), np.zeros((*GRID.shape, 2), np.float32), fields=network.fields)
    view = moved_view(front, Move("", forward=2.0), SIZE, SIZE)
    depth = rendered_depth(network.renderer, prediction, view, SIZE, samples=128)
    middle = depth[6:18, 12:36]
    assert np.isfinite(middle).all()
    # 128 samples over at most 30 m: a step of 0.2 m along the ray.
    np.testing.assert_allclose(middle, 8.0, atol=0.25)
    with pytest.raises(ValueError, match="no fields"):
        rendered_depth(network.renderer, Prediction(wall(10.0), prediction.flow), view, SIZE, 8)
