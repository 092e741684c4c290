"""What the nuScenes reader says about tables and label files that cannot be used."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.datasets.nuscenes import NuScenesLog
from pipelines.datasets.records import DataError


def _read_everything(root: Path) -> None:
    reader = NuScenesLog(root)
    for name in reader.scene_names():
        reader.scene(name)


def _fails(log: Any, *patterns: str) -> None:
    """Opening and reading both scenes raises one DataError that holds every pattern."""
    root = log.write()
    with pytest.raises(DataError) as caught:
        _read_everything(root)
    for pattern in patterns:
        assert pattern in str(caught.value)


def test_singular_intrinsics(tiny_nuscenes: Any) -> None:
    tiny_nuscenes.row("calibrated_sensor", "scene-0061-CAM_BACK-cal")["camera_intrinsic"][1][1] = 0.0
    _fails(tiny_nuscenes, "calibrated_sensor.json", "scene-0061-CAM_BACK-cal", "singular", "repair")


def test_camera_without_intrinsics(tiny_nuscenes: Any) -> None:
    tiny_nuscenes.row("calibrated_sensor", "scene-0061-CAM_BACK-cal")["camera_intrinsic"] = []
    _fails(tiny_nuscenes, "scene-0061-CAM_BACK-cal", "3x3")


@pytest.mark.parametrize("rotation", [[0, 0, 0, 0], [float("nan"), 0, 0, 1], [1, 0, 0]])
def test_bad_rotation(tiny_nuscenes: Any, rotation: list[float]) -> None:
    tiny_nuscenes.row("calibrated_sensor", "scene-0103-LIDAR_TOP-cal")["rotation"] = rotation
    _fails(tiny_nuscenes, "calibrated_sensor.json", "scene-0103-LIDAR_TOP-cal", "quaternion")


@pytest.mark.parametrize(
    ("table", "token", "name", "value", "expected"),
    [
        ("ego_pose", "pose-scene-0061-CAM_FRONT-006", "rotation", None, "list of numbers"),
        ("ego_pose", "pose-scene-0061-CAM_FRONT-006", "rotation", [1, 0, 0, None], "list of numbers"),
        ("ego_pose", "pose-scene-0061-CAM_FRONT-006", "translation", ["a", 0, 0], "list of numbers"),
        ("calibrated_sensor", "scene-0061-CAM_BACK-cal", "translation", None, "list of numbers"),
        ("calibrated_sensor", "scene-0061-CAM_BACK-cal", "camera_intrinsic", [1, 2, 3], "list of numbers"),
        ("sample_data", "scene-0061-CAM_FRONT-006", "timestamp", "x", "whole number"),
        ("sample_data", "scene-0061-CAM_FRONT-006", "timestamp", 1532402900.5, "whole number"),
        ("sample_data", "scene-0061-CAM_FRONT-006", "timestamp", 1e30, "whole number"),
        ("sample_data", "scene-0061-CAM_FRONT-006", "height", "x", "whole number"),
        ("sample_data", "scene-0061-CAM_FRONT-006", "filename", None, "text"),
        ("sample", "scene-0061-sample-1", "timestamp", None, "whole number"),
        ("scene", "scene-0061", "nbr_samples", "x", "whole number"),
    ],
)
def test_fields_of_another_type(
    tiny_nuscenes: Any, table: str, token: str, name: str, value: object, expected: str
) -> None:
    tiny_nuscenes.row(table, token)[name] = value
    _fails(tiny_nuscenes, f"{table}.json", token, f"{name} is {value!r}", expected)


def test_ragged_intrinsics(tiny_nuscenes: Any) -> None:
    tiny_nuscenes.row("calibrated_sensor", "scene-0061-CAM_BACK-cal")["camera_intrinsic"][1] = [0, 50]
    _fails(tiny_nuscenes, "calibrated_sensor.json", "scene-0061-CAM_BACK-cal", "3 rows of 3 numbers")


@pytest.mark.parametrize(
    ("table", "token"),
    [
        ("scene", "scene-0061"),
        ("sample", "scene-0061-sample-1"),
        ("calibrated_sensor", "scene-0061-CAM_BACK-cal"),
        ("sample_data", "scene-0061-CAM_FRONT-006"),
    ],
)
def test_rows_that_are_there_twice(tiny_nuscenes: Any, table: str, token: str) -> None:
    tiny_nuscenes.tables[table].append(dict(tiny_nuscenes.row(table, token)))
    _fails(tiny_nuscenes, f"{table}.json", token, "1 of its rows occur more than once", "two versions")


def test_two_scenes_of_one_name(tiny_nuscenes: Any) -> None:
    tiny_nuscenes.tables["scene"].append(dict(tiny_nuscenes.row("scene", "scene-0061"), token="another"))
    _fails(tiny_nuscenes, "scene.json", "name 'scene-0061'")


def test_samples_that_run_backwards(tiny_nuscenes: Any) -> None:
    first, second = (tiny_nuscenes.row("sample", f"scene-0061-sample-{t}") for t in (0, 1))
    first["timestamp"], second["timestamp"] = second["timestamp"], first["timestamp"]
    _fails(tiny_nuscenes, "sample.json", "scene-0061-sample-0", str(first["timestamp"]), "increase")


def test_images_that_run_backwards(tiny_nuscenes: Any) -> None:
    late, early = (tiny_nuscenes.row("sample_data", f"scene-0061-CAM_FRONT-{k}") for k in ("006", "012"))
    late["timestamp"] = early["timestamp"] + 5
    _fails(tiny_nuscenes, "sample_data.json", "CAM_FRONT", str(late["timestamp"]), "scene-0061-CAM_FRONT-012")


def test_keyframe_without_a_pose(tiny_nuscenes: Any) -> None:
    poses = tiny_nuscenes.tables["ego_pose"]
    poses[:] = [r for r in poses if r["token"] != "pose-scene-0061-CAM_FRONT-006"]
    _fails(tiny_nuscenes, "ego_pose.json", "scene-0061-CAM_FRONT-006", "restore")


def test_sweep_without_a_pose_is_left_out(tiny_nuscenes: Any) -> None:
    poses = tiny_nuscenes.tables["ego_pose"]
    poses[:] = [r for r in poses if r["token"] != "pose-scene-0061-CAM_FRONT-007"]
    log = NuScenesLog(tiny_nuscenes.write())
    tokens = {i.token for f in log.scene("scene-0061").frames for i in f.images.values()}
    assert "scene-0061-CAM_FRONT-007" not in tokens
    assert "scene-0061-CAM_FRONT-008" in tokens
    assert "scene-0061: 1 of 72 sweep images have no ego pose: left out" in log.notes


def test_missing_field(tiny_nuscenes: Any) -> None:
    del tiny_nuscenes.row("sample_data", "scene-0061-CAM_FRONT-007")["ego_pose_token"]
    _fails(tiny_nuscenes, "sample_data.json", "scene-0061-CAM_FRONT-007", "ego_pose_token")


def test_truncated_table(tiny_nuscenes: Any) -> None:
    root = tiny_nuscenes.write()
    path = tiny_nuscenes.folder / "sample_data.json"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"sample_data\.json.*truncated.*unpack"):
        NuScenesLog(root).scene_names()


def test_missing_table(tiny_nuscenes: Any) -> None:
    root = tiny_nuscenes.write()
    (tiny_nuscenes.folder / "ego_pose.json").unlink()
    with pytest.raises(DataError, match=r"ego_pose\.json"):
        NuScenesLog(root).scene_names()


def test_which_version(tiny_nuscenes: Any) -> None:
    root = tiny_nuscenes.write()
    tiny_nuscenes.version = "v1.0-test"
    tiny_nuscenes.write()
    with pytest.raises(DataError, match=r"v1\.0-mini, v1\.0-test.*version"):
        NuScenesLog(root)
    assert NuScenesLog(root, version="v1.0-test").scene_names() == ["scene-0061", "scene-0103"]
    # What the preset `nuscenes` asks for, where only the mini set was unpacked.
    with pytest.raises(DataError, match=r"v1\.0-trainval: no such table folder.*--set dataset\.version=v1\.0-mini"):
        NuScenesLog(root, version="v1.0-trainval")
    with pytest.raises(DataError, match=r"no v1\.0"):
        NuScenesLog(root / "samples")


def test_unknown_names(tiny_nuscenes: Any) -> None:
    log = NuScenesLog(tiny_nuscenes.write())
    with pytest.raises(DataError, match="scene-0007"):
        log.scene("scene-0007")
    with pytest.raises(DataError, match="scene-0007"):
        NuScenesLog(tiny_nuscenes.root, scenes=["scene-0007"])
    (tiny_nuscenes.root / "splits.json").write_text(json.dumps({"train": []}))
    with pytest.raises(DataError, match=r"no split 'val'.*train"):
        log.scene_names("val")


def test_splits_without_the_devkit(tiny_nuscenes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nuscenes.utils.splits", None)
    with pytest.raises(DataError, match=r"pip install 'occflow\[nuscenes\]'"):
        NuScenesLog(tiny_nuscenes.write()).scene_names("val")


@pytest.mark.parametrize("content", ["not json", '["scene"]', '{"train": "scene-0061"}'])
def test_bad_splits_file(tiny_nuscenes: Any, content: str) -> None:
    root = tiny_nuscenes.write()
    (root / "splits.json").write_text(content)
    with pytest.raises(DataError, match=r"splits\.json"):
        NuScenesLog(root).scene_names("train")


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"semantics": np.zeros((100, 100, 8), np.uint8)}, r"\(200, 200, 16\), found \(100, 100, 8\)"),
        ({"semantics": np.full((200, 200, 16), 17, np.uint8)}, "class index 17"),
        ({"semantics": np.zeros((200, 200, 16), np.uint8), "flow": np.zeros((2, 2))}, "'flow'"),
        ({"flow": np.zeros((200, 200, 16, 2), np.float16)}, "found None"),
    ],
)
def test_label_files_of_another_kind(tiny_nuscenes: Any, arrays: dict[str, np.ndarray], complaint: str) -> None:
    folder = tiny_nuscenes.write() / "openocc_v2" / "scene-0061" / "token"
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "labels.npz", **arrays)
    truth = NuScenesLog(tiny_nuscenes.root).truth("scene-0061")
    assert truth is not None
    with pytest.raises(DataError, match=complaint):
        truth.occupancy("token")


def test_damaged_label_file(tiny_nuscenes: Any) -> None:
    folder = tiny_nuscenes.write() / "openocc_v2" / "scene-0061" / "token"
    folder.mkdir(parents=True)
    path = folder / "labels.npz"
    np.savez_compressed(path, semantics=np.random.default_rng(0).integers(0, 17, (200, 200, 16), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-1000])
    truth = NuScenesLog(tiny_nuscenes.root).truth("scene-0061")
    assert truth is not None
    with pytest.raises(DataError, match=r"labels\.npz.*damaged"):
        truth.occupancy("token")
