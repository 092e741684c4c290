"""What concerns the CPU's attention kernel alone: threads, odd sizes, hostile numbers, machines without numba.

That it is right is in `test_fused.py`.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model import fused_cpu, sampling_cpu
from model.attention import deformable_attention, softmax_over_samples
from model.config import ModelConfig, TPVConfig
from model.fused import FlatMaps, fused_attention, use_fused
from model.tpv import HybridAttention

pytest.importorskip("numba")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads whatever the size, and one again afterwards."""
    monkeypatch.setattr(fused_cpu, "WORK_PER_THREAD", 1)
    yield
    torch.set_num_threads(1)


def problem(
    sizes: tuple[tuple[int, int], ...], frames: int, cameras: int, heads: int, dim: int, points: int, queries: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Values, references, offsets, logits, and which third of the points is seen."""
    levels, cells, views = len(sizes), sum(h * w for h, w in sizes), frames * cameras
    return (
        torch.randn(views, cells, heads * dim),
        torch.randn(views, 1, points, 2, queries),
        torch.randn(frames, heads, levels, points, 2, queries),
        3 * torch.randn(frames, heads, levels, points, queries),
        torch.rand(views, points, queries) < 0.3,
    )


def both_ways(
    sizes: tuple[tuple[int, int], ...], inputs: tuple[Tensor, ...], add_cameras: bool = False
) -> tuple[Tensor, ...]:
    """Result and gradients of values, offsets and logits."""
    leaves = [inputs[i].clone().requires_grad_() for i in (0, 2, 3)]
    maps = FlatMaps(leaves[0], sizes)
    out = fused_attention(maps, inputs[1], leaves[1], leaves[2], inputs[4], kernel="numba", add_cameras=add_cameras)
    return out, *torch.autograd.grad(out, leaves, torch.sin(torch.arange(out.numel())).view_as(out))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("add_cameras", [False, True])
def test_any_number_of_threads_gives_the_same_bits(add_cameras: bool) -> None:
    """One, fewer than heads, and so many that each camera adds up its own offsets' gradients."""
    sizes = ((9, 11), (5, 6))
    inputs = problem(sizes, frames=2, cameras=3, heads=2, dim=9, points=3, queries=301)
    found = []
    for number in (1, 2, 3, 7):
        torch.set_num_threads(number)
        found.append(both_ways(sizes, inputs, add_cameras))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one.detach().numpy().tobytes() == two.detach().numpy().tobytes()


@pytest.mark.parametrize(
    ("sizes", "frames", "cameras", "heads", "dim", "points", "queries"),
    [
        (((3, 4),), 1, 1, 1, 1, 1, 1),
        (((1, 1), (1, 5), (5, 1)), 1, 2, 1, 3, 2, 1),
        (((3, 4), (2, 2)), 2, 1, 3, 8, 150, 9),  # more samples than the scratch has room for blocks of
        (((3, 4),), 1, 3, 2, 33, 2, 130),
    ],
)
def test_odd_sizes(
    sizes: tuple[tuple[int, int], ...], frames: int, cameras: int, heads: int, dim: int, points: int, queries: int
) -> None:
    inputs = problem(sizes, frames, cameras, heads, dim, points, queries)
    found = both_ways(sizes, inputs)
    values, references, offsets, logits, seen = (x.double() if x.is_floating_point() else x for x in inputs)
    leaves = [x.clone().requires_grad_() for x in (values, offsets, logits)]
    flat = leaves[0].split([h * w for h, w in sizes], dim=1)
    maps = [part.transpose(1, 2).unflatten(2, size) for part, size in zip(flat, sizes, strict=True)]
    by_view = [x.repeat_interleave(cameras, dim=0) for x in leaves[1:]]
    everywhere = references.expand(-1, len(sizes), -1, -1, -1)
    out = deformable_attention(maps, everywhere, by_view[0], softmax_over_samples(by_view[1], seen))
    gradient = torch.sin(torch.arange(out.numel())).view_as(out)
    for one, other in zip(found, (out, *torch.autograd.grad(out, leaves, gradient.double())), strict=True):
        torch.testing.assert_close(one.double(), other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("frames", "cameras", "queries"), [(1, 0, 7), (0, 1, 7), (1, 2, 0)])
def test_nothing_to_do(frames: int, cameras: int, queries: int) -> None:
    sizes = ((3, 4),)
    inputs = problem(sizes, frames, cameras, heads=2, dim=4, points=2, queries=queries)
    found = both_ways(sizes, inputs)
    assert found[0].shape == (frames * cameras, queries, 8)
    assert all((x == 0).all() for x in found)


def test_a_query_that_no_camera_sees_gets_zeros_and_gives_no_gradient() -> None:
    sizes = ((3, 4),)
    inputs = problem(sizes, frames=1, cameras=2, heads=2, dim=4, points=2, queries=70)
    inputs[4][:] = False
    assert all((x == 0).all() for x in both_ways(sizes, inputs))


def test_logits_however_far_apart() -> None:
    """Softmax of what is seen alone: the largest is not, and what is seen is all far below it."""
    sizes = ((1, 1),)
    inputs = problem(sizes, frames=1, cameras=1, heads=1, dim=1, points=3, queries=4)
    inputs[0][:], inputs[1][:], inputs[2][:] = 2.0, 0.0, 0.0
    inputs[2][0, 0, 0, 2] = 0.5  # half of the third sample is outside: 1
    inputs[3][0, 0, 0] = torch.tensor([[500.0] * 4, [-500.0, -9e4, 0, 0], [-500.0, 9e4, torch.nan, 0]])
    inputs[4][0] = torch.tensor([[False] * 4, [True] * 4, [True, True, True, False]])
    inputs[2][0, 0, 0, 2, 1] = 0.0
    out = both_ways(sizes, inputs)[0].flatten().tolist()
    assert out[:2] == [1.5, 1.0]
    assert np.isnan(out[2]), "a network that has gone wrong must show it"
    assert out[3] == 2.0


def test_its_exponential() -> None:
    sampling_cpu.compiled()
    x = np.linspace(-87, 0, 4001).astype(np.float32)
    found = np.array([sampling_cpu._exp(each) for each in x], dtype=np.float64)
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=5e-7)
    assert 0 <= sampling_cpu._exp(np.float32(-np.inf)) < 1e-37


