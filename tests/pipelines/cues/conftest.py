"""A flat world in front of a sideways-driving car, whose images, depth, flow and LiDAR are known in closed form."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from geometry.cameras import camera_directions, pixel_centres
from pipelines.cues.base import BlockContext, ImageSizes
from pipelines.datasets.records import CameraImage, Frame, LidarSweep, Scene

EGO_FROM_CAM = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
"""Camera at 1.5 m height, looking forward: camera z = ego x, camera x = -ego y, camera y = -ego z."""


class Texture:
    """Grey value noise of many wavelengths (metres), defined everywhere."""

    def __init__(self, seed: int, shortest: float, longest: float) -> None:
        rng = np.random.default_rng(seed)
        wavelength = np.exp(rng.uniform(np.log(shortest), np.log(longest), 80))
        angle = rng.uniform(0, 2 * np.pi, 80)
        self.waves = 2 * np.pi / wavelength * np.stack([np.cos(angle), np.sin(angle)])
        self.phase = rng.uniform(0, 2 * np.pi, 80)
        self.tint = rng.uniform(0.6, 1.0, 3)

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        value = np.cos(x[..., None] * self.waves[0] + y[..., None] * self.waves[1] + self.phase).sum(-1) / 9.0
        return np.clip(128 + 60 * value[..., None] * self.tint, 0, 255)


@dataclass
class FlatWorld:
    """A textured wall `wall_depth` m ahead and, perhaps, a textured board in front of it that moves sideways.

    The car drives to its left (+y) by `ego_step` m per frame and the board by `board_step`. Everything is fronto-
    parallel, so a point at depth z moves by fx * (ego_step - own step) / z pixels to the right per frame.
    """

    keyframes: int = 3
    sweeps: int = 2
    height: int = 96
    width: int = 160
    focal: float = 120.0
    wall_depth: float = 12.0
    ego_step: float = 0.3
    board_depth: float | None = None
    board_step: float = 0.0
    board_half: tuple[float, float] = (1.0, 0.7)
    channel: str = "CAM"
    missing: set[int] = field(default_factory=set)
    wall: Texture = field(default_factory=lambda: Texture(1, 0.5, 8.0))
    board: Texture = field(default_factory=lambda: Texture(2, 0.25, 3.0))

    @property
    def K(self) -> np.ndarray:
        return np.array([[self.focal, 0, self.width / 2], [0, self.focal, self.height / 2], [0, 0, 1.0]])

    def frame_of(self, t: int, sweep: int = -1) -> int:
        """Position in time of keyframe t, or of a sweep slot after it."""
        return t * (self.sweeps + 1) + sweep + 1

    def pose(self, i: int) -> np.ndarray:
        pose = np.eye(4)
        pose[1, 3] = self.ego_step * i
        return pose

    def _layers(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """World (y, z) of the wall seen by each pixel, board-fixed coordinates, and whether the board is seen."""
        rays = camera_directions(self.K, pixel_centres(self.height, self.width).reshape(-1, 2))
        rays = rays.reshape(self.height, self.width, 3)
        wall = np.stack([self.ego_step * i - rays[..., 0] * self.wall_depth, -rays[..., 1] * self.wall_depth], -1)
        if self.board_depth is None:
            return wall, wall, np.zeros((self.height, self.width), bool), rays
        board = np.stack(
            [(self.ego_step - self.board_step) * i - rays[..., 0] * self.board_depth, -rays[..., 1] * self.board_depth],
            -1,
        )
        seen = (np.abs(board[..., 0]) < self.board_half[0]) & (np.abs(board[..., 1]) < self.board_half[1])
        return wall, board, seen, rays

    def image(self, i: int) -> np.ndarray:
        wall, board, seen, _ = self._layers(i)
        colour = np.where(
            seen[..., None], self.board(board[..., 0], board[..., 1]), self.wall(wall[..., 0], wall[..., 1])
        )
        return np.round(colour).astype(np.uint8)

    def board_seen(self, i: int) -> np.ndarray:
        return self._layers(i)[2]

    def depth(self, i: int) -> np.ndarray:
        return np.where(self.board_seen(i), self.board_depth or 0.0, self.wall_depth).astype(np.float32)

    def flow(self, i: int, j: int) -> np.ndarray:
        """Raw-pixel flow from frame i to frame j of what frame i shows (hidden or not in j)."""
        steps = j - i
        wall_u = self.focal * self.ego_step * steps / self.wall_depth
        board_u = self.focal * (self.ego_step - self.board_step) * steps / (self.board_depth or 1.0)
        u = np.where(self.board_seen(i), board_u, wall_u)
        return np.stack([u, np.zeros_like(u)]).astype(np.float32)

    def lidar(self, i: int) -> np.ndarray:
        """Every 4th column and 6th row as a point of the ego (= LiDAR) frame, intensity 0.5, and 5 own-car returns."""
        depth, rays = self.depth(i)[::6, ::4], self._layers(i)[3][::6, ::4]
        camera = (rays * depth[..., None]).reshape(-1, 3)
        points = camera @ EGO_FROM_CAM[:3, :3].T + EGO_FROM_CAM[:3, 3]
        own = np.array([[0.5 + 0.1 * k, 0.0, 1.0] for k in range(5)])
        xyz = np.concatenate([points, own])
        return np.concatenate([xyz, np.full((len(xyz), 1), 0.5)], axis=1).astype(np.float32)

    def scene(self) -> Scene:
        frames = []
        for i in range(self.frame_of(self.keyframes - 1) + 1):
            is_keyframe = i % (self.sweeps + 1) == 0
            image = CameraImage(
                token=f"image{i}",
                channel=self.channel,
                path=Path(f"{i}.png"),
                timestamp_us=100_000 * i,
                K=self.K,
                ego_from_cam=EGO_FROM_CAM,
                global_from_ego=self.pose(i),
                width=self.width,
                height=self.height,
                is_keyframe=is_keyframe,
            )
            sweep = LidarSweep(f"lidar{i}", Path(f"{i}.bin"), 100_000 * i, np.eye(4), self.pose(i))
            images = {} if i in self.missing else {self.channel: image}
            frames.append(Frame(f"frame{i}", 100_000 * i, is_keyframe, self.pose(i), images, sweep))
        return Scene("flat", tuple(frames))

    def context(self, **changes: object) -> BlockContext:
        """The whole scene as one block; network and render size half the raw image unless changed."""
        half = (self.height // 2, self.width // 2)
        context = BlockContext(
            scene=self.scene(),
            cameras=(self.channel,),
            start=0,
            stop=self.keyframes,
            sizes=ImageSizes(network=half, render=half),
            sweep_slots=self.sweeps,
            classes=("car",),
            load_image=lambda image: self.image(int(image.token.removeprefix("image"))),
            load_lidar=lambda sweep: self.lidar(int(sweep.token.removeprefix("lidar"))),
            upstream=_no_upstream,
            truth=FlatTruth(self),
            warn=_never,
        )
        return replace(context, **changes)


def _no_upstream(name: str) -> dict[str, np.ndarray]:
    raise KeyError(name)


def _never(line: str) -> None:
    raise AssertionError(f"unexpected warning: {line}")


@dataclass
class FlatTruth:
    """SceneTruth of a FlatWorld; correspondences hidden behind the board or outside the image are NaN."""

    world: FlatWorld

    def occupancy(self, token: str) -> None:
        return None

    def camera(self, token: str, channel: str) -> dict[str, np.ndarray] | None:
        world, i = self.world, int(token.removeprefix("frame"))
        seen = world.board_seen(i)
        j = i + world.sweeps + 1
        flow = world.flow(i, j)
        u = np.arange(world.width) + 0.5 + flow[0]
        lost = (u < 0) | (u >= world.width)
        column = np.clip(np.floor(u), 0, world.width - 1).astype(int)
        lost |= ~seen & world.board_seen(j)[np.arange(world.height)[:, None], column]
        flow[:, lost] = np.nan
        if j > world.frame_of(world.keyframes - 1):
            flow[:] = np.nan
        moving = seen & (world.board_step != 0)
        return {
            "depth": world.depth(i),
            "instance": seen.astype(np.uint16),
            "moving": moving.astype(np.uint8),
            "flow_next": flow,
        }


@pytest.fixture
def flat_world() -> Callable[..., FlatWorld]:
    """Builds FlatWorld(**settings)."""
    return FlatWorld
