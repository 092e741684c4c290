"""The planes' geometry: pillars, references into the other planes, and the sum into a volume."""

import pytest
import torch

from geometry.grid import VoxelGrid
from model.attention import deformable_attention
from model.planes import hybrid_references, pillars, plane_axes, plane_shape, position_waves, to_volume

GRID = VoxelGrid((-2.0, -3.0, -1.0), (6.0, 7.0, 3.0), (4, 5, 3))


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_pillars_stand_on_their_cells_and_run_along_the_normal(plane: int) -> None:
    first, second, normal = plane_axes(plane)
    points = pillars(GRID, plane, anchors=2)
    lower, size, upper = GRID.lower, GRID.voxel_size, GRID.upper
    query = 0
    for i in range(GRID.shape[first]):
        for j in range(GRID.shape[second]):
            assert points[query, 0, first].item() == pytest.approx(lower[first] + (i + 0.5) * size[first])
            assert points[query, 1, second].item() == pytest.approx(lower[second] + (j + 0.5) * size[second])
            height = upper[normal] - lower[normal]
            expected = [lower[normal] + height * 0.25, lower[normal] + height * 0.75]
            assert points[query, :, normal].tolist() == pytest.approx(expected)
            query += 1


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_references_find_the_same_place_on_every_plane(plane: int) -> None:
    # Each plane's map holds its two axes' own coordinates, so what is read back says which place was read.
    coordinates = [(torch.arange(n) + 0.5) / n for n in GRID.shape]
    maps = []
    for p in range(3):
        first, second, _ = plane_axes(p)
        grids = torch.meshgrid(coordinates[first], coordinates[second], indexing="ij")
        maps.append(torch.stack(grids)[None])
    first, second, normal = plane_axes(plane)
    references = hybrid_references(GRID, plane, points=GRID.shape[normal])
    cells = torch.stack(torch.meshgrid(coordinates[first], coordinates[second], indexing="ij"), -1).reshape(-1, 2)
    weights = torch.ones(1, 1, 1, 1, len(cells))
    for point in range(GRID.shape[normal]):
        for level in range(3):
            other = (plane + level) % 3
            place = references[None, level : level + 1, point : point + 1]
            read = deformable_attention([maps[other]], place, torch.zeros(1, 1, 1, 1, 2, len(cells)), weights)[0]
            axes = plane_axes(other)[:2]
            for channel, axis in enumerate(axes):
                if axis == normal:
                    expected = coordinates[normal][point].expand(len(cells))
                else:
                    expected = cells[:, 0] if axis == first else cells[:, 1]
                assert torch.allclose(read[:, channel], expected, atol=1e-5), (level, axis)


def test_volume_is_the_sum_of_the_planes_along_their_normals() -> None:
    tokens = [torch.randn(2, n * m, 3) for n, m in (plane_shape(GRID, p) for p in range(3))]
    volume = to_volume(tokens, GRID.shape)
    nx, ny, nz = GRID.shape
    for x, y, z in ((0, 0, 0), (3, 1, 2), (2, 4, 1)):
        expected = tokens[0][:, x * ny + y] + tokens[1][:, y * nz + z] + tokens[2][:, z * nx + x]
        torch.testing.assert_close(volume[:, x, y, z], expected)


def test_queries_start_alike_where_they_are_near_and_unlike_where_they_are_far() -> None:
    grid = VoxelGrid((-40.0, -40.0, -1.0), (40.0, 40.0, 5.4), (50, 50, 4))
    waves = position_waves(grid, 0, 64).reshape(50, 50, 64)
    size = waves.norm(dim=-1).mean()
    assert (waves[1:] - waves[:-1]).norm(dim=-1).max() < 0.5 * size
    assert (waves[5, 5] - waves[30, 45]).norm() > 0.8 * size
    ring = waves[[25, 10, 39, 24], [10, 25, 24, 39]]
    assert torch.allclose(ring[1:, ::2], ring[:1, ::2], atol=1e-4), "every other channel depends on distance alone"
    assert torch.equal(waves.flatten(0, 1), position_waves(grid, 0, 64))
