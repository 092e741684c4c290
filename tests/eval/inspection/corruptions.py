"""Labels corrupted on purpose, and which checks they turn red: for synthetic and for real frames."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from eval.inspection.run import inspect_store
from storage.schema import INVALID_FLOW, SceneTable

Arrays = dict[str, dict[str, np.ndarray]]
Change = Callable[[SceneTable, Arrays], SceneTable]


def pose_shifted(table: SceneTable, arrays: Arrays) -> SceneTable:
    """Every second keyframe's poses lie 0.3 m to the left of where the car was."""
    own, cameras = table.global_from_ego.copy(), table.camera_global_from_ego.copy()
    own[1::2, :3, 3] += 0.3 * own[1::2, :3, 1]
    cameras[1::2, ..., :3, 3] += 0.3 * cameras[1::2, ..., :3, 1]
    return replace(table, global_from_ego=own, camera_global_from_ego=cameras)


def camera_late(table: SceneTable, arrays: Arrays) -> SceneTable:
    """Cameras' times are 50 ms late in the table; poses are right."""
    return replace(table, camera_timestamp_us=table.camera_timestamp_us + 50_000)


def change_flow(factor: float) -> Change:
    """The flow to the next keyframe multiplied by a factor."""

    def change(table: SceneTable, arrays: Arrays) -> SceneTable:
        stored = arrays["flow_next"]["flow/next/flow"]
        scaled = np.rint(stored.astype(np.float64) * factor)
        invalid = (stored == INVALID_FLOW) | (np.abs(scaled) > 32767)
        arrays["flow_next"]["flow/next/flow"] = np.where(invalid, INVALID_FLOW, scaled).astype(np.int16)
        return table

    return change


def masks_shifted(table: SceneTable, arrays: Arrays) -> SceneTable:
    """Masks lie 8 px to the right of what they mask."""
    arrays["masks"]["masks/instance"] = np.roll(arrays["masks"]["masks/instance"], 8, axis=-1)
    return table


def instances_dropped(table: SceneTable, arrays: Arrays) -> SceneTable:
    """Every second keyframe lacks its masks."""
    arrays["masks"]["masks/instance"][1::2] = 0
    arrays["masks"]["masks/table"][1::2] = 0
    return table


def lidar_turned(table: SceneTable, arrays: Arrays) -> SceneTable:
    """The LiDAR's points are turned by one degree about the vertical."""
    angle = np.radians(1.0)
    points = arrays["lidar"]["lidar/points"]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    points[..., :2] = points[..., :2] @ turn.T
    return table


def sector_lost(table: SceneTable, arrays: Arrays) -> SceneTable:
    """Every third sweep lacks 60 degrees on the right."""
    x, y = from_lidar(arrays)
    gone = np.abs(np.degrees(np.arctan2(y, x)) + 90) < 30
    gone[np.arange(len(gone)) % 3 > 0] = False
    arrays["lidar"]["lidar/points"][gone] = np.nan
    return table


def ring_lost(table: SceneTable, arrays: Arrays) -> SceneTable:
    """Every sixth sweep lacks what is 11 to 24 m away: near, far and in all directions there are returns. More sweeps
    than a fifth must not, for then the squares would not be usual in the store."""
    distance = np.hypot(*from_lidar(arrays))
    gone = (distance > 11) & (distance < 24)
    gone[np.arange(len(gone)) % 6 > 0] = False
    arrays["lidar"]["lidar/points"][gone] = np.nan
    return table


def from_lidar(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Metres forward and to the left of the sensor, (T, N) each."""
    points = arrays["lidar"]["lidar/points"][..., :2] - arrays["lidar"]["lidar/origin"][:, None, :2]
    return points[..., 0], points[..., 1]


def image_frozen(table: SceneTable, arrays: Arrays) -> SceneTable:
    """One image came twice."""
    for name in ("images", "images_length"):
        arrays["images"][name][3, 0] = arrays["images"][name][2, 0]
    return table


def no_flow(table: SceneTable, arrays: Arrays) -> SceneTable:
    """One camera has no flow at keyframe 2."""
    arrays["flow_next"]["flow/next/flow"][2, 1] = -32768
    return table


def red(store: Path) -> set[str]:
    """Checks that fail."""
    return {check["name"] for check in inspect_store(store).result["checks"] if check["state"] == "fail"}
