"""Checks of the images themselves: exposure, frozen and duplicate images."""

import numpy as np
from jaxtyping import UInt8


def clipped_share(image: UInt8[np.ndarray, "h w 3"], dark: int = 4, bright: int = 251) -> float:
    """Share of pixels that are black or white in all three channels: nothing can be matched there."""
    return float(((image <= dark).all(axis=-1) | (image >= bright).all(axis=-1)).mean())


def difference(image: UInt8[np.ndarray, "h w 3"], other: UInt8[np.ndarray, "h w 3"]) -> float:
    """Mean absolute difference of two images in grey levels: about 0 for an image that came twice."""
    return float(np.abs(image.astype(np.int16) - other).mean())
