"""RayIoU: do rays from LiDAR positions end at the right distance (and in the right class)?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from eval.protocols import GROUND_CLASSES, THRESHOLDS, RayProtocol, free_index, occupied_in, protocol_named
from eval.raycast import Backend, Hits, Pairs, cast_rays
from eval.rays import ray_directions
from geometry.grid import VoxelGrid


@dataclass(frozen=True)
class TruthRays:
    """The rays of one keyframe that count: those whose true end is occupied, with a known class.

    origins, directions: metres, ego frame. pairs: rows of these two that each ray takes. category: true class. hits:
    where they end in the truth.
    """

    origins: Float[np.ndarray, "origins 3"]
    directions: Float[np.ndarray, "directions 3"]
    pairs: Pairs
    category: Int[np.ndarray, "rays"]
    hits: Hits


@dataclass(frozen=True)
class RayIoUResult:
    """RayIoU in [0, 1] (nan without a ray), by what it was computed, and the counts behind it.

    rayiou: the protocol's own figure. nonground: the same over rays whose true class is not ground: what is predicted
    on other rays does not count. per_class_mean: mean over classes of the 3 x C table (for class-aware protocols the
    same as rayiou). counts: ground truth, prediction and true positives per threshold, by class.
    """

    protocol: str
    description: str
    averaging: str
    rayiou: float
    per_threshold: dict[str, float]
    nonground: float
    per_class_mean: float
    per_class: dict[str, dict[str, float | int]]
    frames: int
    rays: int
    grid: dict[str, list[float] | list[int]]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return dict(vars(self))


class RayIoU:
    """Accumulates counts over a whole data set; two accumulators merge into the figure of their union.

    Args:
        protocol: name or rule; see `eval.protocols`.
        grid: of truth and prediction.
        classes: names of the truth's indices, with the one that means free.
        backend, workers: how rays are cast.
        half: round distances to float16 first, as the CVPR 2024 challenge's submission form does; named in the result.
        device: cast with torch there (`cuda`), with the same result.
    """

    def __init__(
        self,
        protocol: str | RayProtocol,
        grid: VoxelGrid,
        classes: Sequence[str],
        backend: Backend = "auto",
        workers: int = 1,
        half: bool = False,
        device: str | None = None,
    ) -> None:
        self.protocol = protocol_named(protocol) if isinstance(protocol, str) else protocol
        self.grid, self.classes = grid, tuple(classes)
        self.free = free_index(classes)
        self.backend, self.workers, self.half, self.device = backend, workers, half, device
        self.ground_truth = np.zeros(len(classes), dtype=np.int64)
        self.predicted = np.zeros(len(classes), dtype=np.int64)
        self.predicted_off_ground = np.zeros(len(classes), dtype=np.int64)
        self.true_positive = np.zeros((len(THRESHOLDS), len(classes)), dtype=np.int64)
        self.frames = 0
        self._evaluated = self.protocol.evaluated(grid.shape)
        self._is_ground = np.array([name in GROUND_CLASSES for name in classes])

    def truth_rays(
        self,
        semantics: UInt8[np.ndarray, "x y z"],
        origins: Float[np.ndarray, "origins 3"],
        directions: Float[np.ndarray, "directions 3"] | None = None,
    ) -> TruthRays:
        """Cast every direction (default: the fan of 14,040) from every origin through one keyframe's truth.

        Rays that end in free space are dropped, and so are those that an unknown voxel (255) blocks.
        """
        fan = ray_directions() if directions is None else directions
        starts, pairs = origins.astype(np.float64), all_pairs(len(origins), len(fan))
        hits = self.cast(occupied_in(semantics, self.classes), starts, fan, pairs)
        category = np.where(hits.voxel >= 0, semantics.reshape(-1)[hits.voxel], self.free).astype(np.int64)
        kept = (category != self.free) & (category < len(self.classes))
        chosen = pairs[0][kept], pairs[1][kept]
        return TruthRays(starts, fan, chosen, category[kept], Hits(hits.voxel[kept], hits.distance[kept]))

    def cast(
        self,
        occupied: Bool[np.ndarray, "x y z"],
        origins: Float[np.ndarray, "origins 3"],
        directions: Float[np.ndarray, "directions 3"],
        pairs: Pairs,
    ) -> Hits:
        """Where rays (metres, ego frame) end in a volume, of which the protocol frees its part first."""
        volume = occupied & self._evaluated
        if self.device is not None:
            from eval.raycast_torch import cast_rays_torch  # torch is loaded where it is asked for

            return cast_rays_torch(volume, self.grid, origins, directions, self.device, pairs)
        return cast_rays(volume, self.grid, origins, directions, self.backend, self.workers, pairs)

    def update(
        self,
        truth: TruthRays,
        occupied: Bool[np.ndarray, "x y z"],
        semantics: UInt8[np.ndarray, "x y z"] | None = None,
    ) -> Hits:
        """Count one keyframe; returns where the predicted rays end, for mAVE.

        Args:
            truth: from `truth_rays`, of an accumulator with the same protocol.
            occupied: the prediction.
            semantics: predicted class per voxel, in the truth's indices; needed by class-aware protocols only.

        Raises:
            ValueError: a class-aware protocol and a prediction without classes.
        """
        if self.protocol.class_aware and semantics is None:
            raise ValueError(
                f"protocol {self.protocol.name!r} compares classes and this network predicts none: "
                "use protocol 'geometry' (the class is ignored), or predictions that have a class per voxel"
            )
        hits = self.cast(occupied, truth.origins, truth.directions, truth.pairs)
        named = self.predicted_category(truth, hits, semantics)
        self.count(truth.category, truth.hits.distance, named, hits.distance)
        return hits

    def count(
        self,
        category: Int[np.ndarray, "rays"],
        true_distance: Float[np.ndarray, "rays"],
        named: Int[np.ndarray, "rays"],
        distance: Float[np.ndarray, "rays"],
    ) -> None:
        """Count one keyframe's rays whose true end is occupied: true and predicted class (free for none), metres."""
        if self.half:
            true_distance, distance = in_half(true_distance), in_half(distance)
        off, same = np.abs(distance - true_distance), named == category
        size = len(self.classes) + 1
        self.ground_truth += np.bincount(category, minlength=size)[: size - 1]
        counted = (named != self.free) & (named >= 0) & (named < size - 1)
        off_ground = counted & ~self._is_ground[category]
        self.predicted += np.bincount(named[counted], minlength=size)[: size - 1]
        self.predicted_off_ground += np.bincount(named[off_ground], minlength=size)[: size - 1]
        for k, threshold in enumerate(THRESHOLDS):
            self.true_positive[k] += np.bincount(category[same & (off < threshold)], minlength=size)[: size - 1]
        self.frames += 1

    def predicted_category(
        self, truth: TruthRays, hits: Hits, semantics: UInt8[np.ndarray, "x y z"] | None
    ) -> Int[np.ndarray, "rays"]:
        """The class that each predicted ray counts as, by the protocol; the free index for none."""
        missed = hits.voxel < 0
        if self.protocol.class_aware and semantics is not None:
            return np.where(missed, self.free, semantics.reshape(-1)[hits.voxel]).astype(np.int64)
        if self.protocol.one_class:
            return np.where(missed, self.free, truth.category)
        return truth.category

    def merge(self, other: "RayIoU") -> None:
        """Add the counts of another accumulator of the same protocol, grid and classes."""
        if (other.protocol, other.grid, other.classes, other.half) != (
            self.protocol,
            self.grid,
            self.classes,
            self.half,
        ):
            raise ValueError(
                f"cannot merge RayIoU of {other.protocol.name} on {other.grid} into {self.protocol.name} on {self.grid}"
            )
        self.ground_truth += other.ground_truth
        self.predicted += other.predicted
        self.predicted_off_ground += other.predicted_off_ground
        self.true_positive += other.true_positive
        self.frames += other.frames

    def compute(self) -> RayIoUResult:
        """The figures so far."""
        rows = [c for c in range(len(self.classes)) if c != self.free]
        off_ground = [c for c in rows if self.classes[c] not in GROUND_CLASSES]
        table = self._iou(rows, self.predicted, pooled=False)
        pooled = not self.protocol.class_aware
        own = self._iou(rows, self.predicted, pooled)
        per_class = {
            self.classes[c]: {
                "gt": int(self.ground_truth[c]),
                "pred": int(self.predicted[c]),
                **{f"tp@{t:g}m": int(self.true_positive[k, c]) for k, t in enumerate(THRESHOLDS)},
                "rayiou": _mean(table[:, i]),
            }
            for i, c in enumerate(rows)
            if self.ground_truth[c] + self.predicted[c]
        }
        return RayIoUResult(
            protocol=self.protocol.name,
            description=self.protocol.description,
            averaging="counts pooled over classes" if pooled else "mean over classes and thresholds",
            rayiou=_mean(own),
            per_threshold={f"{t:g}m": _mean(own[k]) for k, t in enumerate(THRESHOLDS)},
            nonground=_mean(self._iou(off_ground, self.predicted_off_ground, pooled)),
            per_class_mean=_mean(table),
            per_class=per_class,
            frames=self.frames,
            rays=int(self.ground_truth.sum()),
            notes=["distances rounded to float16, as in the challenge's submission form"] if self.half else [],
            grid={
                "lower": [float(v) for v in self.grid.lower],
                "upper": [float(v) for v in self.grid.upper],
                "shape": list(self.grid.shape),
            },
        )

    def _iou(
        self, rows: Sequence[int], predicted: Int[np.ndarray, " classes"], pooled: bool
    ) -> Float[np.ndarray, "3 columns"]:
        """TP / (GT + Pred - TP) of these classes, one column each or one for all; nan where there is neither."""
        true_positive, total = self.true_positive[:, rows], (self.ground_truth + predicted)[rows]
        if pooled:
            true_positive, total = true_positive.sum(axis=1, keepdims=True), total.sum(keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 0, true_positive / (total - true_positive), np.nan)


def all_pairs(origins: int, directions: int) -> Pairs:
    """Every direction from every origin, origin by origin."""
    return np.repeat(np.arange(origins), directions), np.tile(np.arange(directions), origins)


def in_half(distance: Float[np.ndarray, "rays"]) -> Float32[np.ndarray, "rays"]:
    """Metres as the challenge's submission form holds them: rounded to float16."""
    return distance.astype(np.float16).astype(np.float32)


def _mean(values: np.ndarray) -> float:
    """Mean of the finite values, nan (without a warning) when there are none."""
    known = np.asarray(values)[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
