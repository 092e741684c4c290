"""The SemanticKITTI reader against KITTI's own projection equations on a miniature tree."""

import json
from pathlib import Path

import numpy as np
import pytest

from geometry.cameras import project
from geometry.transforms import invert, transform_points
from pipelines.datasets.files import load_image
from pipelines.datasets.records import DataError
from pipelines.datasets.semantic_kitti import SemanticKittiLog, read_calibration

P2 = np.array([[60.0, 0, 40.25, 3.5], [0, 61.0, 15.5, 0.25], [0, 0, 1, 0.004]])
"""As conftest.py writes it."""


def _rows(path: Path) -> dict[str, np.ndarray]:
    """calib.txt by hand: name to 3x4."""
    pairs = (line.split(":") for line in path.read_text().splitlines())
    return {name: np.array(values.split(), dtype=float).reshape(3, 4) for name, values in pairs}


def _homogeneous(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, [[0.0, 0, 0, 1]]])


def test_projection_is_kittis(tiny_kitti: Path) -> None:
    """KITTI's document: y = P2 Tr x in homogeneous coordinates, pixel centres on whole numbers."""
    path = tiny_kitti / "sequences" / "08" / "calib.txt"
    rows = _rows(path)
    points = np.random.default_rng(0).uniform([3, -8, -2], [40, 8, 2], (50, 3))
    y = rows["P2"] @ _homogeneous(rows["Tr"]) @ np.concatenate([points, np.ones((50, 1))], axis=1).T
    expected = (y[:2] / y[2]).T
    calibration = read_calibration(path)
    uv, depth, valid = project(calibration.K, transform_points(invert(calibration.ego_from_cam), points))
    assert valid.all()
    np.testing.assert_allclose(uv - 0.5, expected, atol=1e-9)
    np.testing.assert_allclose(depth, y[2], atol=1e-9)


def test_poses_are_the_velodynes(tiny_kitti: Path) -> None:
    """A point fixed to the road has one global position, whichever frame's velodyne sees it."""
    folder = tiny_kitti / "sequences" / "08"
    Tr = _homogeneous(_rows(folder / "calib.txt")["Tr"])
    poses = np.loadtxt(folder / "poses.txt").reshape(-1, 3, 4)
    scene = SemanticKittiLog(tiny_kitti).scene("08")
    np.testing.assert_allclose(scene.frames[0].global_from_ego, np.eye(4), atol=1e-9)
    at_start = np.array([9.0, 2.0, -1.0, 1.0])
    for frame in scene.frames:
        in_cam = np.linalg.solve(_homogeneous(poses[int(frame.token)]), Tr @ at_start)
        in_velodyne = np.linalg.solve(Tr, in_cam)
        np.testing.assert_allclose(frame.global_from_ego @ in_velodyne, at_start, atol=1e-9)


def test_frames_without_files_are_counted(tiny_kitti: Path) -> None:
    log = SemanticKittiLog(tiny_kitti)
    scene = log.scene("08")
    assert [f.token for f in scene.frames] == [f"{i:06d}" for i in (0, 1, 2, 3, 5, 6, 7, 8)]
    assert [f.timestamp_us for f in scene.frames] == [100_000 * i for i in (0, 1, 2, 3, 5, 6, 7, 8)]
    assert all(f.is_keyframe for f in scene.frames)
    assert [f.token for f in scene.frames if f.lidar is None] == ["000007"]
    assert log.notes == [
        "08: 4 of the 12 frames in poses.txt have no image: left out (4, 9-11)",
        "08: no velodyne file at 1 of 8 frames",
    ]
    log.scene("08")
    assert len(log.notes) == 2
    image = scene.frames[2].images["image_2"]
    assert load_image(image).shape == (30, 80, 3)
    assert (image.height, image.width) == (30, 80)


