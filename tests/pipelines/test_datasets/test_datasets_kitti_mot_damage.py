"""KITTI tracking sequences that cannot be read: every kind of damage is told with its file and its remedy."""

import re
from typing import Any

import numpy as np
import pytest

from pipelines.datasets.kitti_mot import KittiMotLog
from pipelines.datasets.records import DataError

FRAMES = 12


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("P2: 6.0", "P2: 0.0", r"0001\.txt: P2: singular"),
        ("4.000000000000e-03", "nan", r"P2: expected finite"),
        ("P2:", "P9:", r"'P2' needs 12 numbers, found no such row"),
        ("R_rect ", "R_rect 1 ", r"'R_rect' needs 9 numbers, found 10"),
        ("R_rect ", "R_rect x", r"R_rect is not a row of numbers"),
        ("R_rect 9.", "R_rect 5.", r"R_rect: not a rotation"),
        ("Tr_velo_cam ", "Tr_nothing ", r"'Tr_velo_cam' needs 12 numbers, found no such row"),
        ("Tr_imu_velo ", "Tr_nothing ", r"no row 'Tr_imu_velo', without which oxts/ gives no poses"),
        ("Tr_imu_velo 9.", "Tr_imu_velo -9.", r"Tr_imu_velo: not a rotation"),
    ],
)
def test_damaged_calibration(tiny_mot: Any, old: str, new: str, complaint: str) -> None:
    root = tiny_mot.root
    path = root / "training" / "calib" / "0001.txt"
    text = path.read_text()
    assert old in text
    path.write_text(re.sub(r"P0:.*\n", "", text).replace(old, new, 1))
    with pytest.raises(DataError, match=complaint):
        KittiMotLog(root).scene("training_0001")


def test_a_camera_without_calibration(tiny_mot: Any) -> None:
    root = tiny_mot.root
    path = root / "training" / "calib" / "0001.txt"
    path.write_text(path.read_text().replace("P3:", "P9:"))
    log = KittiMotLog(root, cameras=("image_02", "image_03"))
    scene = log.scene("training_0001")
    assert (list(scene.frames[0].images), scene.tags) == (["image_02"], ("training",))
    assert log.notes == ["training_0001: no calibration of image_03"]
    assert log.stereo_baseline("training_0001") is None
    with pytest.raises(DataError, match="no row P3, which calibrates image_03"):
        KittiMotLog(root, cameras=("image_03",)).scene("training_0001")


def test_oxts_of_another_length(tiny_mot: Any) -> None:
    root = tiny_mot.root
    path = root / "training" / "oxts" / "0001.txt"
    np.savetxt(path, tiny_mot.records(FRAMES + 2), fmt="%.13f")
    log = KittiMotLog(root)
    assert len(log.scene("training_0001").frames) == FRAMES
    assert log.notes == ["training_0001: oxts has 14 records, and the images end at frame 11"]
    np.savetxt(path, tiny_mot.records(FRAMES - 1), fmt="%.13f")
    with pytest.raises(DataError, match=r"0001\.txt: 11 records, but the images run to frame 11; restore this file"):
        log.scene("training_0001")


def test_a_record_of_zeros(tiny_mot: Any) -> None:
    path = tiny_mot.root / "training" / "oxts" / "0001.txt"
    lines = path.read_text().splitlines()
    lines[5] = " ".join(["0"] * 30)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"0001\.txt: line 6 lies \d{7} m from line 5"):
        KittiMotLog(tiny_mot.root).scene("training_0001")


def test_damaged_files(tiny_mot: Any) -> None:
    root = tiny_mot.root
    log = KittiMotLog(root)
    sweep = log.scene("training_0001").frames[1].lidar
    assert sweep is not None
    sweep.path.write_bytes(sweep.path.read_bytes()[:-6])
    with pytest.raises(DataError, match=r"000001\.bin: truncated LiDAR file: 634 bytes"):
        log.read_lidar(sweep)
    image = root / "training" / "image_02" / "0001" / "000000.png"
    image.write_bytes(b"")
    with pytest.raises(DataError, match=r"000000\.png: image is empty"):
        log.scene("training_0001")
    for path in image.parent.iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"image_02/0001: no image \(NNNNNN\.png\)"):
        log.scene("training_0001")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"cameras": ("image_2",)}, r"cameras is \['image_2'\], expected one or both of image_02, image_03"),
        ({"cameras": ()}, "cameras is"),
        ({"keyframe_every": 0}, "keyframe_every is 0"),
        ({"frame_interval_s": 0.0}, r"frame_interval_s is 0\.0"),
        ({"scenes": ["training_0099"]}, "no sequence training_0099 with images and calib"),
    ],
)
def test_options(tiny_mot: Any, options: dict, complaint: str) -> None:
    root = tiny_mot.root
    with pytest.raises(DataError, match=complaint):
        KittiMotLog(root, **options)


def test_other_folders(tiny_mot: Any) -> None:
    root = tiny_mot.root
    with pytest.raises(DataError, match="no folder 'training' or 'testing'"):
        KittiMotLog(root / "training")
    with pytest.raises(DataError, match="no scene testing_0001; here are training_0001"):
        KittiMotLog(root).scene("testing_0001")


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"semantics": np.full((256, 256, 32), 21, np.uint8)}, r"class index 21, but SemanticKITTI's run 0\.\.20"),
        ({"semantics": np.zeros((256, 256, 32), np.uint8)}, r"no voxel has SemanticKITTI's number of free \(20\)"),
        ({"semantics": np.zeros((200, 200, 16), np.uint8)}, r"shape \(256, 256, 32\), found \(200, 200, 16\)"),
        ({"flow": np.zeros((2, 2))}, "found None"),
    ],
)
def test_truth_of_another_kind(tiny_mot: Any, arrays: dict[str, np.ndarray], complaint: str) -> None:
    root = tiny_mot.root
    folder = root / "truth" / "training_0001" / "000000"
    folder.mkdir(parents=True)
    truth = KittiMotLog(root).truth("training_0001")
    assert truth is not None
    assert truth.occupancy("000000") is None
    np.savez_compressed(folder / "labels.npz", **arrays)
    with pytest.raises(DataError, match=complaint):
        truth.occupancy("000000")
