"""What a store's masks are like: how many of each class, over the time of a scene, and how large and sure they are."""

from typing import Any

import numpy as np

from eval.inspection.views import View

AREA_LOG10 = (-5.0, 0.0, 25)
"""Lower end, upper end and bins of the share of the image, as a power of ten."""
SCORE = (0.0, 1.0, 20)
PARTS = 20
"""Parts of a scene, first keyframe to last, over which masks per image are averaged."""
UNKNOWN = "unknown"


class MaskSummary:
    """Instances by class, area and score of all images that were looked at; memory grows with the classes only."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = (*classes, UNKNOWN)
        self.images = 0
        self._images_over_time = np.zeros(PARTS, np.int64)
        self._over_time = np.zeros((len(self.classes), PARTS), np.int64)
        self._pixels = np.zeros(len(self.classes))
        self._area = np.zeros((len(self.classes), AREA_LOG10[2]), np.int64)
        self._score = np.zeros((len(self.classes), SCORE[2]), np.int64)

    def add(self, view: View) -> None:
        """Add one image's masks; nothing without the cue."""
        if view.masks is None:
            return
        part = min(PARTS - 1, view.t * PARTS // max(1, view.scene.length))
        self.images += 1
        self._images_over_time[part] += 1
        rows = {int(row[0]): row for row in view.scene.mask_table(view.t, view.c)}
        for label, pixels in zip(*np.unique(view.masks[view.masks > 0], return_counts=True), strict=True):
            row = rows.get(int(label))
            k = len(self.classes) - 1 if row is None else min(int(row[1]), len(self.classes) - 1)
            share = pixels / view.masks.size
            self._over_time[k, part] += 1
            self._pixels[k] += share
            self._area[k, _bin(np.log10(share), AREA_LOG10)] += 1
            if row is not None:
                self._score[k, _bin(float(row[2]), SCORE)] += 1

    def result(self) -> dict[str, Any] | None:
        """As plain types, classes without a mask left out; None where no image had the cue."""
        if not self.images:
            return None
        images = np.maximum(self._images_over_time, 1)
        found = []
        for k in np.flatnonzero(self._over_time.sum(axis=1)):
            count = int(self._over_time[k].sum())
            row = {"class": self.classes[k], "instances": count, "per_image": count / self.images}
            row |= {"mean_area": float(self._pixels[k]) / count}
            found.append({**row, "over_time": (self._over_time[k] / images).round(4).tolist()})
        return {
            "images": self.images,
            "images_over_time": self._images_over_time.tolist(),
            "classes": found,
            "area_log10": {"low": AREA_LOG10[0], "high": AREA_LOG10[1], "counts": self._area.sum(axis=0).tolist()},
            "score": {"low": SCORE[0], "high": SCORE[1], "counts": self._score.sum(axis=0).tolist()},
        }


def _bin(value: float, extent: tuple[float, float, int]) -> int:
    low, high, bins = extent
    return int(np.clip((value - low) / (high - low) * bins, 0, bins - 1))
