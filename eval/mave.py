"""Velocity errors: mAVE along rays that found the object, and end-point error on every voxel that truly moves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from eval.protocols import MOVABLE_KINDS, occupied_in
from eval.raycast import Hits
from eval.rayiou import TruthRays, in_half

TP_DISTANCE = 2.0
"""Metres, strict: a ray is a true positive for mAVE."""
DYNAMIC_SPEED = 0.5
"""m/s from which a voxel of a movable class counts as truly moving."""


@dataclass(frozen=True)
class VelocityResult:
    """m/s, horizontal; nan where nothing was found.

    mave: mean over movable classes with a true positive of the mean error on true positives.
    zero_flow: the same for a prediction of zero on the very same true positives. unmasked: the legacy form, as
    `VelocityError` says. class_source: `truth` (networks without classes: true positives by distance alone) or
    `prediction`.
    """

    mave: float
    zero_flow: float
    unmasked: float
    class_source: str
    per_class: dict[str, dict[str, float]]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON, under the metrics' own names."""
        return {
            "mave": self.mave,
            "mave_zero_flow_same_tp": self.zero_flow,
            "mave_unmasked_legacy": self.unmasked,
            "class_source": self.class_source,
            "tp_distance_m": TP_DISTANCE,
            "per_class": self.per_class,
            "notes": list(self.notes),
        }


class VelocityError:
    """mAVE over a data set: sums of the error norm over counts of true positives, per class.

    The unmasked legacy form is what a script does that computes the error norm before it masks: a class takes the sum
    over every kept ray, of whatever class, of each keyframe in which it has a true positive. The scorer that OccNet's
    repository ships for submissions (tools/ray_iou/metric.py) does; its training-time metric does not. As most rays
    stand still, the legacy figure is far smaller.

    Args:
        classes: names of the truth's indices; the movable ones count.
        half: round distances to float16 before they are compared, as the challenge's submission form does.
    """

    _SUMS = ("tp", "error", "zero", "rays", "rays_unmasked", "error_unmasked")

    def __init__(self, classes: Sequence[str], *, half: bool = False) -> None:
        self.classes, self.half = tuple(classes), half
        self.sums = {name: np.zeros(len(classes)) for name in self._SUMS}
        self.class_source = "truth"
        self.unknown = 0

    def update(
        self,
        truth: TruthRays,
        hits: Hits,
        flow: Float[np.ndarray, "x y z 2"],
        true_flow: Float[np.ndarray, "x y z 2"],
        predicted_category: Int[np.ndarray, "rays"] | None = None,
    ) -> None:
        """Count one keyframe.

        Args:
            truth, hits: from RayIoU of the same keyframe.
            flow, true_flow: m/s, ego frame, x and y. A predicted ray that misses has velocity zero; rays whose true
                velocity is not finite are left out and counted.
            predicted_category: class of each predicted ray (free for a miss); None takes the truth's.
        """
        true_velocity = true_flow.reshape(-1, 2)[truth.hits.voxel].astype(np.float64)
        velocity = np.where(hits.voxel[:, None] >= 0, flow.reshape(-1, 2)[hits.voxel], 0.0)
        distance, true_distance = hits.distance, truth.hits.distance
        if self.half:
            distance, true_distance = in_half(distance), in_half(true_distance)
        close = np.abs(distance - true_distance) < TP_DISTANCE
        if predicted_category is not None:
            self.class_source = "prediction"
            close &= predicted_category == truth.category
        self.count(truth.category, close, velocity, true_velocity)

    def count(
        self,
        category: Int[np.ndarray, "rays"],
        found: Bool[np.ndarray, "rays"],
        velocity: Float[np.ndarray, "rays 2"],
        true_velocity: Float[np.ndarray, "rays 2"],
    ) -> None:
        """Count one keyframe's rays by true class: whether each is a true positive at 2 m, and velocities in m/s."""
        wanted = [c for c, name in enumerate(self.classes) if name in MOVABLE_KINDS]
        movable = np.isin(category, wanted)
        known = np.isfinite(true_velocity).all(axis=1)
        self.unknown += int((movable & ~known).sum())
        rays = movable & known
        positive = rays & found
        error = np.linalg.norm(velocity - true_velocity, axis=1)
        still = np.linalg.norm(true_velocity, axis=1)
        for name, mask, weight in (
            ("tp", positive, np.ones_like(error)),
            ("error", positive, error),
            ("zero", positive, still),
            ("rays", rays, np.ones_like(error)),
        ):
            self.sums[name] += np.bincount(category[mask], weights=weight[mask], minlength=len(self.classes))
        present = np.unique(category[positive])
        self.sums["rays_unmasked"][present] += known.sum()
        self.sums["error_unmasked"][present] += error[known].sum()

    def merge(self, other: "VelocityError") -> None:
        """Add the sums of another accumulator over the same classes."""
        if (other.classes, other.half) != (self.classes, self.half):
            raise ValueError(
                f"cannot merge velocity errors of classes {other.classes}, float16 {other.half}, into {self.classes}, "
                f"{self.half}"
            )
        if not self.sums["rays"].any():
            self.class_source = other.class_source
        for name in self._SUMS:
            self.sums[name] += other.sums[name]
        self.unknown += other.unknown

    def compute(self) -> VelocityResult:
        """The figures so far."""
        found = np.flatnonzero(self.sums["rays"])
        per_class = {
            self.classes[c]: {
                "rays": float(self.sums["rays"][c]),
                "tp": float(self.sums["tp"][c]),
                "ave": _ratio(self.sums["error"][c], self.sums["tp"][c]),
                "ave_zero_flow": _ratio(self.sums["zero"][c], self.sums["tp"][c]),
                "ave_unmasked": _ratio(self.sums["error_unmasked"][c], self.sums["rays_unmasked"][c]),
            }
            for c in found
        }
        notes = (f"{self.unknown} rays left out: their true velocity is unknown",) if self.unknown else ()
        return VelocityResult(
            mave=_nanmean([row["ave"] for row in per_class.values()]),
            zero_flow=_nanmean([row["ave_zero_flow"] for row in per_class.values()]),
            unmasked=_nanmean([row["ave_unmasked"] for row in per_class.values()]),
            class_source=self.class_source,
            per_class=per_class,
            notes=notes,
        )