def test_keyframe_stride(tiny_kitti: Path) -> None:
    scene = SemanticKittiLog(tiny_kitti, keyframe_every=3).scene("08")
    assert [f.token for f in scene.keyframes] == ["000000", "000003", "000006"]
    assert [[f.token for f in scene.sweeps_after(t)] for t in range(3)] == [
        ["000001", "000002"],
        ["000005"],
        ["000007", "000008"],
    ]
    assert all(i.is_keyframe == f.is_keyframe for f in scene.frames for i in f.images.values())
    (tiny_kitti / "sequences" / "08" / "image_2" / "000000.png").unlink()
    assert SemanticKittiLog(tiny_kitti, keyframe_every=3).scene("08").frames[0].token == "000003"
    with pytest.raises(DataError, match="no keyframe here with keyframe_every 30; lower it"):
        SemanticKittiLog(tiny_kitti, keyframe_every=30).scene("08")
    with pytest.raises(DataError, match="keyframe_every is 0"):
        SemanticKittiLog(tiny_kitti, keyframe_every=0)


def test_lidar_is_four_columns(tiny_kitti: Path) -> None:
    log = SemanticKittiLog(tiny_kitti)
    sweep = log.scene("08").frames[1].lidar
    assert sweep is not None
    stored = np.fromfile(sweep.path, dtype=np.float32).reshape(-1, 4)
    np.testing.assert_array_equal(log.read_lidar(sweep), stored)
    np.testing.assert_array_equal(sweep.ego_from_lidar, np.eye(4))
    sweep.path.write_bytes(sweep.path.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"000001\.bin: truncated"):
        log.read_lidar(sweep)


def test_splits_and_roots(tiny_kitti: Path) -> None:
    log = SemanticKittiLog(tiny_kitti)
    assert log.scene_names() == log.scene_names("val") == ["08"]
    assert log.scene_names("train") == []
    (tiny_kitti / "splits.json").write_text(json.dumps({"train": ["08"]}))
    assert log.scene_names("train") == ["08"]
    (tiny_kitti.parent / "whole").mkdir()
    tiny_kitti.rename(tiny_kitti.parent / "whole" / "dataset")
    assert SemanticKittiLog(tiny_kitti.parent / "whole").scene_names() == ["08"]
    with pytest.raises(DataError, match="no folder 'sequences'"):
        SemanticKittiLog(tiny_kitti.parent)
    with pytest.raises(DataError, match="no sequence 09"):
        SemanticKittiLog(tiny_kitti.parent / "whole", scenes=["09"])
    with pytest.raises(DataError, match="no such sequence; here are 08"):
        SemanticKittiLog(tiny_kitti.parent / "whole").scene("09")


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        ("calib.txt", "P2: 6.0", "P2: 0.0", r"calib\.txt: P2: singular"),
        ("calib.txt", " 3.500000000000e+00", " nan", r"calib\.txt: P2: expected finite 4x4"),
        ("calib.txt", "P2:", "P9:", r"calib\.txt: 'P2' needs 12 numbers, found no such row"),
        ("calib.txt", "Tr: ", "Tr: 1.0 ", r"'Tr' needs 12 numbers, found 13"),
        ("calib.txt", "Tr: -1.", "Tr: -9.", r"calib\.txt: Tr: not a rotation"),
        ("times.txt", "3.000000e-01", "1.000000e-01", r"times\.txt: timestamps must increase, but frame 2 has 200000"),
        ("times.txt", "0.000000e+00", "nan", r"times\.txt: line 1 is nan, expected seconds"),
        ("times.txt", "3.000000e-01", "x", r"times\.txt: line 4 is 'x'"),
        ("times.txt", "1.100000e+00\n", "", r"times\.txt: 11 times for 12 poses"),
        ("poses.txt", "1.000000000000e+00 0", "2.000000000000e+00 0", r"poses\.txt: line 1: not a rotation"),
        ("poses.txt", "1.000000000000e+00 ", "", r"poses\.txt: line 1 is .*expected 12 numbers"),
        ("poses.txt", "1.000000000000e+00 0", "nan 0", r"poses\.txt: line 1: .*finite"),
    ],
)
def test_damaged_tables(tiny_kitti: Path, name: str, old: str, new: str, complaint: str) -> None:
    path = tiny_kitti / "sequences" / "08" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=complaint):
        SemanticKittiLog(tiny_kitti).scene("08")


def test_missing_files(tiny_kitti: Path) -> None:
    folder = tiny_kitti / "sequences" / "08"
    for path in (folder / "image_2").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no image of any of the 12 frames"):
        SemanticKittiLog(tiny_kitti).scene("08")
    (folder / "poses.txt").unlink()
    with pytest.raises(DataError, match=r"poses\.txt: table is missing"):
        SemanticKittiLog(tiny_kitti).scene("08")
