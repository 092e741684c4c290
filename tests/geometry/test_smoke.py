"""Placeholder replaced by the real geometry tests."""

import torch
from geometry.grid import VoxelGrid
from geometry.warp import sample_volume


def test_sampling_at_centres_returns_the_volume() -> None:
    grid = VoxelGrid((-1.0, -2.0, 0.0), (3.0, 2.0, 5.0), (4, 8, 5))
    volume = torch.rand(1, 2, 4, 8, 5)
    centres = torch.as_tensor(grid.centres()[None], dtype=torch.float32)
    assert torch.allclose(sample_volume(volume, centres, grid), volume, atol=1e-6)