class DynamicFlow:
    """End-point error and recall over all voxels that truly move, found or not, and false flow on parked objects.

    Independent of which objects a prediction found, unlike mAVE. In two forms: of the velocity field as it is given,
    also in voxels that the prediction leaves free (files of labels have none there), and, `_masked`, with the velocity
    zero in those, by which any two systems can be compared.
    """

    _SUMS = ("voxels", "error", "error_masked", "zero", "found", "parked", "parked_flow", "parked_flow_masked")

    def __init__(self, classes: Sequence[str], min_speed: float = DYNAMIC_SPEED) -> None:
        self.classes, self.min_speed = tuple(classes), min_speed
        self.sums = {name: np.zeros(len(classes)) for name in self._SUMS}

    def update(
        self,
        occupied: Bool[np.ndarray, "x y z"],
        flow: Float[np.ndarray, "x y z 2"],
        semantics: UInt8[np.ndarray, "x y z"],
        true_flow: Float[np.ndarray, "x y z 2"],
    ) -> None:
        """Count one keyframe; flows in m/s, ego frame."""
        wanted = [c for c, name in enumerate(self.classes) if name in MOVABLE_KINDS]
        chosen = occupied_in(semantics, self.classes) & np.isin(semantics, wanted) & np.isfinite(true_flow).all(axis=-1)
        category = semantics[chosen].astype(np.int64)
        speed = np.linalg.norm(true_flow[chosen].astype(np.float64), axis=-1)
        error = np.linalg.norm(flow[chosen].astype(np.float64) - true_flow[chosen], axis=-1)
        moving, one = speed >= self.min_speed, np.ones_like(speed)
        predicted_speed = np.linalg.norm(flow[chosen].astype(np.float64), axis=-1)
        there = occupied[chosen]
        for name, mask, weight in (
            ("voxels", moving, one),
            ("error", moving, error),
            ("error_masked", moving, np.where(there, error, speed)),
            ("zero", moving, speed),
            ("found", moving & there, one),
            ("parked", ~moving, one),
            ("parked_flow", ~moving, predicted_speed),
            ("parked_flow_masked", ~moving, np.where(there, predicted_speed, 0.0)),
        ):
            self.sums[name] += np.bincount(category[mask], weights=weight[mask], minlength=len(self.classes))

    def merge(self, other: "DynamicFlow") -> None:
        """Add the sums of another accumulator over the same classes and speed."""
        if (other.classes, other.min_speed) != (self.classes, self.min_speed):
            raise ValueError("cannot merge flow errors over other classes or another lowest speed")
        for name in self._SUMS:
            self.sums[name] += other.sums[name]

    def compute(self) -> dict[str, Any]:
        """flow_epe_dynamic, its zero-flow baseline (both m/s, voxels pooled), recall, false flow on parked objects; the
        two of flow also `_masked`."""
        total = {name: float(values.sum()) for name, values in self.sums.items()}
        return {
            "flow_epe_dynamic": _ratio(total["error"], total["voxels"]),
            "flow_epe_dynamic_masked": _ratio(total["error_masked"], total["voxels"]),
            "flow_epe_dynamic_zero_flow": _ratio(total["zero"], total["voxels"]),
            "recall_dynamic": _ratio(total["found"], total["voxels"]),
            "false_flow_parked": _ratio(total["parked_flow"], total["parked"]),
            "false_flow_parked_masked": _ratio(total["parked_flow_masked"], total["parked"]),
            "dynamic_voxels": int(total["voxels"]),
            "parked_voxels": int(total["parked"]),
            "min_speed_m_s": self.min_speed,
            "per_class": {
                self.classes[c]: {
                    "voxels": int(self.sums["voxels"][c]),
                    "epe": _ratio(self.sums["error"][c], self.sums["voxels"][c]),
                    "epe_masked": _ratio(self.sums["error_masked"][c], self.sums["voxels"][c]),
                    "epe_zero_flow": _ratio(self.sums["zero"][c], self.sums["voxels"][c]),
                    "recall": _ratio(self.sums["found"][c], self.sums["voxels"][c]),
                }
                for c in np.flatnonzero(self.sums["voxels"])
            },
        }


def occ_score(rayiou: float, mave: float) -> float:
    """0.9 RayIoU + 0.1 max(1 - mAVE, 0), the challenge's combined score; RayIoU in [0, 1], mAVE in m/s."""
    return 0.9 * rayiou + 0.1 * max(1.0 - mave, 0.0)


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator) / float(denominator) if denominator else float("nan")


def _nanmean(values: Sequence[float]) -> float:
    known = [v for v in values if np.isfinite(v)]
    return float(np.mean(known)) if known else float("nan")
