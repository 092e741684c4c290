"""Sampling of images and volumes at continuous coordinates (torch), with pixel and voxel centres at +0.5."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from geometry.constants import constant
from geometry.grid import VoxelGrid


def sample_image(
    image: Float[Tensor, "batch channels height width"],
    uv: Float[Tensor, "batch *points 2"],
    padding: str = "border",
) -> Float[Tensor, "batch channels *points"]:
    """Bilinear samples of images at continuous pixel coordinates (u, v).

    The coordinate of a pixel's centre is its index + 0.5, so sampling at the centres returns the image itself.
    """
    height, width = image.shape[-2:]
    size = constant((width, height), uv)
    grid = uv / size * 2 - 1
    points = uv.shape[1:-1]
    flat = grid.reshape(uv.shape[0], -1, 1, 2)
    out = F.grid_sample(image, flat, mode="bilinear", padding_mode=padding, align_corners=False)
    return out.reshape(*out.shape[:2], *points)


def sample_volume(
    volume: Float[Tensor, "batch channels x y z"],
    points: Float[Tensor, "batch *points 3"],
    grid: VoxelGrid,
    padding: str = "border",
) -> Float[Tensor, "batch channels *points"]:
    """Trilinear samples of a field at voxel centres, at points in metres of the grid's frame.

    Differentiable in the volume and in the points (away from voxel-centre planes).
    """
    normalised = grid.normalise(points)
    spatial = points.shape[1:-1]
    # grid_sample wants the last coordinate first: its order is (depth, height, width) <-> (z, y, x) reversed.
    flat = normalised.flip(-1).reshape(points.shape[0], -1, 1, 1, 3)
    out = F.grid_sample(volume, flat, mode="bilinear", padding_mode=padding, align_corners=False)
    return out.reshape(*out.shape[:2], *spatial)
