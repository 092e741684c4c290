"""The queue of keyframes: repetition at the start, missing cameras, and poses far from the origin."""

from dataclasses import dataclass

import numpy as np
import pytest

from storage.queue import queue_arrays
from storage.schema import SceneTable


def _pose(yaw: float, translation: tuple[float, float, float]) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    pose = np.eye(4)
    pose[:3, :3] = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    pose[:3, 3] = translation
    return pose


@dataclass
class _Scene:
    table: SceneTable

    def image(self, t: int, c: int) -> np.ndarray:
        return np.full((4, 6, 3), 10 * t + c, dtype=np.uint8)


def _scene(offset: float = 0.0) -> _Scene:
    T, C = 3, 2
    poses = np.stack([_pose(0.3 * t, (offset + 2.0 * t, offset - t, 0.5)) for t in range(T)])
    camera_poses = np.stack(
        [[_pose(0.3 * t + 0.1, (offset + 2.0 * t + 0.4 + c, offset - t, 0.5)) for c in range(C)] for t in range(T)]
    )
    mount = np.broadcast_to(_pose(1.0, (1.5, 0.0, 1.6)), (T, C, 4, 4)).copy()
    valid = np.ones((T, C), dtype=bool)
    valid[1, 1] = False
    camera_poses[1, 1] = mount[1, 1] = np.nan
    K = np.broadcast_to(np.array([[5.0, 0, 3], [0, 5, 2], [0, 0, 1]]), (T, C, 3, 3)).copy()
    K[1, 1] = np.nan
    no_sweeps = np.zeros((T, 0, C, 4, 4))
    return _Scene(
        SceneTable(
            tokens=("a", "b", "c"),
            timestamp_us=np.arange(T),
            global_from_ego=poses,
            camera_valid=valid,
            camera_timestamp_us=np.zeros((T, C), np.int64),
            camera_global_from_ego=camera_poses,
            ego_from_cam=mount,
            K=K,
            image_from_raw=np.broadcast_to(np.eye(3), (T, C, 3, 3)),
            sweep_valid=np.zeros((T, 0, C), bool),
            sweep_timestamp_us=np.zeros((T, 0, C), np.int64),
            sweep_global_from_ego=no_sweeps,
            sweep_ego_from_cam=no_sweeps,
            sweep_K=np.zeros((T, 0, C, 3, 3)),
        )
    )


def test_first_keyframe_repeats_before_the_start() -> None:
    queue = queue_arrays(_scene(), 1, 3)
    assert queue["images"].shape == (3, 2, 3, 4, 6)
    assert [int(queue["images"][q, 0, 0, 0, 0]) for q in range(3)] == [0, 0, 10]
    np.testing.assert_array_equal(queue["current_from_ref"][0], queue["current_from_ref"][1])
    np.testing.assert_array_equal(queue["current_from_ref"][2], np.eye(4))


def test_current_from_camera_equals_the_direct_chain() -> None:
    scene = _scene()
    queue = queue_arrays(scene, 2, 3)
    point = np.array([1.0, -2.0, 7.0, 1.0])
    for q, c in [(0, 0), (0, 1), (1, 0), (2, 1)]:
        in_global = scene.table.camera_global_from_ego[q, c] @ scene.table.ego_from_cam[q, c] @ point
        expected = np.linalg.inv(scene.table.global_from_ego[2]) @ in_global
        found = queue["current_from_ref"][q] @ queue["ref_from_cam"][q, c] @ point
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_missing_camera_is_black_finite_and_flagged() -> None:
    queue = queue_arrays(_scene(), 2, 2)
    assert queue["camera_valid"].tolist() == [[True, False], [True, True]]
    assert not queue["images"][0, 1].any()
    for name in ("K", "ref_from_cam", "current_from_ref"):
        assert np.isfinite(queue[name]).all(), name
        assert queue[name].dtype == np.float32


def test_poses_a_million_metres_out_keep_millimetres() -> None:
    near, far = queue_arrays(_scene(), 2, 3), queue_arrays(_scene(1e6), 2, 3)
    for name in ("ref_from_cam", "current_from_ref"):
        np.testing.assert_allclose(far[name], near[name], atol=1e-4)


def test_bad_requests_are_refused() -> None:
    scene = _scene()
    with pytest.raises(IndexError, match="keyframe 3 of a scene of 3"):
        queue_arrays(scene, 3, 1)
    with pytest.raises(ValueError, match="at least the current keyframe"):
        queue_arrays(scene, 0, 0)
    scene.table.camera_valid[:] = False
    with pytest.raises(ValueError, match="no camera is valid"):
        queue_arrays(scene, 1, 2)
