"""Writes synthetic scenes as SemanticKITTI sequences: images, scans, poses, labels, voxels; exact truth beside them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt32

from geometry.transforms import invert
from pipelines.datasets.records import DataError
from pipelines.synth.capture import moving_actors
from pipelines.synth.config import SynthConfig
from pipelines.synth.files import write_bytes, write_json, write_npz
from pipelines.synth.kitti_classes import MOVING_OF_RAW, RAW_OF_CODE
from pipelines.synth.kitti_sequence import (
    VOXELS_EVERY,
    KittiSequence,
    kitti_settings,
    number_row,
    projection_rows,
)
from pipelines.synth.lidar import Turn
from pipelines.synth.rig import KITTI_INTERVAL_S

CAMERAS = ("image_2",)


def semantic_kitti_settings(config: SynthConfig) -> SynthConfig:
    """The settings with KITTI's sensors. Raises DataError for a camera that the layout does not have."""
    if "cameras" in config.model_fields_set and config.cameras != CAMERAS:
        raise DataError(f"cameras is {list(config.cameras)}; SemanticKITTI has {CAMERAS[0]!r} alone")
    return kitti_settings(config, CAMERAS)


@dataclass
class KittiScene(KittiSequence):
    """One sequence in SemanticKITTI's layout."""

    @property
    def name(self) -> str:
        """See KittiSequence."""
        return f"{self.index:02d}"

    @property
    def folder(self) -> Path:
        """The sequence's folder."""
        return self.root / "sequences" / self.name

    def file(self, kind: str, k: int, suffix: str) -> Path:
        """See KittiSequence."""
        return self.folder / kind / f"{k:06d}{suffix}"

    def table_rows(self) -> dict[str, Any]:
        """Write calibration, poses and times, after all jobs are done; the sequence's name for splits.json."""
        times = np.arange(self.config.keyframes) * KITTI_INTERVAL_S
        poses = "".join(number_row(pose[:3]) + "\n" for pose in self.camera_poses())
        write_bytes(self.folder / "times.txt", "".join(f"{t:.6e}\n" for t in times).encode())
        write_bytes(self.folder / "poses.txt", poses.encode())
        write_bytes(self.folder / "calib.txt", calibration_text(self.cameras[0].K, self.cam0_from_lidar).encode())
        return {"name": self.name}

    def camera_poses(self) -> list[Float[np.ndarray, "4 4"]]:
        """cam0 at frame 0 from cam0 at each frame: poses.txt."""
        lidar_from_cam0 = invert(self.cam0_from_lidar)
        poses = [self.world_from_lidar(self.seconds(k)) @ lidar_from_cam0 for k in range(self.config.keyframes)]
        return [invert(poses[0]) @ pose for pose in poses]

    def keep_scan(self, k: int, turn: Turn, kept: Bool[np.ndarray, " n"], points: Float32[np.ndarray, "m 4"]) -> None:
        """See KittiSequence: point labels, and every fifth frame voxels."""
        labels = self._point_labels(turn, self.seconds(k))[kept]
        write_bytes(self.file("labels", k, ".label"), labels.astype("<u4").tobytes())
        if k % VOXELS_EVERY == 0:
            self._voxels(k, points)

    def _point_labels(self, turn: Turn, t: float) -> UInt32[np.ndarray, " n"]:
        """Raw label in the lower 16 bits, object number in the upper ones."""
        moving = np.concatenate([[False], moving_actors(self.world, t)])
        numbers = np.maximum(turn.object, 0)
        raw = RAW_OF_CODE[turn.semantic]
        raw = np.where(moving[numbers], MOVING_OF_RAW[raw], raw)
        return raw.astype(np.uint32) | (numbers.astype(np.uint32) << 16)

    def _voxels(self, k: int, points: Float32[np.ndarray, "n 4"]) -> None:
        volume = self.volume(k, points)
        write_bytes(self.file("voxels", k, ".label"), volume.raw.astype("<u2").tobytes())
        for suffix, bits in ((".bin", volume.hit), (".occluded", ~volume.seen), (".invalid", ~volume.ever)):
            write_bytes(self.file("voxels", k, suffix), pack_bits(bits))
        write_npz(self.truth_folder(k) / "labels.npz", {"flow": volume.flow})


def pack_bits(voxels: Bool[np.ndarray, "x y z"]) -> bytes:
    """One bit a voxel, z running fastest, first voxel in the highest bit."""
    return np.packbits(voxels.reshape(-1)).tobytes()


def calibration_text(K: Float[np.ndarray, "3 3"], cam0_from_lidar: Float[np.ndarray, "4 4"]) -> str:
    """calib.txt: P0..P3 = K (I | t) from camera 0's frame, pixel centres on whole numbers; Tr = camera 0 from LiDAR."""
    return "\n".join([*projection_rows(K), f"Tr: {number_row(cam0_from_lidar[:3])}"]) + "\n"


def write_splits(root: Path, config: SynthConfig, scenes: list[dict[str, Any]]) -> None:
    """splits.json: the last sequences are for validation."""
    names = [scene["name"] for scene in scenes]
    validation = names[len(names) - config.validation_count :]
    write_json(root / "splits.json", {"train": [n for n in names if n not in validation], "val": validation})
