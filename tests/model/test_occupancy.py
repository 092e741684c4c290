"""Occupied voxels from fields, on their own grid and on another."""

import torch

from geometry.grid import VoxelGrid
from model.fields import Fields
from model.occupancy import flow_on, occupied_on, sdf_on

COARSE = VoxelGrid((0.0, 0.0, 0.0), (8.0, 8.0, 4.0), (8, 8, 4))
FINE = VoxelGrid((0.0, 0.0, 0.0), (8.0, 8.0, 4.0), (16, 16, 8))


def _ground(height: float) -> Fields:
    z = torch.as_tensor(COARSE.centres()[..., 2], dtype=torch.float32)
    x = torch.as_tensor(COARSE.centres()[..., 0], dtype=torch.float32)
    return Fields((z - height)[None], torch.stack([x, -x], dim=-1)[None], COARSE)


def test_the_threshold_is_inclusive_and_in_metres() -> None:
    occupied = occupied_on(_ground(1.5), COARSE, threshold=0.0)
    assert occupied[0, 0, 0].tolist() == [True, True, False, False]
    assert occupied_on(_ground(1.5), COARSE, threshold=1.0)[0, 0, 0].tolist() == [True, True, True, False]


def test_a_finer_grid_reads_between_the_centres() -> None:
    fields = _ground(1.5)
    torch.testing.assert_close(sdf_on(fields, FINE)[0, 3, 3, 1:7], torch.arange(6) * 0.5 + 0.75 - 1.5)
    torch.testing.assert_close(flow_on(fields, FINE)[0, 1:15, 3, 3, 0], torch.arange(1, 15) * 0.5 + 0.25)
    occupied = occupied_on(fields, FINE, threshold=0.0)
    assert occupied[0, 5, 5].tolist() == [True] * 3 + [False] * 5


def test_nothing_is_claimed_outside_the_extent() -> None:
    wide = VoxelGrid((-2.0, 0.0, 0.0), (10.0, 8.0, 4.0), (12, 8, 4))
    occupied = occupied_on(_ground(10.0), wide, threshold=0.0)
    assert occupied[0, 2:10].all()
    assert not occupied[0, :2].any()
    assert not occupied[0, 10:].any()
