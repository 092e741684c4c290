"""What is known of the depth of each pixel before its flow is looked at; LiDAR or the road may say it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class DepthBounds:
    """Inverse camera-z (1/m) of each pixel of one image on its render grid: the likeliest, and bounds; NaN = unknown.

    height: metres above the ground of what the pixel shows, at the likeliest depth; NaN = unknown.
    """

    inverse: Float[np.ndarray, "height width"]
    lower: Float[np.ndarray, "height width"]
    upper: Float[np.ndarray, "height width"]
    height: Float[np.ndarray, "height width"]
