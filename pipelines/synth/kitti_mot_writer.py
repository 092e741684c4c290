"""Writes synthetic scenes as KITTI tracking sequences: stereo images, scans, GPS/IMU, boxes; exact truth beside."""

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32

from geometry.cameras import project
from geometry.transforms import from_rotation_translation, invert, transform_points
from pipelines.datasets.oxts import ALTITUDE, COLUMNS, EARTH_RADIUS_M, LATITUDE, ROLL, attitude, mercator
from pipelines.datasets.records import DataError
from pipelines.datasets.semantic_kitti_truth import CLASS_OF_RAW_LABEL, UNKNOWN
from pipelines.synth.capture import Shot
from pipelines.synth.config import SynthConfig
from pipelines.synth.files import write_bytes, write_npz
from pipelines.synth.kitti_sequence import (
    SHIFTS,
    VOXELS_EVERY,
    KittiSequence,
    kitti_settings,
    number_row,
    projection_rows,
)
from pipelines.synth.lidar import Turn
from pipelines.synth.models import BICYCLE, BUS, CAR, MOTORCYCLE, PEDESTRIAN, TRUCK
from pipelines.synth.raycast import NEAR
from pipelines.synth.rig import Camera, kitti_camera

CAMERAS = ("image_02", "image_03")
FIRST_PLACE = (49.0, 8.4, 115.0)
"""Latitude, longitude (degrees) and altitude (m) of the first record."""
LIDAR_FROM_IMU = from_rotation_translation(attitude(0.010, -0.006, 0.015), np.array([-0.81, 0.32, -0.80]))
"""The GPS/IMU box sits behind and below the scanner, a little askew."""
RECTIFICATION = attitude(0.002, 0.008, -0.003)
"""Rectified from raw camera 0."""
KINDS = {
    CAR: "Car", TRUCK: "Truck", BUS: "Misc", BICYCLE: "Cyclist", MOTORCYCLE: "Misc", PEDESTRIAN: "Pedestrian",
}  # fmt: skip
LEAST_PIXELS = 12
"""Of an actor in the left image, for it to be labelled there."""
OCCLUSION_UNKNOWN = 3


def kitti_mot_settings(config: SynthConfig) -> SynthConfig:
    """The settings with KITTI's sensors; `cameras` may name the left one alone, by default both are rendered.

    Raises:
        DataError: other cameras.
    """
    cameras = config.cameras if "cameras" in config.model_fields_set else CAMERAS
    if cameras not in (CAMERAS, CAMERAS[:1]):
        raise DataError(f"cameras is {list(cameras)}; KITTI-MOT's are {list(CAMERAS)}, or {CAMERAS[0]!r} alone")
    return kitti_settings(config, cameras)


