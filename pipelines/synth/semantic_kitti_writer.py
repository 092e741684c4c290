"""Writes synthetic scenes as SemanticKITTI sequences: images, scans, poses, labels, voxels; exact truth beside them."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt32

from geometry.grid import KITTI_GRID
from geometry.transforms import from_rotation_translation, invert
from pipelines.synth.capture import MOVING_SPEED, Shot, Stand, exact_flow, moving_actors, moving_pixels, take_shot
from pipelines.synth.config import SynthConfig
from pipelines.synth.files import write_bytes, write_image, write_json, write_npz
from pipelines.synth.kitti_classes import MOVING_OF_RAW, RAW_OF_CODE, coded
from pipelines.synth.lidar import OWN_CAR, Turn, spin
from pipelines.synth.occupancy import voxelise
from pipelines.synth.rig import KITTI_INTERVAL_S, kitti_camera, kitti_lidar
from pipelines.synth.visibility import seen_voxels
from pipelines.synth.world import World, build_world

VOXELS_EVERY = 5
"""Frames from one completed voxel grid to the next, as in the published data."""
LOOKS_AHEAD_S = (0.0, 1.0, 2.0)
"""A voxel is invalid that the sensor sees from none of its places so many seconds later."""

Job = Callable[[], None]


def kitti_settings(config: SynthConfig) -> SynthConfig:
    """The settings with KITTI's sensors where they were left at their defaults: 416 x 128 pixels, 64 beams."""
    given = config.model_fields_set
    width = config.width if "width" in given else 416
    height = config.height if "height" in given else (128 if width == 416 else round(width * 376 / 1241))
    beams = config.lidar_beams if "lidar_beams" in given else 64
    return config.model_copy(update={"width": width, "height": height, "lidar_beams": beams, "cameras": ("image_2",)})


