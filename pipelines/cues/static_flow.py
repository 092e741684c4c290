"""How the image of a world that stands still moves between two cameras' poses."""

import numpy as np
from jaxtyping import Float

from geometry.cameras import camera_directions, pixel_centres, project
from geometry.transforms import invert
from pipelines.cues.base import ImageSizes
from pipelines.datasets.records import CameraImage


def second_from_first(first: CameraImage, second: CameraImage) -> Float[np.ndarray, "4 4"]:
    """Camera frame of `second` from that of `first`, each at its own time, for what stands still."""
    global_from_first = first.global_from_ego @ first.ego_from_cam
    return invert(second.ego_from_cam) @ invert(second.global_from_ego) @ global_from_first


def project_inverse_depth(
    K_first: Float[np.ndarray, "3 3"],
    K_second: Float[np.ndarray, "3 3"],
    transform: Float[np.ndarray, "4 4"],
    uv: Float[np.ndarray, "n 2"],
    inverse_depth: Float[np.ndarray, " n"],
) -> Float[np.ndarray, "n 2"]:
    """Where pixels at an inverse camera-z (1/m, 0 = infinitely far) of the first image land in the second.

    Homogeneous in the inverse depth, so points at infinity are exact. NaN where the point falls behind the second
    camera or the inverse depth is NaN.
    """
    rays = camera_directions(K_first, uv)
    moved = rays @ transform[:3, :3].T + inverse_depth[:, None] * transform[:3, 3]
    landed, _, in_front = project(K_second, moved)
    return np.where((in_front & ~np.isnan(inverse_depth))[:, None], landed, np.nan)


def static_flow_between(
    first: CameraImage, second: CameraImage, depth: Float[np.ndarray, "height width"], sizes: ImageSizes
) -> Float[np.ndarray, "2 height width"]:
    """Flow in render pixels of a still world with camera-z `depth` (m, inf = sky, NaN = unknown) on `first`'s grid."""
    height, width = depth.shape
    uv = pixel_centres(height, width).reshape(-1, 2)
    K_first = sizes.render_transform(first).intrinsics(first.K)
    K_second = sizes.render_transform(second).intrinsics(second.K)
    landed = project_inverse_depth(K_first, K_second, second_from_first(first, second), uv, 1.0 / depth.ravel())
    return np.moveaxis((landed - uv).reshape(height, width, 2), -1, 0).astype(np.float32)
