"""Trilinear look-ups on a CPU: compiled where numba is there; the same as `warp.sample_volume` with border padding.

`grid_sample` reads one channel after the other, which lie a whole volume apart, and works out the gradient of every
point whether anybody wants it or not. Here a point's eight corners are found once, the channels of a voxel lie side by
side, and the gradient goes to the volume alone.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from geometry.compiled import compile_loops, installed
from geometry.grid import VoxelGrid

POINTS_PER_THREAD = 16384
"""Fewest points that are worth a thread, which has a sum of its own on the way back: half a millisecond of work."""


def use_compiled(volume: Tensor, points: Tensor) -> bool:
    """Whether `look_up` takes these: float32 on a CPU, no gradient wanted at the points, and numba installed."""
    return (
        volume.device.type == points.device.type == "cpu"
        and volume.dtype == points.dtype == torch.float32
        and not points.requires_grad
        and volume.numel() > 0
        and _kernel() is not None
    )


def look_up(
    volume: Float[Tensor, "batch channels x y z"], points: Float[Tensor, "batch *points 3"], grid: VoxelGrid
) -> Float[Tensor, "batch channels *points"]:
    """Trilinear samples of a field at voxel centres, at points in metres of the grid's frame, to float32's rounding
    those of `sample_volume(volume, points, grid)`; NaN and infinite coordinates too: an infinite one is at the border,
    a NaN reads the last voxel of its axis and sends no gradient back.

    Only where `use_compiled` says so. Differentiable in the volume, once. Every core that torch may use takes part; the
    result is the same bits whenever there are as many.

    Raises:
        ValueError: volume and points that do not belong together.
    """
    if len(volume) != len(points) or points.shape[-1] != 3:
        raise ValueError(
            f"points of shape {tuple(points.shape)} for a volume of shape {tuple(volume.shape)}: expected "
            f"({len(volume)}, ..., 3)"
        )
    spatial = points.shape[1:-1]
    out = _LookUp.apply(volume, points.reshape(len(points), spatial.numel(), 3), grid)
    return out.reshape(*out.shape[:2], *spatial)


class _LookUp(torch.autograd.Function):
    """Volume (batch, channels, x, y, z), points (batch, n, 3) to (batch, channels, n); kernels see channels last."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, points: Tensor, grid: VoxelGrid) -> Tensor:
        points = points.contiguous()
        ctx.save_for_backward(points)
        ctx.grid, ctx.shape = grid, volume.shape
        source = volume.permute(0, 2, 3, 4, 1).contiguous()
        out = volume.new_empty(len(volume), volume.shape[1], points.shape[1])
        parts = _parts(points)
        _run([source] * len(parts), parts, points, grid, out, scatter=False)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (points,) = ctx.saved_tensors
        parts, (batch, channels, *shape) = _parts(points), ctx.shape
        # A sum for each thread, added up in their order.
        sums = gradient.new_zeros(len(parts), batch, *shape, channels)
        _run(list(sums), parts, points, ctx.grid, gradient.contiguous(), scatter=True)
        total = sums[0] if len(parts) == 1 else sums.sum(dim=0)
        return total.permute(0, 4, 1, 2, 3), None, None


