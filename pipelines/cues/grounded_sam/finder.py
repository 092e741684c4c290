"""Grounded-SAM: a detector's boxes, sorted out, become a segmenter's masks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from pipelines.cues.grounded_sam.boxes import OwnCarRule, TileRule, by_score, nms
from pipelines.cues.grounded_sam.prompts import Prompts
from pipelines.cues.grounded_sam.records import Candidates, Detections, Detector, Image, Segmenter
from pipelines.cues.ranges import check_numbers

MOST_COMPARED = 2000
"""Boxes of an image, the best scored, that suppression looks at: every pair takes about 64 bytes, and tiles with low
thresholds give thousands of boxes."""


@dataclass(frozen=True)
class BoxRule:
    """Which boxes become masks.

    Attributes:
        nms: of boxes of one class with more IoU than this the best scored stays.
        own_car: see OwnCarRule.
        most: boxes of one image, the best scored; the store's table has 64 rows.
    """

    nms: float = 0.7
    own_car: OwnCarRule = field(default_factory=OwnCarRule)
    most: int = 64

    def __post_init__(self) -> None:
        check_numbers(self, least={"most": 1}, shares=("nms",))

    def choose(self, found: Detections, prompts: Prompts, size: tuple[int, int]) -> Int64[np.ndarray, " kept"]:
        """Indices of the boxes to segment in an image of `size`, best first."""
        others = np.flatnonzero(~self.own_car.boxes(found.boxes, size))
        others = others[by_score(found.scores[others])[:MOST_COMPARED]]
        rest = found.take(others)
        return others[nms(rest.boxes, rest.scores, prompts.class_of(rest.prompts), self.nms)[: self.most]]


@dataclass(frozen=True)
class GroundedSam:
    """A MaskFinder of two models. Masks that the segmenter itself rates below `least_quality` are dropped."""

    detector: Detector
    segmenter: Segmenter
    prompts: Prompts
    boxes: BoxRule = field(default_factory=BoxRule)
    tiles: TileRule = field(default_factory=TileRule)
    least_quality: float = 0.0

    def __call__(self, images: Sequence[Image], size: tuple[int, int]) -> list[Candidates]:
        """See MaskFinder."""
        shown = (images[0].shape[0], images[0].shape[1])
        found = [one.take(self.boxes.choose(one, self.prompts, shown)) for one in self._detect(images, shown)]
        segments = self.segmenter(images, [one.boxes for one in found], size)
        return [
            Candidates(masks, one.scores, self.prompts.class_of(one.prompts)).take(
                np.flatnonzero(quality >= self.least_quality)
            )
            for one, (masks, quality) in zip(found, segments, strict=True)
        ]

    def _detect(self, images: Sequence[Image], shown: tuple[int, int]) -> list[Detections]:
        """Detections on each image and its tiles, all in pixels of the image."""
        whole = self.detector(images)
        windows = self.tiles.windows(shown)
        if not windows:
            return whole
        pieces = self.detector([image[y0:y1, x0:x1] for image in images for x0, y0, x1, y1 in windows])
        count = len(windows)
        out = []
        for k, one in enumerate(whole):
            own = pieces[k * count : (k + 1) * count]
            moved = [self.tiles.whole(part, window, shown) for part, window in zip(own, windows, strict=True)]
            out.append(Detections.join([one, *moved]))
        return out
