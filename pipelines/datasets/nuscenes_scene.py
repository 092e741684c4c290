"""Assembles the frames of one nuScenes scene from the index of its tables, and checks them on the way."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from geometry.transforms import from_quaternion
from pipelines.datasets.files import check_increasing, checked_intrinsics, checked_pose, image_size
from pipelines.datasets.nuscenes_index import LIDAR_CHANNEL, NuScenesIndex
from pipelines.datasets.records import CameraImage, DataError, Frame, LidarSweep, Scene


class SceneBuilder:
    """Builds scene number `number` of `index`; `notes` then holds a line per kind of thing that is missing."""

    def __init__(self, root: Path, tables: Path, index: NuScenesIndex, number: int, cameras: Sequence[str]) -> None:
        self.root, self.tables, self.index, self.number, self.cameras = root, tables, index, number, cameras
        self.row = index.scenes[number]
        self.name = self.row.name
        self.notes: list[str] = []
        self.channels = [c.channel for c in index.calibrations]
        self._calibrated: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}

    def build(self) -> Scene:
        """Frames in time order. Raises DataError as NuScenesLog.scene says."""
        index = self.index
        keyframes: dict[int, list[int]] = {}
        sweeps: list[int] = []
        for row in index.rows(self.number):
            if index.is_keyframe[row]:
                keyframes.setdefault(int(index.sample[row]), []).append(row)
            else:
                sweeps.append(row)
        numbers = [i for i, scene in enumerate(index.samples.scene) if scene == self.number]
        numbers.sort(key=lambda i: index.samples.timestamp[i])
        self._check_order(numbers)
        if not keyframes:
            raise DataError(f"{self._table('sample_data')}: no keyframe of {self.name}; leave this scene out")
        without = [i for i in numbers if i not in keyframes]
        if without:
            self.notes.append(f"{self.name}: {len(without)} of {len(numbers)} samples have no sample_data: left out")
        keys = [self._keyframe(i, keyframes[i]) for i in numbers if i in keyframes]
        check_increasing(f"{self.name} in {self._table('sample_data')}", *_times(keys))
        for channel in self.cameras:
            images = [f.images[channel] for f in keys if channel in f.images]
            check_increasing(f"{self.name}, {channel}, in {self._table('sample_data')}", *_times(images))
        self._note_gaps(keys)
        gaps = self._sweep_frames(keys, sweeps)
        frames = tuple(itertools.chain.from_iterable((key, *gap) for key, gap in zip(keys, gaps, strict=True)))
        tags = tuple(part.strip() for part in self.row.description.split(",") if part.strip())
        return Scene(self.name, frames, tags)

    def _check_order(self, numbers: list[int]) -> None:
        """Where `next` is filled in it must agree with the timestamps."""
        samples = self.index.samples
        position = {samples.token[i]: k for k, i in enumerate(numbers)}
        for i in numbers:
            after = samples.next_token[i]
            if after in position and position[after] <= position[samples.token[i]]:
                other = numbers[position[after]]
                raise DataError(
                    f"{self._table('sample')}: timestamps must increase along the scene, but sample {samples.token[i]} "
                    f"({samples.timestamp[i]} us) has as its next {after} ({samples.timestamp[other]} us); "
                    "repair the timestamp or leave the scene out"
                )

    def _keyframe(self, sample: int, rows: list[int]) -> Frame:
        index = self.index
        images: dict[str, CameraImage] = {}
        lidar = None
        for row in rows:
            if self.channels[index.calibration[row]] == LIDAR_CHANNEL:
                lidar = self._lidar(row)
            else:
                image = self._image(row)
                images[image.channel] = image
        images = {channel: images[channel] for channel in self.cameras if channel in images}
        reference = lidar or next(iter(images.values()))
        return Frame(
            token=index.samples.token[sample],
            timestamp_us=reference.timestamp_us,
            is_keyframe=True,
            global_from_ego=reference.global_from_ego,
            images=images,
            lidar=lidar,
        )

    def _note_gaps(self, keys: list[Frame]) -> None:
        for channel in self.cameras:
            lacking = sum(channel not in f.images for f in keys)
            if lacking:
                self.notes.append(f"{self.name}: {channel} is missing at {lacking} of {len(keys)} keyframes")
        blind = sum(f.lidar is None for f in keys)
        if blind:
            self.notes.append(
                f"{self.name}: no LiDAR at {blind} of {len(keys)} keyframes; "
                "they take time and pose from their first camera"
            )
        listed = self.row.listed_samples
        if len(keys) < listed:
            self.notes.append(f"{self.name}: {len(keys)} of the {listed} keyframes that scene.json counts are here")
        if len(keys) == 1:
            self.notes.append(f"{self.name}: a single keyframe: nothing that needs a neighbour frame can be made")

    def _sweep_frames(self, keys: list[Frame], rows: list[int]) -> list[list[Frame]]:
        """For each keyframe the frames up to the next one: the k-th holds the k-th image of each camera."""
        starts = {
            channel: np.array([f.images[channel].timestamp_us if channel in f.images else f.timestamp_us for f in keys])
            for channel in self.cameras
        }
        gaps: list[dict[str, list[CameraImage]]] = [{} for _ in keys]
        no_file = no_pose = 0
        for row in rows:  # in time order
            channel = self.channels[self.index.calibration[row]]
            gap = int(np.searchsorted(starts[channel], self.index.timestamp[row], side="right")) - 1
            if gap < 0:
                continue
            if np.isnan(self.index.pose[row, 0]):
                no_pose += 1
            elif not self._path(row).exists():
                no_file += 1
            else:
                gaps[gap].setdefault(channel, []).append(self._image(row))
        if no_file:
            self.notes.append(f"{self.name}: {no_file} of {len(rows)} sweep images listed have no file: left out")
        if no_pose:
            self.notes.append(f"{self.name}: {no_pose} of {len(rows)} sweep images have no ego pose: left out")
        if not rows and self.index.has_sweeps:
            self.notes.append(f"{self.name}: no camera sweeps between keyframes")
        return [self._rounds(gap) for gap in gaps]

    def _rounds(self, gap: dict[str, list[CameraImage]]) -> list[Frame]:
        out = []
        for k in range(max((len(images) for images in gap.values()), default=0)):
            images = {c: gap[c][k] for c in self.cameras if len(gap.get(c, ())) > k}
            first = next(iter(images.values()))
            out.append(Frame(first.token, first.timestamp_us, False, first.global_from_ego, images))
        return out

    def _image(self, row: int) -> CameraImage:
        index = self.index
        ego_from_cam, K = self._calibration(int(index.calibration[row]))
        assert K is not None
        path = self._path(row)
        height, width = (int(n) for n in index.size[row])
        if height <= 0 or width <= 0:
            height, width = image_size(path)
        return CameraImage(
            token=index.token[row].decode(),
            channel=self.channels[index.calibration[row]],
            path=path,
            timestamp_us=int(index.timestamp[row]),
            K=K,
            ego_from_cam=ego_from_cam,
            global_from_ego=self._pose(row),
            width=width,
            height=height,
            is_keyframe=bool(index.is_keyframe[row]),
        )

    def _lidar(self, row: int) -> LidarSweep:
        index = self.index
        return LidarSweep(
            token=index.token[row].decode(),
            path=self._path(row),
            timestamp_us=int(index.timestamp[row]),
            ego_from_lidar=self._calibration(int(index.calibration[row]))[0],
            global_from_ego=self._pose(row),
        )

    def _calibration(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """ego_from_sensor, and K for a camera."""
        if number not in self._calibrated:
            c = self.index.calibrations[number]
            where = f"{self._table('calibrated_sensor')}: row {c.token} ({c.channel})"
            K = None if c.channel == LIDAR_CHANNEL else checked_intrinsics(where, c.intrinsics)
            self._calibrated[number] = _transform(where, c.quaternion, c.translation), K
        return self._calibrated[number]

    def _pose(self, row: int) -> Float[np.ndarray, "4 4"]:
        pose, token = self.index.pose[row], self.index.token[row].decode()
        if np.isnan(pose).any():
            raise DataError(
                f"{self._table('ego_pose')}: no usable pose for sample_data {token} "
                f"({self.index.filename[row].decode()}): {pose.tolist()}; restore the row or leave the scene out"
            )
        return _transform(f"{self._table('ego_pose')}: pose of sample_data {token}", pose[:4], pose[4:])

    def _path(self, row: int) -> Path:
        return self.root / self.index.filename[row].decode()

    def _table(self, name: str) -> Path:
        return self.tables / f"{name}.json"


def _transform(where: str, quaternion: Sequence[float], translation: Sequence[float]) -> Float[np.ndarray, "4 4"]:
    try:
        transform = from_quaternion(quaternion, translation)
    except ValueError as error:
        raise DataError(f"{where}: {error}; repair this row or leave the scene out") from error
    return checked_pose(where, transform)


def _times(records: Sequence[Frame] | Sequence[CameraImage]) -> tuple[list[str], list[int]]:
    return [r.token for r in records], [r.timestamp_us for r in records]
