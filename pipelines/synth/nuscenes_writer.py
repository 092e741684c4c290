"""Writes synthetic scenes as a nuScenes v1.0 data set: samples, sweeps, tables, and exact truth beside them."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from geometry.grid import NUSCENES_GRID
from pipelines.datasets.records import DataError
from pipelines.synth.capture import Shot, Stand, exact_flow, moving_pixels, take_shot
from pipelines.synth.config import SynthConfig
from pipelines.synth.files import write_bytes, write_image, write_json, write_npz
from pipelines.synth.lidar import spin
from pipelines.synth.nuscenes_tables import Row, SceneTables, shared_tables
from pipelines.synth.occupancy import voxelise
from pipelines.synth.rig import (
    KEYFRAME_INTERVAL_S,
    NUSCENES_CAMERAS,
    SWEEPS_PER_KEYFRAME,
    Camera,
    nuscenes_camera,
    nuscenes_lidar,
)
from pipelines.synth.world import World

VERSION = "v1.0-synth"
FIRST_TIMESTAMP_US = 1_500_000_000_000_000
SCENE_GAP_US = 600_000_000
ANNOTATED_M = 60.0
"""Actors within this distance of the ego car get boxes."""

Job = Callable[[], None]


def check_cameras(cameras: tuple[str, ...]) -> None:
    """Raise DataError unless they are some of the rig's, each once."""
    if not cameras or len(set(cameras)) < len(cameras) or not set(cameras) <= set(NUSCENES_CAMERAS):
        raise DataError(f"cameras is {list(cameras)}; nuScenes' are {', '.join(NUSCENES_CAMERAS)}: some of them, once")


