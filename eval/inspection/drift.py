"""How one check's values changed from another store to this one, in bounded memory."""

import heapq
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.inspection.check import Check
from eval.inspection.settings import InspectionSettings

DRAWS = 400
"""Bootstrap draws behind an interval."""
KEPT_PAIRS = 20_000
"""Pairs per check that medians and intervals are taken of; more are drawn from evenly."""
LEAST_PAIRS = 4
"""Fewer pairs prove no change, however wide it is."""
NAMED = 50
"""Places that are named, per check."""


@dataclass(frozen=True, order=True)
class Pair:
    """A value here and in the other store. Ordered by how far it moved to the bad side.

    Attributes:
        moved: this value less the other, positive on the bad side.
        scene, t, camera: where; t is `RIG` for values of a scene, camera of a keyframe.
        other_t: the keyframe's index in the other store.
    """

    moved: float
    scene: str
    t: int
    camera: int
    own: float
    other: float
    other_t: int

    def named(self, cameras: tuple[str, ...]) -> dict[str, Any]:
        """As plain types; the camera is "" where there is none."""
        camera = cameras[self.camera] if self.camera >= 0 else ""
        return {"scene": self.scene, "t": self.t, "camera": camera, "own": self.own, "other": self.other}


@dataclass
class Drift:
    """All pairs of one check: counted, `KEPT_PAIRS` kept, those named that moved farthest."""

    check: Check
    settings: InspectionSettings
    count: int = 0
    newly_bad: int = 0
    newly_good: int = 0
    kept: list[tuple[float, float]] = field(default_factory=list)
    moved: list[Pair] = field(default_factory=list)
    """Pairs that moved to the bad side, farthest first once `close` was called."""
    spoilt: list[Pair] = field(default_factory=list)
    """Those of them that are beyond the limit here and not there."""

    def __post_init__(self) -> None:
        self._draw = random.Random(self.settings.seed)

    def add(self, scene: str, t: int, camera: int, own: float, other: float, other_t: int) -> None:
        """Count a pair."""
        self.count += 1
        if len(self.kept) < KEPT_PAIRS:
            self.kept.append((own, other))
        elif (place := self._draw.randrange(self.count)) < KEPT_PAIRS:
            self.kept[place] = own, other
        pair = Pair(self._bad_side() * (own - other), scene, t, camera, own, other, other_t)
        bad_here, bad_there = self.settings.bad(self.check, own), self.settings.bad(self.check, other)
        self.newly_good += bad_there and not bad_here
        if pair.moved > 0:
            _keep(self.moved, pair)
        if bad_here and not bad_there:
            self.newly_bad += 1
            _keep(self.spoilt, pair)

    def _bad_side(self) -> int:
        return -1 if self.check.bad.low else 1

    def close(self) -> None:
        """Order what is named."""
        self.moved.sort(reverse=True)
        self.spoilt.sort(reverse=True)

    def result(self, cameras: tuple[str, ...]) -> dict[str, Any]:
        """Medians, the median of paired differences with a 95 % bootstrap interval, and what got worse or better: the
        interval, of `LEAST_PAIRS` at least, lies wholly on the bad (good) side."""
        own, other = np.array(self.kept).T
        difference = own - other
        rng = np.random.default_rng(self.settings.seed)
        draws = [np.median(rng.choice(difference, len(difference))) for _ in range(DRAWS)]
        low, high = np.quantile(draws, [0.025, 0.975])
        sides = np.array([low, high]) * self._bad_side()
        return {
            "name": self.check.name,
            "title": self.check.title,
            "unit": self.check.values.unit,
            "pairs": self.count,
            "own": float(np.median(own)),
            "other": float(np.median(other)),
            "median_difference": float(np.median(difference)),
            "low": float(low),
            "high": float(high),
            "worse": self.count >= LEAST_PAIRS and bool(sides.min() > 0),
            "better": self.count >= LEAST_PAIRS and bool(sides.max() < 0),
            "newly_bad": {"count": self.newly_bad, "frames": [pair.named(cameras) for pair in self.spoilt]},
            "newly_good": self.newly_good,
        }


def _keep(heap: list[Pair], pair: Pair) -> None:
    (heapq.heappush if len(heap) < NAMED else heapq.heappushpop)(heap, pair)