@dataclass
class KittiScene:
    """One sequence's files as independent jobs; `table_rows` writes what makes a reader see the sequence.

    index: number of the sequence in the log; it decides world and noise. Every frame is a keyframe.
    """

    root: Path
    config: SynthConfig
    index: int

    def __post_init__(self) -> None:
        self.world: World = build_world(self.config, self.index, (self.config.keyframes - 1) * KITTI_INTERVAL_S)
        self.camera = kitti_camera(self.config.width, self.config.height)
        self.lidar = kitti_lidar(self.config.lidar_beams, self.config.lidar_azimuths)
        self.name = f"{self.index:02d}"
        self.folder = self.root / "sequences" / self.name
        self._lock = threading.Lock()

    def jobs(self) -> Iterator[tuple[Job, int]]:
        """Work that threads may do in any order, and how many images each piece of it writes."""
        for k in range(self.config.keyframes):
            yield (lambda k=k: self._image(k)), 1
            yield (lambda k=k: self._scan(k)), 0

    def table_rows(self) -> dict[str, Any]:
        """Write calibration, poses and times, after all jobs are done; the sequence's name for splits.json."""
        times = np.arange(self.config.keyframes) * KITTI_INTERVAL_S
        write_bytes(self.folder / "times.txt", "".join(f"{t:.6e}\n" for t in times).encode())
        write_bytes(self.folder / "poses.txt", "".join(_row(pose[:3]) + "\n" for pose in self.camera_poses()).encode())
        write_bytes(self.folder / "calib.txt", calibration_text(self.camera.K, self._cam0_from_lidar).encode())
        return {"name": self.name}

    def camera_poses(self) -> list[Float[np.ndarray, "4 4"]]:
        """cam0 at frame 0 from cam0 at each frame: poses.txt."""
        lidar_from_cam0 = invert(self._cam0_from_lidar)
        poses = [self._world_from_lidar(self._seconds(k)) @ lidar_from_cam0 for k in range(self.config.keyframes)]
        return [invert(poses[0]) @ pose for pose in poses]

    @cached_property
    def _coded(self) -> World:
        return coded(self.world)

    @property
    def _cam0_from_lidar(self) -> Float[np.ndarray, "4 4"]:
        lidar_from_cam = invert(self.lidar.ego_from_lidar) @ self.camera.ego_from_cam
        return CAM0_FROM_CAM2 @ invert(lidar_from_cam)

    def _seconds(self, k: int) -> float:
        return k * KITTI_INTERVAL_S

    def _world_from_lidar(self, t: float) -> Float[np.ndarray, "4 4"]:
        return self.world.world_from_ego(t) @ self.lidar.ego_from_lidar

    def _seed(self, kind: int, k: int) -> int:
        return int(np.random.SeedSequence([self.config.seed, self.index, kind, k]).generate_state(1)[0])

    def _image(self, k: int) -> None:
        t = self._seconds(k)
        shot = take_shot(self.world, self.camera, 0, t, self.config.level.noise, self._seed(3, k))
        write_image(self.folder / "image_2" / f"{k:06d}.png", shot.rgb, 0)
        if self.config.truth:
            self._camera_truth(k, shot)

    def _camera_truth(self, k: int, shot: Shot) -> None:
        truth = {
            "depth": shot.depth.astype(np.float32),
            "instance": shot.instance,
            "moving": moving_pixels(self.world, shot),
        }
        if k + 1 < self.config.keyframes:
            then = Stand.at(self.world, self.camera, self._seconds(k + 1))
            truth["flow_next"] = exact_flow(self.world, shot, then)
        write_npz(self._truth_folder(k) / f"{self.camera.channel}.npz", truth)

    def _truth_folder(self, k: int) -> Path:
        return self.root / "truth" / self.name / f"{k:06d}"

    def _scan(self, k: int) -> None:
        t, level = self._seconds(k), self.config.level
        turn = spin(self._coded, self.lidar, t, level.lidar_noise_m, level.lidar_dropout, self._seed(4, k))
        kept = turn.object != OWN_CAR
        points = turn.points[kept] * np.array([1, 1, 1, 1 / 255], np.float32)
        write_bytes(self.folder / "velodyne" / f"{k:06d}.bin", points.astype("<f4").tobytes())
        if self.config.truth:
            labels = self._point_labels(turn, t)[kept]
            write_bytes(self.folder / "labels" / f"{k:06d}.label", labels.astype("<u4").tobytes())
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
        t = self._seconds(k)
        pose = self._world_from_lidar(t)
        semantics, flow = voxelise(self._coded, t, pose, KITTI_GRID, KITTI_INTERVAL_S)
        raw = RAW_OF_CODE[semantics]
        moving = np.linalg.norm(flow, axis=-1) >= MOVING_SPEED
        raw = np.where(moving, MOVING_OF_RAW[raw], raw).astype("<u2")
        hit = np.zeros(KITTI_GRID.shape, np.bool_)
        inside = KITTI_GRID.contains(points[:, :3].astype(np.float64))
        hit[tuple(np.floor(KITTI_GRID.index_coordinates(points[inside, :3].astype(np.float64))).astype(int).T)] = True
        seen = seen_voxels(self.world, t, pose, self.lidar, pose, KITTI_GRID, known=hit)
        ever = seen
        for ahead in LOOKS_AHEAD_S[1:]:
            there = self._world_from_lidar(t + ahead)
            ever = seen_voxels(self.world, t, there, self.lidar, pose, KITTI_GRID, known=ever)
        stem = self.folder / "voxels" / f"{k:06d}"
        write_bytes(stem.with_suffix(".label"), raw.tobytes())
        for suffix, bits in ((".bin", hit), (".occluded", ~seen), (".invalid", ~ever)):
            write_bytes(stem.with_suffix(suffix), pack_bits(bits))
        write_npz(self._truth_folder(k) / "labels.npz", {"flow": flow})


CAM0_FROM_CAM2 = from_rotation_translation(np.eye(3), np.array([-0.06, 0.0, 0.0]))
"""The left colour camera sits 6 cm to the left of the left grey one."""


def pack_bits(voxels: Bool[np.ndarray, "x y z"]) -> bytes:
    """One bit a voxel, z running fastest, first voxel in the highest bit."""
    return np.packbits(voxels.reshape(-1)).tobytes()


def _row(values: np.ndarray) -> str:
    return " ".join(f"{v:.12e}" for v in np.ravel(values))


def calibration_text(K: Float[np.ndarray, "3 3"], cam0_from_lidar: Float[np.ndarray, "4 4"]) -> str:
    """calib.txt: P0..P3 = K (I | t) from camera 0's frame, pixel centres on whole numbers; Tr = camera 0 from LiDAR."""
    K_kitti = K.copy()
    K_kitti[:2, 2] -= 0.5
    lines = []
    for i, shift in enumerate((0.0, -0.54, -CAM0_FROM_CAM2[0, 3], -0.48)):
        P = np.concatenate([K_kitti, K_kitti @ np.array([[shift], [0.0], [0.0]])], axis=1)
        lines.append(f"P{i}: {_row(P)}")
    return "\n".join([*lines, f"Tr: {_row(cam0_from_lidar[:3])}"]) + "\n"


def write_splits(root: Path, config: SynthConfig, scenes: list[dict[str, Any]]) -> None:
    """splits.json: the last sequences are for validation."""
    names = [scene["name"] for scene in scenes]
    validation = names[len(names) - config.validation_count :]
    write_json(root / "splits.json", {"train": [n for n in names if n not in validation], "val": validation})
