"""Pictures of volumes: what a ray through a pixel must show, and directions."""

import numpy as np
import pytest

from eval.voxels import Viewpoint, chase_view, from_above, perspective
from geometry.grid import VoxelGrid

GRID = VoxelGrid((-4.0, -4.0, 0.0), (4.0, 4.0, 4.0), (8, 8, 4))


def paint(grid: VoxelGrid, colour: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.array(colour, dtype=np.uint8), (*grid.shape, 3))


def test_rays_go_through_pixel_centres() -> None:
    ways = Viewpoint((0.0, 0.0, 0.0), (5.0, 0.0, 0.0), fov=90.0).rays(2, 4).reshape(2, 4, 3)
    np.testing.assert_allclose(np.linalg.norm(ways, axis=-1), 1.0)
    # At 90 degrees over two rows the first row's centre is half way up: z / x = 0.5; columns at -y 1.5, 0.5 (left).
    np.testing.assert_allclose(ways[0, 0] / ways[0, 0, 0], [1.0, 1.5, 0.5])
    np.testing.assert_allclose(ways[1, 3] / ways[1, 3, 0], [1.0, -1.5, -0.5])


def test_a_voxel_appears_where_it_is_in_its_colour() -> None:
    occupied = np.zeros(GRID.shape, dtype=bool)
    occupied[6, 5, 1] = True  # x 2..3, y 1..2 (left), z 1..2
    view = Viewpoint((-6.0, 0.0, 1.5), (0.0, 0.0, 1.5), fov=60.0)
    red, green = perspective(
        occupied, [paint(GRID, (200, 0, 0)), paint(GRID, (0, 200, 0))], GRID, view, 60, 90, smooth=1
    )
    (empty,) = perspective(np.zeros_like(occupied), [paint(GRID, (0, 0, 0))], GRID, view, 60, 90, smooth=1)
    changed = (red != empty).any(axis=-1)
    # The voxel's face x = 2 at 8 m: y 1..2 is 30 / tan(30) / 8 = 6.5 px a metre left of the middle column 45.
    rows, columns = np.nonzero(changed)
    assert columns.min() + 0.5 == pytest.approx(45 - 2 * 6.5, abs=1)
    assert columns.max() + 0.5 == pytest.approx(45 - 1 * 6.5 * 8 / 9, abs=1)
    assert rows.mean() == pytest.approx(29.5, abs=0.5)
    middle = red[30, 45 - 10]
    assert middle[0] > 60
    assert middle[1] < 30
    assert green[30, 45 - 10][1] == middle[0]


def test_an_empty_volume_has_sky_and_floor() -> None:
    (picture,) = perspective(np.zeros(GRID.shape, bool), [paint(GRID, (9, 9, 9))], GRID, chase_view(GRID), 20, 30)
    assert picture.shape == (20, 30, 3)
    assert picture.min() > 180


def test_shadow_falls_away_from_the_sun() -> None:
    """The sun stands at (-0.45, 0.5, 0.9): the ground at larger x and smaller y of a tower is dark."""
    occupied = np.zeros(GRID.shape, dtype=bool)
    occupied[:, :, 0] = True
    occupied[3, 4, 1:] = True
    view = Viewpoint((0.0, 0.001, 40.0), (0.0, 0.0, 0.0), fov=12.0)
    (picture,) = perspective(occupied, [paint(GRID, (200, 200, 200))], GRID, view, 80, 80, smooth=1)
    bright = picture.mean(axis=-1)
    # Looking down, the picture's up is whatever it is: a ground voxel's pixel by the view's own rays.
    ways = view.rays(80, 80).reshape(80, 80, 3)
    ground = np.array(view.eye) + (1.0 - 40.0) / ways[..., 2:] * ways

    def at(x: float, y: float) -> float:
        row, column = np.unravel_index(np.linalg.norm(ground[..., :2] - (x, y), axis=-1).argmin(), (80, 80))
        return float(bright[row, column])

    assert at(1.3, -0.7) < 0.8 * at(-2.5, 2.5)


def test_from_above_shows_the_top_forward_up_and_left_left() -> None:
    occupied = np.zeros(GRID.shape, dtype=bool)
    occupied[7, 4, 0] = occupied[7, 4, 2] = True
    occupied[4, 7, 0] = True
    colours = np.zeros((*GRID.shape, 3), dtype=np.uint8)
    colours[..., 2, 0] = 100
    colours[..., 0, 1] = 100
    picture = from_above(occupied, colours, GRID, pixels=16)
    assert picture.shape == (16, 16, 3)
    small = picture[::2, ::2]
    # x = 7 of 0..7 is the top row; y = 4 is column 7 - 4; the higher voxel hides the lower.
    assert small[0, 3, 0] > 0
    assert small[0, 3, 1] == 0
    assert small[3, 0, 1] > 0
    assert small[7, 7].tolist() == [232, 236, 241]
