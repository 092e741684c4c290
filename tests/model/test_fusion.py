"""Temporal fusion: alignment, the order of Algorithm 1, the gate, every row of Table 4, and parameter counts."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from geometry.grid import NUSCENES_GRID, VoxelGrid
from model.config import FusionConfig, FusionKind
from model.fused import Kernel
from model.fusion import BackwardForward, BEVAttention, BEVVolumeFusion, TemporalFusion

GRID = VoxelGrid((-4.0, -4.0, -1.0), (4.0, 4.0, 3.0), (8, 8, 4))
KINDS = get_args(FusionKind)


def _fusion(kind: str = "full", dim: int = 8, history: int = 2) -> TemporalFusion:
    """A module whose steps do something: their output layers start at zero."""
    module = TemporalFusion(FusionConfig(kind=kind, heads=2, points=2, history=history), dim, GRID)
    for name, parameter in module.named_parameters():
        if name.endswith("output.weight"):
            nn.init.xavier_uniform_(parameter)
    return module


def _poses(count: int) -> Tensor:
    return torch.eye(4).repeat(1, count, 1, 1)


def test_alignment_moves_the_past_by_the_ego_motion() -> None:
    # The car drove one cell (1 m) forward: what was at cell x is now at x - 1, and the farthest cells were never seen.
    volume = torch.randn(1, *GRID.shape, 5)
    current_from_ref = torch.eye(4)[None].clone()
    current_from_ref[0, 0, 3] = -1.0
    aligned = _fusion().align(volume, current_from_ref)
    torch.testing.assert_close(aligned[:, :-1], volume[:, 1:], atol=1e-5, rtol=1e-5)
    assert torch.allclose(aligned[:, -1], torch.zeros(()), atol=1e-5)


def test_alignment_of_a_half_turn_reverses_x_and_y() -> None:
    volume = torch.randn(1, *GRID.shape, 5)
    current_from_ref = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))[None]
    torch.testing.assert_close(_fusion().align(volume, current_from_ref), volume.flip(1, 2), atol=1e-5, rtol=1e-5)


class _Step(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, bev: Tensor, other: Tensor) -> Tensor:
        return bev + self.factor * other


def test_steps_run_in_the_order_of_algorithm_1() -> None:
    module = BackwardForward(FusionConfig(heads=1, points=1), 1, (1, 1), backward=True)
    module.backward_steps = nn.ModuleList([_Step(2.0), _Step(3.0)])
    module.forward_steps = nn.ModuleList([_Step(5.0), _Step(7.0)])
    b0, b1, b2 = 1.0, 10.0, 100.0
    fused = module([torch.full((1, 1, 1), b) for b in (b0, b1, b2)])
    b1 = b1 + 2 * b0  # lines 7-9, i = 0
    b2 = b2 + 3 * b1  # i = 1
    b1 = b1 + 7 * b2  # lines 10-12, i = 1
    b0 = b0 + 5 * b1  # i = 0
    assert fused.item() == b0


def test_each_step_adds_beta_times_the_attention_and_beta_starts_at_one() -> None:
    step = BEVAttention(8, 2, 2, (3, 4))
    bev, other = torch.randn(2, 12, 8), torch.randn(2, 12, 8)
    assert step.beta.item() == 1.0
    assert torch.equal(step(bev, other), bev), "an untrained step is the identity"
    nn.init.xavier_uniform_(step.output.weight)
    full = step(bev, other) - bev
    with torch.no_grad():
        step.beta.fill_(0.25)
    torch.testing.assert_close(step(bev, other) - bev, 0.25 * full, atol=1e-6, rtol=1e-5)


def test_attention_reads_both_frames_and_only_their_own_slice() -> None:
    step = BEVAttention(8, 2, 2, (3, 4))
    nn.init.xavier_uniform_(step.output.weight)
    bev, other = torch.randn(2, 12, 8), torch.randn(2, 12, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(step(bev, other)[0].sum(), other)
    assert gradient[0].abs().sum() > 0
    assert gradient[1].abs().sum() == 0


@pytest.mark.parametrize("kernel", ["plain", "auto"])
def test_attention_without_offsets_reads_the_cell_itself(kernel: Kernel) -> None:
    """Of a BEV that is longer than wide: a reference with its axes exchanged reads another cell."""
    attention = BEVAttention(8, heads=2, points=3, shape=(5, 3), kernel=kernel)
    for linear in (attention.value, attention.output):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    nn.init.zeros_(attention.sampling.weight)
    nn.init.zeros_(attention.sampling.bias)
    bev, other = torch.randn(2, 2, 15, 8)
    torch.testing.assert_close(attention(bev, other), bev + (bev + other) / 2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bev_pool_forward", "bev_pool_bfam", "full"])
def test_slices_come_back_as_the_volume_and_its_mean_over_height(kind: str) -> None:
    volume, module = torch.randn(2, *GRID.shape, 8), _fusion(kind)
    back, pooled = module.from_slices(module.to_slices(volume), volume)
    torch.testing.assert_close(back, volume)
    torch.testing.assert_close(pooled, volume.mean(dim=3))


def test_gate_follows_equation_6() -> None:
    gate = BEVVolumeFusion(2)
    with torch.no_grad():
        gate.gate.weight.copy_(torch.eye(2))
        gate.gate.bias.zero_()
    volume, bev = torch.zeros(1, 1, 1, 2, 2), torch.tensor([[[[4.0, -2.0]]]])
    volume[0, 0, 0, 1] = torch.tensor([1.0, -1.0])
    out = gate(volume, bev)[0, 0, 0]
    sigmoid = 1 / (1 + torch.exp(torch.tensor(-1.0)))
    assert torch.allclose(out[0], torch.tensor([2.0, -1.0]))
    assert torch.allclose(out[1], torch.stack([1 + 4 * sigmoid, -1 - 2 * (1 - sigmoid)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("queue", [1, 2, 3])
def test_every_kind_runs_on_every_queue_length(kind: str, queue: int) -> None:
    volumes = [torch.randn(2, *GRID.shape, 8) for _ in range(queue)]
    volumes[-1].requires_grad_()
    fused = _fusion(kind)(volumes, _poses(queue).expand(2, -1, -1, -1))
    assert fused.shape == (2, *GRID.shape, 8)
    (gradient,) = torch.autograd.grad(fused.square().sum(), volumes[-1])
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "none"])
def test_the_past_changes_the_result(kind: str) -> None:
    module = _fusion(kind)
    volumes = [torch.randn(1, *GRID.shape, 8) for _ in range(3)]
    before = module(volumes, _poses(3))
    assert not torch.allclose(before, module([volumes[0] + 1, *volumes[1:]], _poses(3)))
    assert not torch.allclose(before, module([volumes[0], volumes[1] + 1, volumes[2]], _poses(3)))


@pytest.mark.parametrize("kind", KINDS)
def test_identical_history_neither_explodes_nor_erases(kind: str) -> None:
    volume = torch.randn(1, *GRID.shape, 8)
    fused = _fusion(kind)([volume] * 3, _poses(3))
    ratio = (fused.norm() / volume.norm()).item()
    assert 0.5 < ratio < 5.0


def test_a_queue_longer_than_the_history_is_refused() -> None:
    with pytest.raises(ValueError, match=r"queue of 3 keyframes needs fusion\.history >= 2, got 1"):
        _fusion(history=1)([torch.zeros(1, *GRID.shape, 8)] * 3, _poses(3))


def _count(kind: str, dim: int = 192) -> int:
    with torch.device("meta"):
        module = TemporalFusion(FusionConfig(kind=kind), dim, NUSCENES_GRID.coarsen(2))
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_are_those_of_algorithm_1_and_docs_say_why_table_4_has_more() -> None:
    dim, heads, points, frames = 192, 6, 8, 2
    projection = dim * dim + dim
    sampling = (2 * dim + 1) * (heads * frames * points * 3)
    step = 2 * projection + sampling + 1
    assert step == 184_993
    assert _count("none") == 0
    assert _count("full") == 4 * step + projection == 777_028
    assert _count("bev_pool_bfam") == _count("full"), "slices share weights, as the equal 6.62 M of Table 4 says"
    assert _count("bev_pool_forward") == _count("full") - 2 * step == 407_042
    assert _count("concat") == 27 * dim * dim * (3 + 1) + 2 * dim == 3_981_696
    text = (Path(__file__).parents[2] / "docs" / "method.md").read_text()
    for number in ("6.62", "777,028", "407,042", "3,981,696"):
        assert number in text