def _parts(points: Tensor) -> list[tuple[int, int]]:
    """First and last + 1 of the points of each thread, in every batch element."""
    count = points.shape[1]
    number = max(1, min(torch.get_num_threads(), len(points) * count // POINTS_PER_THREAD))
    return list(itertools.pairwise(count * i // number for i in range(number + 1)))


def _run(
    volumes: list[Tensor],
    parts: list[tuple[int, int]],
    points: Tensor,
    grid: VoxelGrid,
    values: Tensor,
    *,
    scatter: bool,
) -> None:
    """A thread for each part of the points, which reads (or adds to) a volume (batch, x, y, z, channels) of its own."""
    kernel, where, channels = _kernel(), points.numpy(), values.numpy()
    assert kernel is not None
    lower = np.asarray(grid.lower, dtype=np.float32)
    box = np.stack([lower, np.asarray(grid.upper, dtype=np.float32) - lower])

    def walk(volume: np.ndarray, part: tuple[int, int]) -> None:
        for element in range(len(volume)):
            kernel(volume[element], where[element], box, channels[element], *part, scatter)

    arrays = [volume.numpy() for volume in volumes]
    if len(parts) == 1:
        walk(arrays[0], parts[0])
        return
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(walk, arrays, parts))


@cache
def _kernel() -> Callable[..., None] | None:
    """The compiled loop over points; None without numba."""
    return compile_loops(_each_point) if installed() else None


def _each_point(
    volume: np.ndarray,
    points: np.ndarray,
    box: np.ndarray,
    values: np.ndarray,
    first: int,
    last: int,
    scatter: bool,
) -> None:
    """Fills `values` (channels, n) from `volume` (x, y, z, channels) at points first..last - 1, or with `scatter` adds
    `values` to the volume there. `box`: lower corner and extent, metres. Plain loops, for numba to compile."""
    flat = volume.reshape(-1)
    # Addresses are unsigned, or numba would ask of each whether it counts from the end: a fifth of the time.
    nx, ny, nz = np.uint64(volume.shape[0]), np.uint64(volume.shape[1]), np.uint64(volume.shape[2])
    channels, here, following = np.uint64(volume.shape[3]), np.uint64(0), np.uint64(1)
    # With one number of another type numba would go on in float64.
    zero, half, one, two = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
    sx, sy, sz = np.float32(nx), np.float32(ny), np.float32(nz)
    x_most, y_most, z_most = sx - one, sy - one, sz - one
    for n in range(first, last):
        # Each rounding as in VoxelGrid.normalise and grid_sample, or a voxel's share would differ by 1e-5.
        x = (((points[n, 0] - box[0, 0]) / box[1, 0] * two - one + one) * sx - one) * half
        y = (((points[n, 1] - box[0, 1]) / box[1, 1] * two - one + one) * sy - one) * half
        z = (((points[n, 2] - box[0, 2]) / box[1, 2] * two - one + one) * sz - one) * half
        if scatter and (np.isnan(x) or np.isnan(y) or np.isnan(z)):
            continue
        # Written so that NaN becomes the last voxel: what follows is an address.
        x = zero if x < zero else (x if x < x_most else x_most)
        y = zero if y < zero else (y if y < y_most else y_most)
        z = zero if z < zero else (z if z < z_most else z_most)
        i, j, k = np.uint64(x), np.uint64(y), np.uint64(z)
        fx, fy, fz = x - np.float32(i), y - np.float32(j), z - np.float32(k)
        gx, gy, gz = one - fx, one - fy, one - fz
        a00, a01, a10, a11 = gx * gy, gx * fy, fx * gy, fx * fy
        # At the border the next voxel would be beyond it, with weight zero: the same one again.
        dx = ny * nz * channels if i + following < nx else here
        dy = nz * channels if j + following < ny else here
        dz = channels if k + following < nz else here
        c00 = ((i * ny + j) * nz + k) * channels
        c01, c10, c11 = c00 + dy, c00 + dx, c00 + dx + dy
        for c in range(volume.shape[3]):
            if scatter:
                g = values[c, n]
                flat[c00] += a00 * gz * g
                flat[c00 + dz] += a00 * fz * g
                flat[c01] += a01 * gz * g
                flat[c01 + dz] += a01 * fz * g
                flat[c10] += a10 * gz * g
                flat[c10 + dz] += a10 * fz * g
                flat[c11] += a11 * gz * g
                flat[c11 + dz] += a11 * fz * g
            else:
                values[c, n] = (
                    a00 * (gz * flat[c00] + fz * flat[c00 + dz])
                    + a01 * (gz * flat[c01] + fz * flat[c01 + dz])
                    + a10 * (gz * flat[c10] + fz * flat[c10 + dz])
                    + a11 * (gz * flat[c11] + fz * flat[c11 + dz])
                )
            c00, c01, c10, c11 = c00 + following, c01 + following, c10 + following, c11 + following
