"""KITTI tracking sequences: calibration by KITTI's own equation, poses, gaps, splits, and what may be missing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from geometry.cameras import project
from geometry.transforms import invert, transform_points
from pipelines.config import load_config
from pipelines.cues.lidar import LidarCue
from pipelines.datasets.files import load_image
from pipelines.datasets.kitti_mot import FRAME_INTERVAL_S, NO_POSES, KittiMotLog
from pipelines.datasets.kitti_mot_calibration import read_kitti_mot_calibration
from pipelines.datasets.records import DataError
from pipelines.datasets.registry import open_log
from pipelines.datasets.splits import KITTI_MOT_SPLITS
from pipelines.registry import build_extractor

FRAMES = 12


def test_a_whole_sequence(tiny_mot: Any) -> None:
    root = tiny_mot.root
    log = KittiMotLog(root)
    assert (log.cameras, log.scene_names()) == (("image_02",), ["training_0001"])
    scene = log.scene("training_0001")
    assert [f.token for f in scene.frames] == [f"{i:06d}" for i in range(FRAMES)]
    assert [f.timestamp_us for f in scene.frames] == [103_700 * i for i in range(FRAMES)]
    assert all(f.is_keyframe and f.lidar is not None and list(f.images) == ["image_02"] for f in scene.frames)
    assert scene.tags == ("training", "stereo_baseline_m=0.5400")
    assert log.stereo_baseline("training_0001") == pytest.approx(32.4 / 60)
    assert log.notes == []
    truth = log.truth("training_0001")
    assert truth is not None
    assert truth.cues == ("boxes",), "a real sequence has labels, and neither occupancy nor exact images"
    assert truth.occupancy("000000") is truth.camera("000000", "image_02") is None
    image = scene.frames[3].images["image_02"]
    assert load_image(image).shape == (30, 80, 3)
    np.testing.assert_allclose(image.K, [[60, 0, 40.75], [0, 61, 16], [0, 0, 1]])
    sweep = scene.frames[3].lidar
    assert sweep is not None
    stored = np.fromfile(root / "training" / "velodyne" / "0001" / "000003.bin", "<f4").reshape(-1, 4)
    np.testing.assert_array_equal(log.read_lidar(sweep), stored)


def test_opened_by_name_as_a_configuration_does(tiny_mot: Any) -> None:
    root = tiny_mot.root
    log = open_log("kitti_mot", str(root), version=None, cameras=["image_03", "image_02"], keyframe_every=2)
    assert isinstance(log, KittiMotLog)
    assert log.cameras == ("image_03", "image_02")
    assert list(log.scene("training_0001").frames[0].images) == ["image_03", "image_02"]
    assert log.occupancy_grid.lower == (0.0, -25.6, -2.2)


def test_kittis_own_equation(tiny_mot: Any) -> None:
    """y = P R_rect Tr_velo_cam x, with pixel centres on whole numbers."""
    root = tiny_mot.root
    points = np.random.default_rng(0).uniform([5, -4, -2], [40, 4, 2], (50, 3))
    homogeneous = np.concatenate([points, np.ones((50, 1))], axis=1)
    scene = KittiMotLog(root, cameras=("image_02", "image_03")).scene("training_0001")
    for channel, P in (("image_02", tiny_mot.P2), ("image_03", tiny_mot.P3)):
        rectified = np.eye(4)
        rectified[:3, :3] = tiny_mot.R_rect
        y = homogeneous @ (P @ rectified @ np.vstack([tiny_mot.Tr_velo_cam, [0, 0, 0, 1]])).T
        image = scene.frames[0].images[channel]
        uv, depth, _ = project(image.K, transform_points(invert(image.ego_from_cam), points))
        np.testing.assert_allclose(uv, y[:, :2] / y[:, 2:] + 0.5, atol=1e-6)
        np.testing.assert_allclose(depth, y[:, 2], atol=1e-6)


def test_the_other_spelling_of_the_rows(tiny_mot: Any) -> None:
    root = tiny_mot.root
    path = root / "training" / "calib" / "0001.txt"
    before = read_kitti_mot_calibration(path)
    text = path.read_text().replace("R_rect", "R0_rect:").replace("Tr_velo_cam", "Tr_velo_to_cam:")
    path.write_text(text.replace("Tr_imu_velo", "Tr_imu_to_velo:") + "\n\n")
    after = read_kitti_mot_calibration(path)
    np.testing.assert_array_equal(after.cam0_from_ego, before.cam0_from_ego)
    assert before.ego_from_imu is not None
    np.testing.assert_array_equal(after.ego_from_imu, before.ego_from_imu)


def test_poses_are_the_scanners(tiny_mot: Any) -> None:
    """A point fixed in the world, seen from every frame through the IMU's poses, comes back to one place."""
    root = tiny_mot.root
    scene = KittiMotLog(root).scene("training_0001")
    velo_from_imu = np.vstack([tiny_mot.Tr_imu_velo, [0, 0, 0, 1]])
    for i, frame in enumerate(scene.frames):
        start_from_imu = np.eye(4)
        start_from_imu[:3, :3] = Rotation.from_euler("z", 0.01 * i).as_matrix()
        start_from_imu[0, 3] = i
        at_start = np.array([9.0, 2.0, -1.0, 1.0])
        in_imu = np.linalg.solve(start_from_imu, np.linalg.solve(velo_from_imu, at_start))
        np.testing.assert_allclose(frame.global_from_ego @ (velo_from_imu @ in_imu), at_start, atol=1e-6)


