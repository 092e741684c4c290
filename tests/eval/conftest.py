"""A small exact log (road, wall, a moving and a parked car) as stores of cues and truth, and networks that know it;
and a headless browser."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from eval.protocols import OPENOCC_CLASSES
from geometry.grid import NUSCENES_GRID, VoxelGrid
from geometry.transforms import from_rotation_translation
from model.config import FusionConfig, ModelConfig, RenderConfig
from model.fields import Fields, FrameInput
from model.network import OccFlow
from model.render import Renderer
from storage.schema import BOX_FIELDS, BOX_ROWS, SceneTable, StoreAttributes
from storage.store import CueStore, Provenance, UnitId
from storage.truth import truth_path

CAMERA_AXES = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
INTERVAL_S = 0.4
"""Not nuScenes' half second: what assumes that is wrong here."""
CAR, ROAD, WALL, FREE = 0, 10, 14, 16
RENDER, NETWORK = (16, 32), (32, 64)


@dataclass(frozen=True)
class Log:
    """What is in the store. The same surroundings at every keyframe: everything is given in the ego frame.

    lidar_at, truth_at: keyframes with a LiDAR sweep, with occupancy truth (None: no truth store). blind: (t, camera)
    without an image. interval_s: what the store states and networks go by; times_s: of the keyframes,
    where they are not that far apart. boxes: labelled at every keyframe, by storage.schema.BOX_FIELDS.
    """

    keyframes: int = 3
    dataset: str = "nuscenes"
    grid: VoxelGrid = NUSCENES_GRID
    classes: tuple[str, ...] = OPENOCC_CLASSES[:16]
    lidar_at: tuple[int, ...] = (0, 1, 2)
    truth_at: tuple[int, ...] | None = (0, 1, 2)
    blind: tuple[tuple[int, int], ...] = ()
    origin: tuple[float, float, float] = (1.0, 0.0, 1.8)
    speed: tuple[float, float] = (3.0, -1.0)
    interval_s: float = INTERVAL_S
    times_s: tuple[float, ...] | None = None
    boxes: tuple[tuple[float, ...], ...] | None = None

    def box(self, lower: tuple[float, float, float], upper: tuple[float, float, float]) -> np.ndarray:
        centres = self.grid.centres()
        return ((centres >= lower) & (centres < upper)).all(axis=-1)

    def volume(self) -> tuple[np.ndarray, np.ndarray]:
        """Class per voxel and velocity in m/s."""
        free = len(self.classes)
        semantics = np.full(self.grid.shape, free, dtype=np.uint8)
        semantics[self.box((-99, -99, -0.2), (99, 99, 0.2))] = ROAD
        semantics[self.box((20, -15, 0.2), (21, 15, 3))] = WALL
        moving = self.box((8, 2, 0.2), (12, 4, 1.8))
        semantics[moving] = CAR
        semantics[self.box((-12, -4, 0.2), (-8, -2, 1.8))] = CAR
        flow = np.zeros((*self.grid.shape, 2), dtype=np.float32)
        flow[moving] = self.speed
        return semantics, flow

    def points(self) -> np.ndarray:
        """LiDAR returns (n, 3) of the ground z = 0 and of the wall's face x = 20, metres."""
        rng = np.random.default_rng(0)
        ground = np.stack([rng.uniform(-15, 15, 300), rng.uniform(-6, 6, 300), np.zeros(300)], axis=1)
        wall = np.stack([np.full(60, 20.0), rng.uniform(-10, 10, 60), rng.uniform(0.5, 2.5, 60)], axis=1)
        return np.concatenate([ground, wall])

    def ego_from_cam(self, c: int) -> np.ndarray:
        turn = np.diag([-1.0, -1.0, 1.0]) if c else np.eye(3)
        return from_rotation_translation(turn @ CAMERA_AXES, np.array([0.0, 0.0, 1.5]))

    def table(self, image_bytes: int) -> SceneTable:
        T, C = self.keyframes, 2
        poses = np.tile(np.eye(4), (T, 1, 1))
        poses[:, 0, 3] = 2.0 * np.arange(T)
        valid = np.ones((T, C), dtype=bool)
        for t, c in self.blind:
            valid[t, c] = False
        K = np.array([[32.0, 0, 32], [0, 32, 16], [0, 0, 1]])
        seconds = np.arange(T) * self.interval_s if self.times_s is None else np.array(self.times_s)
        times = np.rint(seconds * 1e6).astype(np.int64)
        return SceneTable(
            tokens=tuple(f"token{t}" for t in range(T)),
            timestamp_us=times,
            global_from_ego=poses,
            camera_valid=valid,
            camera_timestamp_us=np.repeat(times[:, None], C, axis=1),
            camera_global_from_ego=np.repeat(poses[:, None], C, axis=1),
            ego_from_cam=np.tile(np.stack([self.ego_from_cam(c) for c in range(C)]), (T, 1, 1, 1)),
            K=np.tile(K, (T, C, 1, 1)),
            image_from_raw=np.tile(np.eye(3), (T, C, 1, 1)),
            sweep_valid=np.zeros((T, 0, C), dtype=bool),
            sweep_timestamp_us=np.zeros((T, 0, C), dtype=np.int64),
            sweep_global_from_ego=np.zeros((T, 0, C, 4, 4)),
            sweep_ego_from_cam=np.zeros((T, 0, C, 4, 4)),
            sweep_K=np.zeros((T, 0, C, 3, 3)),
            max_image_bytes=image_bytes,
            max_lidar_points=len(self.points()),
        )

    def write(self, path: Path) -> Path:
        """The cue store at `path` and, unless truth_at is None, the truth store beside it."""
        T, C = self.keyframes, 2
        attributes = StoreAttributes(
            dataset=self.dataset,
            cameras=("CAM_FRONT", "CAM_BACK"),
            classes=("car",),
            network_size=NETWORK,
            render_size=RENDER,
            keyframe_interval_s=self.interval_s,
            block_keyframes=T,
        )
        picture = np.random.default_rng(1).integers(0, 256, (*NETWORK, 3), dtype=np.uint8)
        jpeg = cv2.imencode(".jpg", picture)[1].reshape(-1)
        table = self.table(len(jpeg))
        store = CueStore.create(path, attributes)
        store.commit_init("a", table, "f")
        lengths = len(jpeg) * table.camera_valid.astype(np.uint32)
        images = {"images": np.tile(jpeg, (T, C, 1)), "images_length": lengths}
        store.commit_block(UnitId("images", "a"), images, Provenance("f"))
        if self.lidar_at:
            store.commit_block(UnitId("lidar", "a"), self._lidar(), Provenance("f"))
        if self.truth_at is not None:
            self._write_truth(truth_path(path), attributes, table)
        return path

    def _lidar(self) -> dict[str, np.ndarray]:
        points = np.zeros((self.keyframes, len(self.points()), 4), dtype=np.float32)
        points[..., :3] = self.points()
        count = np.array([len(self.points()) * (t in self.lidar_at) for t in range(self.keyframes)], dtype=np.int32)
        return {
            "lidar/points": points,
            "lidar/cameras": np.full(points.shape[:2], 3, dtype=np.uint8),
            "lidar/count": count,
            "lidar/origin": np.tile(np.array(self.origin, dtype=np.float32), (self.keyframes, 1)),
        }

    def _write_truth(self, path: Path, attributes: StoreAttributes, table: SceneTable) -> None:
        assert self.truth_at is not None
        grid = {key: list(getattr(self.grid, key)) for key in ("lower", "upper", "shape")}
        store = CueStore.create(
            path, replace(attributes, kind="truth", occupancy_grid=grid, occupancy_classes=self.classes)
        )
        store.commit_init("a", table, "f")
        semantics, flow = self.volume()
        arrays = {
            "occupancy/semantics": np.tile(semantics, (self.keyframes, 1, 1, 1)),
            "occupancy/flow": np.tile(flow, (self.keyframes, 1, 1, 1, 1)),
            "occupancy/valid": np.array([t in self.truth_at for t in range(self.keyframes)], dtype=np.uint8),
        }
        store.commit_block(UnitId("occupancy", "a"), arrays, Provenance("f"))
        if self.boxes is not None:
            table = np.zeros((self.keyframes, BOX_ROWS, len(BOX_FIELDS)), dtype=np.float32)
            table[:, : len(self.boxes)] = self.boxes
            count = np.full(self.keyframes, len(self.boxes), dtype=np.int32)
            store.commit_block(UnitId("boxes", "a"), {"boxes/table": table, "boxes/count": count}, Provenance("f"))


