"""Collects values of all keyframes in bounded memory: histograms, counts, the worst, and what is pooled by scene."""

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.inspection.catalogue import BY_NAME, CHECKS
from eval.inspection.check import Check
from eval.inspection.lidar_extent import SweepHistograms
from eval.inspection.mask_checks import border_shift, surely_lost
from eval.inspection.mask_summary import MaskSummary
from eval.inspection.measure import RIG, Measured
from eval.inspection.settings import InspectionSettings
from eval.inspection.truth_summary import TruthSummary
from eval.inspection.views import Keyframe

KEPT_VALUES = 20_000
"""Values per check of which quantiles are taken; more are drawn from evenly."""
KEPT_WORST = 200
"""Worst values that are named, per check."""
HISTOGRAM_BINS = 40
LEAST = {"mask_flicker": 8, "mask_depth": 30}
"""Instances, or LiDAR points, of a scene from which on it is judged."""
LEAST_PER_IMAGE = {"truth_masks": 0.01}
"""Share of a scene's pixels that are masked or move: where less does, two or three far things decide."""
DRIFT_OFFSETS = {"mask_count": 0.5, "mask_area_drift": 0.03}
"""Added to both sides of a ratio: a scene with nothing in it is no infinite drift."""


@dataclass
class Spread:
    """The values of one check, in bounded memory: all of them counted, `KEPT_VALUES` kept, the worst named."""

    check: Check
    settings: InspectionSettings
    count: int = 0
    bad: int = 0
    kept: list[float] = field(default_factory=list)
    histogram: list[int] = field(default_factory=lambda: [0] * HISTOGRAM_BINS)
    worst: list[tuple[float, str, int, int]] = field(default_factory=list)
    cameras: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._draw = random.Random(self.settings.seed)

    def add(self, value: float, scene: str, t: int, camera: int) -> bool:
        """Count a value; whether it is bad."""
        self.count += 1
        if len(self.kept) < KEPT_VALUES:
            self.kept.append(value)
        elif (place := self._draw.randrange(self.count)) < KEPT_VALUES:
            self.kept[place] = value
        low, high = self.check.values.extent
        self.histogram[int(np.clip((value - low) / (high - low) * HISTOGRAM_BINS, 0, HISTOGRAM_BINS - 1))] += 1
        bad = self.settings.bad(self.check, value)
        self.bad += bad
        per_camera = self.cameras.setdefault(camera, [0, 0])
        per_camera[0] += bad
        per_camera[1] += 1
        badness = -value if self.check.bad.low else value
        keep = heapq.heappush if len(self.worst) < KEPT_WORST else heapq.heappushpop
        keep(self.worst, (badness, scene, t, camera))
        return bad


