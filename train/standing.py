"""How far movable things are where no LiDAR says it: as far as the ground on which their masks end.

A flat road is assumed. A mask that ends a pixel too high puts a thing of depth d behind by d² / (focal length x camera
height) metres, so that near things are placed well and far ones badly; but where its flow ends it is placed by the same
rule, and what the two have wrong alike does not move it. Not in the paper.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, UInt16
from scipy.ndimage import minimum_filter1d

from geometry.cameras import camera_directions, unproject
from geometry.transforms import transform_points
from train.things import THING_M

FARTHEST_M = 60.0
"""A mask that ends farther off ends on no ground that is worth asking."""
STEEPEST = 1e-3
"""Least descent of a ray per metre of depth; one that is flatter meets the ground anywhere."""
FOOTING_M = 0.75
"""A thing stands on the nearest ground that its mask ends on within this much to either side: on its wheels and not on
what is seen under it."""
COLUMNS = 176
"""Images wider than this give every second, third, … pixel of a mask."""


class Standing(NamedTuple):
    """Pixels of one image on movable things whose footing is seen, and their depth along the camera's axis, metres."""

    pixels: Float64[np.ndarray, "n 2"]
    depth: Float64[np.ndarray, " n"]

    def points(
        self, ref_from_cam: Float64[np.ndarray, "4 4"], K: Float64[np.ndarray, "3 3"]
    ) -> Float64[np.ndarray, "n 3"]:
        """The pixels in space, metres."""
        return transform_points(ref_from_cam, unproject(K, self.pixels, self.depth))


def standing_things(
    instances: UInt16[np.ndarray, "h w"],
    ego_from_cam: Float64[np.ndarray, "4 4"],
    K: Float64[np.ndarray, "3 3"],
    ground_z: float,
) -> Standing:
    """Pixels on movable things with the depth of the ground below them.

    A column in which the image or another thing's mask cuts off the foot takes its depth from the next that shows it;
    a thing of which no column does has no depth.

    Args:
        instances: which movable thing a pixel shows, 0 for none.
        ego_from_cam: metres; the ground is z = `ground_z` in the ego frame.
    """
    height, width = instances.shape
    stride = max(1, width // COLUMNS)
    pixels, depths = [np.zeros((0, 2))], [np.zeros(0)]
    for name in np.unique(instances[instances > 0]):
        rows, columns = np.nonzero(instances == name)
        lowest = np.full(width, -1)
        np.maximum.at(lowest, columns, rows)
        feet = np.flatnonzero((lowest >= 0) & (lowest < height - 1))
        feet = feet[instances[lowest[feet] + 1, feet] == 0]
        depth = _ground_depth(np.column_stack([feet + 0.5, lowest[feet] + 1.0]), ego_from_cam, K, ground_z)
        feet, depth = feet[depth < FARTHEST_M], depth[depth < FARTHEST_M]
        if not len(feet):
            continue
        near = float(np.quantile(depth, 0.25))
        across = np.full(width, np.inf)
        across[feet] = depth
        reach = round(FOOTING_M * K[0, 0] / near)
        across = minimum_filter1d(across, 2 * reach + 1, mode="constant", cval=np.inf)[feet]
        across = np.clip(across, near - THING_M, near + THING_M)
        used = (rows % stride == 0) & (columns % stride == 0)
        nearest = np.abs(columns[used][:, None] - feet[None]).argmin(axis=1)
        pixels.append(np.column_stack([columns[used], rows[used]]) + 0.5)
        depths.append(across[nearest])
    return Standing(np.concatenate(pixels), np.concatenate(depths))


def depth_per_pixel(ego_from_cam: Float64[np.ndarray, "4 4"], K: Float64[np.ndarray, "3 3"], ground_z: float) -> float:
    """How far off a mask that ends one pixel too high puts a thing, metres per squared metre of its depth."""
    return float(1 / (K[1, 1] * max(ego_from_cam[2, 3] - ground_z, 0.1)))


def _ground_depth(
    uv: np.ndarray, ego_from_cam: np.ndarray, K: np.ndarray, ground_z: float
) -> Float64[np.ndarray, " n"]:
    """Depth along the camera's axis at which pixels see the ground, metres; inf where they do not."""
    descent = -(camera_directions(K, uv) @ ego_from_cam[2, :3])
    above = ego_from_cam[2, 3] - ground_z
    return np.where((descent > STEEPEST) & (above > 0), above / np.maximum(descent, STEEPEST), np.inf)
