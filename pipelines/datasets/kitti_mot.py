"""Reads KITTI tracking sequences (KITTI-MOT): images, scans, calibration, GPS/IMU poses and labels of tracked objects.

The ego frame is the velodyne's (x forward, y left, z up), the global frame the velodyne's at frame 0 of the sequence.
KITTI's calibration puts pixel centres on whole numbers; K is moved by half a pixel to centres at +0.5.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from geometry.grid import KITTI_GRID
from geometry.transforms import invert
from pipelines.datasets import splits
from pipelines.datasets.files import image_size, read_lidar_file
from pipelines.datasets.kitti_files import grid_from, image_numbers, image_path, runs
from pipelines.datasets.kitti_mot_calibration import CAMERAS, KittiMotCalibration, read_kitti_mot_calibration
from pipelines.datasets.kitti_mot_labels import TrackedBox, labelled_boxes, read_tracks
from pipelines.datasets.kitti_mot_truth import KittiMotTruth
from pipelines.datasets.oxts import check_steps, oxts_interval, oxts_poses, read_oxts
from pipelines.datasets.records import CameraImage, DataError, Frame, LabelledBox, LidarSweep, Scene
from pipelines.datasets.semantic_kitti_truth import KITTI_CLASSES
from pipelines.datasets.truth import MOVABLE_CLASSES

PARTS = ("training", "testing")
NO_POSES = "no_poses"
"""Tag of a scene without GPS/IMU records, whose poses all say that the car stands still."""
BASELINE_TAG = "stereo_baseline_m="
"""Start of the tag that holds the distance between the colour cameras, for disparities."""
FRAME_INTERVAL_S = 0.1037
"""Sequences carry no times; the odometry sequences of the same car and sensors have one scan in 0.1037 to 0.1041 s."""
_INTERVAL_TOLERANCE = 0.03


class KittiMotLog:
    """KITTI tracking on disk (a `Log`): scene `training_0003` is sequence 0003 of the training part.

    Args:
        root: folder that holds `training/`, `testing/` or both, each with `image_02/NNNN/`, `calib/NNNN.txt` and,
            where unpacked, `image_03`, `velodyne`, `oxts`, `label_02`.
        scenes: names of the scenes wanted, all when None.
        cameras: `image_02` (left), `image_03` (right) or both, in the store's order.
        keyframe_every: every how many frame numbers a keyframe comes; the frames between become sweeps.
        frame_interval_s: time between two frame numbers, of which the data set holds no record.
        z_origin: lower edge of the voxel grid in metres (see geometry.grid.KITTI_GRID).

    Raises:
        DataError: no such folder, an unknown camera, or a named scene that is not there.
    """

    dataset = "kitti_mot"
    classes: Sequence[str] = MOVABLE_CLASSES
    occupancy_classes: Sequence[str] = KITTI_CLASSES

    def __init__(
        self,
        root: Path,
        scenes: Sequence[str] | None = None,
        cameras: Sequence[str] = ("image_02",),
        keyframe_every: int = 1,
        frame_interval_s: float = FRAME_INTERVAL_S,
        z_origin: float = KITTI_GRID.lower[2],
    ) -> None:
        self.root = Path(root)
        if not any((self.root / part).is_dir() for part in PARTS):
            raise DataError(
                f"{root}: no folder 'training' or 'testing' (training/image_02/0000, calib, velodyne, oxts ...)"
            )
        if not cameras or len(set(cameras)) < len(cameras) or not set(cameras) <= set(CAMERAS):
            raise DataError(f"cameras is {list(cameras)}, expected one or both of {', '.join(CAMERAS)}")
        if keyframe_every < 1:
            raise DataError(f"keyframe_every is {keyframe_every}, expected 1 (every frame) or more")
        if not 0 < frame_interval_s < 10:
            raise DataError(f"frame_interval_s is {frame_interval_s}, expected seconds such as {FRAME_INTERVAL_S}")
        self.cameras: Sequence[str] = tuple(cameras)
        self.keyframe_every, self.frame_interval_s = keyframe_every, frame_interval_s
        self.notes: list[str] = []
        self.occupancy_grid = grid_from(z_origin)
        self._wanted = None if scenes is None else set(scenes)
        absent = sorted((self._wanted or set()) - set(self._present))
        if absent:
            raise DataError(f"{self.root}: no sequence {', '.join(absent)} with images and calib here")

    @cached_property
    def _present(self) -> tuple[str, ...]:
        names = []
        for part in PARTS:
            folders = {p.name for c in self.cameras for p in (self.root / part / c).glob("*") if p.is_dir()}
            calibrated = {p.stem for p in (self.root / part / "calib").glob("*.txt")}
            names += [f"{part}_{number}" for number in sorted(folders & calibrated)]
            if folders - calibrated:
                lacking = ", ".join(sorted(folders - calibrated)[:4])
                self._note(
                    f"{part}: {len(folders - calibrated)} sequences have no calib/NNNN.txt: left out ({lacking})"
                )
        return tuple(names)

    def scene_names(self, split: str | None = None) -> list[str]:
        """See Log. `splits.json` in the root, {"train": [...], "val": [...]}, replaces the paper's split.

        A split leaves out sequences without GPS/IMU records: motion cannot be learnt or measured without poses. `all`,
        as no split, is everything that is here, them too.
        """
        present = [name for name in self._present if self._wanted is None or name in self._wanted]
        if split in (None, "all"):
            return present
        named = splits.select(present, splits.own_splits(self.root) or splits.KITTI_MOT_SPLITS, split)
        blind = [name for name in named if not self._file(name, "oxts").exists()]
        if blind:
            some = ", ".join(blind[:4]) + (" ..." if len(blind) > 4 else "")
            self._note(f"split {split}: {len(blind)} of {len(named)} sequences have no oxts: left out ({some})")
        return [name for name in named if name not in blind]

    def scene(self, name: str) -> Scene:
        """See Log. Frames without an image are left out, in one note; so is told what else the sequence lacks.

        Tags: the part (training, testing), `stereo_baseline_m=...` where both cameras are calibrated, `no_poses`.

        Raises:
            DataError: unknown scene; calibration or GPS/IMU records that are damaged, singular, not finite or fewer
                than the images; no image at all.
        """
        if name not in self.scene_names():
            raise DataError(f"{self.root}: no scene {name}; here are {', '.join(self.scene_names()) or 'none'}")
        calibration = self._calibration(name)
        numbers = {c: image_numbers(self._file(name, c)) for c in self.cameras if c in calibration.K}
        if not numbers:
            raise DataError(f"{self._file(name, 'calib')}: no row P3, which calibrates image_03; restore this file")
        seen = sorted(set().union(*numbers.values()))
        if not seen:
            raise DataError(f"{self._file(name, self.cameras[0])}: no image (NNNNNN.png); unpack the colour images")
        poses = self._poses(name, calibration, seen[-1] + 1)
        sizes = {c: image_size(image_path(self._file(name, c), n[0])) for c, n in numbers.items() if n}
        here = {c: set(n) for c, n in numbers.items()}
        frames = tuple(
            self._frame(name, i, poses[i], calibration, {c: hw for c, hw in sizes.items() if i in here[c]})
            for i in seen
        )
        first = next((k for k, frame in enumerate(frames) if frame.is_keyframe), None)
        if first is None:
            raise DataError(f"{self.root}: {name} has no keyframe with keyframe_every {self.keyframe_every}; lower it")
        self._note_lacks(name, seen, frames, numbers)
        tags = [name.partition("_")[0]]
        if calibration.stereo_baseline_m is not None:
            tags.append(f"{BASELINE_TAG}{calibration.stereo_baseline_m:.4f}")
        if not self._file(name, "oxts").exists():
            tags.append(NO_POSES)
        return Scene(name, frames[first:], tuple(tags))

    def read_lidar(self, sweep: LidarSweep) -> Float[np.ndarray, "n 4"]:
        """See Log."""
        return read_lidar_file(sweep.path, columns=4)

    def truth(self, scene: str) -> KittiMotTruth | None:
        """Boxes of `label_02`, unless poses to take velocities by are missing, and a synthetic log's exact truth in
        `truth/<scene>`; KITTI has none of occupancy or flow for these sequences."""
        exact = self.root / "truth" / scene
        labelled = self._file(scene, "label_02").exists() and self._file(scene, "oxts").exists()
        if not labelled and not exact.is_dir():
            return None
        return KittiMotTruth(
            exact if exact.is_dir() else None,
            self.occupancy_grid.shape,
            partial(self._labelled, scene) if labelled else None,
        )

    def truth_options(self, cue: str) -> dict[str, object]:
        """See Log."""
        return {"keyframe_every": self.keyframe_every} if cue == "camera" and self.keyframe_every > 1 else {}

    def _labelled(self, scene: str) -> dict[int, list[LabelledBox]]:
        return labelled_boxes(self.tracks(scene) or [], {int(f.token): f for f in self.scene(scene).frames})

    def tracks(self, scene: str) -> list[TrackedBox] | None:
        """Labelled boxes of a scene in the ego frame (see kitti_mot_labels), None where it has no labels on disk."""
        path = self._file(scene, "label_02")
        return read_tracks(path, self._calibration(scene).cam0_from_ego) if path.exists() else None

    def stereo_baseline(self, scene: str) -> float | None:
        """Metres between the two colour cameras of a scene: disparity = focal length (px) * baseline / depth."""
        return self._calibration(scene).stereo_baseline_m

    def _calibration(self, name: str) -> KittiMotCalibration:
        return read_kitti_mot_calibration(self._file(name, "calib"))

    def _file(self, name: str, kind: str) -> Path:
        """The table of a sequence, or its folder of images or scans."""
        part, _, number = name.partition("_")
        path = self.root / part / kind / number
        return path if kind in CAMERAS or kind == "velodyne" else path.with_suffix(".txt")

    def _poses(self, name: str, calibration: KittiMotCalibration, count: int) -> Float[np.ndarray, "n 4 4"]:
        """global_from_ego of frame numbers 0 to `count` - 1; all alike where there are no GPS/IMU records."""
        path = self._file(name, "oxts")
        if not path.exists():
            return np.tile(np.eye(4), (count, 1, 1))
        rows = read_oxts(path)
        if len(rows) < count:
            raise DataError(f"{path}: {len(rows)} records, but the images run to frame {count - 1}; restore this file")
        if len(rows) > count:
            self._note(f"{name}: oxts has {len(rows)} records, and the images end at frame {count - 1}")
        if calibration.ego_from_imu is None:
            raise DataError(f"{self._file(name, 'calib')}: no row 'Tr_imu_velo', without which oxts/ gives no poses")
        check_steps(path, rows, self.frame_interval_s)
        found = oxts_interval(rows)
        if found is not None and abs(found / self.frame_interval_s - 1) > _INTERVAL_TOLERANCE:
            self._note(
                f"{name}: speeds in oxts fit {found:.4f} s between frames, taken are {self.frame_interval_s} s "
                "(option frame_interval_s)"
            )
        return calibration.ego_from_imu @ oxts_poses(rows) @ invert(calibration.ego_from_imu)

    def _frame(
        self,
        name: str,
        number: int,
        global_from_ego: Float[np.ndarray, "4 4"],
        calibration: KittiMotCalibration,
        sizes: dict[str, tuple[int, int]],
    ) -> Frame:
        token = f"{number:06d}"
        timestamp_us = round(number * self.frame_interval_s * 1e6)
        keyframe = number % self.keyframe_every == 0
        images = {
            channel: CameraImage(
                token=token,
                channel=channel,
                path=image_path(self._file(name, channel), number),
                timestamp_us=timestamp_us,
                K=calibration.K[channel],
                ego_from_cam=calibration.ego_from_cam[channel],
                global_from_ego=global_from_ego,
                width=width,
                height=height,
                is_keyframe=keyframe,
            )
            for channel, (height, width) in sizes.items()
        }
        scan = self._file(name, "velodyne") / f"{token}.bin"
        lidar = LidarSweep(token, scan, timestamp_us, np.eye(4), global_from_ego) if scan.exists() else None
        return Frame(token, timestamp_us, keyframe, global_from_ego, images, lidar)

    def _note_lacks(self, name: str, seen: list[int], frames: Sequence[Frame], numbers: dict[str, list[int]]) -> None:
        """One line for whole kinds of data that a sequence lacks, and one for each kind of gap."""
        lacks = []
        if not self._file(name, "oxts").exists():
            lacks.append("no oxts (the car is taken to stand still: only what looks at one frame alone is right)")
        if name.startswith("training") and not self._file(name, "label_02").exists():
            lacks.append("no label_02 (no boxes of tracked objects)")
        blind = [int(frame.token) for frame in frames if frame.lidar is None]
        if len(blind) == len(frames):
            lacks.append("no velodyne")
        lacks += [f"no calibration of {c}" for c in self.cameras if c not in numbers]
        lacks += [f"no {c}" for c, found in numbers.items() if not found]
        if lacks:
            self._note(f"{name}: {'; '.join(lacks)}")
        if 0 < len(blind) < len(frames):
            self._note(f"{name}: no velodyne file at {len(blind)} of {len(frames)} frames ({runs(blind)})")
        missing = sorted(set(range(seen[-1] + 1)) - set(seen))
        if missing:
            self._note(
                f"{name}: {len(missing)} of the first {seen[-1] + 1} frames have no image: left out ({runs(missing)})"
            )
        for channel, found in numbers.items():
            gaps = sorted(set(seen) - set(found))
            if found and gaps:
                self._note(f"{name}: {channel} is missing at {len(gaps)} of {len(seen)} frames ({runs(gaps)})")

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)
