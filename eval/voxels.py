"""Draws a voxel volume: a perspective view by ray casting, with shadows and corner shading, and a view from above."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from eval.raycast import cast_rays
from geometry.grid import VoxelGrid

_SKY_TOP, _SKY_BOTTOM = np.array([214.0, 224.0, 236.0]), np.array([247.0, 249.0, 251.0])
_SUN = np.array([-0.45, 0.5, 0.9]) / np.linalg.norm([-0.45, 0.5, 0.9])
FLOOR = np.array([232.0, 236.0, 241.0])


@dataclass(frozen=True)
class Viewpoint:
    """A pinhole view of the volume: `eye` and `target` in metres (ego frame), vertical field of view in degrees."""

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    fov: float = 42.0

    def rays(self, height: int, width: int) -> Float[np.ndarray, "pixels 3"]:
        """Unit directions through the pixels' centres, row-major."""
        forward = np.subtract(self.target, self.eye)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        up = np.cross(right, forward)
        half = np.tan(np.deg2rad(self.fov) / 2)
        v, u = np.meshgrid(
            (1 - 2 * (np.arange(height) + 0.5) / height) * half,
            (2 * (np.arange(width) + 0.5) / width - 1) * half * width / height,
            indexing="ij",
        )
        ways = (forward + u[..., None] * right + v[..., None] * up).reshape(-1, 3)
        return ways / np.linalg.norm(ways, axis=1, keepdims=True)


def chase_view(grid: VoxelGrid) -> Viewpoint:
    """From behind and above: the whole box in sight, forward pointing up the picture."""
    lower, upper = np.array(grid.lower), np.array(grid.upper)
    centre, span = (lower + upper) / 2, float((upper - lower)[:2].max())
    eye = (centre[0] - 0.80 * span, centre[1] + 0.18 * span, 0.58 * span)
    return Viewpoint(eye, (centre[0] - 0.07 * span, centre[1] - 0.01 * span, 0.0), fov=42.0)


def perspective(
    occupied: Bool[np.ndarray, "x y z"],
    colourings: Sequence[UInt8[np.ndarray, "x y z 3"]],
    grid: VoxelGrid,
    view: Viewpoint,
    height: int = 420,
    width: int = 720,
    smooth: int = 2,
    workers: int = 1,
) -> list[UInt8[np.ndarray, "height width 3"]]:
    """RGB pictures of the occupied voxels, one per colouring; `smooth` rays per pixel and axis.

    The rays, the shadows and the shading are the same for all colourings and are computed once.
    """
    tall, wide = height * smooth, width * smooth
    ways = view.rays(tall, wide)
    eye = np.broadcast_to(np.asarray(view.eye, dtype=np.float64), ways.shape)
    hits = cast_rays(occupied, grid, eye, ways, workers=workers)
    background = _background(ways, eye, grid, tall)
    seen = np.flatnonzero(hits.voxel >= 0)
    index = np.stack(np.unravel_index(hits.voxel[seen], grid.shape), axis=-1)
    point, axis, sign = _faces(index, eye[seen], ways[seen], grid)
    distance = np.linalg.norm(point - eye[seen], axis=1)
    light = _light(occupied, grid, index, point, axis, sign, workers)
    light *= _edges(grid, index, point, axis, distance * np.deg2rad(view.fov) / tall)
    haze = np.clip((distance - 60) / 110, 0.0, 0.45)[:, None]
    pictures = []
    for colours in colourings:
        picture = background.copy()
        lit = colours.reshape(-1, 3)[hits.voxel[seen]] * light[:, None]
        picture[seen] = lit * (1 - haze) + _SKY_BOTTOM * haze
        fine = picture.reshape(height, smooth, width, smooth, 3).mean(axis=(1, 3))
        pictures.append(fine.clip(0, 255).round().astype(np.uint8))
    return pictures


