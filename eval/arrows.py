"""Arrows of motion on a view from above: where things will be after a while at the speed they have."""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from eval.mave import DYNAMIC_SPEED
from geometry.grid import VoxelGrid

CELL_M = 2.0
"""One arrow per square of this size that holds something moving."""
AHEAD_S = 1.0
"""An arrow ends where a thing will be after this time."""
_INK, _RIM = (20, 24, 32), (255, 255, 255)
_FINE = 3
"""Pixels are drawn this many times finer, for smooth lines."""


def moving_cells(
    occupied: Bool[np.ndarray, "x y z"], flow: Float[np.ndarray, "x y z 2"], grid: VoxelGrid, cell: float = CELL_M
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
    """Mean place (x, y in metres) and velocity (m/s) of the moving voxels of each square of `cell` metres.

    Moving: occupied, and faster than the 0.5 m/s from which the metrics call a voxel dynamic. Speeds that are not
    numbers do not count.
    """
    speed = np.linalg.norm(np.nan_to_num(flow), axis=-1)
    index = np.argwhere(occupied & (speed > DYNAMIC_SPEED))
    if not len(index):
        return np.zeros((0, 2)), np.zeros((0, 2))
    place = np.asarray(grid.lower[:2]) + (index[:, :2] + 0.5) * np.asarray(grid.voxel_size[:2])
    velocity = flow[tuple(index.T)].astype(np.float64)
    _, which = np.unique(np.floor(place / cell).astype(np.int64), axis=0, return_inverse=True)
    which, count = which.ravel(), np.bincount(which.ravel())[:, None]

    def mean(values: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "n 2"]:
        return np.stack([np.bincount(which, values[:, k]) for k in (0, 1)], axis=-1) / count

    return mean(place), mean(velocity)


def with_arrows(
    picture: UInt8[np.ndarray, "height width 3"],
    occupied: Bool[np.ndarray, "x y z"],
    flow: Float[np.ndarray, "x y z 2"],
    grid: VoxelGrid,
    ahead_s: float = AHEAD_S,
) -> UInt8[np.ndarray, "height width 3"]:
    """A view from above (x up, y to the left, the whole grid) with an arrow per moving cell; flow in m/s."""
    places, velocities = moving_cells(occupied, flow, grid)
    if not len(places):
        return picture
    height, width = picture.shape[:2]
    page = Image.fromarray(picture).resize((width * _FINE, height * _FINE), Image.Resampling.NEAREST)
    draw, scale = ImageDraw.Draw(page), height * _FINE / (grid.upper[0] - grid.lower[0])

    def pixel(point: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
        return np.array([(grid.upper[1] - point[1]) * scale, (grid.upper[0] - point[0]) * scale])

    for place, velocity in zip(places, velocities, strict=True):
        start, end = pixel(place), pixel(place + velocity * ahead_s)
        for colour, wide in ((_RIM, 3 * _FINE), (_INK, _FINE + 1)):
            _arrow(draw, start, end, colour, wide)
    return np.asarray(page.resize((width, height), Image.Resampling.BOX))


def _arrow(
    draw: ImageDraw.ImageDraw, start: np.ndarray, end: np.ndarray, colour: tuple[int, int, int], wide: int
) -> None:
    """A line with two barbs; short ones keep a head that can be seen."""
    along = end - start
    length = float(np.linalg.norm(along))
    along = along / max(length, 1e-9)
    across, barb = np.array([-along[1], along[0]]), max(4.0 * _FINE, 0.25 * length)
    draw.line([*start, *end], fill=colour, width=wide)
    for side in (-1, 1):
        draw.line([*end, *(end - barb * along + side * 0.5 * barb * across)], fill=colour, width=wide)