@dataclass
class KittiMotScene(KittiSequence):
    """One sequence of the training part in the tracking layout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._labels: dict[int, list[str]] = {}
        self._lock = threading.Lock()

    def rig(self) -> tuple[Camera, ...]:
        """See KittiSequence."""
        left = replace(kitti_camera(self.config.width, self.config.height), channel=CAMERAS[0])
        baseline = np.array([SHIFTS[2] - SHIFTS[3], 0.0, 0.0])
        right_pose = left.ego_from_cam @ from_rotation_translation(np.eye(3), baseline)
        return (left, replace(left, channel=CAMERAS[1], ego_from_cam=right_pose))[: len(self.config.cameras)]

    @property
    def number(self) -> str:
        """The sequence's number, which names its files."""
        return f"{self.index:04d}"

    @property
    def name(self) -> str:
        """See KittiSequence."""
        return f"training_{self.number}"

    def file(self, kind: str, k: int, suffix: str) -> Path:
        """See KittiSequence."""
        return self.root / "training" / kind / self.number / f"{k:06d}{suffix}"

    def table_rows(self) -> dict[str, Any]:
        """Write calibration, GPS/IMU records and labels, after all jobs are done; the name for splits.json."""
        part = self.root / "training"
        records = "".join(_record_row(record) + "\n" for record in self.records())
        write_bytes(part / "oxts" / f"{self.number}.txt", records.encode())
        if self.config.truth:
            labels = "".join(line + "\n" for k in sorted(self._labels) for line in self._labels[k])
            write_bytes(part / "label_02" / f"{self.number}.txt", labels.encode())
        write_bytes(part / "calib" / f"{self.number}.txt", self._calibration().encode())
        return {"name": self.name}

    def records(self) -> Float[np.ndarray, "n 30"]:
        """GPS/IMU records of all frames; what no reader needs (accelerations, rates, state) is zero."""
        poses = [self._map_from_imu(self.seconds(k)) for k in range(self.config.keyframes)]
        rows = np.zeros((len(poses), COLUMNS))
        places = np.stack([pose[:3, 3] for pose in poses])
        rows[:, LATITUDE : ALTITUDE + 1] = geographic(places - places[0])
        for k, pose in enumerate(poses):
            R, t, step = pose[:3, :3], self.seconds(k), 1e-3
            velocity = (self._map_from_imu(t + step)[:3, 3] - self._map_from_imu(t - step)[:3, 3]) / (2 * step)
            angles = [np.arctan2(R[2, 1], R[2, 2]), -np.arcsin(R[2, 0]), np.arctan2(R[1, 0], R[0, 0])]
            rows[k, ROLL : ROLL + 8] = [*angles, velocity[1], velocity[0], *(R.T @ velocity)]
        return rows

    def keep_image(self, k: int, camera: Camera, shot: Shot) -> None:
        """See KittiSequence: labels of what the left image shows."""
        if camera.channel != CAMERAS[0] or not self.config.truth:
            return
        counts = np.bincount(shot.instance.ravel(), minlength=len(self.world.actors) + 1)
        lines = [self._label(k, i) for i in range(len(self.world.actors)) if counts[i + 1] >= LEAST_PIXELS]
        with self._lock:
            self._labels[k] = lines

    def keep_scan(self, k: int, turn: Turn, kept: Bool[np.ndarray, " n"], points: Float32[np.ndarray, "m 4"]) -> None:
        """See KittiSequence: every fifth frame the voxels around it, as truth."""
        if k % VOXELS_EVERY == 0:
            volume = self.volume(k, points)
            semantics = np.where(volume.ever, CLASS_OF_RAW_LABEL[volume.raw], UNKNOWN).astype(np.uint8)
            write_npz(self.truth_folder(k) / "labels.npz", {"semantics": semantics, "flow": volume.flow})

    def _map_from_imu(self, t: float) -> Float[np.ndarray, "4 4"]:
        return self.world.global_from_world @ self.world_from_lidar(t) @ LIDAR_FROM_IMU

    def _label(self, k: int, actor: int) -> str:
        """A line of label_02: the box of one actor in camera 0's rectified frame."""
        found = self.world.actors[actor]
        x, y, heading = self.world.actor_poses(self.seconds(k))[actor]
        cam0_from_world = self.cam0_from_lidar @ invert(self.world_from_lidar(self.seconds(k)))
        place = transform_points(cam0_from_world, np.array([[x, y, found.base]]))[0]
        facing = cam0_from_world[:3, :3] @ np.array([np.cos(heading), np.sin(heading), 0.0])
        turn = float(np.arctan2(-facing[2], facing[0]))
        length, width, height = found.model.size
        box, truncated = self._image_box(k, (x, y, heading, found.base), (length, width, height))
        alpha = turn - float(np.arctan2(place[0], place[2]))
        alpha = (alpha + np.pi) % (2 * np.pi) - np.pi
        values = [alpha, *box, height, width, length, *place, turn]
        numbers = " ".join(f"{v:.6f}" for v in values)
        return f"{k} {found.number} {KINDS[found.model.semantic]} {truncated} {OCCLUSION_UNKNOWN} {numbers}"

    def _image_box(
        self, k: int, pose: tuple[float, float, float, float], size: tuple[float, float, float]
    ) -> tuple[list[float], int]:
        """left, top, right, bottom of a box in the left image (pixel centres on whole numbers); whether it is cut."""
        camera, (x, y, heading, base) = self.cameras[0], pose
        corners = np.array([[i, j, h] for i in (-0.5, 0.5) for j in (-0.5, 0.5) for h in (0.0, 1.0)]) * size
        turned = from_rotation_translation(attitude(0.0, 0.0, heading), np.array([x, y, base]))
        cam_from_world = invert(self.world.world_from_ego(self.seconds(k)) @ camera.ego_from_cam)
        points = transform_points(cam_from_world @ turned, corners)
        ahead = _ahead(points)
        uv = project(camera.K, ahead)[0] - 0.5
        limit = np.array([camera.width, camera.height]) - 1.0
        low, high = uv.min(axis=0), uv.max(axis=0)
        cut = bool((low < 0).any() or (high > limit).any() or (points[:, 2] < NEAR).any())
        return [*np.clip(low, 0.0, limit), *np.clip(high, 0.0, limit)], int(cut)

    def _calibration(self) -> str:
        """calib/NNNN.txt. The tracking files write the last three rows without a colon."""
        raw_from_rectified = invert(from_rotation_translation(RECTIFICATION, np.zeros(3)))
        Tr = (raw_from_rectified @ self.cam0_from_lidar)[:3]
        rows = [f"R_rect {number_row(RECTIFICATION)}", f"Tr_velo_cam {number_row(Tr)}"]
        rows.append(f"Tr_imu_velo {number_row(LIDAR_FROM_IMU[:3])}")
        return "\n".join([*projection_rows(self.cameras[0].K), *rows]) + "\n"


def _ahead(corners: Float[np.ndarray, "8 3"]) -> Float[np.ndarray, "n 3"]:
    """What bounds the part of a box that lies before z = NEAR (camera frame, m): its corners there, and where its edges
    cross that plane. Of a car beside the camera half the corners lie behind; those before alone end where it goes on.

    Args:
        corners: those that share an edge have numbers that differ in one bit.
    """
    found = list(corners[corners[:, 2] >= NEAR])
    for k, bit in ((k, bit) for k in range(8) for bit in (1, 2, 4)):
        one, other = corners[k], corners[k ^ bit]
        if one[2] < NEAR <= other[2]:
            found.append(one + (NEAR - one[2]) / (other[2] - one[2]) * (other - one))
    return np.array(found)


def geographic(offsets: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Latitude, longitude (degrees), altitude (m) of places east, north, up (m) of FIRST_PLACE, itself at zero.

    The inverse of `oxts.mercator` at the scale of FIRST_PLACE's latitude.
    """
    latitude, longitude, altitude = FIRST_PLACE
    scale = float(np.cos(np.deg2rad(latitude)))
    start = mercator(np.array([latitude]), np.array([longitude]), scale)
    east, north = ((start + offsets[:, :2]) / (scale * EARTH_RADIUS_M)).T
    latitudes = np.rad2deg(2 * np.arctan(np.exp(north)) - np.pi / 2)
    return np.stack([latitudes, np.rad2deg(east), altitude + offsets[:, 2]], axis=-1)


def _record_row(record: Float[np.ndarray, " 30"]) -> str:
    """One line of oxts; degrees to 1e-13 are 1e-8 m, angles to 1e-12 rad nothing at all."""
    place = " ".join(f"{v:.13f}" for v in record[:2])
    return f"{place} " + " ".join(f"{v:.12f}" for v in record[2:-5]) + " " + " ".join("0" for _ in record[-5:])
