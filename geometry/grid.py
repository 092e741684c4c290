"""Axis-aligned voxel grids, indexed [x, y, z], with fields at voxel centres."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from geometry.constants import constant
from geometry.transforms import ArrayT


@dataclass(frozen=True)
class VoxelGrid:
    """A box `lower`..`upper` (metres, ego frame) cut into `shape` voxels along x, y, z."""

    lower: tuple[float, float, float]
    upper: tuple[float, float, float]
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if any(u <= l for l, u in zip(self.lower, self.upper, strict=True)) or any(n < 1 for n in self.shape):
            raise ValueError(f"empty voxel grid: lower {self.lower}, upper {self.upper}, shape {self.shape}")

    @classmethod
    def from_voxel_size(
        cls, lower: tuple[float, float, float], upper: tuple[float, float, float], voxel: float
    ) -> "VoxelGrid":
        """Grid with cubic voxels of edge `voxel` metres; the extent must be a whole number of them on each axis."""
        counts = [(u - l) / voxel for l, u in zip(lower, upper, strict=True)]
        shape = tuple(round(n) for n in counts)
        if any(abs(n - r) > 1e-6 * max(1.0, n) for n, r in zip(counts, shape, strict=True)):
            raise ValueError(f"extent {lower}..{upper} is not a whole number of {voxel} m voxels: {counts}")
        return cls(tuple(lower), tuple(upper), shape)  # type: ignore[arg-type]

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Edge lengths along x, y, z in metres."""
        x, y, z = ((u - l) / n for l, u, n in zip(self.lower, self.upper, self.shape, strict=True))
        return x, y, z

    def coarsen(self, factor: int) -> "VoxelGrid":
        """The same box with voxels `factor` times as large."""
        if any(n % factor for n in self.shape):
            raise ValueError(f"a grid of {self.shape} voxels cannot be coarsened by {factor}")
        nx, ny, nz = self.shape
        return VoxelGrid(self.lower, self.upper, (nx // factor, ny // factor, nz // factor))

    def centres(self) -> Float[np.ndarray, "x y z 3"]:
        """Voxel centres in metres, float64."""
        axes = [l + (np.arange(n) + 0.5) * s for l, n, s in zip(self.lower, self.shape, self.voxel_size, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)

    def index_coordinates(self, points: ArrayT) -> ArrayT:
        """Continuous voxel coordinates (..., 3) of points (..., 3) in metres: voxel i covers [i, i+1)."""
        if isinstance(points, torch.Tensor):
            return (points - constant(self.lower, points)) / constant(self.voxel_size, points)
        return (points - np.asarray(self.lower)) / np.asarray(self.voxel_size)

    def contains(self, points: ArrayT) -> ArrayT:
        """True (...) where points (..., 3) in metres lie inside the box (lower edge in, upper edge out)."""
        coordinates = self.index_coordinates(points)
        nx, ny, nz = self.shape
        x, y, z = coordinates[..., 0], coordinates[..., 1], coordinates[..., 2]
        return (x >= 0) & (x < nx) & (y >= 0) & (y < ny) & (z >= 0) & (z < nz)

    def normalise(self, points: torch.Tensor) -> torch.Tensor:
        """Points (..., 3) in metres to [-1, 1] across the box, the coordinates of grid_sample(align_corners=False)."""
        lower = constant(self.lower, points)
        extent = constant(self.upper, points) - lower
        return (points - lower) / extent * 2 - 1

    def exit_distance(self, origins: ArrayT, directions: ArrayT) -> ArrayT:
        """Distance (...) along unit `directions` (..., 3) from `origins` (..., 3) to where rays leave the box.

        Zero for rays that never meet the box in front of their origin. Metres.
        """
        return self.clip(origins, directions)[1]

    def clip(self, origins: ArrayT, directions: ArrayT) -> tuple[ArrayT, ArrayT]:
        """Entry and exit distance (...) of rays through the box (slab test); both zero where a ray misses it.

        Directions (..., 3) need not be unit length: distances are in multiples of them. A component of zero is
        handled: the ray is inside that slab for ever, or never.
        """
        if isinstance(origins, torch.Tensor):
            lower, upper = constant(self.lower, origins), constant(self.upper, origins)
            tiny = torch.finfo(origins.dtype).tiny
            safe = torch.where(directions.abs() < tiny, torch.full_like(directions, tiny), directions)
            a, b = (lower - origins) / safe, (upper - origins) / safe
            near = torch.minimum(a, b).amax(dim=-1).clamp_min(0)
            far = torch.maximum(a, b).amin(dim=-1)
            hit = far > near
            zero = torch.zeros_like(far)
            return torch.where(hit, near, zero), torch.where(hit, far, zero)
        tiny_np = np.finfo(np.asarray(directions).dtype).tiny
        with np.errstate(over="ignore"):
            safe_np = np.where(np.abs(directions) < tiny_np, tiny_np, directions)
            a_np = (np.asarray(self.lower) - origins) / safe_np
            b_np = (np.asarray(self.upper) - origins) / safe_np
        near_np = np.minimum(a_np, b_np).max(axis=-1).clip(min=0)
        far_np = np.maximum(a_np, b_np).min(axis=-1)
        hit_np = far_np > near_np
        return np.where(hit_np, near_np, 0.0), np.where(hit_np, far_np, 0.0)


NUSCENES_GRID = VoxelGrid((-40.0, -40.0, -1.0), (40.0, 40.0, 5.4), (200, 200, 16))
"""OpenOcc / Occ3D extent: 0.4 m voxels, ego frame."""

KITTI_GRID = VoxelGrid((0.0, -25.6, -2.2), (51.2, 25.6, 4.2), (256, 256, 32))
"""SemanticKITTI extent in the velodyne frame: 0.2 m voxels. z starts at -2.2 m: the released voxel files fit the
scans there (IoU 0.92-0.99), not at the often-quoted -2.0 m."""

KITTI_GROUND_Z = -1.73
"""Height of KITTI's road in its ego frame, metres: that frame is the LiDAR's, on the roof."""