def test_gaps(tiny_mot: Any) -> None:
    root = tiny_mot.root
    part = root / "training"
    for i in (4, 5, 6, 9):
        (part / "velodyne" / "0001" / f"{i:06d}.bin").unlink()
    for i in (2, 10):
        (part / "image_02" / "0001" / f"{i:06d}.png").unlink()
    (part / "image_03" / "0001" / "000002.png").unlink()
    log = KittiMotLog(root, cameras=("image_02", "image_03"))
    frames = log.scene("training_0001").frames
    assert [f.token for f in frames if f.lidar is None] == ["000004", "000005", "000006", "000009"]
    assert [int(f.token) for f in frames] == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert [list(f.images) for f in frames[-2:]] == [["image_03"], ["image_02", "image_03"]]
    assert frames[2].timestamp_us == 311_100, "time goes on where frames are missing"
    assert log.notes == [
        "training_0001: no velodyne file at 4 of 11 frames (4-6, 9)",
        "training_0001: 1 of the first 12 frames have no image: left out (2)",
        "training_0001: image_02 is missing at 1 of 11 frames (10)",
    ]
    log.scene("training_0001")
    assert len(log.notes) == 3


def test_keyframe_stride_and_interval(tiny_mot: Any) -> None:
    root = tiny_mot.root
    scene = KittiMotLog(root, keyframe_every=5, frame_interval_s=0.1).scene("training_0001")
    assert [f.token for f in scene.keyframes] == ["000000", "000005", "000010"]
    assert [len(scene.sweeps_after(t)) for t in range(3)] == [4, 4, 1]
    assert scene.frames[7].timestamp_us == 700_000
    (root / "training" / "image_02" / "0001" / "000000.png").unlink()
    with pytest.raises(DataError, match="no keyframe with keyframe_every 30"):
        KittiMotLog(root, keyframe_every=30).scene("training_0001")


def test_an_interval_that_speeds_contradict_is_told(tiny_mot: Any) -> None:
    root = tiny_mot.root
    path = root / "training" / "oxts" / "0001.txt"
    rows = tiny_mot.records(FRAMES)
    rows[:, 1] = 8.4 + 2 * (rows[:, 1] - 8.4)
    np.savetxt(path, rows, fmt="%.13f")
    log = KittiMotLog(root)
    log.scene("training_0001")
    assert log.notes == [
        "training_0001: speeds in oxts fit 0.2074 s between frames, taken are 0.1037 s (option frame_interval_s)"
    ]


def test_the_papers_split(tiny_mot: Any, tmp_path: Path) -> None:
    assert len(KITTI_MOT_SPLITS["train"]) == 18
    left_out = set(KITTI_MOT_SPLITS["training"]) - set(KITTI_MOT_SPLITS["train"])
    assert left_out == {"training_0012", "training_0013", "training_0017"}
    assert KITTI_MOT_SPLITS["val"] == tuple(f"testing_{i:04d}" for i in range(15))
    for part, numbers in (("training", (11, 12)), ("testing", (0, 14, 15))):
        for number in numbers:
            tiny_mot.write_sequence(tmp_path / part, f"{number:04d}", labels=part == "training")
    log = KittiMotLog(tmp_path)
    assert log.scene_names() == ["training_0011", "training_0012", "testing_0000", "testing_0014", "testing_0015"]
    assert log.scene_names("train") == ["training_0011"]
    assert log.scene_names("val") == ["testing_0000", "testing_0014"]
    assert log.scene("testing_0014").tags[0] == "testing"
    assert log.notes == [], "labels of the testing part are not published"
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["testing_0015"]}))
    assert KittiMotLog(tmp_path).scene_names("train") == ["testing_0015"]
    assert KittiMotLog(tmp_path, scenes=["testing_0015"]).scene_names() == ["testing_0015"]


def test_without_oxts_and_labels(tiny_mot: Any, tmp_path: Path) -> None:
    tiny_mot.write_sequence(tmp_path / "training", "0003", oxts=False, labels=False)
    tiny_mot.write_sequence(tmp_path / "training", "0004")
    log = KittiMotLog(tmp_path)
    assert log.scene_names() == log.scene_names("all") == ["training_0003", "training_0004"]
    scene = log.scene("training_0003")
    assert log.notes == [
        "training_0003: no oxts (the car is taken to stand still: only what looks at one frame alone is right); "
        "no label_02 (no boxes of tracked objects)"
    ]
    assert NO_POSES in scene.tags
    assert all(np.array_equal(f.global_from_ego, np.eye(4)) for f in scene.frames)
    assert log.tracks("training_0003") is None
    assert log.scene_names("train") == ["training_0004"], "nothing learns motion from poses that are not there"
    assert log.notes[-1] == "split train: 1 of 2 sequences have no oxts: left out (training_0003)"
    assert NO_POSES not in log.scene("training_0004").tags


def test_without_scans_or_calibration(tiny_mot: Any) -> None:
    root = tiny_mot.root
    part = root / "training"
    for path in (part / "velodyne" / "0001").iterdir():
        path.unlink()
    tiny_mot.write_sequence(part, "0002")
    (part / "calib" / "0002.txt").unlink()
    log = KittiMotLog(root)
    assert log.scene_names() == ["training_0001"]
    assert all(f.lidar is None for f in log.scene("training_0001").frames)
    assert log.notes == [
        "training: 1 sequences have no calib/NNNN.txt: left out (0002)",
        "training_0001: no velodyne",
    ]


def test_the_preset_is_the_papers() -> None:
    config = load_config("kitti_mot")
    assert (config.dataset.kind, config.dataset.split) == ("kitti_mot", "train")
    assert config.sizes.network == config.sizes.render == (352, 1216)
    assert config.keyframe_interval_s == pytest.approx(FRAME_INTERVAL_S)
    extractor = build_extractor(config, "lidar")
    assert isinstance(extractor, LidarCue)
    assert extractor.own_car_lower[2] < -1.73 < extractor.own_car_upper[2], "the scanner sits on the own car's roof"
