"""The grids of the cue: what the models look at, and instances on the grid of the flow."""

import numpy as np
from jaxtyping import Int32, UInt16

from geometry.cameras import ImageTransform
from pipelines.cues.base import ImageSizes
from pipelines.datasets.records import CameraImage


def view_factor(sizes: ImageSizes, image: CameraImage, max_width: int) -> int:
    """How many times finer than the network grid the models may look: not beyond the raw image or `max_width`."""
    scale = sizes.transform(image).scale
    # 1e-6: a raw image of exactly twice the network's size must not fall to 1 by rounding.
    return max(1, min(max_width // sizes.network[1], int(1.0 / scale + 1e-6)))


def view(sizes: ImageSizes, image: CameraImage, factor: int) -> ImageTransform:
    """The network's field of view at `factor` times its resolution."""
    height, width = sizes.network
    return ImageTransform.fit((image.height, image.width), (height * factor, width * factor), keep=sizes.keep)


def on_render(
    instance: UInt16[np.ndarray, "height width"], ids: np.ndarray, sizes: ImageSizes
) -> Int32[np.ndarray, "h w"]:
    """Ids of the block as 1..n in the order of `ids`, at the pixels in the middle of the render grid's."""
    factor = sizes.network[0] // sizes.render[0]
    number = np.zeros(int(ids.max(initial=0)) + 1, np.int32)
    number[ids.astype(np.int64)] = np.arange(1, len(ids) + 1)
    return number[instance[factor // 2 :: factor, factor // 2 :: factor]]
