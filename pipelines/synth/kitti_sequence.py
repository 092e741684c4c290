"""What synthetic sequences in KITTI's layouts share: a car with KITTI's sensors, its images, scans and exact truth."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt16

from geometry.grid import KITTI_GRID
from geometry.transforms import from_rotation_translation, invert
from pipelines.synth.capture import MOVING_SPEED, Shot, Stand, exact_flow, moving_pixels, take_shot
from pipelines.synth.config import SynthConfig
from pipelines.synth.files import write_bytes, write_image, write_npz
from pipelines.synth.kitti_classes import MOVING_OF_RAW, RAW_OF_CODE, coded
from pipelines.synth.lidar import OWN_CAR, Turn, spin
from pipelines.synth.occupancy import voxelise
from pipelines.synth.rig import KITTI_INTERVAL_S, Camera, kitti_camera, kitti_lidar
from pipelines.synth.visibility import seen_voxels
from pipelines.synth.world import World, build_world

VOXELS_EVERY = 5
"""Frames from one completed voxel grid to the next, as in SemanticKITTI's published data."""
LOOKS_AHEAD_S = (0.0, 1.0, 2.0)
"""A voxel is invalid that the sensor sees from none of its places so many seconds later."""
CAM0_FROM_CAM2 = from_rotation_translation(np.eye(3), np.array([-0.06, 0.0, 0.0]))
"""The left colour camera sits 6 cm to the left of the left grey one."""
SHIFTS = (0.0, -0.54, -CAM0_FROM_CAM2[0, 3], -0.48)
"""Fourth column of (I | t) of cameras 0 to 3: each lies so far to the left of camera 0 (m)."""

Job = Callable[[], None]


def kitti_settings(config: SynthConfig, cameras: tuple[str, ...] = ("image_2",)) -> SynthConfig:
    """The settings with KITTI's sensors where they were left at their defaults: 416 x 128 pixels, 64 beams."""
    given = config.model_fields_set
    width = config.width if "width" in given else 416
    height = config.height if "height" in given else (128 if width == 416 else round(width * 376 / 1241))
    beams = config.lidar_beams if "lidar_beams" in given else 64
    return config.model_copy(update={"width": width, "height": height, "lidar_beams": beams, "cameras": cameras})


@dataclass(frozen=True)
class Volume:
    """Voxels of KITTI_GRID around one scan: raw labels, flow in m/s, and what a scan hit, saw now, and ever sees."""

    raw: UInt16[np.ndarray, "x y z"]
    flow: Float32[np.ndarray, "x y z 2"]
    hit: Bool[np.ndarray, "x y z"]
    seen: Bool[np.ndarray, "x y z"]
    ever: Bool[np.ndarray, "x y z"]