def test_attention_under_autocast(tiny_config: ModelConfig) -> None:
    """bfloat16 offsets and values, as autocast makes them, give what plain attention makes of them."""
    grid = tiny_config.grid.build()
    config = TPVConfig(dim=8, ffn_dim=8, heads=2, self_points=2)
    layers = [HybridAttention(config, grid, kernel) for kernel in ("plain", "numba")]
    layers[1].load_state_dict(layers[0].state_dict())
    for layer in layers:
        torch.nn.init.normal_(layer.sampling.weight, generator=torch.Generator().manual_seed(2))
    tokens = torch.randn(1, sum(first * second for first, second in layers[0].shapes), 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one, other = (layer(tokens) for layer in layers)
    assert one.dtype == other.dtype == torch.bfloat16
    torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)


def test_where_it_runs() -> None:
    assert use_fused("auto", torch.zeros(1))
    assert use_fused("numba", torch.zeros(1, dtype=torch.bfloat16))
    assert not use_fused("auto", torch.zeros(1, dtype=torch.float64))
    assert not use_fused("auto", torch.zeros(1, device="meta"))
    with pytest.raises(RuntimeError, match=r"model\.attention.*'numba': it runs on CPUs.*meta.*'auto' or 'plain'"):
        use_fused("numba", torch.zeros(1, device="meta"))


def test_it_is_the_same_every_time_so_deterministic_runs_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert use_fused("auto", torch.zeros(1))


def test_without_numba_attention_is_plain() -> None:
    """A whole network, forward and backward; and who asks for the kernel is told."""
    code = """
import sys
sys.modules["numba"] = None
import torch
from model.config import TPVConfig
from model.fused import use_fused
from model.tpv import HybridAttention
from geometry.grid import VoxelGrid

grid = VoxelGrid((-2.0, -2.0, 0.0), (2.0, 2.0, 1.0), (4, 4, 2))
layer = HybridAttention(TPVConfig(dim=8, ffn_dim=8, heads=2, self_points=2), grid)
layer(torch.randn(1, 16 + 8 + 8, 8)).sum().backward()
assert layer.sampling.weight.grad is not None
try:
    use_fused("numba", torch.zeros(1))
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout == "model.attention = 'numba': numba is not installed; set model.attention to 'auto' or 'plain'\n"
    )
