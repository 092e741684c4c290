"""Arrows start where things are and end where they will be."""

import numpy as np

from eval.arrows import moving_cells, with_arrows
from geometry.grid import VoxelGrid

GRID = VoxelGrid.from_voxel_size((-10.0, -10.0, -1.0), (10.0, 10.0, 1.0), 0.5)


def volume(velocity: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """A road at rest, and one 2 m square block around (3, 5) that moves."""
    occupied = np.zeros(GRID.shape, dtype=bool)
    occupied[..., 0] = True
    flow = np.zeros((*GRID.shape, 2))
    block = np.s_[24:28, 28:32, 1:3]
    occupied[block], flow[block] = True, velocity
    return occupied, flow


def test_a_block_is_one_cell_at_its_centre() -> None:
    occupied, flow = volume((4.0, -2.0))
    places, velocities = moving_cells(occupied, flow, GRID)
    np.testing.assert_allclose(places, [[3.0, 5.0]])
    np.testing.assert_allclose(velocities, [[4.0, -2.0]])


def test_slow_free_and_broken_voxels_have_no_arrow() -> None:
    occupied, flow = volume((0.3, 0.4))
    flow[0, 0, 3] = 9.0
    flow[1, 1, 0] = np.nan
    assert [len(part) for part in moving_cells(occupied, flow, GRID)] == [0, 0]
    picture = np.full((400, 400, 3), 200, dtype=np.uint8)
    assert with_arrows(picture, occupied, flow, GRID) is picture


def test_the_arrow_points_the_way_the_block_goes() -> None:
    occupied, flow = volume((4.0, 0.0))
    picture = np.full((400, 400, 3), 200, dtype=np.uint8)
    drawn = with_arrows(picture, occupied, flow, GRID)
    rows, columns = np.nonzero((drawn < 150).all(axis=-1))
    # 20 pixels a metre, x up, y to the left: from (3, 5) at row 140, column 100, to (7, 5) at row 60.
    assert abs(rows.max() - 140) <= 2
    assert abs(rows.min() - 60) <= 2
    assert abs(columns.mean() - 99.5) <= 1
    # The head is where it goes to.
    assert np.ptp(columns[rows < 90]) > 4 * max(1, np.ptp(columns[rows > 110]))
    assert (picture == 200).all()
