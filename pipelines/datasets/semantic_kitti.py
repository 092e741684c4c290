"""Reads SemanticKITTI sequences (KITTI odometry images, poses and calibration, with SemanticKITTI's labels).

The ego frame is the velodyne's (x forward, y left, z up), the global frame the velodyne's at frame 0 of the sequence.
KITTI's calibration puts pixel centres on whole numbers; K is moved by half a pixel to centres at +0.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from geometry.grid import KITTI_GRID
from geometry.transforms import from_rotation_translation, invert
from pipelines.datasets import splits
from pipelines.datasets.files import check_increasing, checked_intrinsics, checked_pose, image_size, read_lidar_file
from pipelines.datasets.kitti_files import (
    calibration_row,
    grid_from,
    image_numbers,
    image_path,
    read_calibration_rows,
    read_rows,
    runs,
)
from pipelines.datasets.records import CameraImage, DataError, Frame, LidarSweep, Scene
from pipelines.datasets.semantic_kitti_truth import KITTI_CLASSES, SemanticKittiTruth
from pipelines.datasets.truth import MOVABLE_CLASSES

CHANNEL = "image_2"
"""The left colour camera, by the name of its folder."""


@dataclass(frozen=True)
class KittiCalibration:
    """`calib.txt`: K of camera 2 (centres at +0.5), its pose on the car, and camera 0 from the velodyne."""

    K: Float[np.ndarray, "3 3"]
    ego_from_cam: Float[np.ndarray, "4 4"]
    cam0_from_ego: Float[np.ndarray, "4 4"]


class SemanticKittiLog:
    """SemanticKITTI on disk (a `Log`): one scene per sequence folder.

    Args:
        root: folder that holds `sequences/` (or `dataset/sequences/`).
        scenes: names of the sequences wanted, all when None.
        keyframe_every: every how many frame numbers (10 Hz) a keyframe comes; the frames between become sweeps.
        unlabelled: what truth makes of voxels that hold something SemanticKITTI does not evaluate (outliers, other
            structures, other objects): the class "occupied", or "free" as the published completion benchmark does.
        z_origin: lower edge of the voxel grid in metres. The released files fit the scans at -2.2 (see
            geometry.grid.KITTI_GRID), although -2.0 is often quoted.

    Raises:
        DataError: no sequences folder, or a named sequence that is not there.
    """

    dataset = "semantic_kitti"
    cameras: Sequence[str] = (CHANNEL,)
    classes: Sequence[str] = MOVABLE_CLASSES
    occupancy_classes: Sequence[str] = KITTI_CLASSES

    def __init__(
        self,
        root: Path,
        scenes: Sequence[str] | None = None,
        keyframe_every: int = 1,
        unlabelled: Literal["occupied", "free"] = "occupied",
        z_origin: float = KITTI_GRID.lower[2],
    ) -> None:
        root = Path(root)
        self.root = root if (root / "sequences").is_dir() or not (root / "dataset").is_dir() else root / "dataset"
        if not (self.root / "sequences").is_dir():
            raise DataError(f"{root}: no folder 'sequences' (sequences/00/image_2, velodyne, calib.txt, poses.txt ...)")
        if keyframe_every < 1:
            raise DataError(f"keyframe_every is {keyframe_every}, expected 1 (every frame) or more")
        if unlabelled not in ("occupied", "free"):
            raise DataError(f"unlabelled is '{unlabelled}', expected 'occupied' or 'free'")
        self.notes: list[str] = []
        self.keyframe_every = keyframe_every
        self.unlabelled = unlabelled
        self.occupancy_grid = grid_from(z_origin)
        self._wanted = None if scenes is None else set(scenes)
        absent = sorted((self._wanted or set()) - set(self._present))
        if absent:
            raise DataError(f"{self.root / 'sequences'}: no sequence {', '.join(absent)} with calib.txt in it")

    @cached_property
    def _present(self) -> tuple[str, ...]:
        return tuple(sorted(p.parent.name for p in (self.root / "sequences").glob("*/calib.txt")))

    def scene_names(self, split: str | None = None) -> list[str]:
        """See Log. `splits.json` in the root, {"train": [...], "val": [...]}, replaces the official splits."""
        present = [name for name in self._present if self._wanted is None or name in self._wanted]
        if split is None:
            return present
        return splits.select(present, splits.own_splits(self.root) or splits.SEMANTIC_KITTI_SPLITS, split)

    def scene(self, name: str) -> Scene:
        """See Log. Frames that poses.txt counts but whose image is not here are left out, in one note.

        Raises:
            DataError: unknown sequence; calibration, poses or times that are missing, damaged, singular, not rigid or
                not increasing; no image at all.
        """
        folder = self.root / "sequences" / name
        if name not in self.scene_names():
            raise DataError(f"{folder}: no such sequence; here are {', '.join(self.scene_names()) or 'none'}")
        calibration = read_calibration(folder / "calib.txt")
        poses = read_rows(folder / "poses.txt", 12).reshape(-1, 3, 4)
        seconds = read_rows(folder / "times.txt", 1)[:, 0]
        if not np.isfinite(seconds).all():
            line = int(np.flatnonzero(~np.isfinite(seconds))[0]) + 1
            raise DataError(
                f"{folder / 'times.txt'}: line {line} is {seconds[line - 1]}, expected seconds; restore this file"
            )
        times = np.rint(seconds * 1e6).astype(np.int64)
        if len(times) < len(poses):
            raise DataError(f"{folder / 'times.txt'}: {len(times)} times for {len(poses)} poses; restore this file")
        check_increasing(str(folder / "times.txt"), [f"frame {i}" for i in range(len(times))], times)
        numbers = self._numbers(folder, name, len(poses))
        size = image_size(image_path(folder / CHANNEL, numbers[0]))
        frames = []
        for i in numbers:
            where = f"{folder / 'poses.txt'}: line {i + 1}"
            pose = checked_pose(where, from_rotation_translation(poses[i, :, :3], poses[i, :, 3]))
            frames.append(self._frame(folder, i, int(times[i]), pose, calibration, size))
        first = next((k for k, frame in enumerate(frames) if frame.is_keyframe), None)
        if first is None:
            raise DataError(f"{folder}: no keyframe here with keyframe_every {self.keyframe_every}; lower it")
        blind = sum(frame.lidar is None for frame in frames)
        if blind:
            self._note(f"{name}: no velodyne file at {blind} of {len(frames)} frames")
        return Scene(name, tuple(frames[first:]))

    def read_lidar(self, sweep: LidarSweep) -> Float[np.ndarray, "n 4"]:
        """See Log."""
        return read_lidar_file(sweep.path, columns=4)

    def truth(self, scene: str) -> SemanticKittiTruth | None:
        """Voxels of `sequences/<scene>/voxels`, and a synthetic log's exact truth in `truth/<scene>`."""
        voxels, exact = self.root / "sequences" / scene / "voxels", self.root / "truth" / scene
        if not (voxels.is_dir() or exact.is_dir()):
            return None
        return SemanticKittiTruth(voxels, exact, self.occupancy_grid.shape, self.unlabelled == "free")

    def truth_options(self, cue: str) -> dict[str, object]:
        """See Log."""
        if cue == "occupancy" and self.unlabelled != "occupied":
            return {"unlabelled": self.unlabelled}
        return {"keyframe_every": self.keyframe_every} if cue == "camera" and self.keyframe_every > 1 else {}

    def _numbers(self, folder: Path, name: str, count: int) -> list[int]:
        """Frame numbers that have both a pose and an image."""
        numbers = image_numbers(folder / CHANNEL)
        here = [i for i in numbers if i < count]
        if not here:
            raise DataError(f"{folder / 'image_2'}: no image of any of the {count} frames; unpack the colour images")
        if len(here) < count:
            missing = sorted(set(range(count)) - set(here))
            self._note(
                f"{name}: {len(missing)} of the {count} frames in poses.txt have no image: left out ({runs(missing)})"
            )
        if len(here) < len(numbers):
            self._note(f"{name}: {len(numbers) - len(here)} images lie beyond the {count} poses: left out")
        return here

    def _frame(
        self,
        folder: Path,
        number: int,
        timestamp_us: int,
        start_from_cam0: Float[np.ndarray, "4 4"],
        calibration: KittiCalibration,
        size: tuple[int, int],
    ) -> Frame:
        token = f"{number:06d}"
        global_from_ego = invert(calibration.cam0_from_ego) @ start_from_cam0 @ calibration.cam0_from_ego
        keyframe = number % self.keyframe_every == 0
        image = CameraImage(
            token=token,
            channel=CHANNEL,
            path=image_path(folder / CHANNEL, number),
            timestamp_us=timestamp_us,
            K=calibration.K,
            ego_from_cam=calibration.ego_from_cam,
            global_from_ego=global_from_ego,
            width=size[1],
            height=size[0],
            is_keyframe=keyframe,
        )
        scan = folder / "velodyne" / f"{token}.bin"
        lidar = LidarSweep(token, scan, timestamp_us, np.eye(4), global_from_ego) if scan.exists() else None
        return Frame(token, timestamp_us, keyframe, global_from_ego, {CHANNEL: image}, lidar)

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)


def read_calibration(path: Path) -> KittiCalibration:
    """`calib.txt`: P2 = K (I | t) projects from camera 0's rectified frame, Tr is camera 0 from the velodyne.

    Raises:
        DataError: missing file, missing or malformed P2 or Tr, singular K, an offset in P2 that is not finite, a
            Tr that is not rigid.
    """
    rows = read_calibration_rows(path)
    P2, Tr = (calibration_row(path, rows, (3, 4), key) for key in ("P2", "Tr"))
    K = checked_intrinsics(f"{path}: P2", P2[:, :3])
    cam0_from_ego = checked_pose(f"{path}: Tr", from_rotation_translation(Tr[:, :3], Tr[:, 3]))
    # The offset belongs to the K that P2 was built with, so it is taken before the half-pixel move.
    offset = np.linalg.solve(P2[:, :3], P2[:, 3])
    cam2_from_cam0 = checked_pose(f"{path}: P2", from_rotation_translation(np.eye(3), offset))
    return KittiCalibration(K, invert(cam2_from_cam0 @ cam0_from_ego), cam0_from_ego)
