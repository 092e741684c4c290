"""What every data-set reader yields: a log of scenes, of frames, of camera images and LiDAR sweeps. No pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float

from geometry.grid import VoxelGrid


@dataclass(frozen=True)
class CameraImage:
    """One image on disk with its own time, calibration and ego pose.

    K: 3x3 float64 of the raw image, pixel centres at +0.5. ego_from_cam, global_from_ego: 4x4 float64, metres; the
    pose is the one at this image's own `timestamp_us` (microseconds).
    """

    token: str
    channel: str
    path: Path
    timestamp_us: int
    K: Float[np.ndarray, "3 3"]
    ego_from_cam: Float[np.ndarray, "4 4"]
    global_from_ego: Float[np.ndarray, "4 4"]
    width: int
    height: int
    is_keyframe: bool = True


@dataclass(frozen=True)
class LidarSweep:
    """One LiDAR sweep on disk; `ego_from_lidar` and `global_from_ego` (at its own time) as for cameras."""

    token: str
    path: Path
    timestamp_us: int
    ego_from_lidar: Float[np.ndarray, "4 4"]
    global_from_ego: Float[np.ndarray, "4 4"]


@dataclass(frozen=True)
class Frame:
    """Images (by channel; a missing camera is simply absent) and perhaps a LiDAR sweep taken at about one time.

    For keyframes `timestamp_us` and `global_from_ego` are the LiDAR's (the frame the volume lives in), or the first
    camera's where there is no LiDAR.
    """

    token: str
    timestamp_us: int
    is_keyframe: bool
    global_from_ego: Float[np.ndarray, "4 4"]
    images: dict[str, CameraImage] = field(default_factory=dict)
    lidar: LidarSweep | None = None


@dataclass(frozen=True)
class Scene:
    """A stretch of driving: frames in time order, keyframes and the sweeps between them."""

    name: str
    frames: tuple[Frame, ...]
    tags: tuple[str, ...] = ()

    @property
    def keyframes(self) -> tuple[Frame, ...]:
        """The keyframes, in time order; their position here is the store's index t."""
        return tuple(f for f in self.frames if f.is_keyframe)

    def sweeps_after(self, t: int) -> tuple[Frame, ...]:
        """The non-keyframes after keyframe `t` and before the next one, in time order; the store's index p."""
        positions = [i for i, f in enumerate(self.frames) if f.is_keyframe]
        end = positions[t + 1] if t + 1 < len(positions) else len(self.frames)
        return self.frames[positions[t] + 1 : end]


class Log(Protocol):
    """A data set on disk. Readers are lazy: listing reads tables only, pixels and points are read on request.

    `classes` are the movable classes of masks; `occupancy_classes` those of the truth (free is the index after the
    last, 255 unknown), whose voxels are `occupancy_grid` in the ego frame at LiDAR time. `notes` collects
    one line per kind of thing that is missing or was skipped, for the user.

    One member may be left out: `truth_options(cue)`, a mapping of the reader's options that change truth `occupancy`,
    `camera` or `boxes` beside scenes, grid and classes. Only options that are not at their default: units made under
    others then count as stale.
    """

    dataset: str

    @property
    def cameras(self) -> Sequence[str]:
        """Channels in the store's order, index c."""
        ...

    classes: Sequence[str]
    occupancy_classes: Sequence[str]
    occupancy_grid: VoxelGrid
    notes: list[str]

    def scene_names(self, split: str | None = None) -> list[str]:
        """Names of the scenes present (of an official split, when named), in the data set's own order."""
        ...

    def scene(self, name: str) -> Scene:
        """One scene. Raises DataError when its tables are inconsistent (non-monotonic times, singular K)."""
        ...

    def read_lidar(self, sweep: LidarSweep) -> Float[np.ndarray, "n 4"]:
        """x y z intensity, float32, metres, LiDAR frame. Raises DataError for a missing or truncated file."""
        ...

    def truth(self, scene: str) -> "SceneTruth | None":
        """Access to this scene's ground truth, or None where the data set has none on disk."""
        ...


class SceneTruth(Protocol):
    """Ground truth of one scene, read on demand; any item may be None where it is not on disk.

    `token` is a keyframe's token. Raw resolution means the raw image's pixel grid.

    Three members may be left out. `boxes(token)` gives the keyframe's labelled objects, or None where nobody labelled
    it. `cues` names what this scene has some of, among `occupancy`, `camera` and `boxes`, so that the rest takes no
    place in the store; without it that is the first two. `flow_target(token)` is the token of the frame in which a
    keyframe's `flow_next` ends, where that may be another than the next keyframe: such flow is then left out.
    """

    def occupancy(self, token: str) -> tuple[np.ndarray, np.ndarray | None] | None:
        """(semantics u8 (X, Y, Z), flow f32 (X, Y, Z, 2) in m/s, ego frame at LiDAR time, or None)."""
        ...

    def camera(self, token: str, channel: str) -> dict[str, np.ndarray] | None:
        """Keys where known: depth f32 (H, W) camera z in m, inf = sky; instance u16 (H, W), 0 = static;
        moving u8 (H, W); flow_next f32 (2, H, W) to the same camera's next keyframe image, raw pixels (u, v), nan
        where the point leaves the image or is hidden there."""
        ...


@dataclass(frozen=True)
class LabelledBox:
    """One labelled object at one keyframe, in its ego frame.

    track: its number, the same in every frame of the scene. category: one of the log's `classes`, or None for another
    thing. size: length, width, height (m). ego_from_box: box frame x forward, y left, z up, origin in the middle of the
    box's floor. velocity: horizontal, m/s, own motion taken out, and `seconds` the time over which it was taken; None
    where it is unknown.
    """

    track: int
    category: str | None
    size: tuple[float, float, float]
    ego_from_box: Float[np.ndarray, "4 4"]
    velocity: Float[np.ndarray, " 2"] | None = None
    seconds: float | None = None


class DataError(ValueError):
    """Raw data that cannot be used. The message names the file, what was found, what was expected, the remedy."""
