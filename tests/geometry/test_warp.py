"""Image and volume sampling against slow loops, at centres, and by gradcheck."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from geometry.grid import VoxelGrid
from geometry.warp import sample_image, sample_volume

GRID = VoxelGrid((-1.0, -2.0, 0.0), (3.0, 2.0, 5.0), (4, 8, 5))


def _corner_weights(coordinate: float) -> list[tuple[int, float]]:
    """The two neighbours of a continuous coordinate among cells whose centres lie at index + 0.5."""
    low = math.floor(coordinate - 0.5)
    share = coordinate - 0.5 - low
    return [(low, 1 - share), (low + 1, share)]


def _slow_image(image: Tensor, u: float, v: float, padding: str) -> Tensor:
    """Bilinear sample of (C, H, W) by loops."""
    height, width = image.shape[-2:]
    out = torch.zeros(image.shape[0], dtype=image.dtype)
    if padding == "border":
        u, v = min(max(u, 0.5), width - 0.5), min(max(v, 0.5), height - 0.5)
    for (i, a), (j, b) in itertools.product(_corner_weights(v), _corner_weights(u)):
        if a * b > 0 and 0 <= i < height and 0 <= j < width:
            out += a * b * image[:, i, j]
    return out


def _slow_volume(volume: Tensor, point: Tensor, padding: str) -> Tensor:
    """Trilinear sample of (C, X, Y, Z) at a point in metres, by loops."""
    coordinates = [(float(p) - low) / size for p, low, size in zip(point, GRID.lower, GRID.voxel_size, strict=True)]
    if padding == "border":
        coordinates = [min(max(c, 0.5), n - 0.5) for c, n in zip(coordinates, GRID.shape, strict=True)]
    out = torch.zeros(volume.shape[0], dtype=volume.dtype)
    for corner in itertools.product(*(_corner_weights(c) for c in coordinates)):
        (i, j, k), weight = (c[0] for c in corner), math.prod(c[1] for c in corner)
        if weight > 0 and 0 <= i < GRID.shape[0] and 0 <= j < GRID.shape[1] and 0 <= k < GRID.shape[2]:
            out += weight * volume[:, i, j, k]
    return out


@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_image_samples_match_loops(padding: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 6, 9, dtype=torch.float64, generator=generator)
    uv = torch.rand(2, 4, 10, 2, dtype=torch.float64, generator=generator) * 15 - 3
    found = sample_image(images, uv, padding=padding)
    assert found.shape == (2, 3, 4, 10)
    for b, i, j in itertools.product(range(2), range(4), range(10)):
        expected = _slow_image(images[b], float(uv[b, i, j, 0]), float(uv[b, i, j, 1]), padding)
        torch.testing.assert_close(found[b, :, i, j], expected)


@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_volume_samples_match_loops(padding: str) -> None:
    generator = torch.Generator().manual_seed(1)
    volume = torch.rand(2, 3, *GRID.shape, dtype=torch.float64, generator=generator)
    points = torch.rand(2, 30, 3, dtype=torch.float64, generator=generator) * 8 + torch.tensor([-3.0, -4, -1.5])
    found = sample_volume(volume, points, GRID, padding=padding)
    assert found.shape == (2, 3, 30)
    for b, i in itertools.product(range(2), range(30)):
        torch.testing.assert_close(found[b, :, i], _slow_volume(volume[b], points[b, i], padding))


def test_sampling_at_centres_returns_the_field() -> None:
    image = torch.rand(1, 2, 5, 7)
    v, u = torch.meshgrid(torch.arange(5) + 0.5, torch.arange(7) + 0.5, indexing="ij")
    torch.testing.assert_close(sample_image(image, torch.stack([u, v], dim=-1)[None]), image)
    volume = torch.rand(1, 2, *GRID.shape)
    centres = torch.as_tensor(GRID.centres()[None], dtype=torch.float32)
    torch.testing.assert_close(sample_volume(volume, centres, GRID), volume)


def test_a_linear_field_is_sampled_exactly() -> None:
    """f = 2x - 3y + z + 4 at voxel centres: trilinear samples equal f anywhere between centres."""

    def field(p: Tensor) -> Tensor:
        return 2 * p[..., 0] - 3 * p[..., 1] + p[..., 2] + 4

    centres = torch.as_tensor(GRID.centres())
    points = torch.rand(1, 50, 3, dtype=torch.float64) * torch.tensor([3.0, 3.5, 4]) + torch.tensor([-0.5, -1.75, 0.5])
    found = sample_volume(field(centres)[None, None], points, GRID)
    torch.testing.assert_close(found[0, 0], field(points[0]))


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(1, 2, 4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    # kept off the lines through pixel centres, where bilinear sampling has a kink
    uv = torch.randint(1, 4, (1, 6, 2), generator=generator) + 0.2 + 0.2 * torch.rand(1, 6, 2, generator=generator)
    assert torch.autograd.gradcheck(sample_image, (image, uv.double().requires_grad_()))
    volume = torch.rand(1, 2, *GRID.shape, dtype=torch.float64, generator=generator, requires_grad=True)
    cells = torch.randint(1, 3, (1, 6, 3), generator=generator) + 0.6 + 0.3 * torch.rand(1, 6, 3, generator=generator)
    points = cells.double() * torch.tensor(GRID.voxel_size) + torch.tensor(GRID.lower)
    assert torch.autograd.gradcheck(lambda v, p: sample_volume(v, p, GRID), (volume, points.requires_grad_()))
    moved = points.detach().clone().requires_grad_()
    sample_volume(volume.detach(), moved, GRID).sum().backward()
    assert moved.grad is not None
    assert moved.grad.abs().min() > 0


def test_nothing_to_sample() -> None:
    assert sample_image(torch.rand(2, 3, 4, 5), torch.zeros(2, 0, 2)).shape == (2, 3, 0)
    assert sample_volume(torch.rand(2, 3, *GRID.shape), torch.zeros(2, 0, 3), GRID).shape == (2, 3, 0)
