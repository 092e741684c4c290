"""The scene-flow community's end-point errors over occupied voxels: three-way, and normalised by speed buckets."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from eval.protocols import MOVABLE_KINDS, occupied_in

BACKGROUND = "background"
META_CLASSES: Mapping[str, frozenset[str]] = {
    "car": frozenset({"car"}),
    "other_vehicles": frozenset({"truck", "trailer", "bus", "construction_vehicle", "other_vehicle"}),
    "wheeled_vru": frozenset({"bicycle", "motorcycle", "bicyclist", "motorcyclist"}),
    "pedestrian": frozenset({"pedestrian", "person"}),
}
"""Khatri et al.'s groups of classes, by the names of OpenOcc and of SemanticKITTI; all else is background."""

STATIC_SPEED = 0.5
"""m/s below which a point counts as static in the three-way error (0.05 m in Argoverse 2's 0.1 s)."""
BUCKET_EDGES = np.append(np.linspace(0.0, 20.0, 51), np.inf)
"""m/s. Fifty buckets of 0.4 m/s (0.04 m in 0.1 s) and one for all that is faster; the first one is static."""


def true_voxels(
    occupied: Bool[np.ndarray, "x y z"],
    flow: Float[np.ndarray, "x y z 2"],
    semantics: UInt8[np.ndarray, "x y z"],
    true_flow: Float[np.ndarray, "x y z 2"],
    classes: Sequence[str],
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Class, true speed and end-point error (m/s) of every truly occupied voxel of known class and velocity.

    A voxel that the prediction leaves free has the velocity zero: what is not there does not move, and a sparser
    prediction gains nothing.
    """
    known = occupied_in(semantics, classes) & (semantics < len(classes)) & np.isfinite(true_flow).all(axis=-1)
    truth = true_flow[known].astype(np.float64)
    velocity = np.where(occupied[known][:, None], flow[known].astype(np.float64), 0.0)
    speed, error = np.linalg.norm(truth, axis=-1), np.linalg.norm(velocity - truth, axis=-1)
    return semantics[known].astype(np.int64), speed, error


class ThreeWayError:
    """Mean end-point error of foreground dynamic, foreground static and background static, and the mean of the three.

    As Argoverse 2's scene-flow evaluation (Chodosh et al. 2024), on voxels instead of LiDAR points and in m/s instead
    of metres in 0.1 s. Foreground: movable classes. Dynamic: a true speed of at least `STATIC_SPEED`. Background that
    moves (which truth of these data sets has not) is left out and counted.
    """

    PARTS = ("foreground_dynamic", "foreground_static", "background_static")

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.counts, self.errors = np.zeros(3, dtype=np.int64), np.zeros(3)
        self.background_dynamic = 0

    def update(
        self,
        occupied: Bool[np.ndarray, "x y z"],
        flow: Float[np.ndarray, "x y z 2"],
        semantics: UInt8[np.ndarray, "x y z"],
        true_flow: Float[np.ndarray, "x y z 2"],
    ) -> None:
        """Count one keyframe; flows in m/s, ego frame, own motion taken out."""
        category, speed, error = true_voxels(occupied, flow, semantics, true_flow, self.classes)
        foreground = np.array([name in MOVABLE_KINDS for name in self.classes])[category]
        dynamic = speed >= STATIC_SPEED
        part = np.where(foreground, np.where(dynamic, 0, 1), np.where(dynamic, 3, 2))
        self.counts += np.bincount(part, minlength=4)[:3]
        self.errors += np.bincount(part, weights=error, minlength=4)[:3]
        self.background_dynamic += int((part == 3).sum())

    def merge(self, other: "ThreeWayError") -> None:
        """Add another accumulator's sums over the same classes."""
        if other.classes != self.classes:
            raise ValueError(f"cannot merge three-way errors of classes {other.classes} into {self.classes}")
        self.counts += other.counts
        self.errors += other.errors
        self.background_dynamic += other.background_dynamic

    def compute(self) -> dict[str, Any]:
        """`threeway_epe` (m/s; nan unless all three parts have voxels), each part's error and count, and the rule."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means = self.errors / self.counts
        return {
            "threeway_epe": float(means.mean()),
            **{f"epe_{name}": float(mean) for name, mean in zip(self.PARTS, means, strict=True)},
            "voxels": dict(zip(self.PARTS, self.counts.tolist(), strict=True)),
            "background_dynamic_left_out": self.background_dynamic,
            "rule": f"m/s over truly occupied voxels; dynamic from {STATIC_SPEED} m/s; predicted free = zero velocity",
        }


class BucketedError:
    """Bucket-normalised end-point error: dynamic errors as a share of the true speed, by class and speed.

    After "I Can't Believe It's Not Scene Flow!" (Khatri et al., ECCV 2024): in each bucket of class and speed the mean
    error over the mean true speed; then the mean over a class's buckets that have voxels, then over classes. 0 is
    perfect, 1 is what a prediction of no motion gets. The first bucket (static) gives a plain mean error in m/s.
    """

    def __init__(self, classes: Sequence[str], edges: Float[np.ndarray, "edges"] = BUCKET_EDGES) -> None:
        self.classes, self.edges = tuple(classes), np.asarray(edges, dtype=np.float64)
        self.groups = (*META_CLASSES, BACKGROUND)
        of = {name: row for row, group in enumerate(META_CLASSES) for name in META_CLASSES[group]}
        self._row = np.array([of.get(name, len(META_CLASSES)) for name in self.classes])
        shape = (len(self.groups), len(self.edges) - 1)
        self.counts, self.errors, self.speeds = np.zeros(shape, dtype=np.int64), np.zeros(shape), np.zeros(shape)

    def update(
        self,
        occupied: Bool[np.ndarray, "x y z"],
        flow: Float[np.ndarray, "x y z 2"],
        semantics: UInt8[np.ndarray, "x y z"],
        true_flow: Float[np.ndarray, "x y z 2"],
    ) -> None:
        """Count one keyframe; flows in m/s, ego frame, own motion taken out."""
        category, speed, error = true_voxels(occupied, flow, semantics, true_flow, self.classes)
        columns = len(self.edges) - 1
        bucket = np.searchsorted(self.edges, speed, side="right") - 1
        cell = self._row[category] * columns + np.minimum(bucket, columns - 1)
        size, shape = self.counts.size, self.counts.shape
        self.counts += np.bincount(cell, minlength=size).reshape(shape)
        self.errors += np.bincount(cell, weights=error, minlength=size).reshape(shape)
        self.speeds += np.bincount(cell, weights=speed, minlength=size).reshape(shape)

    def merge(self, other: "BucketedError") -> None:
        """Add another accumulator's sums over the same classes and buckets."""
        if other.classes != self.classes or not np.array_equal(other.edges, self.edges):
            raise ValueError("cannot merge bucketed errors over other classes or buckets")
        self.counts += other.counts
        self.errors += other.errors
        self.speeds += other.speeds

    def compute(self) -> dict[str, Any]:
        """`dynamic_normalised_epe` (a share), `static_epe` (m/s), both as means over classes, and a table per class."""
        with np.errstate(invalid="ignore", divide="ignore"):
            static = self.errors[:, 0] / self.counts[:, 0]
            normalised = self.errors[:, 1:] / self.speeds[:, 1:]
        dynamic = np.array([_mean(row) for row in normalised])
        return {
            "dynamic_normalised_epe": _mean(dynamic),
            "static_epe": _mean(static),
            "per_class": {
                group: {
                    "static_epe": float(static[row]),
                    "dynamic_normalised_epe": float(dynamic[row]),
                    "static_voxels": int(self.counts[row, 0]),
                    "dynamic_voxels": int(self.counts[row, 1:].sum()),
                    "buckets": [
                        {
                            "from_m_s": float(self.edges[b]),
                            "voxels": int(self.counts[row, b]),
                            "normalised_epe": float(normalised[row, b - 1]),
                        }
                        for b in range(1, self.counts.shape[1])
                        if self.counts[row, b]
                    ],
                }
                for row, group in enumerate(self.groups)
                if self.counts[row].any()
            },
            "rule": f"buckets of {self.edges[1]:g} m/s to {self.edges[-2]:g} m/s; predicted free = zero velocity",
        }


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