def _background(ways: np.ndarray, eye: np.ndarray, grid: VoxelGrid, tall: int) -> np.ndarray:
    """A pale sky, and the floor of the box with a line every ten metres."""
    slope = (np.arange(len(ways)) // (len(ways) // tall) / tall)[:, None]
    sky = _SKY_TOP * (1 - slope) + _SKY_BOTTOM * slope
    with np.errstate(divide="ignore"):
        reach = (grid.lower[2] - eye[:, 2]) / ways[:, 2]
    reach = np.where(np.isfinite(reach) & (reach > 0), reach, 0.0)
    x, y = (eye[:, k] + reach * ways[:, k] for k in (0, 1))
    inside = (reach > 0) & (x >= grid.lower[0]) & (x < grid.upper[0]) & (y >= grid.lower[1]) & (y < grid.upper[1])
    line = np.minimum(np.abs((x + 5) % 10 - 5), np.abs((y + 5) % 10 - 5))
    width = np.maximum(0.06, reach * 0.0012)
    floor = FLOOR - 22 * np.exp(-((line / width) ** 2))[:, None]
    return np.where(inside[:, None], floor, sky)


def _faces(
    index: Int[np.ndarray, "n 3"], eye: np.ndarray, ways: np.ndarray, grid: VoxelGrid
) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Where each ray enters its voxel (metres), through the face across which axis, and that face's outward sign."""
    size, lower = np.asarray(grid.voxel_size), np.asarray(grid.lower)
    low = lower + index * size
    with np.errstate(divide="ignore", invalid="ignore"):
        near = np.minimum((low - eye) / ways, (low + size - eye) / ways)
    near = np.where(ways == 0, -np.inf, near)
    axis = near.argmax(axis=1)
    each = np.arange(len(axis))
    sign = -np.sign(ways[each, axis]).astype(np.int64)
    return eye + near[each, axis][:, None] * ways, axis, sign


def _light(
    occupied: np.ndarray,
    grid: VoxelGrid,
    index: np.ndarray,
    point: np.ndarray,
    axis: np.ndarray,
    sign: np.ndarray,
    workers: int,
) -> Float[np.ndarray, "n"]:
    """Sun with cast shadows, sky light from above, and darkening in corners."""
    normal = np.zeros(point.shape)
    normal[np.arange(len(axis)), axis] = sign
    facing = (normal @ _SUN).clip(min=0.0)
    start = point + normal * 0.02
    shaded = cast_rays(occupied, grid, start, np.broadcast_to(_SUN, start.shape), workers=workers).voxel >= 0
    sun = facing * np.where(shaded, 0.25, 1.0)
    sky = 0.42 + 0.18 * normal[:, 2].clip(min=0.0)
    return (sky + 0.52 * sun) * _corner_shading(occupied, grid, index, point, axis, sign)


def _corner_shading(
    occupied: np.ndarray,
    grid: VoxelGrid,
    index: np.ndarray,
    point: np.ndarray,
    axis: np.ndarray,
    sign: np.ndarray,
) -> Float[np.ndarray, "n"]:
    """Less light where the voxels in front of a face are occupied beside it, blended across the face."""
    padded = np.pad(occupied, 2)
    each = np.arange(len(axis))
    front = index + 2
    front[each, axis] += sign
    within = grid.index_coordinates(point) - index
    first, second = (axis + 1) % 3, (axis + 2) % 3
    u, v = within[each, first].clip(0, 1), within[each, second].clip(0, 1)

    def beside(a: int, b: int) -> np.ndarray:
        at = front.copy()
        at[each, first] += a
        at[each, second] += b
        return padded[at[:, 0], at[:, 1], at[:, 2]].astype(np.float64)

    total = np.zeros(len(axis))
    for a, weight_u in ((-1, 1 - u), (1, u)):
        for b, weight_v in ((-1, 1 - v), (1, v)):
            sides = beside(a, 0) + beside(0, b)
            closed = np.where(sides == 2, 3.0, sides + beside(a, b))
            total += weight_u * weight_v * (1 - 0.16 * closed)
    return total


def _edges(
    grid: VoxelGrid, index: np.ndarray, point: np.ndarray, axis: np.ndarray, footprint: np.ndarray
) -> Float[np.ndarray, "n"]:
    """Thin darker lines along voxel borders, fading where a voxel is but a few pixels wide."""
    within = grid.index_coordinates(point) - index
    border = np.minimum(within, 1 - within)
    border[np.arange(len(axis)), axis] = 1.0
    size = float(min(grid.voxel_size))
    pixel = footprint / size
    line = np.exp(-((border.min(axis=1) / np.maximum(0.035, 0.8 * pixel)) ** 2))
    return 1 - 0.20 * line * np.clip(1 - 3.0 * pixel, 0.0, 1.0)


def from_above(
    occupied: Bool[np.ndarray, "x y z"], colours: UInt8[np.ndarray, "x y z 3"], grid: VoxelGrid, pixels: int = 400
) -> UInt8[np.ndarray, "height width 3"]:
    """The topmost occupied voxel of each column, x up and y to the left, lit from one side, about `pixels` high."""
    nz = grid.shape[2]
    top = nz - 1 - occupied[:, :, ::-1].argmax(axis=2)
    there = occupied.any(axis=2)
    plane = np.take_along_axis(colours, top[:, :, None, None], axis=2)[:, :, 0].astype(np.float64)
    height = np.where(there, top, 0) * grid.voxel_size[2]
    slope_x, slope_y = np.gradient(np.pad(height, 1, mode="edge"))
    relief = 1 + 0.16 * np.tanh(slope_x - slope_y)[1:-1, 1:-1]
    picture = np.where(there[..., None], plane * relief[..., None], FLOOR)
    picture = picture[::-1, ::-1]
    factor = max(1, round(pixels / max(picture.shape[:2])))
    return picture.clip(0, 255).round().astype(np.uint8).repeat(factor, axis=0).repeat(factor, axis=1)
