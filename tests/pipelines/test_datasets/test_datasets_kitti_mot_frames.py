"""Real KITTI frames of another benchmark, put into the tracking layout: both readers see one world."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.datasets.files import load_image
from pipelines.datasets.kitti_mot import KittiMotLog
from pipelines.datasets.oxts import EARTH_RADIUS_M
from pipelines.datasets.records import Scene
from pipelines.datasets.semantic_kitti import SemanticKittiLog

PLACE = (49.0, 8.4)


def record(pose: np.ndarray) -> np.ndarray:
    """The GPS/IMU record of a pose whose frame is x east, y north, z up, the IMU sitting in the scanner."""
    row = np.zeros(30)
    scale = np.cos(np.deg2rad(PLACE[0]))
    north = np.log(np.tan(np.deg2rad(45 + PLACE[0] / 2))) + pose[1, 3] / (scale * EARTH_RADIUS_M)
    row[0] = np.rad2deg(2 * np.arctan(np.exp(north))) - 90
    row[1] = PLACE[1] + np.rad2deg(pose[0, 3] / (scale * EARTH_RADIUS_M))
    row[2] = pose[2, 3]
    R = pose[:3, :3]
    row[3:6] = np.arctan2(R[2, 1], R[2, 2]), -np.arcsin(R[2, 0]), np.arctan2(R[1, 0], R[0, 0])
    return row


@pytest.fixture
def both(shared_data: Callable[[str], Path], tmp_path: Path) -> tuple[SemanticKittiLog, KittiMotLog]:
    """SemanticKITTI's sequence 04 as it is, and the same files as tracking sequence training_0004."""
    source = SemanticKittiLog(shared_data("semantic_kitti"), scenes=["04"])
    folder, part = source.root / "sequences" / "04", tmp_path / "training"
    for kind, name in (("image_02", "image_2"), ("velodyne", "velodyne")):
        (part / kind).mkdir(parents=True)
        (part / kind / "0004").symlink_to(folder / name)
    for kind in ("calib", "oxts"):
        (part / kind).mkdir()
    text = (folder / "calib.txt").read_text().replace("Tr:", "Tr_velo_cam")
    identity = "R_rect 1 0 0 0 1 0 0 0 1\nTr_imu_velo 1 0 0 0 0 1 0 0 0 0 1 0\n"
    (part / "calib" / "0004.txt").write_text(text.rstrip() + "\n" + identity)
    rows = [record(frame.global_from_ego) for frame in source.scene("04").frames]
    np.savetxt(part / "oxts" / "0004.txt", rows, fmt="%.13f")
    return source, KittiMotLog(tmp_path)


def scenes(both: tuple[SemanticKittiLog, KittiMotLog]) -> tuple[Scene, Scene]:
    return both[0].scene("04"), both[1].scene("training_0004")


def test_poses_and_calibration_agree(both: tuple[SemanticKittiLog, KittiMotLog]) -> None:
    expected, found = scenes(both)
    assert len(found.frames) == len(expected.frames) == 10
    for a, b in zip(expected.frames, found.frames, strict=True):
        np.testing.assert_allclose(b.global_from_ego, a.global_from_ego, atol=1e-6)
        one, other = a.images["image_2"], b.images["image_02"]
        np.testing.assert_array_equal(other.K, one.K)
        np.testing.assert_allclose(other.ego_from_cam, one.ego_from_cam, atol=1e-12)
        assert abs(b.timestamp_us - a.timestamp_us) < 10_000, "0.1037 s a frame, where this sequence took 0.1041"
    assert np.linalg.norm(found.frames[-1].global_from_ego[:3, 3]) > 5
    # (46.88783 + 333.4597) / 707.0912 by the fourth columns of P2 and P3, which leave out millimetres along the view.
    assert both[1].stereo_baseline("training_0004") == pytest.approx(0.5379, abs=0.003)


def test_pixels_and_points_are_the_same(both: tuple[SemanticKittiLog, KittiMotLog]) -> None:
    expected, found = (scene.frames[3] for scene in scenes(both))
    np.testing.assert_array_equal(load_image(found.images["image_02"]), load_image(expected.images["image_2"]))
    assert expected.lidar is not None
    assert found.lidar is not None
    points = both[1].read_lidar(found.lidar)
    assert len(points) > 100_000
    np.testing.assert_array_equal(points, both[0].read_lidar(expected.lidar))
