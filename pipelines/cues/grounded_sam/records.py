"""What detectors and segmenters hand on, and the protocols behind the cue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

Image = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Detections:
    """Boxes found in one image.

    boxes: float64 (n, 4), x0 y0 x1 y1 in pixels of the image. scores: (n,) in [0, 1].
    prompts: (n,) index of the prompt that each answers.
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    prompts: Int64[np.ndarray, " n"]

    def take(self, index: Int64[np.ndarray, " kept"]) -> "Detections":
        """Those at `index`, in that order."""
        return Detections(self.boxes[index], self.scores[index], self.prompts[index])

    @classmethod
    def join(cls, parts: Sequence["Detections"]) -> "Detections":
        """All of them in one; empty without any."""
        return cls(
            np.concatenate([np.zeros((0, 4)), *(part.boxes for part in parts)]),
            np.concatenate([np.zeros(0), *(part.scores for part in parts)]),
            np.concatenate([np.zeros(0, np.int64), *(part.prompts for part in parts)]),
        )


@dataclass(frozen=True)
class Candidates:
    """Instances of one image before they are sorted out: they may overlap and repeat each other.

    masks: bool (n, height, width) on the grid asked for. scores: (n,) in [0, 1]. classes: (n,) class index.
    """

    masks: Bool[np.ndarray, "n height width"]
    scores: Float[np.ndarray, " n"]
    classes: Int64[np.ndarray, " n"]

    def take(self, index: Int64[np.ndarray, " kept"]) -> "Candidates":
        """Those at `index`, in that order."""
        return Candidates(self.masks[index], self.scores[index], self.classes[index])


class Detector(Protocol):
    """Boxes that answer to text prompts (GroundingDINO)."""

    def __call__(self, images: Sequence[Image]) -> list[Detections]:
        """Detections above the thresholds in each RGB image; all images have one size. Nothing is suppressed yet."""
        ...


class Segmenter(Protocol):
    """Masks of boxes (SAM, SAM 2)."""

    def __call__(
        self, images: Sequence[Image], boxes: Sequence[Float[np.ndarray, "n 4"]], size: tuple[int, int]
    ) -> list[tuple[Bool[np.ndarray, "n height width"], Float[np.ndarray, " n"]]]:
        """For each image the masks of its boxes (pixels of the image) on a grid of `size` over the same view, and the
        model's own estimate of each mask's IoU. An image without boxes costs nothing."""
        ...


class MaskFinder(Protocol):
    """What the cue runs: instances of the prompted classes. Grounded-SAM is one of these, SAM 3 another."""

    def __call__(self, images: Sequence[Image], size: tuple[int, int]) -> list[Candidates]:
        """Candidates of each RGB image, masks on a grid of `size` (height, width) over the same view."""
        ...
