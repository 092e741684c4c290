"""Predictions without learning, by hand."""

import numpy as np
import pytest

from eval.baselines import flat_ground, flat_ground_depth, ground_height, zero_flow
from geometry.grid import KITTI_GRID, NUSCENES_GRID, VoxelGrid
from geometry.transforms import from_rotation_translation

CAMERA_AXES = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def test_the_road_is_one_layer() -> None:
    occupied = flat_ground(NUSCENES_GRID).occupied
    # z = 0 lies in layer 2, [-0.2, 0.2) m.
    assert occupied[:, :, 2].all()
    assert occupied.sum() == 200 * 200
    # -1.73 m is 0.47 m above KITTI's lowest layer, whose voxels are 0.2 m.
    assert flat_ground(KITTI_GRID, -1.73).occupied[:, :, 2].all()
    assert not flat_ground(NUSCENES_GRID).flow.any()
    with pytest.raises(ValueError, match="outside the grid's z range"):
        flat_ground(NUSCENES_GRID, -1.73)


def test_height_by_data_set() -> None:
    assert [ground_height(name) for name in ("nuscenes", "semantic_kitti", "kitti_mot", "own")] == [0, -1.73, -1.73, 0]


def test_depth_by_similar_triangles() -> None:
    K = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    ego_from_cam = from_rotation_translation(CAMERA_AXES, np.array([1.0, 0.0, 1.5]))
    uv = np.array([[50.0, 90.0], [0.0, 90.0], [50.0, 40.0], [50.0, 20.0], [50.0, 40.5]])
    # 50 px below the horizon: 1.5 m * 100 / 50, the same across the row. Rays that miss the plane leave the box: level
    # at x = 40, 39 m ahead of the lens; 20 px above the horizon they rise 0.2 m a metre and pass 5.4 m after 19.5 m.
    found = flat_ground_depth(K, ego_from_cam, uv, NUSCENES_GRID)
    np.testing.assert_allclose(found, [3.0, 3.0, 39.0, 19.5, 39.0])
    np.testing.assert_allclose(flat_ground_depth(K, ego_from_cam, uv[:1], NUSCENES_GRID, height=0.5), [2.0])
    away = VoxelGrid((50.0, -1.0, 0.0), (60.0, 1.0, 1.0), (10, 2, 1))
    np.testing.assert_allclose(flat_ground_depth(K, ego_from_cam, uv[[0, 3]], away), [3.0, 80.0])


def test_zero_flow_takes_what_the_metrics_found() -> None:
    found = zero_flow({"mave_zero_flow_same_tp": 2.0}, {"flow_epe_dynamic_zero_flow": 3.0})
    assert found == {"mave": 2.0, "flow_epe_dynamic": 3.0, "flow_epe_dynamic_masked": 3.0}
    assert zero_flow(None, None) == {}
