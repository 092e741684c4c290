"""Which voxels a LiDAR could see into: what tells free space from space about which a scan says nothing."""

import numpy as np
from jaxtyping import Bool, Float

from geometry.grid import VoxelGrid
from pipelines.synth.kernels import allocating_kernel
from pipelines.synth.lidar import BINS, azimuth_bins
from pipelines.synth.raycast import SKY_ID, cast
from pipelines.synth.rig import Lidar
from pipelines.synth.world import World


def seen_voxels(
    world: World,
    t: float,
    world_from_lidar: Float[np.ndarray, "4 4"],
    lidar: Lidar,
    world_from_grid: Float[np.ndarray, "4 4"],
    grid: VoxelGrid,
    known: Bool[np.ndarray, "x y z"] | None = None,
) -> Bool[np.ndarray, "x y z"]:
    """True where the sensor's line of sight reaches a voxel's centre to within half its diagonal.

    The world stands still as it is at time `t`, wherever the sensor is. Centres above the highest beam, below the
    lowest or beyond the sensor's range are not seen. Voxels that are `known` are not looked at again and stay true.
    """
    primitives = world.primitives(t)
    eye = np.ascontiguousarray(world_from_lidar[:3, 3])
    seen = np.zeros(grid.shape, np.bool_) if known is None else known.copy()
    slopes = np.sin(lidar.elevations[[0, -1]])
    up = np.ascontiguousarray(world_from_lidar[:3, 2])
    starts, members, near = azimuth_bins(primitives, eye)
    _look(
        primitives, world.look.ground, starts, members, near, eye, up, slopes[0], slopes[1],
        lidar.max_range_m, world_from_grid, np.array(grid.lower), np.array(grid.voxel_size), seen,
    )  # fmt: skip
    return seen


@allocating_kernel
def _look(prims, ground, starts, members, near, eye, up, lowest, highest, reach, pose, lower, size, seen):
    nx, ny, nz = seen.shape
    step = 2 * np.pi / BINS
    slack = 0.5 * np.sqrt(size[0] ** 2 + size[1] ** 2 + size[2] ** 2)
    way = np.empty(3)
    for i in range(nx):
        for j in range(ny):
            for k in range(nz):
                if seen[i, j, k]:
                    continue
                x, y, z = lower[0] + (i + 0.5) * size[0], lower[1] + (j + 0.5) * size[1], lower[2] + (k + 0.5) * size[2]
                for axis in range(3):
                    way[axis] = pose[axis, 0] * x + pose[axis, 1] * y + pose[axis, 2] * z + pose[axis, 3] - eye[axis]
                distance = np.sqrt(way[0] ** 2 + way[1] ** 2 + way[2] ** 2)
                rise = (way[0] * up[0] + way[1] * up[1] + way[2] * up[2]) / distance
                if distance > reach or not lowest <= rise <= highest:
                    continue
                b = int(np.floor(np.arctan2(way[1], way[0]) / step)) % BINS
                dx, dy, dz = way[0] / distance, way[1] / distance, way[2] / distance
                t, found, _ = cast(
                    prims, ground, members, starts[b], starts[b + 1], near, eye[0], eye[1], eye[2], dx, dy, dz
                )
                seen[i, j, k] = found == SKY_ID or t >= distance - slack