@dataclass
class KittiSequence:
    """One sequence's files as independent jobs; a layout says where they go and what else it keeps of them.

    index: number of the sequence in the log; it decides world and noise. Every frame is a keyframe.
    """

    root: Path
    config: SynthConfig
    index: int

    def __post_init__(self) -> None:
        self.world: World = build_world(self.config, self.index, (self.config.keyframes - 1) * KITTI_INTERVAL_S)
        self.cameras: tuple[Camera, ...] = self.rig()
        self.lidar = kitti_lidar(self.config.lidar_beams, self.config.lidar_azimuths)

    # --- what a layout says

    def rig(self) -> tuple[Camera, ...]:
        """The colour cameras; the first is the left one."""
        return (kitti_camera(self.config.width, self.config.height),)

    @property
    def name(self) -> str:
        """The scene's name, as its reader has it."""
        raise NotImplementedError

    def file(self, kind: str, k: int, suffix: str) -> Path:
        """Where frame `k` of a kind of data (a camera's channel, "velodyne") is written."""
        raise NotImplementedError

    def keep_image(self, k: int, camera: Camera, shot: Shot) -> None:
        """Called with every image, after it was written."""

    def keep_scan(self, k: int, turn: Turn, kept: Bool[np.ndarray, " n"], points: Float32[np.ndarray, "m 4"]) -> None:
        """Called with every scan where truth is wanted; `points` are those of `turn` that were `kept`."""

    def table_rows(self) -> dict[str, Any]:
        """Write what makes a reader see the sequence, after all jobs are done; the name for splits.json."""
        raise NotImplementedError

    # --- what all of them share

    def jobs(self) -> Iterator[tuple[Job, int]]:
        """Work that threads may do in any order, and how many images each piece of it writes."""
        for k in range(self.config.keyframes):
            for number, camera in enumerate(self.cameras):
                yield (lambda k=k, n=number, c=camera: self._image(k, n, c)), 1
            yield (lambda k=k: self._scan(k)), 0

    @property
    def cam0_from_lidar(self) -> Float[np.ndarray, "4 4"]:
        """Camera 0 (rectified, left grey) from the scanner."""
        lidar_from_cam = invert(self.lidar.ego_from_lidar) @ self.cameras[0].ego_from_cam
        return CAM0_FROM_CAM2 @ invert(lidar_from_cam)

    def seconds(self, k: int) -> float:
        """Time of frame `k`."""
        return k * KITTI_INTERVAL_S

    def world_from_lidar(self, t: float) -> Float[np.ndarray, "4 4"]:
        """The scanner's pose at time `t` (s)."""
        return self.world.world_from_ego(t) @ self.lidar.ego_from_lidar

    def truth_folder(self, k: int) -> Path:
        """Where the exact truth of frame `k` goes."""
        return self.root / "truth" / self.name / f"{k:06d}"

    def volume(self, k: int, points: Float32[np.ndarray, "n 4"]) -> Volume:
        """The completed voxels around frame `k`, whose scan is `points`."""
        t = self.seconds(k)
        pose = self.world_from_lidar(t)
        semantics, flow = voxelise(self.coded, t, pose, KITTI_GRID, KITTI_INTERVAL_S)
        raw = RAW_OF_CODE[semantics]
        moving = np.linalg.norm(flow, axis=-1) >= MOVING_SPEED
        raw = np.where(moving, MOVING_OF_RAW[raw], raw).astype(np.uint16)
        hit = np.zeros(KITTI_GRID.shape, np.bool_)
        inside = KITTI_GRID.contains(points[:, :3].astype(np.float64))
        hit[tuple(np.floor(KITTI_GRID.index_coordinates(points[inside, :3].astype(np.float64))).astype(int).T)] = True
        seen = seen_voxels(self.world, t, pose, self.lidar, pose, KITTI_GRID, known=hit)
        ever = seen
        for ahead in LOOKS_AHEAD_S[1:]:
            there = self.world_from_lidar(t + ahead)
            ever = seen_voxels(self.world, t, there, self.lidar, pose, KITTI_GRID, known=ever)
        return Volume(raw, flow, hit, seen, ever)

    @cached_property
    def coded(self) -> World:
        """The world whose primitives carry KITTI's classes."""
        return coded(self.world)

    def _seed(self, *identity: int) -> int:
        return int(np.random.SeedSequence([self.config.seed, self.index, *identity]).generate_state(1)[0])

    def _image(self, k: int, number: int, camera: Camera) -> None:
        # Further cameras have a kind of seed of their own, so that the left one's noise is the same with and without.
        seed = self._seed(3, k) if number == 0 else self._seed(5, number, k)
        shot = take_shot(self.world, camera, number, self.seconds(k), self.config.level.noise, seed)
        write_image(self.file(camera.channel, k, ".png"), shot.rgb, 0)
        if self.config.truth:
            self._camera_truth(k, camera, shot)
        self.keep_image(k, camera, shot)

    def _camera_truth(self, k: int, camera: Camera, shot: Shot) -> None:
        truth = {
            "depth": shot.depth.astype(np.float32),
            "instance": shot.instance,
            "moving": moving_pixels(self.world, shot),
        }
        if k + 1 < self.config.keyframes:
            truth["flow_next"] = exact_flow(self.world, shot, Stand.at(self.world, camera, self.seconds(k + 1)))
        write_npz(self.truth_folder(k) / f"{camera.channel}.npz", truth)

    def _scan(self, k: int) -> None:
        t, level = self.seconds(k), self.config.level
        turn = spin(self.coded, self.lidar, t, level.lidar_noise_m, level.lidar_dropout, self._seed(4, k))
        kept = turn.object != OWN_CAR
        points = turn.points[kept] * np.array([1, 1, 1, 1 / 255], np.float32)
        write_bytes(self.file("velodyne", k, ".bin"), points.astype("<f4").tobytes())
        if self.config.truth:
            self.keep_scan(k, turn, kept, points)


def number_row(values: np.ndarray) -> str:
    """Numbers as KITTI's tables write them."""
    return " ".join(f"{v:.12e}" for v in np.ravel(values))


def projection_rows(K: Float[np.ndarray, "3 3"]) -> list[str]:
    """Rows P0 to P3: K (I | t) from camera 0's frame, pixel centres on whole numbers."""
    K_kitti = K.copy()
    K_kitti[:2, 2] -= 0.5
    lines = []
    for i, shift in enumerate(SHIFTS):
        P = np.concatenate([K_kitti, K_kitti @ np.array([[shift], [0.0], [0.0]])], axis=1)
        lines.append(f"P{i}: {number_row(P)}")
    return lines
