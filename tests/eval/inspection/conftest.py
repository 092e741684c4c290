"""A small exact street as a store of cues and truth, and copies of a store corrupted on purpose."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from geometry.cameras import camera_directions, pixel_centres, project
from geometry.transforms import from_rotation_translation, invert, transform_points, yaw_transform
from storage.layout import INIT, UnitId
from storage.schema import CUES, MASK_TABLE_ROWS, SceneTable, StoreAttributes, encode_flow
from storage.store import CueStore, Provenance
from storage.truth import truth_path

CAMERA_AXES = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
SIZE = (64, 160)
CAMERAS = ("CAM_FRONT", "CAM_LEFT")
CELL = 0.35
"""Metres of a patch of texture."""

Arrays = dict[str, dict[str, np.ndarray]]
"""Arrays of one scene by cue, then by array name."""
Change = Callable[[SceneTable, Arrays], SceneTable]
"""Alters arrays in place; returns the scene table to store."""


@dataclass
class Street:
    """A road with walls on both sides, posts, and cars that drive; the ego car drives along x. Times in seconds."""

    keyframes: int = 6
    interval: float = 0.25
    speed: float = 6.0
    seed: int = 0
    origin: tuple[float, float, float] = (1000.0, -500.0, 0.0)
    K: np.ndarray = field(default_factory=lambda: np.array([[90.0, 0, 80.0], [0, 90.0, 26.0], [0, 0, 1.0]]))
    _views: dict[tuple[int, int], tuple] = field(default_factory=dict)

    def ego(self, time: float) -> np.ndarray:
        return yaw_transform(0.04 * time, np.array([self.speed * time, 0.2 * time, 0.0]) + self.origin)

    def ego_from_cam(self, c: int) -> np.ndarray:
        return yaw_transform((0.0, 1.2)[c], [1.0, 0.3 * c, 1.5]) @ from_rotation_translation(CAMERA_AXES, np.zeros(3))

    def camera_time(self, t: int, c: int) -> float:
        return t * self.interval - (0.004, 0.012)[c]

    def boxes(self, time: float) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """Lower and upper corner (street coordinates) and instance, 0 for what stands still."""
        rng = np.random.default_rng(self.seed)
        found = []
        for k in range(18):
            x, side = 4.0 * k - 6 + rng.uniform(-1, 1), 1 if k % 2 else -1
            y = side * (4.5 + rng.uniform(0, 2.5))
            half = rng.uniform(0.25, 0.5)
            found.append((np.array([x - half, y - half, 0]), np.array([x + half, y + half, 3.5]), 0))
        for k, (x, y, v) in enumerate([(16.0, 2.4, 7.0), (26.0, -2.2, 4.0), (13.0, -3.0, 2.0)]):
            x = x + v * time
            found.append((np.array([x, y - 0.9, 0.0]), np.array([x + 3.8, y + 0.9, 1.6]), k + 1))
        return found

    def cast(self, origins: np.ndarray, directions: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Distance in multiples of the directions (inf: sky), and instance."""
        start = origins - self.origin
        ray = np.where(directions == 0, 1e-12, directions)
        with np.errstate(divide="ignore", invalid="ignore"):
            lower, upper = np.array([-60.0, -11.0, 0.0]), np.array([120.0, 11.0, 6.0])
            planes = np.where(ray > 0, (upper - start) / ray, (lower - start) / ray)
            distance, axis = planes.min(axis=-1), planes.argmin(axis=-1)
            distance = np.where((axis == 2) & (ray[..., 2] > 0), np.inf, distance)
            instance = np.zeros(distance.shape, np.uint16)
            for low, high, label in self.boxes(time):
                a, b = (low - start) / ray, (high - start) / ray
                near, far = np.minimum(a, b).max(axis=-1), np.maximum(a, b).min(axis=-1)
                hit = (near < far) & (near > 0) & (near < distance)
                distance, instance = np.where(hit, near, distance), np.where(hit, label, instance).astype(np.uint16)
        return distance, instance

    def velocity(self, label: np.ndarray) -> np.ndarray:
        return np.array([0.0, 7.0, 4.0, 2.0])[label]

    def colour(self, points: np.ndarray, instance: np.ndarray, time: float) -> np.ndarray:
        """Grey noise on a lattice fixed to the street or to the car, smooth between its nodes."""
        local = points - self.origin
        local[..., 0] -= self.velocity(instance) * time
        local = local / CELL + 1000.0 * instance[..., None]
        base = np.floor(local).astype(np.int64)
        part = local - base
        total = np.zeros(points.shape[:-1])
        for corner in np.ndindex(2, 2, 2):
            node = base + corner
            noise = (node[..., 0] * 73856093 ^ node[..., 1] * 19349663 ^ node[..., 2] * 83492791) % 1009 / 1009
            total += noise * np.where(corner, part, 1 - part).prod(axis=-1)
        tint = np.array([0.15, 0.55, 0.35, 0.75])[instance]
        return np.clip(0.55 * total + 0.6 * tint, 0, 1)

    def view(self, t: int, c: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8, depth, instance, and each pixel's point in global coordinates."""
        if (t, c) not in self._views:
            self._views[t, c] = self._view(self.camera_time(t, c), c)
        return self._views[t, c]

    def _view(self, time: float, c: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        pose = self.ego(time) @ self.ego_from_cam(c)
        directions = camera_directions(self.K, pixel_centres(*SIZE).reshape(-1, 2)) @ pose[:3, :3].T
        distance, instance = self.cast(pose[:3, 3], directions, time)
        safe = np.where(np.isfinite(distance), distance, 1.0)
        points = pose[:3, 3] + safe[:, None] * directions
        grey = np.where(np.isfinite(distance), self.colour(points, instance, time), 0.9)
        image = np.repeat((grey * 230 + 10).round().astype(np.uint8).reshape(*SIZE, 1), 3, axis=2)
        return image, distance.reshape(SIZE), instance.reshape(SIZE), points

    def flow(self, t: int, c: int, step: int) -> np.ndarray:
        """Exact flow (2, H, W) to keyframe t + step; nan where hidden, outside or sky."""
        _, depth, instance, points = self.view(t, c)
        elapsed = self.camera_time(t + step, c) - self.camera_time(t, c)
        moved = points.copy()
        moved[:, 0] += self.velocity(instance.ravel()) * elapsed
        pose = self.ego(self.camera_time(t + step, c)) @ self.ego_from_cam(c)
        uv, z, front = project(self.K, transform_points(invert(pose), moved))
        shift = (uv - pixel_centres(*SIZE).reshape(-1, 2)).T.reshape(2, *SIZE)
        inside = front & (uv >= 0).all(axis=1) & (uv[:, 0] < SIZE[1]) & (uv[:, 1] < SIZE[0])
        there = self.view(t + step, c)[1]
        pixel = np.clip(uv, 0, np.array(SIZE[::-1]) - 1).astype(int)
        hidden = z > there[pixel[:, 1], pixel[:, 0]] * 1.05 + 0.3
        known = (inside & ~hidden).reshape(SIZE) & np.isfinite(depth)
        return np.where(known, shift, np.nan)

    def sweep(self, t: int) -> np.ndarray:
        """LiDAR returns (n, 4) in the ego frame."""
        azimuth, elevation = np.radians(np.arange(0, 360, 0.4)), np.radians(np.linspace(-24, 8, 40))
        a, e = (m.ravel() for m in np.meshgrid(azimuth, elevation))
        ray = np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], axis=1)
        pose = self.ego(t * self.interval)
        start = (pose @ np.array([0.5, 0.0, 1.9, 1.0]))[:3]
        distance, _ = self.cast(start, ray @ pose[:3, :3].T, t * self.interval)
        kept = np.isfinite(distance) & (distance < 70)
        points = np.array([0.5, 0.0, 1.9]) + distance[kept, None] * ray[kept]
        return np.concatenate([points, np.zeros((len(points), 1))], axis=1).astype(np.float32)

    def table(self) -> SceneTable:
        T, C = self.keyframes, len(CAMERAS)
        times = np.arange(T) * self.interval
        cameras = np.array([[self.camera_time(t, c) for c in range(C)] for t in range(T)])
        start = 10**9
        return SceneTable(
            tokens=tuple(f"token{self.seed}-{t}" for t in range(T)),
            timestamp_us=np.rint(times * 1e6).astype(np.int64) + start,
            global_from_ego=np.stack([self.ego(time) for time in times]),
            camera_valid=np.ones((T, C), bool),
            camera_timestamp_us=np.rint(cameras * 1e6).astype(np.int64) + start,
            camera_global_from_ego=np.stack([[self.ego(cameras[t, c]) for c in range(C)] for t in range(T)]),
            ego_from_cam=np.tile(np.stack([self.ego_from_cam(c) for c in range(C)]), (T, 1, 1, 1)),
            K=np.tile(self.K, (T, C, 1, 1)),
            image_from_raw=np.tile(np.eye(3), (T, C, 1, 1)),
            sweep_valid=np.zeros((T, 0, C), bool),
            sweep_timestamp_us=np.zeros((T, 0, C), np.int64),
            sweep_global_from_ego=np.zeros((T, 0, C, 4, 4)),
            sweep_ego_from_cam=np.zeros((T, 0, C, 4, 4)),
            sweep_K=np.zeros((T, 0, C, 3, 3)),
        )

    def cues(self) -> Arrays:
        """Every cue's arrays, exact."""
        T, C = self.keyframes, len(CAMERAS)
        views = [[self.view(t, c) for c in range(C)] for t in range(T)]
        arrays: Arrays = {"images": encode_images([[view[0] for view in row] for row in views])}
        sweeps = [self.sweep(t) for t in range(T)]
        points = np.zeros((T, max(map(len, sweeps)), 4), np.float32)
        for t, sweep in enumerate(sweeps):
            points[t, : len(sweep)] = sweep
        arrays["lidar"] = {
            "lidar/points": points,
            "lidar/cameras": np.full(points.shape[:2], 3, np.uint8),
            "lidar/count": np.array([len(s) for s in sweeps], np.int32),
            "lidar/origin": np.tile(np.array([0.5, 0, 1.9], np.float32), (T, 1)),
        }
        instance = np.stack([[view[2] for view in row] for row in views])
        arrays["masks"] = {"masks/instance": instance, "masks/table": mask_tables(instance)}
        for slot, step in (("next", 1), ("prev", -1)):
            flow = np.full((T, C, 2, *SIZE), np.nan)
            target = np.full((T, C), -1, np.int32)
            for t in range(T):
                if 0 <= t + step < T:
                    flow[t] = np.stack([self.flow(t, c, step) for c in range(C)])
                    target[t] = t + step
            stored = encode_flow(flow)[0]
            confidence = np.where(np.isnan(flow[:, :, 0]), 0, 255).astype(np.uint8)
            arrays[f"flow_{slot}"] = {
                f"flow/{slot}/flow": stored,
                f"flow/{slot}/confidence": confidence,
                f"flow/{slot}/target_frame": target,
                f"flow/{slot}/target_sweep": np.full((T, C), -1, np.int32),
            }
        return arrays

    def truth(self, cues: Arrays) -> Arrays:
        """Depth, instances and flow, exact; the flow is that of `cues`."""
        T, C = self.keyframes, len(CAMERAS)
        views = [[self.view(t, c) for c in range(C)] for t in range(T)]
        instance = np.stack([[view[2] for view in row] for row in views])
        return {
            "camera": {
                "camera/depth": np.stack([[view[1] for view in row] for row in views]).astype(np.float32),
                "camera/instance": instance,
                "camera/moving": (instance > 0).astype(np.uint8),
                "camera/flow_next": cues["flow_next"]["flow/next/flow"],
                "camera/valid": np.ones((T, C), np.uint8),
            }
        }


