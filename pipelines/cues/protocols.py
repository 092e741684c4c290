"""What a flow model and a mask model must offer to label images here: three small protocols, numpy in and out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8, UInt16


class PairFlow(Protocol):
    """Dense flow between two images (DIS, UniMatch)."""

    def __call__(
        self, first: UInt8[np.ndarray, "height width 3"], second: UInt8[np.ndarray, "height width 3"]
    ) -> Float[np.ndarray, "2 height width"]:
        """Displacement (u right, v down) in pixels of every pixel of `first` to its place in `second`, float32.

        RGB uint8 of one size. NaN where the model knows no correspondence.
        """
        ...


@dataclass(frozen=True)
class FlowField:
    """Flow in pixels of the image it was computed on, and how far to trust it.

    flow: float32 (2, H, W), (u right, v down); NaN where there is no correspondence.
    confidence: float32 (H, W) in [0, 1]; 0 exactly where the flow is NaN.
    """

    flow: Float[np.ndarray, "2 height width"]
    confidence: Float[np.ndarray, "height width"]


class PathFlow(Protocol):
    """Flow from the first to the last image of a short film, using those between (tracks, CoTracker)."""

    def __call__(self, film: Sequence[UInt8[np.ndarray, "height width 3"]]) -> FlowField:
        """Correspondence from `film[0]` to `film[-1]`; two or more RGB images of one size, in the order of travel."""
        ...


@dataclass(frozen=True)
class Masks:
    """Instances found in one image.

    instance: uint16 (H, W), 0 = background, ids 1..n.
    classes: (n,) class index per id (255 unknown); scores: (n,) in [0, 1].
    """

    instance: UInt16[np.ndarray, "height width"]
    classes: UInt8[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]


class MaskModel(Protocol):
    """Instance masks of movable objects in one image (Grounded-SAM)."""

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> Masks:
        """Masks on the image's own pixel grid; RGB uint8."""
        ...