@dataclass
class NuScenesScene:
    """One scene's files as independent jobs, and its table rows once they are done.

    index: number of the scene in the log; it decides world, noise and times.
    """

    root: Path
    config: SynthConfig
    index: int
    world: World

    def __post_init__(self) -> None:
        self.cameras = tuple(nuscenes_camera(c, self.config.width, self.config.height) for c in self.config.cameras)
        self.lidar = nuscenes_lidar(self.config.lidar_beams, self.config.lidar_azimuths)
        self.start_us = FIRST_TIMESTAMP_US + self.index * SCENE_GAP_US
        self._returns: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def jobs(self) -> Iterator[tuple[Job, int]]:
        """Work that threads may do in any order, and how many images each piece of it writes."""
        for k in range(self.config.keyframes):
            yield (lambda k=k: self._keyframe_volume(k)), 0
            for number, camera in enumerate(self.cameras):
                yield (lambda k=k, n=number, c=camera: self._interval(k, n, c)), self._images_after(k)

    def _images_after(self, k: int) -> int:
        return SWEEPS_PER_KEYFRAME if k + 1 < self.config.keyframes else 1

    def _stamp(self, frame: int) -> int:
        """Microseconds of 12 Hz tick `frame`."""
        return self.start_us + round(frame * KEYFRAME_INTERVAL_S / SWEEPS_PER_KEYFRAME * 1e6)

    def _seconds(self, stamp_us: int) -> float:
        return (stamp_us - self.start_us) / 1e6

    def _pose(self, stamp_us: int) -> Float[np.ndarray, "4 4"]:
        return self.world.global_from_world @ self.world.world_from_ego(self._seconds(stamp_us))

    def _filename(self, kind: str, channel: str, stamp_us: int) -> str:
        end = "pcd.bin" if channel == self.lidar.channel else "jpg"
        return f"{kind}/{channel}/{self.world.name}__{channel}__{stamp_us}.{end}"

    def _shoot(self, number: int, camera: Camera, frame: int) -> Shot:
        stamp = self._stamp(frame) + camera.offset_us
        seed = int(np.random.SeedSequence([self.config.seed, self.index, 1, number, frame]).generate_state(1)[0])
        return take_shot(self.world, camera, number, self._seconds(stamp), self.config.level.noise, seed)

    def _interval(self, k: int, number: int, camera: Camera) -> None:
        """The images of one camera from keyframe `k` up to the next, and the truth at `k`."""
        first = None
        for s in range(self._images_after(k)):
            frame = k * SWEEPS_PER_KEYFRAME + s
            shot = self._shoot(number, camera, frame)
            first = first or shot
            name = self._filename("sweeps" if s else "samples", camera.channel, self._stamp(frame) + camera.offset_us)
            write_image(self.root / name, shot.rgb, self.config.jpeg_quality)
        if self.config.truth and first is not None:
            self._camera_truth(k, camera, first)

    def _camera_truth(self, k: int, camera: Camera, shot: Shot) -> None:
        truth = {
            "depth": shot.depth.astype(np.float32),
            "instance": shot.instance,
            "moving": moving_pixels(self.world, shot),
        }
        if k + 1 < self.config.keyframes:
            then = self._seconds(self._stamp((k + 1) * SWEEPS_PER_KEYFRAME) + camera.offset_us)
            truth["flow_next"] = exact_flow(self.world, shot, Stand.at(self.world, camera, then))
        write_npz(self._truth_folder(k) / f"{camera.channel}.npz", truth)

    def _truth_folder(self, k: int) -> Path:
        return self.root / "truth" / self.world.name / self._tables().sample_token(k)

    def _keyframe_volume(self, k: int) -> None:
        """LiDAR and occupancy at keyframe `k`."""
        stamp, level = self._stamp(k * SWEEPS_PER_KEYFRAME), self.config.level
        t = self._seconds(stamp)
        seed = int(np.random.SeedSequence([self.config.seed, self.index, 2, k]).generate_state(1)[0])
        turn = spin(self.world, self.lidar, t, level.lidar_noise_m, level.lidar_dropout, seed)
        cloud = np.concatenate([turn.points, turn.ring[:, None].astype(np.float32)], axis=1)
        write_bytes(self.root / self._filename("samples", self.lidar.channel, stamp), cloud.astype("<f4").tobytes())
        with self._lock:
            numbers = np.maximum(turn.object, 0)
            self._returns[k] = np.bincount(numbers, minlength=len(self.world.actors) + 1)
        if self.config.truth:
            semantics, flow = voxelise(self.world, t, self.world.world_from_ego(t), NUSCENES_GRID)
            write_npz(self._truth_folder(k) / "labels.npz", {"semantics": semantics, "flow": flow})

    def _tables(self) -> SceneTables:
        description = f"{self.world.manoeuvre}, {self.config.preset}, synthetic"
        return SceneTables(self.world, description, _log_name(self.config))

    def table_rows(self) -> dict[str, list[Row]]:
        """Rows of every table, after all jobs are done."""
        tables = self._tables()
        keyframes = self.config.keyframes
        for k in range(keyframes):
            tables.sample(k, self._stamp(k * SWEEPS_PER_KEYFRAME))
        for frame in range((keyframes - 1) * SWEEPS_PER_KEYFRAME + 1):
            k, s = divmod(frame, SWEEPS_PER_KEYFRAME)
            kind = "sweeps" if s else "samples"
            for camera in self.cameras:
                stamp = self._stamp(frame) + camera.offset_us
                name = self._filename(kind, camera.channel, stamp)
                size = (camera.height, camera.width)
                tables.data(camera.channel, k + bool(s), stamp, self._pose(stamp), name, size, s == 0)
            if s == 0:
                stamp = self._stamp(frame)
                name = self._filename("samples", self.lidar.channel, stamp)
                tables.data(self.lidar.channel, k, stamp, self._pose(stamp), name, (0, 0), True)
                poses = self.world.actor_poses(self._seconds(stamp))
                tables.annotations(k, poses, self._returns[k], ANNOTATED_M)
        return tables.finish()


def _log_name(config: SynthConfig) -> str:
    return f"synthetic-{config.preset}-{config.seed}"


def write_tables(root: Path, config: SynthConfig, scenes: list[dict[str, list[Row]]]) -> None:
    """All tables of the log, its splits.json and the map image that nuscenes-devkit wants to find."""
    cameras = tuple(nuscenes_camera(c, config.width, config.height) for c in config.cameras)
    lidar = nuscenes_lidar(config.lidar_beams, config.lidar_azimuths)
    names = [rows["scene"][0]["name"] for rows in scenes]
    tables: dict[str, Any] = shared_tables(_log_name(config), cameras, lidar, names)
    for name in ("scene", "sample", "sample_data", "ego_pose", "instance", "sample_annotation"):
        tables[name] = [row for rows in scenes for row in rows[name]]
    write_image(root / "maps" / "synthetic.png", np.zeros((8, 8, 3), np.uint8), 0)
    validation = names[len(names) - config.validation_count :]
    write_json(root / "splits.json", {"train": [n for n in names if n not in validation], "val": validation})
    for name, rows in tables.items():
        write_json(root / VERSION / f"{name}.json", rows)
