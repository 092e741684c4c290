"""A small analytic world (ground, four walls, a moving box) as exact numbers, and as a real store."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from geometry.cameras import camera_directions, pixel_centres, project
from geometry.transforms import from_rotation_translation, invert, transform_points, yaw_transform
from storage.schema import SceneTable, StoreAttributes, encode_flow
from storage.store import CueStore, Provenance, UnitId
from train.config import TrainConfig, build_config

CAMERA_AXES = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
INTERVAL_S = 0.5
SLOTS = 2
START = 1_000_000_000


@dataclass
class World:
    """An ego car that drives at `speed` in world coordinates around (1e5, -2e5); everything exact.

    Times are seconds since the first keyframe. Two cameras, which fire 20 and 45 ms after the LiDAR.
    """

    keyframes: int = 5
    speed: float = 2.0
    yaw_rate: float = 0.05
    box_velocity: tuple[float, float] = (1.0, 2.0)
    network_size: tuple[int, int] = (32, 64)
    render_size: tuple[int, int] = (16, 32)
    origin: tuple[float, float, float] = (1e5, -2e5, 0.0)
    lags: tuple[float, float] = (0.020, 0.045)
    yaws: tuple[float, float] = (0.0, 0.9)
    K: np.ndarray = field(default_factory=lambda: np.array([[36.0, 0, 32.0], [0, 36.0, 14.0], [0, 0, 1.0]]))

    def ego(self, time: float) -> np.ndarray:
        """global_from_ego."""
        x = np.array([self.speed * time, 0.4 * time, 0.0]) + self.origin
        return yaw_transform(self.yaw_rate * time, x)

    def ego_from_cam(self, c: int) -> np.ndarray:
        turned = yaw_transform(self.yaws[c], [1.0, 0.3 * c, 1.5])
        return turned @ from_rotation_translation(CAMERA_AXES, np.zeros(3))

    def camera_time(self, t: int, c: int, sweep: int = -1) -> float:
        return t * INTERVAL_S + (sweep + 1) * INTERVAL_S / (SLOTS + 1) + self.lags[c]

    def box(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner in world coordinates."""
        centre = np.array([9.0, -1.0, 0.0]) + self.origin
        centre[:2] += np.array(self.box_velocity) * time
        return centre + [-1.0, -0.8, 0.0], centre + [1.0, 0.8, 1.8]

    def cast(self, origins: np.ndarray, directions: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Distance (in multiples of the directions; inf = sky) and what was hit: 0 static, 1 box, -1 sky."""
        directions = np.where(directions == 0, 1e-12, directions)
        with np.errstate(divide="ignore", invalid="ignore"):
            lower, upper = np.array([-18.0, -12.0, 0.0]) + self.origin, np.array([22.0, 12.0, 5.0]) + self.origin
            planes = np.where(directions > 0, (upper - origins) / directions, (lower - origins) / directions)
            distance, axis = planes.min(axis=-1), planes.argmin(axis=-1)
            sky = (axis == 2) & (directions[..., 2] > 0)
            low, high = self.box(time)
            a, b = (low - origins) / directions, (high - origins) / directions
            near, far = np.minimum(a, b).max(axis=-1), np.maximum(a, b).min(axis=-1)
        hit = (near < far) & (near > 0) & (near < distance)
        distance = np.where(hit, near, np.where(sky, np.inf, distance))
        return distance, np.where(hit, 1, np.where(sky, -1, 0))

    def colour(self, points: np.ndarray, kind: np.ndarray, time: float) -> np.ndarray:
        """Texture in [0, 1] fixed to the ground and walls, or to the box."""
        local = points - np.where((kind == 1)[..., None], self.box(time)[0], np.asarray(self.origin))
        wave = [
            np.sin(0.4 * local @ np.array(k) + p)
            for k, p in (((1.1, 0.7, 1.9), 0), ((-0.6, 1.3, 0.8), 1), ((2.1, 0.2, -1.1), 2))
        ]
        colour = 0.5 + 0.22 * np.stack(wave, axis=-1) + 0.2 * np.stack([wave[1], wave[2], wave[0]], axis=-1)
        return np.where((kind == -1)[..., None], 0.8, np.where((kind == 1)[..., None], 1 - colour, colour))

    def look(self, time: float, c: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """What camera c sees: colour (h, w, 3), depth (camera z, m), kind, world points."""
        K = self.K.copy()
        K[:2] *= size[1] / self.network_size[1]
        world_from_cam = self.ego(time) @ self.ego_from_cam(c)
        along = camera_directions(K, pixel_centres(*size).reshape(-1, 2)) @ world_from_cam[:3, :3].T
        depth, kind = self.cast(world_from_cam[:3, 3], along, time)
        points = world_from_cam[:3, 3] + np.where(np.isinf(depth), 100.0, depth)[:, None] * along
        colour = self.colour(points, kind, time)
        shape = size
        return {
            "colour": colour.reshape(*shape, 3),
            "depth": depth.reshape(shape),
            "kind": kind.reshape(shape),
            "points": points.reshape(*shape, 3),
            "K": K,
        }

    def soft(self, time: float, c: int) -> np.ndarray:
        """Colour at render size, averaged over the network pixels as keyframe images are."""
        (h, w), (H, W) = self.render_size, self.network_size
        return self.look(time, c, self.network_size)["colour"].reshape(h, H // h, w, W // w, 3).mean(axis=(1, 3))

    def flow(self, c: int, time: float, target_time: float) -> np.ndarray:
        """Exact flow (2, h, w) in render pixels; nan where the sky, hidden or out of view."""
        h, w = self.render_size
        here = self.look(time, c, self.render_size)
        moved = here["points"].reshape(-1, 3).copy()
        on_box = here["kind"].reshape(-1) == 1
        moved[on_box, :2] += np.array(self.box_velocity) * (target_time - time)
        world_from_cam = self.ego(target_time) @ self.ego_from_cam(c)
        uv, z, front = project(here["K"], transform_points(invert(world_from_cam), moved))
        along = (moved - world_from_cam[:3, 3]) / np.maximum(z, 1e-9)[:, None]
        seen, _ = self.cast(world_from_cam[:3, 3], along, target_time)
        good = front & (here["kind"].reshape(-1) >= 0) & (np.abs(seen - z) < 0.05 * np.abs(z) + 0.05)
        good &= (uv[:, 0] > 0) & (uv[:, 0] < w) & (uv[:, 1] > 0) & (uv[:, 1] < h)
        flow = np.where(good[:, None], uv - pixel_centres(h, w).reshape(-1, 2), np.nan)
        return flow.reshape(h, w, 2).transpose(2, 0, 1)

    def lidar(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Points (n, 4) and origin (3,), ego frame at keyframe t."""
        time = t * INTERVAL_S
        azimuth, pitch = np.meshgrid(np.linspace(-np.pi, np.pi, 90, endpoint=False), np.linspace(-0.4, 0.1, 10))
        directions = np.stack(
            [np.cos(azimuth) * np.cos(pitch), np.sin(azimuth) * np.cos(pitch), np.sin(pitch)], axis=-1
        )
        origin = np.array([0.5, 0.0, 1.8])
        pose = self.ego(time)
        world = transform_points(pose, origin[None])[0]
        distance, kind = self.cast(world, directions.reshape(-1, 3) @ pose[:3, :3].T, time)
        seen = kind >= 0
        kept = origin + distance[seen, None] * directions.reshape(-1, 3)[seen]
        return np.concatenate([kept, np.ones((len(kept), 1))], axis=1).astype(np.float32), origin.astype(np.float32)

    def table(self, jpegs: list[np.ndarray], sweeps: list[np.ndarray], points: int) -> SceneTable:
        """The scene table."""
        T, C = self.keyframes, 2
        K = np.tile(self.K, (T, C, 1, 1))
        small = np.tile(self.look(0.0, 0, self.render_size)["K"], (T, SLOTS, C, 1, 1))
        extrinsics = np.stack([self.ego_from_cam(c) for c in range(C)])
        times = np.array([[self.camera_time(t, c) for c in range(C)] for t in range(T)])
        slots = [[[self.camera_time(t, c, p) for c in range(C)] for p in range(SLOTS)] for t in range(T)]
        sweep_times = np.array(slots)
        poses = np.array([self.ego(x) for x in times.ravel()]).reshape(T, C, 4, 4)
        sweep_poses = np.array([self.ego(x) for x in sweep_times.ravel()]).reshape(T, SLOTS, C, 4, 4)
        sweep_valid = np.ones((T, SLOTS, C), dtype=bool)
        sweep_valid[-1] = False
        return SceneTable(
            tokens=tuple(f"token{t}" for t in range(T)),
            timestamp_us=START + (np.arange(T) * INTERVAL_S * 1e6).astype(np.int64),
            global_from_ego=np.stack([self.ego(t * INTERVAL_S) for t in range(T)]),
            camera_valid=np.ones((T, C), dtype=bool),
            camera_timestamp_us=START + np.round(times * 1e6).astype(np.int64),
            camera_global_from_ego=poses,
            ego_from_cam=np.tile(extrinsics, (T, 1, 1, 1)),
            K=K,
            image_from_raw=np.tile(np.eye(3), (T, C, 1, 1)),
            sweep_valid=sweep_valid,
            sweep_timestamp_us=START + np.round(sweep_times * 1e6).astype(np.int64),
            sweep_global_from_ego=sweep_poses,
            sweep_ego_from_cam=np.tile(extrinsics, (T, SLOTS, 1, 1, 1)),
            sweep_K=small,
            max_image_bytes=max(len(j) for j in jpegs),
            max_sweep_bytes=max(len(j) for j in sweeps),
            max_lidar_points=points,
        )

    def write(
        self,
        path: Path,
        scenes: tuple[str, ...] = ("a",),
        masks_from: tuple[str, ...] = (),
        without_poses: tuple[str, ...] = (),
    ) -> Path:
        """Write a store with every cue."""
        store = CueStore.create(
            path,
            StoreAttributes(
                dataset="tiny",
                cameras=("CAM_FRONT", "CAM_LEFT"),
                classes=("car",),
                network_size=self.network_size,
                render_size=self.render_size,
                keyframe_interval_s=INTERVAL_S,
                block_keyframes=self.keyframes,
            ),
        )
        arrays, table = self._arrays()
        for scene in scenes:
            store.commit_init(scene, replace(table, tags=("no_poses",)) if scene in without_poses else table, "f")
            for cue, content in arrays.items():
                upstream = dict.fromkeys(masks_from, "f") if cue == "masks" else {}
                store.commit_block(UnitId(cue, scene, 0), content, Provenance("f", upstream=upstream))
        return path

    def _arrays(self) -> tuple[dict[str, dict[str, np.ndarray]], SceneTable]:
        T, C, (h, w) = self.keyframes, 2, self.render_size
        images = [
            _jpeg(self.look(self.camera_time(t, c), c, self.network_size)["colour"]) for t in range(T) for c in range(C)
        ]
        order = [(t, p, c) for t in range(T) for p in range(SLOTS) for c in range(C)]
        sweeps = [_jpeg(self.soft(self.camera_time(t, c, p), c)) for t, p, c in order]
        clouds = [self.lidar(t) for t in range(T)]
        count = max(len(points) for points, _ in clouds)
        table = self.table(images, sweeps, count)
        masks = np.stack(
            [self.look(self.camera_time(t, c), c, self.network_size)["kind"] == 1 for t in range(T) for c in range(C)]
        )
        rows = np.zeros((T, C, 1, 8), dtype=np.float32)
        rows[..., 0, :3] = (1, 0, 0.9)
        padded = np.zeros((T, count, 4), dtype=np.float32)
        for t, (points, _) in enumerate(clouds):
            padded[t, : len(points)] = points
        arrays = {
            "images": {"images": _pad(images).reshape(T, C, -1), "images_length": _lengths(images).reshape(T, C)},
            "sweeps": {
                "sweeps/images": _pad(sweeps).reshape(T, SLOTS, C, -1),
                "sweeps/images_length": _lengths(sweeps).reshape(T, SLOTS, C) * table.sweep_valid.astype(np.uint32),
            },
            "lidar": {
                "lidar/points": padded,
                "lidar/cameras": np.full((T, count), 3, dtype=np.uint8),
                "lidar/count": np.array([len(points) for points, _ in clouds], dtype=np.int32),
                "lidar/origin": np.stack([origin for _, origin in clouds]),
            },
            "masks": {"masks/instance": masks.reshape(T, C, *self.network_size).astype(np.uint16), "masks/table": rows},
        }
        for slot, step in (("next", 1), ("prev", -1), ("aux", -1)):
            flow = np.full((T, C, 2, h, w), np.nan)
            frames = np.full((T, C), -1, dtype=np.int32)
            sweep = np.full((T, C), -1, dtype=np.int32)
            for t in range(T):
                for c in range(C):
                    if 0 <= t + step < T:
                        # aux ends in the last sweep before keyframe t.
                        frames[t, c], sweep[t, c] = t + step, SLOTS - 1 if slot == "aux" else -1
                        target = self.camera_time(t + step, c, int(sweep[t, c]))
                        flow[t, c] = self.flow(c, self.camera_time(t, c), target)
            stored = encode_flow(flow)[0]
            arrays[f"flow_{slot}"] = {
                f"flow/{slot}/flow": stored,
                f"flow/{slot}/confidence": np.where(np.isnan(flow[:, :, 0]), 0, 255).astype(np.uint8),
                f"flow/{slot}/target_frame": frames,
                f"flow/{slot}/target_sweep": sweep,
            }
        return arrays, table


def _jpeg(colour: np.ndarray) -> np.ndarray:
    pixels = np.round(colour * 255).astype(np.uint8)
    options = [cv2.IMWRITE_JPEG_QUALITY, 98, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", pixels[..., ::-1], options)[1].reshape(-1)


def _pad(parts: list[np.ndarray]) -> np.ndarray:
    out = np.zeros((len(parts), max(len(p) for p in parts)), dtype=np.uint8)
    for row, part in zip(out, parts, strict=True):
        row[: len(part)] = part
    return out


def _lengths(parts: list[np.ndarray]) -> np.ndarray:
    return np.array([len(p) for p in parts], dtype=np.uint32)


TINY = {
    "seed": 3,
    "model": {
        "base": "demo",
        "grid": {"lower": [-25.6, -25.6, -1.6], "upper": [25.6, 25.6, 6.4], "voxel": 1.6},
        "backbone": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
        "tpv": {"factor": 1, "dim": 16, "ffn_dim": 16, "layers": 1},
        "fpn_dim": 16,
        "refine": {"channels": 8, "multipliers": [1, 2], "blocks": [1, 1], "strides": [1, 1]},
        "heads": {"hidden": 16},
        "render": {"samples": 24, "alpha": "gradient", "anneal_steps": 5},
    },
    "rays": {"grid": [8, 16], "strides": [1, 2], "lidar": 128},
    "loss": {"eikonal_samples": 512},
    "optimiser": {"lr": 2e-3, "backbone_rate": 1.0},
    "stage1": {"max_steps": 3, "warmup_steps": 2},
    "stage2": {"max_steps": 3, "warmup_steps": 2},
    "run": {"accelerator": "cpu", "devices": 1, "progress": False, "log_every": 1},
}


@pytest.fixture(scope="session")
def world() -> World:
    """The world of the session's store."""
    return World()


@pytest.fixture(scope="session")
def make_world() -> type[World]:
    """The world's class, for other worlds."""
    return World


@pytest.fixture(scope="session")
def tiny_store(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with every cue of two equal scenes, read-only for all tests."""
    return world.write(tmp_path_factory.mktemp("store") / "store.zarr", scenes=("a", "b"))


@pytest.fixture
def tiny_config(tiny_store: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Configurations of a tiny network on the session's store; keyword arguments replace or extend sections."""

    def make(**changes: object) -> TrainConfig:
        values: dict = {"store": tiny_store, "out": tmp_path / "run", **TINY}
        for key, change in changes.items():
            values[key] = {**values.get(key, {}), **change} if isinstance(change, dict) else change
        return build_config(values)

    return make
