"""The nuScenes reader against nuscenes-devkit on a miniature log, and on logs with parts missing."""

import json
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geometry.cameras import in_image, project
from geometry.transforms import invert, transform_points
from pipelines.datasets.files import load_image
from pipelines.datasets.nuscenes import NuScenesLog
from pipelines.datasets.records import CameraImage, Frame, Scene

KEYFRAMES, ROUNDS = 3, 5


def _devkit(log: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nuscenes = pytest.importorskip("nuscenes", reason="nuscenes-devkit is the oracle of this test")
        return nuscenes.NuScenes(version=log.version, dataroot=str(log.write()), verbose=False)


def _images(scene: Scene) -> list[CameraImage]:
    return [image for frame in scene.frames for image in frame.images.values()]


def _describe(scene: Scene) -> list[tuple[Any, ...]]:
    """Everything a scene says, in comparable form."""
    return [
        (f.token, f.timestamp_us, f.is_keyframe, f.lidar and f.lidar.token, f.global_from_ego.tolist())
        + tuple((i.channel, i.token, i.path, i.timestamp_us, i.K.tolist()) for i in f.images.values())
        for f in scene.frames
    ]


def test_every_image_matches_the_devkit(tiny_nuscenes: Any) -> None:
    oracle = _devkit(tiny_nuscenes)
    from pyquaternion import Quaternion

    log = NuScenesLog(tiny_nuscenes.root)
    seen = 0
    for name in log.scene_names():
        for image in _images(log.scene(name)):
            record = oracle.get("sample_data", image.token)
            calibration = oracle.get("calibrated_sensor", record["calibrated_sensor_token"])
            pose = oracle.get("ego_pose", record["ego_pose_token"])
            expected_K = np.array(calibration["camera_intrinsic"]) + [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
            for matrix, row in ((image.ego_from_cam, calibration), (image.global_from_ego, pose)):
                np.testing.assert_allclose(matrix[:3, :3], Quaternion(row["rotation"]).rotation_matrix, atol=1e-12)
                np.testing.assert_allclose(matrix[:3, 3], row["translation"], atol=1e-9)
            np.testing.assert_allclose(image.K, expected_K, atol=1e-12)
            assert str(image.path) == oracle.get_sample_data_path(image.token)
            assert image.timestamp_us == record["timestamp"]
            assert image.channel == record["channel"]
            assert image.is_keyframe == record["is_key_frame"]
            assert load_image(image).shape == (image.height, image.width, 3)
            seen += 1
    rounds = KEYFRAMES + ROUNDS * (KEYFRAMES - 1) + 2
    assert seen == 2 * 6 * rounds


def test_lidar_points_project_as_the_devkit_projects_them(tiny_nuscenes: Any) -> None:
    """LiDAR at its own time to global to each camera at that camera's time, step by step with the devkit's classes."""
    oracle = _devkit(tiny_nuscenes)
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import view_points
    from pyquaternion import Quaternion

    log = NuScenesLog(tiny_nuscenes.root)
    frame = log.scene("scene-0103").keyframes[1]
    assert frame.lidar is not None
    points = log.read_lidar(frame.lidar)
    compared = 0
    for image in frame.images.values():
        cloud = LidarPointCloud.from_file(oracle.get_sample_data_path(frame.lidar.token))
        np.testing.assert_array_equal(points, cloud.points.T)
        steps = [("calibrated_sensor", frame.lidar.token, False), ("ego_pose", frame.lidar.token, False)]
        steps += [("ego_pose", image.token, True), ("calibrated_sensor", image.token, True)]
        for table, token, backwards in steps:
            row = oracle.get(table, oracle.get("sample_data", token)[f"{table}_token"])
            if backwards:
                cloud.translate(-np.array(row["translation"]))
                cloud.rotate(Quaternion(row["rotation"]).rotation_matrix.T)
            else:
                cloud.rotate(Quaternion(row["rotation"]).rotation_matrix)
                cloud.translate(np.array(row["translation"]))
        record = oracle.get("sample_data", image.token)
        K = np.array(oracle.get("calibrated_sensor", record["calibrated_sensor_token"])["camera_intrinsic"])
        front = cloud.points[2] > 1.0
        expected = view_points(cloud.points[:3], K, normalize=True)[:2].T[front] + 0.5
        cam_from_lidar = (
            invert(image.ego_from_cam)
            @ invert(image.global_from_ego)
            @ frame.lidar.global_from_ego
            @ frame.lidar.ego_from_lidar
        )
        uv, _, _ = project(image.K, transform_points(cam_from_lidar, points[:, :3].astype(np.float64)))
        # The devkit keeps points in float32 through global coordinates of 1e3 m: 1e-4 m off, more in pixels when near.
        np.testing.assert_allclose(uv[front], expected, atol=0.1)
        compared += int(front.sum())
    assert compared > 50


def test_keyframes_and_sweeps_come_in_order(tiny_nuscenes: Any) -> None:
    scene = NuScenesLog(tiny_nuscenes.write()).scene("scene-0061")
    assert [f.token for f in scene.keyframes] == [f"scene-0061-sample-{t}" for t in range(KEYFRAMES)]
    assert [len(scene.sweeps_after(t)) for t in range(KEYFRAMES)] == [ROUNDS, ROUNDS, 2]
    assert scene.tags == ("Night", "rain")
    for t, key in enumerate(scene.keyframes):
        assert key.lidar is not None
        assert key.timestamp_us == key.lidar.timestamp_us
        np.testing.assert_array_equal(key.global_from_ego, key.lidar.global_from_ego)
        for k, sweep in enumerate(scene.sweeps_after(t)):
            number = t * (ROUNDS + 1) + k + 1
            assert {i.token for i in sweep.images.values()} == {f"scene-0061-{c}-{number:03d}" for c in key.images}
    for channel in scene.keyframes[0].images:
        times = [f.images[channel].timestamp_us for f in scene.frames]
        assert times == sorted(times)


def test_a_dropped_sweep_shifts_only_its_own_camera_in_its_own_gap(tiny_nuscenes: Any) -> None:
    tiny_nuscenes.drop("scene-0061-CAM_BACK-002")
    scene = NuScenesLog(tiny_nuscenes.write()).scene("scene-0061")
    first, second = scene.sweeps_after(0), scene.sweeps_after(1)
    assert [f.images["CAM_BACK"].token[-3:] for f in first if "CAM_BACK" in f.images] == ["001", "003", "004", "005"]
    assert [f.images["CAM_FRONT"].token[-3:] for f in first] == ["001", "002", "003", "004", "005"]
    assert [f.images["CAM_BACK"].token[-3:] for f in second] == ["007", "008", "009", "010", "011"]


def test_row_order_and_links_do_not_matter(tiny_nuscenes: Any) -> None:
    expected = _describe(NuScenesLog(tiny_nuscenes.write()).scene("scene-0061"))
    shuffle = random.Random(0)
    for rows in tiny_nuscenes.tables.values():
        shuffle.shuffle(rows)
        for row in rows:
            row.pop("prev", None)
            row.pop("next", None)
    assert _describe(NuScenesLog(tiny_nuscenes.write()).scene("scene-0061")) == expected
    assert _describe(NuScenesLog(tiny_nuscenes.root, scenes=["scene-0061"]).scene("scene-0061")) == expected


def test_logs_travel_to_other_processes(tiny_nuscenes: Any) -> None:
    log = NuScenesLog(tiny_nuscenes.write())
    expected = _describe(log.scene("scene-0103"))
    assert _describe(pickle.loads(pickle.dumps(log)).scene("scene-0103")) == expected


def test_sparse_tables_are_told_and_read(tiny_nuscenes: Any) -> None:
    expected = _describe(NuScenesLog(tiny_nuscenes.write()).scene("scene-0061"))
    for name in ("log", "map", "instance", "sample_annotation", "category", "attribute", "visibility"):
        (tiny_nuscenes.folder / f"{name}.json").unlink()
    log = NuScenesLog(tiny_nuscenes.root)
    assert _describe(log.scene("scene-0061")) == expected
    assert log.notes == ["v1.0-mini has no table log, map, instance, sample_annotation: none of them is needed"]


def test_missing_cameras_and_lidar_are_told(tiny_nuscenes: Any) -> None:
    tiny_nuscenes.drop("scene-0061-CAM_FRONT-006")
    tiny_nuscenes.drop("scene-0061-LIDAR_TOP-012")
    log = NuScenesLog(tiny_nuscenes.write())
    scene = log.scene("scene-0061")
    assert "CAM_FRONT" not in scene.keyframes[1].images
    assert len(scene.keyframes[1].images) == 5
    last = scene.keyframes[2]
    assert last.lidar is None
    assert last.timestamp_us == last.images["CAM_FRONT"].timestamp_us
    assert "scene-0061: CAM_FRONT is missing at 1 of 3 keyframes" in log.notes
    assert any("no LiDAR at 1 of 3 keyframes" in line for line in log.notes)
    before = list(log.notes)
    log.scene("scene-0061")
    assert log.notes == before


def test_a_copy_without_sweeps_still_reads(tiny_nuscenes: Any) -> None:
    root = tiny_nuscenes.write()
    (root / "sweeps").rename(root / "elsewhere")
    log = NuScenesLog(root)
    scene = log.scene("scene-0061")
    assert all(f.is_keyframe for f in scene.frames)
    assert any("72 of 72 sweep images listed have no file" in line for line in log.notes)
    assert all(f.is_keyframe for f in NuScenesLog(root, sweeps=False).scene("scene-0061").frames)


def test_scenes_without_files_are_left_out(tiny_nuscenes: Any) -> None:
    root = tiny_nuscenes.write()
    for path in root.glob("samples/*/scene-0103*"):
        path.unlink()
    log = NuScenesLog(root)
    assert log.scene_names() == ["scene-0061"]
    assert any("1 of 2 scenes have no image or LiDAR files" in line for line in log.notes)


def test_official_splits_come_from_the_devkit(tiny_nuscenes: Any) -> None:
    pytest.importorskip("nuscenes", reason="nuscenes-devkit holds the official splits")
    log = NuScenesLog(tiny_nuscenes.write())
    assert log.scene_names() == ["scene-0061", "scene-0103"]
    assert log.scene_names("train") == log.scene_names("mini_train") == ["scene-0061"]
    assert log.scene_names("val") == log.scene_names("mini_val") == ["scene-0103"]


def test_own_splits_win(tiny_nuscenes: Any) -> None:
    root = tiny_nuscenes.write()
    (root / "splits.json").write_text(json.dumps({"train": ["scene-0103"], "val": ["scene-0061", "scene-9999"]}))
    log = NuScenesLog(root)
    assert log.scene_names("train") == ["scene-0103"]
    assert log.scene_names("val") == ["scene-0061"]


def test_truth_folders(tiny_nuscenes: Any) -> None:
    root = tiny_nuscenes.write()
    log = NuScenesLog(root)
    assert log.truth("scene-0061") is None
    semantics = np.random.default_rng(0).integers(0, 17, (200, 200, 16), dtype=np.uint8)
    flow = np.full((200, 200, 16, 2), 0.5, dtype=np.float16)
    folder = root / "openocc_v2" / "scene-0061" / "scene-0061-sample-1"
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "labels.npz", semantics=semantics, flow=flow)
    truth = log.truth("scene-0061")
    assert truth is not None
    found = truth.occupancy("scene-0061-sample-1")
    assert found is not None
    np.testing.assert_array_equal(found[0], semantics)
    assert found[1] is not None
    assert found[1].dtype == np.float32
    np.testing.assert_array_equal(found[1], 0.5)
    assert truth.occupancy("scene-0061-sample-0") is None
    assert truth.camera("scene-0061-sample-1", "CAM_FRONT") is None
    assert log.truth("scene-0103") is None


def test_exact_camera_truth(tiny_nuscenes: Any) -> None:
    root = tiny_nuscenes.write()
    folder = root / "truth" / "scene-0061" / "scene-0061-sample-0"
    folder.mkdir(parents=True)
    depth = np.full((36, 64), np.inf, dtype=np.float16)
    np.savez_compressed(folder / "CAM_BACK.npz", depth=depth, moving=np.ones((36, 64), dtype=bool))
    truth = NuScenesLog(root).truth("scene-0061")
    assert truth is not None
    found = truth.camera("scene-0061-sample-0", "CAM_BACK")
    assert found is not None
    assert {key: value.dtype.name for key, value in found.items()} == {"depth": "float32", "moving": "uint8"}
    assert truth.occupancy("scene-0061-sample-0") is None


def test_the_real_keyframe_reads_as_it_is(shared_data: Callable[[str], Path]) -> None:
    log = NuScenesLog(shared_data("nuscenes_keyframe"))
    assert log.scene_names() == ["scene-0061"]
    scene = log.scene("scene-0061")
    assert len(log.notes) == 4
    assert all("\n" not in line and len(line) < 160 for line in log.notes)
    (frame,) = scene.frames
    assert list(frame.images) == list(log.cameras)
    assert frame.lidar is not None
    points = log.read_lidar(frame.lidar)
    assert points.shape == (34688, 4)
    seen = np.zeros(len(points), dtype=int)
    for image in frame.images.values():
        seen += _sees(frame, image, points)
    # Six cameras cover all directions but not the ground near the car; neighbours overlap by a few degrees.
    assert 0.5 < (seen > 0).mean() < 0.8
    assert 0.0 < (seen == 2).mean() < 0.1
    assert seen.max() == 2


def _sees(frame: Frame, image: CameraImage, points: np.ndarray) -> np.ndarray:
    assert frame.lidar is not None
    cam_from_lidar = (
        invert(image.ego_from_cam)
        @ invert(image.global_from_ego)
        @ frame.lidar.global_from_ego
        @ frame.lidar.ego_from_lidar
    )
    uv, _, valid = project(image.K, transform_points(cam_from_lidar, points[:, :3].astype(np.float64)))
    return valid & in_image(uv, image.height, image.width)
