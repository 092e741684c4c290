"""Voxel truth of a world at an instant: which voxels its surfaces touch or its solids fill, and how those move."""

import numpy as np
from jaxtyping import Float, Float32, UInt8

from geometry.grid import VoxelGrid
from pipelines.synth.capture import carry
from pipelines.synth.ground import GROUND_CLASS, ground_height, ground_kind
from pipelines.synth.kernels import allocating_kernel, kernel
from pipelines.synth.raycast import corner
from pipelines.synth.rig import KEYFRAME_INTERVAL_S
from pipelines.synth.shapes import (
    CLASS,
    COS,
    CX,
    CY,
    CYLINDER,
    CZ,
    ELLIPSOID,
    HX,
    HY,
    HZ,
    KIND,
    OBJECT,
    SHADOW,
    SHEAR,
    SIN,
    TAPER_X,
    TAPER_Y,
    WHEEL,
)
from pipelines.synth.world import World

FREE = 16
"""OpenOcc's index of free voxels; classes 0..15 are those of the primitives and the ground."""
SAMPLES = 5
"""Sample points per voxel and axis, the faces included: a voxel is occupied where any of them lies in a solid."""
THINNEST = 0.07
"""Half extents in metres below which solids are thickened, so that none slips between sample points 0.1 m apart."""


def voxelise(
    world: World,
    t: float,
    world_from_grid: Float[np.ndarray, "4 4"],
    grid: VoxelGrid,
    interval_s: float = KEYFRAME_INTERVAL_S,
) -> tuple[UInt8[np.ndarray, "x y z"], Float32[np.ndarray, "x y z 2"]]:
    """Semantics (OpenOcc classes, 16 = free) and flow of a grid placed in the world.

    Of several things in one voxel a movable one wins over a static one, and that over the ground. The ground fills the
    voxel that its surface passes through and nothing below. Flow is in m/s, horizontal, along the grid's axes: the way
    of the voxel's centre, carried by its actor, over the next `interval_s`; zero for all that stands still.

    Args:
        t: seconds since the first keyframe.
        world_from_grid: rigid, upright up to a few degrees (an ego pose); metres.
    """
    lower, size = np.array(grid.lower), np.array(grid.voxel_size)
    semantics = np.full(grid.shape, FREE, np.uint8)
    owner = np.zeros(grid.shape, np.int32)
    _fill_ground(world.look.ground, world_from_grid, lower, size, semantics)
    _fill_solids(world.primitives(t), world_from_grid, lower, size, semantics, owner)
    flow = np.zeros((*grid.shape, 2), np.float32)
    index = np.argwhere(owner > 0)
    if len(index):
        centres = (lower + (index + 0.5) * size) @ world_from_grid[:3, :3].T + world_from_grid[:3, 3]
        numbers = owner[tuple(index.T)].astype(np.int64) - 1
        later = carry(centres, numbers, world.actor_poses(t), world.actor_poses(t + interval_s))
        velocity = (later - centres) @ world_from_grid[:3, :3] / interval_s
        flow[tuple(index.T)] = velocity[:, :2]
    return semantics, flow


