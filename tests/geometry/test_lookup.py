"""Compiled look-ups against grid_sample, by hand, at and beyond the border, in threads, and where they step aside."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from geometry import lookup
from geometry.grid import VoxelGrid
from geometry.lookup import look_up, use_compiled
from geometry.warp import sample_volume

ROOT = Path(__file__).parents[2]
GRID = VoxelGrid((-1.0, -2.0, 0.0), (3.0, 2.0, 5.0), (4, 8, 5))
NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """That many threads, for few points too."""
    monkeypatch.setattr(lookup, "POINTS_PER_THREAD", 8)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def check(volume: Tensor, points: Tensor, grid: VoxelGrid = GRID) -> None:
    """The same values, and the same gradient of a random sum of them."""
    assert use_compiled(volume, points)
    volume = volume.detach().requires_grad_()
    expected, found = sample_volume(volume, points, grid), look_up(volume, points, grid)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    (theirs,), (ours,) = (torch.autograd.grad((x * weight).sum(), volume) for x in (expected, found))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.usefixtures("threads")
def test_random_points_inside_and_outside(batch: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    volume = torch.randn(batch, channels, *GRID.shape, generator=generator)
    points = torch.rand(batch, 31, 17, 3, generator=generator) * 8 + torch.tensor([-3.0, -4.0, -1.5])
    check(volume, points)


@pytest.mark.usefixtures("threads")
def test_centres_edges_and_what_lies_far_away() -> None:
    volume = torch.randn(1, 2, *GRID.shape)
    centres = torch.as_tensor(GRID.centres()[None], dtype=torch.float32)
    check(volume, centres)
    torch.testing.assert_close(look_up(volume, centres, GRID), volume, atol=2e-6, rtol=0)
    edges = torch.cartesian_prod(*(torch.linspace(l, u, 9) for l, u in zip(GRID.lower, GRID.upper, strict=True)))
    check(volume, edges[None])
    far = torch.cartesian_prod(*[torch.tensor([-3e38, -1e6, 0.3, 1e6, 3e38])] * 3)
    check(volume, far[None])


@pytest.mark.usefixtures("threads")
def test_points_that_are_not_numbers_are_no_addresses() -> None:
    """What grid_sample does: infinite is at the border; NaN reads the last voxel of its axis and has no gradient."""
    volume = torch.randn(1, 3, *GRID.shape)
    points = torch.cartesian_prod(*[torch.tensor([NAN, -INF, 0.4, INF])] * 3)[None]
    check(volume, points)
    volume.requires_grad_()
    lost = torch.tensor([[[NAN, INF, NAN]]])
    found = look_up(volume, lost, GRID)
    assert torch.equal(found[0, :, 0], volume[0, :, -1, -1, -1])
    assert not torch.autograd.grad(found.sum(), volume)[0].any()


@pytest.mark.parametrize("shape", [(1, 8, 5), (4, 1, 5), (4, 8, 1), (1, 1, 1)])
def test_an_axis_of_one_voxel(shape: tuple[int, int, int]) -> None:
    grid = VoxelGrid(GRID.lower, GRID.upper, shape)
    check(torch.randn(1, 2, *shape), torch.rand(1, 50, 3) * 8 + torch.tensor([-3.0, -4.0, -1.5]), grid)


def test_a_volume_of_another_shape_fills_the_same_box() -> None:
    check(torch.randn(1, 2, 3, 9, 2), torch.rand(1, 50, 3) * 8 + torch.tensor([-3.0, -4.0, -1.5]))


def test_weights_by_hand() -> None:
    """Centres 0.5 and 1.5 m on each axis: at (0.75, 1, 1.4) the shares of the farther are 1/4, 1/2 and 9/10."""
    grid = VoxelGrid((0.0, 0.0, 0.0), (2.0, 2.0, 2.0), (2, 2, 2))
    volume = torch.arange(8.0).reshape(1, 1, 2, 2, 2).requires_grad_()
    found = look_up(volume, torch.tensor([[[0.75, 1.0, 1.4]]]), grid)
    assert found.item() == pytest.approx(4 / 4 + 2 / 2 + 0.9, abs=1e-6)
    (gradient,) = torch.autograd.grad(2 * found.sum(), volume)
    x, y, z = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5]), torch.tensor([0.1, 0.9])
    torch.testing.assert_close(gradient[0, 0], 2 * x[:, None, None] * y[:, None] * z)


@pytest.mark.usefixtures("threads")
def test_tensors_that_do_not_lie_in_one_piece() -> None:
    channels_last = torch.randn(2, *GRID.shape, 3).movedim(-1, 1)
    points = (torch.rand(3, 40, 2, generator=torch.Generator().manual_seed(0)) * 4 - 1).permute(2, 1, 0)
    check(channels_last, points)
    check(torch.randn(1, 2, *GRID.shape).expand(2, -1, -1, -1, -1), points[:1].expand(2, -1, -1))
    volume = torch.randn(1, 1, *GRID.shape, requires_grad=True)
    (one,) = torch.autograd.grad(look_up(volume, points[:1], GRID).sum(), volume)  # a gradient expanded from a number
    (other,) = torch.autograd.grad(sample_volume(volume, points[:1], GRID).sum(), volume)
    torch.testing.assert_close(one, other)


def test_nothing_to_look_up() -> None:
    volume = torch.rand(2, 3, *GRID.shape, requires_grad=True)
    found = look_up(volume, torch.zeros(2, 0, 3), GRID)
    assert found.shape == (2, 3, 0)
    assert not torch.autograd.grad(found.sum(), volume)[0].any()
    assert look_up(volume, torch.zeros(2, 3), GRID).shape == (2, 3)


def test_the_same_bits_every_time(threads: int) -> None:
    volume, points = torch.randn(1, 4, *GRID.shape, requires_grad=True), torch.rand(1, 4000, 3) * 4 - 1
    weight = torch.randn(1, 4, 4000)
    runs = []
    for _ in range(4):
        found = look_up(volume, points, GRID)
        runs.append((found, *torch.autograd.grad((found * weight).sum(), volume)))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))
    assert threads == len(lookup._parts(points))


def test_no_gradient_of_a_gradient() -> None:
    volume = torch.randn(1, 1, *GRID.shape, requires_grad=True)
    found = look_up(volume, torch.zeros(1, 1, 3), GRID).square().sum()
    (gradient,) = torch.autograd.grad(found, volume, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    with torch.inference_mode():
        assert look_up(torch.ones(1, 1, *GRID.shape), torch.zeros(1, 1, 3), GRID).item() == pytest.approx(1.0)


def test_what_does_not_fit_is_refused_or_left_to_grid_sample() -> None:
    volume, points = torch.rand(2, 1, *GRID.shape), torch.zeros(2, 4, 3)
    assert use_compiled(volume, points)
    assert not use_compiled(volume.double(), points.double())
    assert not use_compiled(volume, points.double())
    assert not use_compiled(volume.to(torch.bfloat16), points)
    assert not use_compiled(volume.to("meta"), points.to("meta"))
    assert not use_compiled(volume, points.clone().requires_grad_())
    assert not use_compiled(volume[:, :0], points)
    look = getattr(look_up, "__wrapped__", look_up)  # without the shape checker, which would refuse first
    with pytest.raises(ValueError, match=r"expected \(2, ..., 3\)"):
        look(volume, points[:1], GRID)
    with pytest.raises(ValueError, match=r"expected \(2, ..., 3\)"):
        look(volume, torch.zeros(2, 6, 2), GRID)


def test_without_numba() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch; from geometry.grid import VoxelGrid; from geometry.lookup import use_compiled\n"
        "from geometry.warp import sample_volume; from model.fields import sample_field\n"
        "grid, points = VoxelGrid((0.0,) * 3, (2.0,) * 3, (2, 2, 2)), torch.rand(1, 9, 3) * 2\n"
        "volume = torch.rand(1, 2, 2, 2, 2, requires_grad=True)\n"
        "assert not use_compiled(volume, points)\n"
        "found = sample_field(volume, points, grid); found.sum().backward()\n"
        "assert torch.equal(found, sample_volume(volume, points, grid))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment, timeout=120)
