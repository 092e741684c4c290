"""What the models look at: the network's field of view, as fine as the raw image allows."""

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