@allocating_kernel
def _fill_ground(ground, pose, lower, size, semantics):
    nx, ny, nz = semantics.shape
    for i in range(nx):
        for j in range(ny):
            for s in range(SAMPLES * SAMPLES):
                x = lower[0] + (i + s // SAMPLES / (SAMPLES - 1.0)) * size[0]
                y = lower[1] + (j + s % SAMPLES / (SAMPLES - 1.0)) * size[1]
                # The grid may be tilted: the height at which this line meets the ground moves it sideways a little.
                z = -pose[2, 3]
                for _ in range(2):
                    wx = pose[0, 0] * x + pose[0, 1] * y + pose[0, 2] * z + pose[0, 3]
                    wy = pose[1, 0] * x + pose[1, 1] * y + pose[1, 2] * z + pose[1, 3]
                    height = ground_height(ground, wx, wy)
                    z = (height - pose[2, 3] - pose[2, 0] * x - pose[2, 1] * y) / pose[2, 2]
                k = int(np.floor((z - lower[2]) / size[2]))
                if 0 <= k < nz:
                    semantics[i, j, k] = GROUND_CLASS[ground_kind(ground, wx, wy)]


@kernel
def inside(p, x, y, z):
    """Whether a point of the primitive's own frame (heading removed) lies in it; what is thinner counts as THINNEST."""
    hx, hy, hz = max(p[HX], THINNEST), max(p[HY], THINNEST), max(p[HZ], THINNEST)
    kind = int(p[KIND])
    if kind == SHADOW or abs(z) > hz or abs(y) > hy or abs(x) > hx + abs(p[SHEAR]):
        return False
    if kind == ELLIPSOID:
        return (x / hx) ** 2 + (y / hy) ** 2 + (z / hz) ** 2 <= 1.0
    if kind == WHEEL:
        return x * x + z * z <= hx * hx
    up = 0.5 * (z + p[HZ]) / p[HZ]
    up = min(max(up, 0.0), 1.0)
    if kind == CYLINDER:
        radius = max(p[HX] * (1 - p[TAPER_X] * up), THINNEST)
        return x * x + y * y <= radius * radius
    width_x = max(p[HX] * (1 - p[TAPER_X] * up), THINNEST)
    width_y = max(p[HY] * (1 - p[TAPER_Y] * up), THINNEST)
    return abs(x - p[SHEAR] * up) <= width_x and abs(y) <= width_y


@kernel
def _touches(p, pose, gx, gy, gz, size):
    """Whether any sample point of the voxel whose lowest corner is (gx, gy, gz) lies in the primitive."""
    half = 0.5 * np.sqrt(size[0] ** 2 + size[1] ** 2 + size[2] ** 2)
    for s in range(-1, SAMPLES**3):
        a, b, c = 0.5, 0.5, 0.5
        if s >= 0:
            last = SAMPLES - 1.0
            a, b, c = s // SAMPLES**2 / last, s // SAMPLES % SAMPLES / last, s % SAMPLES / last
        x, y, z = gx + a * size[0], gy + b * size[1], gz + c * size[2]
        wx = pose[0, 0] * x + pose[0, 1] * y + pose[0, 2] * z + pose[0, 3] - p[CX]
        wy = pose[1, 0] * x + pose[1, 1] * y + pose[1, 2] * z + pose[1, 3] - p[CY]
        wz = pose[2, 0] * x + pose[2, 1] * y + pose[2, 2] * z + pose[2, 3] - p[CZ]
        lx, ly = p[COS] * wx + p[SIN] * wy, p[COS] * wy - p[SIN] * wx
        if s >= 0:
            if inside(p, lx, ly, wz):
                return True
        # The centre first, against the bounding box grown by half a diagonal, which no sample point leaves: most voxels
        # are told apart by it alone. The solid's own slanted faces, moved out as far, would not hold all points.
        elif (
            abs(lx) > max(p[HX], THINNEST) + abs(p[SHEAR]) + half
            or abs(ly) > max(p[HY], THINNEST) + half
            or abs(wz) > max(p[HZ], THINNEST) + half
        ):
            return False
    return False


@allocating_kernel
def _fill_solids(prims, pose, lower, size, semantics, owner):
    shape = np.array(semantics.shape)
    low, high = np.empty(3), np.empty(3)
    for n in range(prims.shape[0]):
        p = prims[n]
        low[:], high[:] = 1e9, -1e9
        for k in range(8):
            wx, wy, wz = corner(p, k)
            wx, wy, wz = wx - pose[0, 3], wy - pose[1, 3], wz - pose[2, 3]
            for axis in range(3):
                value = pose[0, axis] * wx + pose[1, axis] * wy + pose[2, axis] * wz
                low[axis], high[axis] = min(low[axis], value), max(high[axis], value)
        first = np.maximum(np.floor((low - THINNEST - lower) / size), 0).astype(np.int64)
        last = np.minimum(np.floor((high + THINNEST - lower) / size), shape - 1).astype(np.int64)
        for i in range(first[0], last[0] + 1):
            for j in range(first[1], last[1] + 1):
                for k in range(first[2], last[2] + 1):
                    if _touches(p, pose, lower[0] + i * size[0], lower[1] + j * size[1], lower[2] + k * size[2], size):
                        semantics[i, j, k] = np.uint8(p[CLASS])
                        owner[i, j, k] = int(p[OBJECT])