def encode_images(images: list[list[np.ndarray]]) -> dict[str, np.ndarray]:
    """JPEG bytes as the store keeps them."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
    jpegs = [[cv2.imencode(".jpg", image, quality)[1].ravel() for image in row] for row in images]
    lengths = np.array([[len(j) for j in row] for row in jpegs], np.uint32)
    data = np.zeros((*lengths.shape, int(lengths.max())), np.uint8)
    for t, row in enumerate(jpegs):
        for c, jpeg in enumerate(row):
            data[t, c, : len(jpeg)] = jpeg
    return {"images": data, "images_length": lengths}


def mask_tables(instance: np.ndarray) -> np.ndarray:
    """Rows of the instance table for instance maps (T, C, H, W)."""
    table = np.zeros((*instance.shape[:2], MASK_TABLE_ROWS, 8), np.float32)
    for t, c in np.ndindex(*instance.shape[:2]):
        for k, label in enumerate(np.unique(instance[t, c][instance[t, c] > 0])):
            rows, columns = np.nonzero(instance[t, c] == label)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            table[t, c, k] = (label, 0, 1.0, *box, label)
    return table


def write_store(path: Path, attributes: StoreAttributes, scenes: dict[str, tuple[SceneTable, Arrays]]) -> Path:
    """A store of whole scenes, one block each."""
    store = CueStore.create(path, attributes)
    for name, (table, arrays) in scenes.items():
        bounds = {}
        if "images" in arrays:
            bounds["max_image_bytes"] = int(arrays["images"]["images"].shape[-1])
        if "lidar" in arrays:
            bounds["max_lidar_points"] = int(arrays["lidar"]["lidar/points"].shape[1])
        store.commit_init(name, replace(table, **bounds), f"init-{name}")
        for cue, block in arrays.items():
            store.commit_block(UnitId(cue, name), block, Provenance(f"{cue}-{name}", licence="none"))
    return path


def corrupted(source: Path, path: Path, change: Change) -> Path:
    """A copy of a store (and of the truth beside it, unchanged) with `change` applied to every scene."""
    for origin, target in ((source, path), (truth_path(source), truth_path(path))):
        if not Path(str(origin)).exists():
            continue
        store = CueStore.open(origin)
        scenes = {}
        for name in store.scenes():
            table = store.table(name)
            units = [r.unit for r in store.records() if r.unit.scene == name and r.unit.cue != INIT]
            arrays = {unit.cue: {k: np.array(v) for k, v in store.read_block(unit).items()} for unit in units}
            if origin is source:
                table = change(table, arrays)
            scenes[name] = (table, arrays)
        write_store(Path(str(target)), replace(store.attributes, block_keyframes=1000), scenes)
    return path


@pytest.fixture(scope="session")
def street() -> type[Street]:
    """The class of exact streets."""
    return Street


STREET = StoreAttributes(
    dataset="street",
    cameras=CAMERAS,
    classes=("car",),
    network_size=SIZE,
    render_size=SIZE,
    keyframe_interval_s=0.25,
    block_keyframes=1000,
)


@pytest.fixture(scope="session")
def write() -> Callable[[Path, dict[str, tuple[SceneTable, Arrays]]], Path]:
    """A function that writes a store of streets."""
    return lambda path, scenes: write_store(path, STREET, scenes)


@pytest.fixture(scope="session")
def clean_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two streets with exact cues and truth; read-only for all tests."""
    path = tmp_path_factory.mktemp("street") / "store.zarr"
    streets = {f"street-{k}": Street(seed=k) for k in range(2)}
    cues = {name: street.cues() for name, street in streets.items()}
    write_store(path, STREET, {name: (s.table(), cues[name]) for name, s in streets.items()})
    write_store(
        Path(str(truth_path(path))),
        replace(STREET, kind="truth", occupancy_grid={"lower": [0.0] * 3, "upper": [1.0] * 3, "shape": [1] * 3}),
        {name: (s.table(), s.truth(cues[name])) for name, s in streets.items()},
    )
    return path


@pytest.fixture(scope="session")
def corrupt() -> Callable[[Path, Path, Change], Path]:
    """See `corrupted`."""
    return corrupted


@pytest.fixture(scope="session")
def all_cues() -> tuple[str, ...]:
    """Names of the cues of the schema."""
    return tuple(CUES)
