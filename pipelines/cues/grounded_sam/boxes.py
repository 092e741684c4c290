"""Boxes before masks: who overlaps whom, which are the own car, and pictures cut into tiles for what is small.

Boxes are (x0, y0, x1, y1) in pixels of the image, edges at whole numbers: a box around pixel (0, 0) is (0, 0, 1, 1).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from pipelines.cues.grounded_sam.records import Detections
from pipelines.cues.ranges import check_numbers

Boxes = Float[np.ndarray, "n 4"]


def intersections(first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """Common area of every pair."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.prod(np.maximum(high - low, 0.0), axis=-1)


def areas(boxes: Boxes) -> Float[np.ndarray, " n"]:
    """Width times height."""
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=-1)


def box_iou(first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """Intersection over union of every pair; 0 where both are empty."""
    common = intersections(first, second)
    union = areas(first)[:, None] + areas(second)[None] - common
    return np.where(union > 0, common / np.where(union > 0, union, 1.0), 0.0)


def by_score(scores: Float[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Indices from the highest score down; the earlier one of equals first."""
    return np.argsort(-np.asarray(scores, np.float64), kind="stable")


def nms(
    boxes: Boxes, scores: Float[np.ndarray, " n"], groups: Int64[np.ndarray, " n"], most_iou: float
) -> Int64[np.ndarray, " kept"]:
    """Greedy non-maximum suppression within each group (class); indices kept, best first."""
    rivals = (box_iou(boxes, boxes) > most_iou) & (groups[:, None] == groups[None])
    kept: list[int] = []
    for i in by_score(scores):
        if not rivals[i, kept].any():
            kept.append(int(i))
    return np.asarray(kept, np.int64)


def clip_boxes(boxes: Boxes, size: tuple[int, int]) -> tuple[Boxes, Bool[np.ndarray, " n"]]:
    """Boxes cut to an image of `size` (height, width), and which of them still are boxes (finite, not empty)."""
    height, width = size
    finite = np.isfinite(boxes).all(axis=1)
    limits = np.array([width, height, width, height], np.float64)
    clipped = np.clip(np.where(finite[:, None], boxes, 0.0), 0.0, limits)
    return clipped, finite & (areas(clipped) > 0)


@dataclass(frozen=True)
class OwnCarRule:
    """The hood, or a box around everything the camera sees of the own car, is found as a car again and again.

    width: a box that reaches the image's bottom edge and spans this share of its width is the own car; so is one that
        covers `area` of the whole image. bottom: how near "reaches" is, a share of the height. 1.1 turns a test off.
    """

    width: float = 0.9
    area: float = 0.8
    bottom: float = 0.02

    def boxes(self, boxes: Boxes, size: tuple[int, int]) -> Bool[np.ndarray, " n"]:
        """Which boxes, in an image of `size`, are the own car's."""
        height, width = size
        low = boxes[:, 3] >= height * (1.0 - self.bottom)
        wide = boxes[:, 2] - boxes[:, 0] >= self.width * width
        return (low & wide) | (areas(boxes) >= self.area * height * width)


@dataclass(frozen=True)
class TileRule:
    """Detection on overlapping tiles beside the whole image: small far objects meet the model larger.

    rows, columns: of tiles; 1 and 1 is the whole image alone. overlap: share of a tile that it has in common with the
    next. border: a tile's box that comes this near (pixels) to an edge inside the image is a cut object, left to the
    neighbour tile or the whole image.
    """

    rows: int = 1
    columns: int = 1
    overlap: float = 0.25
    border: float = 4.0

    def __post_init__(self) -> None:
        check_numbers(self, least={"rows": 1, "columns": 1}, below_one=("overlap",), free=("border",))

    def windows(self, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
        """(x0, y0, x1, y1) of every tile of an image of `size`, all of one size; empty for 1 by 1."""
        if self.rows == self.columns == 1:
            return []
        height, width = size
        tops, tile_h = _spread(height, self.rows, self.overlap)
        lefts, tile_w = _spread(width, self.columns, self.overlap)
        return [(x, y, x + tile_w, y + tile_h) for y in tops for x in lefts]

    def whole(self, found: Detections, window: tuple[int, int, int, int], size: tuple[int, int]) -> Detections:
        """A tile's detections in pixels of the image, without those that the tile's inner edges cut."""
        x0, y0, x1, y1 = window
        height, width = size
        shifted = found.boxes + np.array([x0, y0, x0, y0])
        # What ends at the image's own edge is cut by nothing that a tile could help.
        cut = (
            ((x0 > 0) & (shifted[:, 0] < x0 + self.border))
            | ((y0 > 0) & (shifted[:, 1] < y0 + self.border))
            | ((x1 < width) & (shifted[:, 2] > x1 - self.border))
            | ((y1 < height) & (shifted[:, 3] > y1 - self.border))
        )
        return Detections(shifted, found.scores, found.prompts).take(np.flatnonzero(~cut))


def _spread(length: int, count: int, overlap: float) -> tuple[list[int], int]:
    """Starts of `count` pieces that cover `length` with that overlap, and the length of each."""
    piece = min(length, int(np.ceil(length / (count - (count - 1) * overlap))))
    return [int(start) for start in np.rint(np.linspace(0, length - piece, count))], piece
