"""Writes miniature data sets in their true on-disk layouts, independently of the readers and of pipelines/synth."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

CHANNELS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
SIZE = (36, 64)
KEYFRAMES = 3
ROUNDS = 5
"""Camera sweeps between two keyframes."""
START_US = 1_532_402_900_000_000


def _quaternion(rotation: Rotation) -> list[float]:
    x, y, z, w = rotation.as_quat()
    return [float(w), float(x), float(y), float(z)]


@dataclass
class TinyNuScenes:
    """A log of two scenes as tables in memory; `write()` puts tables and files on disk."""

    root: Path
    version: str = "v1.0-mini"
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.root / self.version

    def row(self, table: str, token: str) -> dict[str, Any]:
        return next(r for r in self.tables[table] if r["token"] == token)

    def rows(self, channel: str, scene: str, keyframes: bool = True) -> list[dict[str, Any]]:
        """sample_data rows of a camera in time order."""
        found = [
            r
            for r in self.tables["sample_data"]
            if r["token"].startswith(f"{scene}-{channel}-") and r["is_key_frame"] is keyframes
        ]
        return sorted(found, key=lambda r: r["timestamp"])

    def drop(self, token: str) -> None:
        """Remove a sample_data row."""
        self.tables["sample_data"] = [r for r in self.tables["sample_data"] if r["token"] != token]

    def write(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, rows in self.tables.items():
            (self.folder / f"{name}.json").write_text(json.dumps(rows, indent=1))
        return self.root


def _make_nuscenes(root: Path) -> TinyNuScenes:
    rng = np.random.default_rng(7)
    log = TinyNuScenes(root)
    names = ("category", "attribute", "visibility", "instance", "sample_annotation")
    log.tables = {name: [] for name in names}
    tables = log.tables
    (root / "maps").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "maps" / "map.png")
    tables["map"] = [{"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": "maps/map.png"}]
    tables["log"] = [
        {"token": "log", "logfile": "x", "vehicle": "n000", "date_captured": "2018-07-24", "location": "nowhere"}
    ]
    for name in ("sensor", "calibrated_sensor", "ego_pose", "scene", "sample", "sample_data"):
        tables[name] = []
    for channel, modality in [*((c, "camera") for c in CHANNELS), ("LIDAR_TOP", "lidar"), ("RADAR_FRONT", "radar")]:
        tables["sensor"].append({"token": f"sensor-{channel}", "channel": channel, "modality": modality})
    for scene in ("scene-0061", "scene-0103"):
        _add_scene(log, scene, rng)
    return log


def _add_scene(log: TinyNuScenes, scene: str, rng: np.random.Generator) -> None:
    tables = log.tables
    for i, channel in enumerate((*CHANNELS, "LIDAR_TOP", "RADAR_FRONT")):
        camera = channel in CHANNELS
        looking = Rotation.from_euler("z", 60 * i, degrees=True) * Rotation.from_matrix(
            [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
        )
        wobble = Rotation.from_rotvec(rng.normal(0, 0.02, 3))
        tables["calibrated_sensor"].append(
            {
                "token": f"{scene}-{channel}-cal",
                "sensor_token": f"sensor-{channel}",
                "translation": rng.normal(0, 1, 3).tolist(),
                "rotation": _quaternion(looking * wobble if camera else wobble),
                "camera_intrinsic": [[50.0 + i, 0, 31.2], [0, 50.0 + i, 17.9], [0, 0, 1]] if camera else [],
            }
        )
    samples = [f"{scene}-sample-{t}" for t in range(KEYFRAMES)]
    tables["scene"].append(
        {
            "token": scene,
            "log_token": "log",
            "nbr_samples": KEYFRAMES,
            "first_sample_token": samples[0],
            "last_sample_token": samples[-1],
            "name": scene,
            "description": "Night, rain",
        }
    )
    for t, token in enumerate(samples):
        tables["sample"].append(
            {
                "token": token,
                "timestamp": START_US + 500_000 * t,
                "scene_token": scene,
                "prev": samples[t - 1] if t else "",
                "next": samples[t + 1] if t + 1 < KEYFRAMES else "",
            }
        )
    for i, channel in enumerate((*CHANNELS, "LIDAR_TOP", "RADAR_FRONT")):
        steps = range((KEYFRAMES - 1) * (ROUNDS + 1) + 1 + 2)  # and two rounds after the last keyframe
        for k in steps:
            _add_data(log, scene, channel, k, trigger_us=0 if channel == "LIDAR_TOP" else 7_000 * i - 30_000, rng=rng)


def _add_data(log: TinyNuScenes, scene: str, channel: str, k: int, trigger_us: int, rng: np.random.Generator) -> None:
    t, step = divmod(k, ROUNDS + 1)
    keyframe = step == 0
    timestamp = START_US + 500_000 * t + step * 500_000 // (ROUNDS + 1) + trigger_us
    extension = "jpg" if channel in CHANNELS else ("pcd.bin" if channel == "LIDAR_TOP" else "pcd")
    filename = f"{'samples' if keyframe else 'sweeps'}/{channel}/{scene}__{channel}__{timestamp}.{extension}"
    token = f"{scene}-{channel}-{k:03d}"
    path = log.root / filename
    path.parent.mkdir(parents=True, exist_ok=True)
    if channel in CHANNELS:
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(path, quality=92)
    elif channel == "LIDAR_TOP":
        rng.normal(0, 10, (60, 5)).astype("<f4").tofile(path)
    seconds = (timestamp - START_US) / 1e6
    log.tables["ego_pose"].append(
        {
            "token": f"pose-{token}",
            "timestamp": timestamp,
            "rotation": _quaternion(Rotation.from_euler("zyx", [0.3 * seconds + 1, 0.01, -0.02])),
            "translation": [1000.0 + 8 * seconds, 600.0 + seconds, 0.0],
        }
    )
    log.tables["sample_data"].append(
        {
            "token": token,
            "sample_token": f"{scene}-sample-{min(t, KEYFRAMES - 1)}",
            "ego_pose_token": f"pose-{token}",
            "calibrated_sensor_token": f"{scene}-{channel}-cal",
            "timestamp": timestamp,
            "fileformat": "jpg" if channel in CHANNELS else "pcd",
            "is_key_frame": keyframe,
            "height": SIZE[0] if channel in CHANNELS else 0,
            "width": SIZE[1] if channel in CHANNELS else 0,
            "filename": filename,
            "prev": "",
            "next": "",
        }
    )


@pytest.fixture
def tiny_nuscenes(tmp_path: Path) -> TinyNuScenes:
    """A log whose tables a test may change before `write()`."""
    return _make_nuscenes(tmp_path / "nuscenes")


KITTI_P2 = np.array([[60.0, 0, 40.25, 3.5], [0, 61.0, 15.5, 0.25], [0, 0, 1, 0.004]])
KITTI_SIZE = (30, 80)


def kitti_tr() -> np.ndarray:
    """Camera 0 from velodyne, 3x4: axes permuted and a little off, as on the car."""
    axes = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    rotation = axes @ Rotation.from_rotvec([0.01, -0.02, 0.015]).as_matrix()
    return np.concatenate([rotation, [[-0.01], [-0.07], [-0.3]]], axis=1)


def kitti_poses(count: int) -> np.ndarray:
    """Camera 0 at frame i to camera 0 at frame 0, (count, 3, 4): forward along camera z, turning about camera y."""
    out = []
    for i in range(count):
        rotation = Rotation.from_rotvec([0, 0.02 * i, 0]).as_matrix()
        out.append(np.concatenate([rotation, [[0.01 * i * i], [0.0], [1.1 * i]]], axis=1))
    return np.stack(out)


def _row(values: np.ndarray) -> str:
    return " ".join(f"{v:.12e}" for v in np.ravel(values))


@pytest.fixture
def tiny_kitti(tmp_path: Path) -> Path:
    """Root of a SemanticKITTI tree: sequence 08 with 12 poses, images of frames 0-8 less 4, no scan of frame 7."""
    rng = np.random.default_rng(3)
    folder = tmp_path / "kitti" / "sequences" / "08"
    for name in ("image_2", "velodyne", "voxels"):
        (folder / name).mkdir(parents=True)
    identity = np.eye(3, 4)
    lines = [f"P{i}: {_row(KITTI_P2 if i == 2 else identity)}" for i in range(4)] + [f"Tr: {_row(kitti_tr())}"]
    (folder / "calib.txt").write_text("\n".join(lines) + "\n")
    (folder / "poses.txt").write_text("".join(_row(p) + "\n" for p in kitti_poses(12)))
    (folder / "times.txt").write_text("".join(f"{0.1 * i:e}\n" for i in range(12)))
    for i in (0, 1, 2, 3, 5, 6, 7, 8):
        pixels = rng.integers(0, 255, (*KITTI_SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "image_2" / f"{i:06d}.png")
        if i != 7:
            rng.normal(0, 10, (40, 4)).astype("<f4").tofile(folder / "velodyne" / f"{i:06d}.bin")
    return tmp_path / "kitti"


MOT_FRAMES = 12


@dataclass
class TinyKittiMot:
    """KITTI tracking sequences as the data set has them; `root` holds sequence 0001 of the training part, whole."""

    root: Path
    P2: np.ndarray = field(
        default_factory=lambda: np.array([[60, 0, 40.25, 3.6], [0, 61, 15.5, 0.25], [0, 0, 1, 0.004]])
    )
    P3: np.ndarray = field(
        default_factory=lambda: np.array([[60, 0, 40.25, -28.8], [0, 61, 15.5, 0.25], [0, 0, 1, 0.004]])
    )
    R_rect: np.ndarray = field(default_factory=lambda: Rotation.from_rotvec([0.01, 0.02, -0.01]).as_matrix())
    Tr_velo_cam: np.ndarray = field(default_factory=lambda: kitti_tr())
    Tr_imu_velo: np.ndarray = field(
        default_factory=lambda: np.column_stack(
            [Rotation.from_rotvec([0.01, 0.0, 0.02]).as_matrix(), [-0.81, 0.32, -0.8]]
        )
    )

    def records(self, count: int) -> np.ndarray:
        """GPS/IMU records: driving 1 m a frame to the east, facing east, turning a little."""
        rows = np.zeros((count, 30))
        metre = 180 / (np.pi * 6378137 * np.cos(np.deg2rad(49)))
        rows[:, 0], rows[:, 1], rows[:, 2] = 49.0, 8.4 + metre * np.arange(count), 110.0
        rows[:, 5] = 0.01 * np.arange(count)
        rows[:, 7] = 1 / 0.1037
        return rows

    def write_sequence(self, part: Path, number: str, oxts: bool = True, labels: bool = True) -> None:
        """A sequence of twelve frames with both cameras; three rows of the calibration carry no colon."""
        rng = np.random.default_rng(3)
        for name in ("calib", "oxts", "label_02"):
            (part / name).mkdir(parents=True, exist_ok=True)
        rows = [f"P0: {_row(self.P2)}", f"P2: {_row(self.P2)}", f"P3: {_row(self.P3)}"]
        rows += [f"{key} {_row(getattr(self, key))}" for key in ("R_rect", "Tr_velo_cam", "Tr_imu_velo")]
        (part / "calib" / f"{number}.txt").write_text("\n".join([*rows, ""]))
        if oxts:
            np.savetxt(part / "oxts" / f"{number}.txt", self.records(MOT_FRAMES), fmt="%.13f")
        if labels:
            (part / "label_02" / f"{number}.txt").write_text("")
        for name in ("image_02", "image_03", "velodyne"):
            (part / name / number).mkdir(parents=True)
        for i in range(MOT_FRAMES):
            for name in ("image_02", "image_03"):
                pixels = rng.integers(0, 255, (*KITTI_SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(part / name / number / f"{i:06d}.png")
            rng.normal(0, 10, (40, 4)).astype("<f4").tofile(part / "velodyne" / number / f"{i:06d}.bin")


@pytest.fixture
def tiny_mot(tmp_path: Path) -> TinyKittiMot:
    """A KITTI tracking log of one sequence, and what it takes to write others."""
    log = TinyKittiMot(tmp_path / "kitti")
    log.write_sequence(log.root / "training", "0001")
    return log


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Folder of a small real data set beside the repository; skips the test where it is absent."""

    def locate(name: str) -> Path:
        path = Path(__file__).parents[3].parent / "shared" / "data" / name
        if not path.is_dir():
            pytest.skip(f"no real data at ../shared/data/{name}")
        return path

    return locate
