"""From fields to what is evaluated: occupied voxels and their flow, on the fields' own grid or any other."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from geometry.grid import VoxelGrid
from model.fields import Fields


def sdf_on(fields: Fields, grid: VoxelGrid) -> Float[Tensor, "b x y z"]:
    """Trilinear signed distance, metres, at the voxel centres of `grid` (same ego frame)."""
    if grid == fields.grid:
        return fields.sdf
    return fields.sdf_at(_centres(fields, grid))


def flow_on(fields: Fields, grid: VoxelGrid) -> Float[Tensor, "b x y z 2"]:
    """Trilinear flow, metres per keyframe interval, at the voxel centres of `grid`."""
    if grid == fields.grid:
        return fields.flow
    return fields.flow_at(_centres(fields, grid))


def occupied_on(fields: Fields, grid: VoxelGrid, threshold: float) -> Bool[Tensor, "b x y z"]:
    """Occupied where sdf <= `threshold` metres; never outside the fields' own extent, where nothing is predicted.

    The threshold moves RayIoU by 0.2: choose it on training scenes and report it.
    """
    inside = fields.grid.contains(_centres(fields, grid)[0])
    return (sdf_on(fields, grid) <= threshold) & inside


def _centres(fields: Fields, grid: VoxelGrid) -> Float[Tensor, "b x y z 3"]:
    centres = torch.as_tensor(grid.centres(), dtype=fields.sdf.dtype, device=fields.sdf.device)
    return centres.expand(len(fields.sdf), -1, -1, -1, -1)
