"""Masks against each other: duplicates, overlaps, specks, the own car; candidate masks in, one instance map out."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int32, Int64

from pipelines.cues.grounded_sam.boxes import by_score
from pipelines.cues.grounded_sam.records import Candidates
from pipelines.cues.ranges import check_numbers


@dataclass(frozen=True)
class MaskRule:
    """When a mask repeats another, and what is too small; pixels are of the network image.

    Attributes:
        iou: of two masks that share more than this, whatever their classes, the better scored stays.
        containment: of two masks of one class where this share of the smaller lies in the other, the better scored
            stays: the same object under two prompts as a part and as a whole, or one box around a group. 1.1 turns
            that off.
        least_region: connected pieces of fewer pixels are dropped, and instances without another piece.
        least_hole: holes of fewer pixels are filled.
        own_car: an instance with more than this share of its pixels in the own car's mask is dropped.
    """

    iou: float = 0.8
    containment: float = 0.9
    least_region: int = 30
    least_hole: int = 30
    own_car: float = 0.5

    def __post_init__(self) -> None:
        check_numbers(self, shares=("iou", "own_car"))
        if self.containment >= 2:
            raise ValueError(f"containment = {self.containment:g}: expected 0 to 1, or 1.1 for no such test")


@dataclass(frozen=True)
class Instances:
    """Disjoint instances of one image: labels 0 (none), 1..n; scores and class indices of 1..n, best score first."""

    labels: Int32[np.ndarray, "height width"]
    scores: Float[np.ndarray, " n"]
    classes: Int64[np.ndarray, " n"]


def sort_out(found: Candidates, rule: MaskRule, own_car: Bool[np.ndarray, "height width"] | None = None) -> Instances:
    """One instance map from overlapping, repeated candidates.

    Args:
        found: candidates of one image.
        rule: see MaskRule.
        own_car: pixels of the camera's own car, which belong to no instance.

    Returns:
        Where masks overlap, a pixel goes to the best scored; what is left of another must stand by itself.
    """
    if own_car is not None and len(found.masks):
        area = found.masks.sum(axis=(1, 2))
        hidden = (found.masks & own_car).sum(axis=(1, 2))
        found = found.take(np.flatnonzero(hidden <= rule.own_car * area))
        found = Candidates(found.masks & ~own_car, found.scores, found.classes)
    tidied = [tidy(mask, rule.least_region, rule.least_hole) for mask in found.masks]
    if own_car is not None:
        tidied = [mask & ~own_car for mask in tidied]  # a filled hole may be the own car's
    found = Candidates(np.stack(tidied) if tidied else found.masks, found.scores, found.classes)
    found = found.take(np.flatnonzero(found.masks.any(axis=(1, 2))))
    return _paint(found.take(distinct(found, rule)), rule)


def distinct(found: Candidates, rule: MaskRule) -> Int64[np.ndarray, " kept"]:
    """Indices of the candidates that repeat no better one, best first. Masks must not be empty."""
    windows = [window(mask) for mask in found.masks]
    size = found.masks.sum(axis=(1, 2))
    kept: list[int] = []
    for i in by_score(found.scores):
        for j in kept:
            common = _common(found.masks[i], windows[i], found.masks[j], windows[j])
            inside = found.classes[i] == found.classes[j] and common >= rule.containment * min(size[i], size[j])
            if inside or common > rule.iou * (size[i] + size[j] - common):
                break
        else:
            kept.append(int(i))
    return np.asarray(kept, np.int64)


def window(mask: Bool[np.ndarray, "height width"]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the smallest box around a mask; zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _common(a: np.ndarray, of_a: tuple[int, ...], b: np.ndarray, of_b: tuple[int, ...]) -> int:
    """Pixels in both; only where their windows meet, which for most pairs is nowhere."""
    x0, y0, x1, y1 = max(of_a[0], of_b[0]), max(of_a[1], of_b[1]), min(of_a[2], of_b[2]), min(of_a[3], of_b[3])
    if x0 >= x1 or y0 >= y1:
        return 0
    return int(np.count_nonzero(a[y0:y1, x0:x1] & b[y0:y1, x0:x1]))


def tidy(mask: Bool[np.ndarray, "height width"], least_region: int, least_hole: int) -> Bool[np.ndarray, "h w"]:
    """Without 8-connected pieces of fewer than `least_region` pixels, with 4-connected holes below `least_hole` filled.

    A hole touches no edge of the image.
    """
    x0, y0, x1, y1 = window(mask)
    out = np.zeros_like(mask)
    part = np.ascontiguousarray(mask[y0:y1, x0:x1]).astype(np.uint8)
    if not part.size:
        return out
    part = _without_small(part, least_region, connectivity=8)
    # The frame joins all that is open to the outside into one piece, which is then never small enough to be a hole.
    gaps = np.pad(1 - part, 1, constant_values=1)
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(gaps, connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < least_hole
    small[[0, pieces[0, 0]]] = False
    if count > 2 and small.any():
        part |= small[pieces[1:-1, 1:-1]].astype(np.uint8)
    out[y0:y1, x0:x1] = part.astype(bool)
    return out


def _without_small(part: np.ndarray, least: int, connectivity: int) -> np.ndarray:
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(part, connectivity=connectivity)
    large = stats[:, cv2.CC_STAT_AREA] >= least
    large[0] = False
    return large[pieces].astype(np.uint8)


def _paint(found: Candidates, rule: MaskRule) -> Instances:
    """Candidates, best first, onto one map from the worst up; what is then left too small is taken off again."""
    labels = np.zeros(found.masks.shape[1:], np.int32)
    for k in reversed(range(len(found.masks))):
        labels[found.masks[k]] = k + 1
    kept = []
    out = np.zeros_like(labels)
    for k in range(len(found.masks)):
        seen = tidy(labels == k + 1, rule.least_region, 0)
        if seen.any():
            kept.append(k)
            out[seen] = len(kept)
    index = np.asarray(kept, np.int64)
    return Instances(out, found.scores[index], found.classes[index])
