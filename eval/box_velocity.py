"""Velocity of labelled boxes: how well the predicted flow inside a moving box agrees with the box's own velocity."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from eval.mave import DYNAMIC_SPEED
from eval.time_steps import Spread
from geometry.grid import VoxelGrid
from storage.schema import BOX_FIELDS

FLOOR_M = 0.3
"""Metres above a box's floor from which voxels count: below them stands the road, which reaches into the box."""
OTHER = "other"
"""What boxes of no class of the store are listed as."""
_AT = {name: i for i, name in enumerate(BOX_FIELDS)}


def voxels_in_box(box: Float[np.ndarray, " fields"], grid: VoxelGrid) -> Int[np.ndarray, "n 3"]:
    """Indices of the voxels whose centres lie in a box (a row by `BOX_FIELDS`), at least `FLOOR_M` above its floor."""
    place = box[_AT["x"] : _AT["z"] + 1].astype(np.float64)
    length, width, height = (float(box[_AT[name]]) for name in ("length", "width", "height"))
    reach = np.hypot(length, width) / 2
    lower, size = np.asarray(grid.lower), np.asarray(grid.voxel_size)
    low = np.floor((place - [reach, reach, 0] - lower) / size).clip(0, grid.shape).astype(np.int64)
    high = np.ceil((place + [reach, reach, height] - lower) / size).clip(0, grid.shape).astype(np.int64)
    index = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), axis=-1).reshape(-1, 3)
    away = lower + (index + 0.5) * size - place
    cos, sin = np.cos(box[_AT["yaw"]]), np.sin(box[_AT["yaw"]])
    along, across = cos * away[:, 0] + sin * away[:, 1], cos * away[:, 1] - sin * away[:, 0]
    inside = (np.abs(along) <= length / 2) & (np.abs(across) <= width / 2)
    return index[inside & (away[:, 2] >= FLOOR_M) & (away[:, 2] <= height)]


class BoxVelocity:
    """Errors of velocity over labelled boxes, m/s, horizontal, each box once however many voxels it has.

    A box's predicted velocity is the mean flow of the occupied voxels in it; zero where there is none, so that finding
    less gains nothing. Its true velocity is that of its middle over the label's own time step: what turning adds to it
    elsewhere in the box is left out, because labelled headings are too coarse to tell. Boxes of unknown velocity, and
    those that hold no voxel of the grid, are counted and left out.

    Args:
        classes: names of the boxes' class indices.
        grid: of the predictions.
        min_speed: m/s from which a box moves; the others are parked.
    """

    _SUMS = ("moving", "found", "error", "error_found", "zero", "voxels", "voxel_error", "parked", "parked_speed")

    def __init__(self, classes: Sequence[str], grid: VoxelGrid, min_speed: float = DYNAMIC_SPEED) -> None:
        self.classes, self.grid, self.min_speed = (*classes, OTHER), grid, min_speed
        self.sums = {name: np.zeros(len(self.classes)) for name in self._SUMS}
        self.unknown = self.outside = self.frames = 0
        self.steps = Spread()

    def update(
        self,
        occupied: Bool[np.ndarray, "x y z"],
        flow: Float[np.ndarray, "x y z 2"],
        boxes: Float32[np.ndarray, "n fields"],
    ) -> None:
        """Count one keyframe's boxes, rows by `BOX_FIELDS`; flow in m/s, ego frame, own motion taken out."""
        self.frames += 1
        for box in boxes:
            velocity = box[[_AT["vx"], _AT["vy"]]].astype(np.float64)
            if not np.isfinite(velocity).all():
                self.unknown += 1
                continue
            index = tuple(voxels_in_box(box, self.grid).T)
            if not len(index[0]):
                self.outside += 1
                continue
            self.steps.add(float(box[_AT["seconds"]]))
            self._count(min(int(box[_AT["class"]]), len(self.classes) - 1), velocity, flow[index][occupied[index]])

    def _count(self, category: int, velocity: Float[np.ndarray, "2"], flow: Float[np.ndarray, "n 2"]) -> None:
        predicted = flow.mean(axis=0, dtype=np.float64) if len(flow) else np.zeros(2)
        speed, error = float(np.linalg.norm(velocity)), float(np.linalg.norm(predicted - velocity))
        if speed < self.min_speed:
            found = {"parked": 1.0, "parked_speed": float(np.linalg.norm(predicted))}
        else:
            found = {"moving": 1.0, "error": error, "zero": speed, "voxels": len(flow)}
            found["voxel_error"] = float(np.linalg.norm(flow.astype(np.float64) - velocity, axis=-1).sum())
            if len(flow):
                found |= {"found": 1.0, "error_found": error}
        for name, value in found.items():
            self.sums[name][category] += value

    def merge(self, other: "BoxVelocity") -> None:
        """Add another accumulator's sums over the same classes, grid and speed."""
        if (other.classes, other.grid, other.min_speed) != (self.classes, self.grid, self.min_speed):
            raise ValueError("cannot merge box velocities of other classes, another grid or another lowest speed")
        for name in self._SUMS:
            self.sums[name] += other.sums[name]
        self.unknown, self.outside = self.unknown + other.unknown, self.outside + other.outside
        self.frames += other.frames
        self.steps.merge(other.steps)

    def compute(self) -> dict[str, Any]:
        """The figures: over moving boxes `box_velocity_error`, that of the found ones alone, that of no motion at all,
        the mean error of their occupied voxels, and the share found; over parked ones the mean predicted speed. nan
        where nothing was counted. `time_step_s` is the labels' own."""
        seen = np.flatnonzero(self.sums["moving"] + self.sums["parked"])
        return {
            **_figures({name: float(values.sum()) for name, values in self.sums.items()}),
            "frames": self.frames,
            "boxes_of_unknown_velocity": self.unknown,
            "boxes_outside_the_grid": self.outside,
            "min_speed_m_s": self.min_speed,
            "floor_m": FLOOR_M,
            "time_step_s": self.steps.compute(),
            "per_class": {
                self.classes[c]: _figures({name: float(values[c]) for name, values in self.sums.items()}) for c in seen
            },
        }


def _figures(sums: Mapping[str, float]) -> dict[str, Any]:
    def mean(name: str, over: str) -> float:
        return sums[name] / sums[over] if sums[over] else float("nan")

    return {
        "box_velocity_error": mean("error", "moving"),
        "box_velocity_error_found": mean("error_found", "found"),
        "box_velocity_error_zero_flow": mean("zero", "moving"),
        "voxel_error_in_boxes": mean("voxel_error", "voxels"),
        "boxes_found": mean("found", "moving"),
        "parked_box_speed": mean("parked_speed", "parked"),
        "moving_boxes": int(sums["moving"]),
        "parked_boxes": int(sums["parked"]),
        "voxels_in_boxes": int(sums["voxels"]),
    }
