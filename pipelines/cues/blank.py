"""Images that show nothing (a covered lens, a dead camera): a flow model agrees with itself there, and is wrong."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from pipelines.cues.protocols import FlowField

BLANK = 2.0
"""Standard deviation in levels (0..255) below which an image shows nothing: black with a sensor's noise of 1.5 levels
stays below, the least of the synthetic logs' images has 37."""

NOTE = "an image at an end of the film shows nothing (a covered lens, a dead camera): no flow"


def shows_nothing(image: UInt8[np.ndarray, "height width 3"]) -> bool:
    """Whether every channel of an image deviates by less than BLANK levels: one colour counts, whichever it is."""
    return bool(cv2.meanStdDev(image)[1].max() < BLANK)


def seen_film(film: Sequence[UInt8[np.ndarray, "height width 3"]]) -> list[UInt8[np.ndarray, "height width 3"]] | None:
    """The film without the images between its ends that show nothing; None where an end shows nothing."""
    if shows_nothing(film[0]) or shows_nothing(film[-1]):
        return None
    return [film[0], *(image for image in film[1:-1] if not shows_nothing(image)), film[-1]]


def unknown_field(size: tuple[int, int]) -> FlowField:
    """A flow of (height, width) that is known nowhere."""
    return FlowField(np.full((2, *size), np.nan, np.float32), np.zeros(size, np.float32))
