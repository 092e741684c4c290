"""Flow losses (eqs. 9-11), disentanglement and the static regularisation, by hand and by loops."""

import math

import pytest
import torch

from train.losses.dynamic import disentangle, static_flow_regularisation
from train.losses.flow import flow_loss, inliers, ray_errors, sample_errors


def test_sample_errors_by_hand() -> None:
    cue = torch.tensor([[3.0, -1.0]])
    pixels = torch.tensor([[10.0, 20.0]])
    landed = torch.tensor([[[13.0, 19.0], [10.0, 20.0], [1e6, 0.0], [5.0, 5.0]]])
    front = torch.tensor([[True, True, True, False]])
    assert sample_errors(cue, pixels, landed, front, cap=240.0).tolist() == [[0.0, 4.0, 240.0, 0.0]]


def test_ray_error_ignores_samples_behind_the_camera() -> None:
    errors = torch.tensor([[1.0, 3.0, 50.0], [1.0, 2.0, 3.0]])
    weights = torch.tensor([[0.1, 0.3, 0.6], [0.2, 0.2, 0.2]], requires_grad=True)
    front = torch.tensor([[True, True, False], [False, False, False]])
    loss, kept = ray_errors(errors, weights, front)
    assert kept.tolist() == [True, False]
    assert loss[0].item() == pytest.approx((0.1 * 1 + 0.3 * 3) / 0.4)
    loss.sum().backward()
    assert weights.grad is not None
    assert weights.grad[0, 2] == 0
    assert (weights.grad[1] == 0).all()


def test_flow_loss_worked_case() -> None:
    """The docstring's case: 100 rays, 10 dynamic of error 2 and 90 static of error 1."""
    errors = torch.cat([torch.full((10,), 2.0), torch.ones(90)])
    dynamic = torch.arange(100) < 10
    out = flow_loss(errors, ~dynamic, dynamic, sampled=100)
    assert (float(out.static), float(out.dynamic), out.gamma) == pytest.approx((0.9, 0.2, 10.0))
    assert float(out.total) == pytest.approx(2.9)
    assert float(flow_loss(errors, ~dynamic, dynamic, sampled=100, balance=False).total) == pytest.approx(1.1)


def test_gamma_is_bounded_and_survives_no_dynamic_rays() -> None:
    errors = torch.ones(1000, requires_grad=True)
    one = torch.arange(1000) < 1
    assert flow_loss(errors, ~one, one, sampled=1000).gamma == 20.0
    none = torch.zeros(1000, dtype=torch.bool)
    out = flow_loss(errors, none, none, sampled=1000)
    assert out.dynamic_rays == 0
    assert out.total.item() == 0
    out.total.backward()
    assert torch.isfinite(errors.grad).all()


def test_outliers_are_dropped_and_counted() -> None:
    errors = torch.tensor([1.0, 1.0, 2.0, 99.0, 101.0, math.nan, 1.0])
    mask = torch.tensor([True] * 6 + [False])
    assert inliers(errors, mask).tolist() == [True, True, True, True, True, False, False]
    errors = torch.tensor([1.0, 1.0, 1.0, 99.0, 101.0])
    assert inliers(errors, torch.ones(5, dtype=torch.bool)).tolist() == [True, True, True, True, False]
    errors = torch.tensor([900.0, 900.0, 1001.0])
    assert inliers(errors, torch.ones(3, dtype=torch.bool)).tolist() == [True, True, False]
    none = torch.zeros(5, dtype=torch.bool)
    out = flow_loss(torch.tensor([1.0, 1.0, 1.0, 99.0, 101.0]), none, torch.ones(5, dtype=torch.bool), sampled=5)
    assert out.dropped == 1
    assert float(out.dynamic) == pytest.approx(102 / 5)


def test_flow_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    cue, pixels = (torch.randn(7, 2, generator=generator).double() for _ in range(2))
    landed = torch.randn(7, 4, 2, generator=generator).double().requires_grad_()
    weights = torch.rand(7, 4, generator=generator).double().requires_grad_()
    front = torch.rand(7, 4, generator=generator) > 0.2

    def loss(landed: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        errors, kept = ray_errors(sample_errors(cue, pixels, landed, front, 100.0), weights, front)
        return flow_loss(errors, kept, torch.zeros_like(kept), sampled=7).total

    assert torch.autograd.gradcheck(loss, (landed, weights))


def test_disentangle_truth_table() -> None:
    cue = torch.tensor([[[9.0, 0.0], [7.0, 0.0], [9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [math.nan, 0.0]]])
    static = torch.zeros(1, 6, 2)
    ones = torch.ones(1, 6, dtype=torch.bool)
    movable, known, usable = ones.clone(), ones.clone(), ones.clone()
    movable[0, 2], known[0, 3], usable[0, 4] = False, False, False
    motion = disentangle(cue, known, static, ones, movable, usable, threshold=8.0)
    assert motion.dynamic.tolist() == [[True, False, False, False, False, False]]
    assert motion.static.tolist() == [[False, True, True, True, False, True]]


def test_static_regularisation_by_hand() -> None:
    flow = torch.zeros(1, 2, 3, 2)
    flow[0, 0] = torch.tensor([[1.0, -2.0], [0.0, 0.0], [4.0, 0.0]])
    flow[0, 1] = 100.0
    flow.requires_grad_()
    weights = torch.tensor([[[0.5, 0.5, 0.0], [0.3, 0.3, 0.3]]], requires_grad=True)
    static = torch.tensor([[True, False]])
    loss = static_flow_regularisation(flow, weights, static)
    # Rendered (0.5, -1): 1.5. One sample of near-zero weight, flow (4, 0): 0.2 * 4.
    assert loss.item() == pytest.approx(1.5 + 0.2 * 4)
    loss.backward()
    assert weights.grad is None
    assert flow.grad is not None
    assert (flow.grad[0, 1] == 0).all()
    assert static_flow_regularisation(flow, weights, static & False).item() == 0
