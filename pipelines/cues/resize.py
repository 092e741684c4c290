"""Raw images to the sizes of the store: one area-filtered resize, so that textures do not alias into false motion."""

import math

import cv2
import numpy as np
from jaxtyping import UInt8

from geometry.cameras import ImageTransform


def resize_image(
    image: UInt8[np.ndarray, "height width 3"], transform: ImageTransform
) -> UInt8[np.ndarray, "out_height out_width 3"]:
    """Resample a raw image onto the pixel grid of `transform` (resize and crop), with an area filter when it shrinks.

    Output pixel centres lie exactly at `transform.image_from_raw` of the raw coordinates, whatever the scale: the
    image is first averaged over whole-number factors, what remains of the shrinking (below a factor of 2) is met by a
    Gaussian of matching width, and then it is sampled bilinearly. Border pixels are repeated where rounding asks for a
    fraction of a pixel outside.

    Args:
        image: raw RGB.
        transform: raw to output; gives the output's size.

    Returns:
        RGB at `transform.height` x `transform.width`.
    """
    factor = max(1, math.floor(1.0 / transform.scale + 1e-6))
    height, width = image.shape[:2]
    small_h, small_w = math.ceil(height / factor), math.ceil(width / factor)
    if factor > 1:
        image = cv2.copyMakeBorder(
            image, 0, small_h * factor - height, 0, small_w * factor - width, cv2.BORDER_REPLICATE
        )
        image = cv2.resize(image, (small_w, small_h), interpolation=cv2.INTER_AREA)
    scale = transform.scale * factor
    if scale < 0.9:
        sigma = 0.5 * math.sqrt(scale**-2 - 1.0)
        image = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    # OpenCV counts pixel centres from 0: out + 0.5 = scale * (in + 0.5) - left.
    shift_u = 0.5 * (scale - 1.0) - transform.left
    shift_v = 0.5 * (scale - 1.0) - transform.top
    matrix = np.array([[scale, 0.0, shift_u], [0.0, scale, shift_v]])
    return cv2.warpAffine(
        image,
        matrix,
        (transform.width, transform.height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


def working_size(height: int, width: int, max_width: int) -> tuple[int, int]:
    """(height, width) of an image limited to `max_width` columns at its own aspect ratio; never enlarged."""
    if width <= max_width:
        return height, width
    return max(1, round(height * max_width / width)), max_width


def shrink(image: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "out_h out_w 3"]:
    """Area-filtered resize to (height, width); the image itself when the size is its own."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
