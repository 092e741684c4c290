"""The chain of a KITTI tracking sequence's calibration file: colour cameras, rectified camera 0, velodyne, GPS/IMU."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from geometry.transforms import from_rotation_translation, invert
from pipelines.datasets.files import checked_intrinsics, checked_pose
from pipelines.datasets.kitti_files import calibration_row, read_calibration_rows

CAMERAS = {"image_02": "P2", "image_03": "P3"}
"""Left and right colour camera by the name of their folder, and the row that projects into each."""


@dataclass(frozen=True)
class KittiMotCalibration:
    """Ego is the velodyne frame. K has pixel centres at +0.5.

    cam0_from_ego: the rectified frame of camera 0, which the tracking labels use. ego_from_imu is None where the file
    has no `Tr_imu_velo`. stereo_baseline_m: distance between the two colour cameras, None where only one is known.
    """

    K: dict[str, Float[np.ndarray, "3 3"]]
    ego_from_cam: dict[str, Float[np.ndarray, "4 4"]]
    cam0_from_ego: Float[np.ndarray, "4 4"]
    ego_from_imu: Float[np.ndarray, "4 4"] | None
    stereo_baseline_m: float | None


def read_kitti_mot_calibration(path: Path) -> KittiMotCalibration:
    """`calib/NNNN.txt`: a velodyne point x lies at P2 R_rect Tr_velo_cam x in the left colour image.

    Names of rows differ between releases (`R_rect` or `R0_rect`, `Tr_velo_cam` or `Tr_velo_to_cam`, with or without
    a colon); both are read. `P3` and `Tr_imu_velo` may be missing.

    Raises:
        DataError: missing file, missing or malformed row, singular P, a rotation that is none.
    """
    rows = read_calibration_rows(path)
    R = calibration_row(path, rows, (3, 3), "R_rect", "R0_rect")
    Tr = calibration_row(path, rows, (3, 4), "Tr_velo_cam", "Tr_velo_to_cam")
    rectified = checked_pose(f"{path}: R_rect", from_rotation_translation(R, np.zeros(3)))
    cam0_from_ego = rectified @ checked_pose(f"{path}: Tr_velo_cam", from_rotation_translation(Tr[:, :3], Tr[:, 3]))
    K, ego_from_cam, places = {}, {}, []
    for channel, key in CAMERAS.items():
        if key not in rows and key != "P2":
            continue
        P = calibration_row(path, rows, (3, 4), key)
        K[channel] = checked_intrinsics(f"{path}: {key}", P[:, :3])
        # The offset belongs to the K that P was built with, so it is taken before the half-pixel move.
        offset = np.linalg.solve(P[:, :3], P[:, 3])
        cam_from_cam0 = checked_pose(f"{path}: {key}", from_rotation_translation(np.eye(3), offset))
        ego_from_cam[channel] = invert(cam_from_cam0 @ cam0_from_ego)
        places.append(cam_from_cam0[:3, 3])
    ego_from_imu = None
    if "Tr_imu_velo" in rows or "Tr_imu_to_velo" in rows:
        Tr = calibration_row(path, rows, (3, 4), "Tr_imu_velo", "Tr_imu_to_velo")
        ego_from_imu = checked_pose(f"{path}: Tr_imu_velo", from_rotation_translation(Tr[:, :3], Tr[:, 3]))
    baseline = float(np.linalg.norm(places[0] - places[-1]))
    return KittiMotCalibration(K, ego_from_cam, cam0_from_ego, ego_from_imu, baseline or None)
