"""The voxel traversal of `eval.raycast` in torch, on any device; same arithmetic in float64, so the same bits."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eval.raycast import Hits, Pairs, paired, rays_in_voxels
from geometry.grid import VoxelGrid

_BETWEEN_CHECKS = 24
"""Steps between two looks at whether any ray still goes: each look makes a GPU wait."""


@torch.no_grad()
def cast_rays_torch(
    occupied: Bool[np.ndarray, "x y z"] | Bool[Tensor, "x y z"],
    grid: VoxelGrid,
    origins: Float[np.ndarray, "origins 3"],
    directions: Float[np.ndarray, "directions 3"],
    device: torch.device | str | None = None,
    pairs: Pairs | None = None,
) -> Hits:
    """As `eval.raycast.cast_rays`, all rays one voxel at a time on a device.

    Args:
        occupied: as `grid.shape`; a tensor may already lie on the device.
        origins, directions: metres, the grid's frame.
        device: default the tensor's, else the CPU. It must have float64 (CPU and CUDA do).
        pairs: rows of `origins` and of `directions` that each ray takes; default row by row.

    Returns:
        On the CPU. Distances agree bit for bit with the other backends: only single correctly rounded operations are
        used, and no two of them are contracted into one.

    Raises:
        ValueError: as `cast_rays`.
    """
    volume = torch.as_tensor(occupied)
    volume = volume.to(volume.device if device is None else device)
    if tuple(volume.shape) != grid.shape:
        raise ValueError(f"occupancy of shape {tuple(volume.shape)} on a grid of {grid.shape} voxels")
    start, step = (torch.from_numpy(part).to(volume.device) for part in rays_in_voxels(grid, origins, directions))
    first, second = (torch.from_numpy(rows).to(volume.device) for rows in paired(len(start), len(step), pairs))
    start, step = start[first], step[second]
    voxel = torch.full((len(start),), -1, dtype=torch.int64, device=volume.device)
    distance = torch.zeros(len(start), dtype=torch.float64, device=volume.device)
    rays, index = _enter(volume, start, step)
    _walk(volume, start[rays], step[rays], rays, index, voxel, distance)
    return Hits(voxel.cpu().numpy(), distance.cpu().numpy())


def _enter(volume: Tensor, start: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Which rays meet the grid, and the voxel in which each begins; `eval.raycast._enter` in torch."""
    size = torch.tensor(volume.shape, dtype=torch.float64, device=start.device)
    parallel = step == 0.0
    lower, upper = (0.0 - start) / step, (size - start) / step
    near_axis = torch.minimum(lower, upper).masked_fill(parallel, -torch.inf)
    far = torch.maximum(lower, upper).masked_fill(parallel, torch.inf).amin(dim=1)
    near = near_axis.amax(dim=1).clamp_min(0.0)
    in_slabs = (~parallel | ((start >= 0.0) & (start < size))).all(dim=1)
    rays = (in_slabs & (far > near)).nonzero()[:, 0]
    near_axis, near, begin, pace = near_axis[rays], near[rays], start[rays], step[rays]
    ahead = near[:, None] * pace  # a statement of its own: nothing may turn it and the sum into one operation
    index = torch.clamp((begin + ahead).floor(), torch.zeros_like(size), size - 1)
    # torch's argmax may return any of equal values; the first is wanted.
    order = torch.tensor([3, 2, 1], device=start.device)
    entry = ((near_axis == near_axis.amax(dim=1, keepdim=True)) * order).argmax(dim=1)
    through = (near > 0.0)[:, None] & (entry[:, None] == torch.arange(3, device=start.device))
    face = torch.where(pace > 0.0, torch.zeros_like(pace), size - 1)
    return rays, torch.where(through, face, index).long()


def _walk(
    volume: Tensor, begin: Tensor, pace: Tensor, rays: Tensor, index: Tensor, voxel: Tensor, distance: Tensor
) -> None:
    """All rays one voxel at a time; fills `voxel` and `distance`. Rays that ended wait for the next clearing."""
    _, ny, nz = volume.shape
    flat, device = volume.reshape(-1), volume.device
    size = torch.tensor(volume.shape, device=device)
    axes = torch.arange(3, device=device)
    while len(rays):
        going = torch.ones(len(rays), dtype=torch.bool, device=device)
        ahead = (pace > 0.0).long()
        move, parallel = 2 * ahead - 1, pace == 0.0
        for _ in range(_BETWEEN_CHECKS):
            planes = ((index + ahead).double() - begin) / pace
            planes = planes.masked_fill(parallel, torch.inf)
            leave = planes.amin(dim=1)
            here = (index[:, 0] * ny + index[:, 1]) * nz + index[:, 2]
            hit = flat[here] & going
            voxel[rays] = torch.where(hit, here, voxel[rays])
            distance[rays] = torch.where(going, leave, distance[rays])
            # Of equal planes x comes before y before z.
            tie = planes == leave[:, None]
            axis = torch.where(tie[:, 0], 0, torch.where(tie[:, 1], 1, 2))
            stepped = index + move * (axis[:, None] == axes)
            inside = ((stepped >= 0) & (stepped < size)).all(dim=1)
            going = going & ~hit & inside
            index = torch.where(going[:, None], stepped, index)
        rays, index, begin, pace = rays[going], index[going], begin[going], pace[going]
