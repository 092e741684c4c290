"""How far each pixel may be away when there is no LiDAR: not beyond the road, not nearer than what it stands on."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from geometry.cameras import camera_directions, pixel_centres
from geometry.grid import KITTI_GROUND_Z
from geometry.transforms import rotate_vectors
from pipelines.config import ConfigError
from pipelines.cues.base import ImageSizes
from pipelines.cues.depth_bounds import DepthBounds
from pipelines.cues.motion_witnesses import Witness
from pipelines.cues.ranges import check_numbers
from pipelines.cues.static_flow import second_from_first
from pipelines.datasets.records import CameraImage

GROUND_Z = {"nuscenes": 0.0, "semantic_kitti": KITTI_GROUND_Z, "kitti_mot": KITTI_GROUND_Z}
"""Height of the road in the ego frame by data set (m): nuScenes' origin is on the ground."""


@dataclass(frozen=True)
class RoadRule:
    """What a flat road and things that stand on it say about depth.

    ground_z: height of the road in the ego frame (m); a configuration that leaves it out gets its data set's GROUND_Z.
    tilt: radians by which road or car may be tilted against that. nearest: depth (m) that nothing is nearer than.
    on_road: a pixel is road where its triangulated inverse depth agrees with the road's to this share. standing: a
    thing may be this much nearer, as a share, than the road where it stands. tall: metres above the road up to which
    that holds; what is higher may hang.
    """

    ground_z: float = 0.0
    tilt: float = 0.012
    nearest: float = 1.5
    on_road: float = 0.15
    standing: float = 0.3
    tall: float = 2.5

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("nearest",), free=("ground_z",))


def triangulate(first: CameraImage, witness: Witness, sizes: ImageSizes) -> Float[np.ndarray, "height width"]:
    """Inverse camera-z (1/m) at which a still point would best match the flow; NaN without flow or baseline.

    Least squares of the two projection equations multiplied by depth; may be negative for what moves.
    """
    _, height, width = witness.flow.shape
    uv = pixel_centres(height, width).reshape(-1, 2)
    rays = camera_directions(sizes.render_transform(first).intrinsics(first.K), uv)
    K = sizes.render_transform(witness.target).intrinsics(witness.target.K)
    pose = second_from_first(first, witness.target)
    turned, step = rays @ (K @ pose[:3, :3]).T, K @ pose[:3, 3]
    end = uv + witness.flow.reshape(2, -1).T
    known = end * turned[:, 2:] - turned[:, :2]
    slope = step[:2] - end * step[2]
    with np.errstate(invalid="ignore", divide="ignore"):
        inverse = (known * slope).sum(axis=1) / (slope**2).sum(axis=1)
    return np.where(np.isfinite(inverse), inverse, np.nan).reshape(height, width)


def road_bounds(image: CameraImage, witness: Witness, sizes: ImageSizes, rule: RoadRule) -> DepthBounds:
    """Bounds on inverse depth from the road and, column by column, from where things meet it. Height is unknown.

    Raises:
        ConfigError: the camera is not above the road.
    """
    _, height, width = witness.flow.shape
    uv = pixel_centres(height, width).reshape(-1, 2)
    K = sizes.render_transform(image).intrinsics(image.K)
    rays = rotate_vectors(image.ego_from_cam, camera_directions(K, uv)).reshape(height, width, 3)
    above = image.ego_from_cam[2, 3] - rule.ground_z
    if above <= 0:
        raise ConfigError(
            f"camera {image.channel} is at z = {image.ego_from_cam[2, 3]:g} m of the ego frame and the road at "
            f"{rule.ground_z:g} m: expected the road below the camera; set masks.road.ground_z to the road's height "
            f"(about {KITTI_GROUND_Z:g} where the ego frame is the LiDAR's on the roof)"
        )
    road = np.maximum(-rays[..., 2] / above, 0.0)
    lower = np.maximum(-rays[..., 2] - rule.tilt, 0.0) / above
    inverse = triangulate(image, witness, sizes)
    upper = np.full((height, width), 1.0 / rule.nearest)
    with np.errstate(invalid="ignore"):
        is_road = np.abs(inverse - road) <= rule.on_road * road + rule.tilt / above
    contact = road[-1]
    for row in range(height - 1, -1, -1):
        contact = np.where(is_road[row] & (road[row] > 0), road[row], contact)
        standing = contact * (1 + rule.standing) + rule.tilt / above
        # Height above the road of this pixel if it stands at the contact's depth.
        tall = above + rays[row, :, 2] / np.maximum(contact, 1e-6)
        upper[row] = np.where(tall < rule.tall, np.minimum(standing, upper[row]), upper[row])
    unknown = np.full((height, width), np.nan)
    return DepthBounds(inverse, np.minimum(lower, upper), upper, unknown)