class Known(OccFlow):
    """A network that answers with given fields whatever it sees; its surfaces are sharp (148 per metre)."""

    def __init__(self, sdf: np.ndarray, flow: np.ndarray, grid: VoxelGrid) -> None:
        """sdf (X, Y, Z) metres; flow (X, Y, Z, 2) metres per keyframe interval."""
        nn.Module.__init__(self)
        self.config = ModelConfig(fusion=FusionConfig(kind="none"), render=RenderConfig(temperature_v=0.5))
        self.renderer = Renderer(self.config.render)
        self.fields = Fields(torch.from_numpy(sdf).float()[None], torch.from_numpy(flow).float()[None], grid)

    def forward(self, frames: FrameInput) -> Fields:
        return self.fields


def exact_network(log: Log) -> Known:
    """Occupied exactly where the log's truth is, and moving as it does."""
    semantics, flow = log.volume()
    sdf = np.where(semantics == len(log.classes), 0.3, -0.3)
    return Known(sdf, flow * log.interval_s, log.grid)


@pytest.fixture(scope="session")
def log() -> Log:
    """The log of the session's store."""
    return Log()


@pytest.fixture(scope="session")
def make_log() -> type[Log]:
    """The log's class, for other logs."""
    return Log


@pytest.fixture(scope="session")
def tiny_store(log: Log, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cues and truth of one scene, read-only for all tests."""
    return log.write(tmp_path_factory.mktemp("store") / "store.zarr")


@pytest.fixture(scope="session")
def small_log() -> Log:
    """The same log in a box an eighth as large, for tests that draw it."""
    return Log(grid=VoxelGrid((-16.0, -16.0, -1.0), (24.0, 16.0, 3.0), (100, 80, 10)))


@pytest.fixture(scope="session")
def small_store(small_log: Log, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cues and truth of the small log, read-only for all tests."""
    return small_log.write(tmp_path_factory.mktemp("small") / "store.zarr")


@pytest.fixture(scope="session")
def known_network() -> type[Known]:
    """The class of networks with given fields."""
    return Known


@pytest.fixture(scope="session")
def exact() -> Callable[[Log], Known]:
    """A function from a log to the network that knows it."""
    return exact_network


class Page:
    """A page in a headless Chromium, driven by its own debugging protocol; collects what goes wrong in it."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.errors: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            self._notice(message)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def _notice(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:600])
        if message.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(params["args"])[:600])
        if message.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(json.dumps(params["entry"])[:600])

    def open(self, address: str) -> None:
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; awaits promises."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"never came true: {condition}; {self.errors}"
            time.sleep(0.05)

    def screenshot(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


def find_chromium() -> str | None:
    """The browser's program; None where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    return None


def _unavailable(reason: str) -> NoReturn:
    """Skip, but fail in a CI that promises a browser: a skip there would hide that nothing was tested."""
    if os.environ.get("CI") and os.environ.get("OCCFLOW_BROWSER_TESTS") == "1":
        pytest.fail(f"OCCFLOW_BROWSER_TESTS=1 promises a browser: {reason}")
    pytest.skip(reason)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """An empty page. Skips where there is no Chromium, but fails in a CI that promises one."""
    program = find_chromium()
    try:
        from websockets.sync import client as sockets
    except ImportError:
        _unavailable("the package websockets is not installed")
    if program is None:
        _unavailable("no Chromium here: apt-get install chromium")
    profile = tmp_path / "profile"
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--enable-unsafe-swiftshader",
        "--no-first-run",
    ]
    options += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--window-size=1400,1200", "about:blank"]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _debugging_port(profile, process)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as reply:
            target = next(t for t in json.load(reply) if t["type"] == "page")
        with sockets.connect(target["webSocketDebuggerUrl"], max_size=2**28) as socket:
            yield Page(socket)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _debugging_port(profile: Path, process: "subprocess.Popen[bytes]") -> int:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError, IndexError, ValueError):
            return int((profile / "DevToolsActivePort").read_text().splitlines()[0])
        assert process.poll() is None, f"Chromium ended with {process.returncode}"
        time.sleep(0.05)
    raise AssertionError("Chromium never opened its debugging port")