class Tally:
    """Everything measured so far."""

    def __init__(self, settings: InspectionSettings) -> None:
        self.settings = settings
        self.spreads = {check.name: Spread(check, settings) for check in CHECKS}
        self.bins: dict[str, np.ndarray] = {}
        self.motions: dict[int, list[list[float]]] = {}
        self.excluded: dict[tuple[str, int], set[str]] = {}
        """Keyframes that a check with `exclude` found bad, and the checks."""
        self.sweeps = SweepHistograms()
        self.masks: MaskSummary | None = None
        self.truth = TruthSummary()
        self._pooled: dict[str, dict[str, np.ndarray]] = {}
        self._levels: dict[str, float] = {}
        self._tilts: tuple[str, list[float]] = "", []
        """The scene that is being looked at, and its sweeps' tilts."""
        self._scores: dict[str, np.ndarray] = {}

    def add(self, measured: Measured) -> None:
        """Count the values of one camera image or keyframe."""
        for name, value in measured.values.items():
            if not np.isnan(value):
                self.note(name, value, measured.scene, measured.t, measured.camera)
        for name, (part, whole) in measured.counts.items():
            if name == "lidar_level":
                self._level(measured.scene, part)
            else:
                sums = self._pooled.setdefault(name, {}).setdefault(measured.scene, np.zeros(3))
                sums += (part, whole, 1)
        for scores in measured.scores.values():
            self._scores[measured.scene] = self._scores.get(measured.scene, 0) + scores
        for name, bins in measured.bins.items():
            table = self.bins.setdefault(name, np.zeros((len(bins), 4)))
            rows = np.array(bins)
            table[:, 0] += rows[:, 0]
            table[:, 1:] += rows[:, :1] * rows[:, 1:]
        if measured.motion:
            kept = self.motions.setdefault(measured.camera, [])
            if len(kept) < KEPT_VALUES:
                kept.append(measured.motion)

    def _level(self, scene: str, tilt: float) -> None:
        if np.isnan(tilt):
            return
        if self._tilts[0] != scene:
            self._tilts = scene, []
        self._tilts[1].append(tilt)
        self._levels[scene] = float(np.median(self._tilts[1]))

    def add_contents(self, keyframe: Keyframe) -> None:
        """Count what a keyframe holds, which no check judges: LiDAR points, masks, and errors against truth."""
        self.masks = self.masks or MaskSummary(keyframe.attributes.classes)
        for view in keyframe.cameras():
            self.masks.add(view)
            self.truth.add(view)
        if keyframe.points is not None and keyframe.sweep is not None:
            finite = np.isfinite(keyframe.sweep.points[:, :3]).all(axis=1)
            unseen = int((keyframe.sweep.cameras[finite] == 0).sum())
            lost = len(keyframe.sweep.points) - len(keyframe.points)
            self.sweeps.add(keyframe.points, keyframe.origin, unseen, lost)

    def note(self, name: str, value: float, scene: str, t: int, camera: int) -> None:
        """Count one value of one check."""
        check = BY_NAME[name]
        bad = self.spreads[name].add(value, scene, t, camera)
        if bad and t != RIG and self.settings.excludes(check):
            self.excluded.setdefault((scene, t), set()).add(name)

    def close(self) -> None:
        """Turn what was pooled by scene into values."""
        for (name, scene), value in self.scene_values().items():
            self.note(name, value, scene, RIG, RIG)

    def scene_values(self) -> dict[tuple[str, str], float]:
        """Values that belong to a scene, by check and scene."""
        found = {}
        for name, scenes in self._pooled.items():
            for scene, value in _scene_values(name, scenes):
                found[name, scene] = value
        for scene, scores in self._scores.items():
            shifts = [border_shift(row) for row in scores]
            if not np.isnan(shifts).all():
                found["mask_edges", scene] = float(np.hypot(*np.nan_to_num(shifts)))
        return found | {("lidar_level", scene): level for scene, level in self._levels.items()}


def _scene_values(name: str, scenes: dict[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """A value per scene: the pooled share, what of it is proven, or by what factor masks per image, or their area,
    differ from the middle scene's."""

    def enough(whole: float, images: float) -> bool:
        return bool(whole >= (LEAST_PER_IMAGE[name] * images if name in LEAST_PER_IMAGE else LEAST.get(name, 1)))

    shares = {scene: part / whole for scene, (part, whole, images) in scenes.items() if enough(whole, images)}
    if name == "mask_flicker":
        yield from ((scene, surely_lost(int(scenes[scene][0]), int(scenes[scene][1]))) for scene in shares)
        return
    if name not in DRIFT_OFFSETS:
        yield from ((scene, float(share)) for scene, share in shares.items())
        return
    usual = float(np.median(list(shares.values()))) if shares else 0.0
    for scene, mean in shares.items():
        ratio = (mean + DRIFT_OFFSETS[name]) / (usual + DRIFT_OFFSETS[name])
        yield scene, float(max(ratio, 1 / ratio))


def summarise_motion(motions: dict[int, list[list[float]]]) -> dict[int, dict[str, Any]]:
    """Per camera (RIG: all together) the median camera motion that explains residuals: metres and degrees, ego axes."""
    found = {}
    for camera, rows in sorted(motions.items()):
        middle = np.median(np.array(rows), axis=0)
        found[camera] = {"images": len(rows), "metres": middle[:3].tolist(), "degrees": middle[3:].tolist()}
    return found
