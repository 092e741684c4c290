"""The time steps behind velocities, as a log's own clock has them: never assumed, always written beside the figures."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from storage.reader import StoreReader

TOLERANCE = 0.1
"""Share by which the mean time between keyframes may differ from the store's stated interval before it is told."""

PER_INTERVAL = "a network's metres per stated interval, divided by it"
AS_GIVEN = "m/s in the files, taken as they are"
PER_STEP = "the files' displacement to the next keyframe, divided by the time until that keyframe"


class Spread:
    """Mean, least and greatest of time steps, seconds."""

    def __init__(self) -> None:
        self.count, self.total, self.least, self.most = 0, 0.0, math.inf, -math.inf

    def add(self, seconds: float) -> None:
        """Count one time step."""
        self.count, self.total = self.count + 1, self.total + seconds
        self.least, self.most = min(self.least, seconds), max(self.most, seconds)

    def merge(self, other: "Spread") -> None:
        """Add another's time steps."""
        self.count, self.total = self.count + other.count, self.total + other.total
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    def compute(self) -> dict[str, Any]:
        """`mean`, `min`, `max` (None without a time step) and `count`."""
        if not self.count:
            return {"mean": None, "min": None, "max": None, "count": 0}
        return {"mean": self.total / self.count, "min": self.least, "max": self.most, "count": self.count}


def mean_step(timestamp_us: Int[np.ndarray, " n"], stated_s: float) -> float:
    """Mean seconds from each time to the next; what the store states where there is only one."""
    return float(np.diff(timestamp_us).mean()) * 1e-6 if len(timestamp_us) > 1 else stated_s


def time_steps(reader: StoreReader, frames: Sequence[tuple[str, int]], velocities: str) -> dict[str, Any]:
    """What Δt velocities of these keyframes are stated by.

    Args:
        frames: (scene, t) of the keyframes evaluated.
        velocities: how the predictions come to m/s.

    Returns:
        `dataset`; `keyframes_s`, the time from each keyframe to the scene's next one (`Spread.compute`); `interval_s`,
        what the store says that a network's flow is stated per; `velocities`, as given.
    """
    found = Spread()
    for scene, t in frames:
        times = reader.scene(scene).table.timestamp_us
        if t + 1 < len(times):
            found.add(float(int(times[t + 1]) - int(times[t])) * 1e-6)
    return {
        "dataset": reader.attributes.dataset,
        "keyframes_s": found.compute(),
        "interval_s": reader.attributes.keyframe_interval_s,
        "velocities": velocities,
    }


def odd_interval(steps: dict[str, Any]) -> list[str]:
    """A note where keyframes are not as far apart as the store states; velocities are right all the same."""
    mean, stated = steps["keyframes_s"]["mean"], steps["interval_s"]
    if mean is None or np.isclose(mean, stated, rtol=TOLERANCE):
        return []
    return [
        f"keyframes are {mean:.4g} s apart in the mean, and the store's keyframe_interval_s says {stated:.4g} s: "
        "flow is per stated interval, velocities per second"
    ]
