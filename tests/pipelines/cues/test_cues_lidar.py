"""The LiDAR cue: frames of reference, own-car returns, which camera sees what."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geometry.transforms import yaw_transform
from pipelines.cues.base import BlockContext, ImageSizes
from pipelines.cues.lidar import LidarCue
from pipelines.datasets.records import CameraImage, Frame, LidarSweep, Scene

CAM_FACING_FORWARD = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
K = np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]])


def one_frame(points: np.ndarray | None, cameras: dict[str, np.ndarray], ego_from_lidar: np.ndarray) -> BlockContext:
    """A keyframe with a 100x100 camera per given ego pose (its own) and a sweep of the given points."""
    images = {
        name: CameraImage(name, name, Path(name), 0, K, CAM_FACING_FORWARD, pose, 100, 100)
        for name, pose in cameras.items()
    }
    sweep = None if points is None else LidarSweep("sweep", Path("sweep"), 0, ego_from_lidar, np.eye(4))
    frame = Frame("key", 0, True, np.eye(4), images, sweep)
    return BlockContext(
        scene=Scene("one", (frame,)),
        cameras=tuple(cameras),
        start=0,
        stop=1,
        sizes=ImageSizes((100, 100), (50, 50)),
        sweep_slots=0,
        classes=(),
        load_image=lambda image: np.zeros((100, 100, 3), np.uint8),
        load_lidar=lambda sweep: points,
        upstream=lambda name: {},
    )


def test_points_move_into_the_ego_frame_and_the_origin_with_them() -> None:
    # The LiDAR sits 1 m ahead, 2 m up, and is turned a quarter to the left: its x axis is ego y.
    ego_from_lidar = yaw_transform(np.pi / 2, [1.0, 0.0, 2.0])
    points = np.array([[10.0, 0, 0, 0.3]], np.float32)
    block = LidarCue().extract(one_frame(points, {}, ego_from_lidar))
    np.testing.assert_allclose(block.arrays["lidar/points"][0, 0], [1, 10, 2, 0.3], atol=1e-5)
    np.testing.assert_allclose(block.arrays["lidar/origin"][0], [1, 0, 2], atol=1e-6)
    assert block.arrays["lidar/count"].tolist() == [1]


def test_own_car_near_and_unusable_returns_are_removed() -> None:
    points = np.array(
        [
            [1.0, 0.5, 1.0, 0],  # inside the car
            [0.2, 0.1, -0.5, 0],  # below the car's box, but 0.55 m from the sensor
            [np.nan, 1, 1, 0],
            [12.0, 0, 0.5, 0],
            [1.0, 1.5, 0.5, 0],  # beside the car
        ],
        np.float32,
    )
    block = LidarCue(own_car_lower=(-1, -1, -0.3), own_car_upper=(3, 1, 2), min_range=1.0).extract(
        one_frame(points, {}, np.eye(4))
    )
    assert block.arrays["lidar/points"][0, :, 0].tolist() == [12.0, 1.0]
    assert block.quality == {"points": 2, "own_car_removed": 2}
    assert len(block.notes) == 1
    assert "1 LiDAR points are not finite" in block.notes[0]


def test_camera_bits_use_each_cameras_own_pose() -> None:
    # Camera A took its image with the car at the origin; B when it had driven 20 m on: the point at 10 m is behind B.
    # The point 4 m to the left at 10 m is 40 px left of A's centre (inside); at 6 m it is 60 px (outside).
    points = np.array([[10.0, 0, 1.5, 0], [10, 4, 1.5, 0], [10, 6, 1.5, 0], [30, 0, 1.5, 0]], np.float32)
    driven = yaw_transform(0.0, [20.0, 0, 0])
    block = LidarCue().extract(one_frame(points, {"A": np.eye(4), "B": driven}, np.eye(4)))
    assert block.arrays["lidar/cameras"][0].tolist() == [0b01, 0b01, 0b00, 0b11]


def test_a_missing_sweep_and_an_empty_one_have_count_zero() -> None:
    absent = LidarCue().extract(one_frame(None, {"A": np.eye(4)}, np.eye(4)))
    empty = LidarCue().extract(one_frame(np.zeros((0, 4), np.float32), {"A": np.eye(4)}, np.eye(4)))
    for block in (absent, empty):
        assert block.arrays["lidar/count"].tolist() == [0]
        assert block.arrays["lidar/points"].shape == (1, 0, 4)
    assert absent.notes == ["keyframe key: no LiDAR sweep"]
    assert empty.notes == []


def test_too_many_points_are_thinned_with_a_note() -> None:
    points = np.stack([np.arange(10.0, 20.0), np.zeros(10), np.ones(10), np.zeros(10)], axis=1).astype(np.float32)
    block = LidarCue(max_points=4).extract(one_frame(points, {}, np.eye(4)))
    assert block.arrays["lidar/points"][0, :, 0].tolist() == [10, 13, 16, 19]
    assert block.notes == ["keyframe 0: 10 points thinned to the scene's 4"]


def test_nine_cameras_are_refused() -> None:
    context = one_frame(np.zeros((0, 4), np.float32), {}, np.eye(4))
    with pytest.raises(ValueError, match="at most 8 cameras, got 9"):
        LidarCue().extract(replace(context, cameras=tuple("ABCDEFGHI")))
