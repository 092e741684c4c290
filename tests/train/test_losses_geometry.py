"""LiDAR, eikonal, Hessian, smoothness and sparsity against hand-computed fields and loops."""

import math

import numpy as np
import pytest
import torch

from train.losses.averages import masked_mean, valid_weights
from train.losses.lidar import free_space_loss, scale_invariant_loss, spread_loss, surface_loss
from train.losses.regularise import (
    edge_aware_smoothness,
    eikonal,
    hessian,
    hidden_matter,
    matter,
    normalised_disparity,
)


def test_scale_invariant_loss_by_hand() -> None:
    yes = torch.ones(2, dtype=torch.bool)
    measured = torch.tensor([10.0, 20.0])
    opposite = measured * torch.tensor([math.e, 1 / math.e])
    assert float(scale_invariant_loss(opposite, measured, yes)) == pytest.approx(1.0, abs=1e-5)
    assert float(scale_invariant_loss(measured * math.e, measured, yes)) == pytest.approx(math.sqrt(0.15), abs=1e-5)


def test_scale_invariant_loss_on_nothing_and_on_a_perfect_fit() -> None:
    rendered = torch.tensor([10.0, math.nan, 5.0], requires_grad=True)
    measured = torch.tensor([10.0, 3.0, math.nan])
    for valid in (torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)):
        loss = scale_invariant_loss(rendered, measured, valid)
        (gradient,) = torch.autograd.grad(loss, rendered)
        assert loss.item() == pytest.approx(0, abs=1e-5)
        assert torch.isfinite(gradient).all()


def test_scale_invariant_gradient() -> None:
    rendered = torch.rand(6, dtype=torch.float64).add(1).requires_grad_()
    measured = torch.rand(6, dtype=torch.float64).add(1)
    valid = torch.tensor([True, True, False, True, True, True])
    assert torch.autograd.gradcheck(lambda r: scale_invariant_loss(r, measured, valid), (rendered,))


def test_scale_invariant_focus_none_forgives_nothing() -> None:
    measured, yes = torch.tensor([10.0, 20.0]), torch.ones(2, dtype=torch.bool)
    assert float(scale_invariant_loss(measured * math.e, measured, yes, focus=0.0)) == pytest.approx(1.0, abs=1e-5)


def test_free_space_by_hand() -> None:
    """Samples at 1 to 5 m of a ray that returned from 4.5 m: the first three (up to 3.5 m) count."""
    distances = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]).expand(2, 5)
    sdf = torch.tensor([[-0.3, 0.1, 0.5, -9.0, -9.0], [-0.3, 0.1, 0.5, -9.0, -9.0]])
    measured, valid = torch.tensor([4.5, math.nan]), torch.tensor([True, True])
    assert float(free_space_loss(sdf, distances, measured, valid)) == pytest.approx(0.2, abs=1e-6)
    assert float(free_space_loss(sdf, distances, measured, ~valid)) == 0
    assert float(free_space_loss(sdf, distances, torch.tensor([0.5, 0.0]), valid)) == 0


def test_surface_by_hand() -> None:
    """Inside matter as outside of it; padding and what is no number do not count."""
    sdf = torch.tensor([0.5, -0.2, 9.0, math.nan], dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([True, True, False, True])
    loss = surface_loss(sdf, valid)
    assert loss.item() == pytest.approx(0.35)
    loss.backward()
    assert sdf.grad is not None
    assert sdf.grad.tolist() == pytest.approx([0.5, -0.5, 0, 0])
    assert surface_loss(sdf, torch.zeros(4, dtype=torch.bool)).item() == 0


def test_free_space_gradient() -> None:
    sdf = torch.tensor([[-0.3, 0.1, 0.5, -9.0]], dtype=torch.float64, requires_grad=True)
    distances = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    measured, valid = torch.tensor([4.5], dtype=torch.float64), torch.tensor([True])
    assert torch.autograd.gradcheck(lambda s: free_space_loss(s, distances, measured, valid), sdf)
    free_space_loss(sdf, distances, measured, valid).backward()
    assert sdf.grad is not None
    assert sdf.grad[0].tolist() == pytest.approx([-1 / 3, -1 / 3, 0, 0])


def test_spread_loss_by_hand() -> None:
    """Weights half at 10 m and half at 40 m around a return at 20 m cost ln 2, wherever their mean lies."""
    weights = torch.tensor([[0.25, 0.25], [1.0, 0.0], [0.0, 0.0]])
    distances, measured = torch.tensor([[10.0, 40.0]]).expand(3, 2), torch.tensor([20.0, 10.0, 20.0])
    first, exact, empty = torch.eye(3, dtype=torch.bool)
    assert float(spread_loss(weights, distances, measured, first)) == pytest.approx(math.log(2), abs=1e-6)
    assert float(spread_loss(weights, distances, measured, exact)) == pytest.approx(0.0, abs=1e-6)
    assert float(spread_loss(weights, distances, measured, empty)) == 0.0
    assert float(spread_loss(weights, distances, measured, first | exact | empty)) == pytest.approx(math.log(2) / 2)


def test_spread_loss_on_hostile_values() -> None:
    """Not a number, a range of zero and rays that do not count reach neither the loss nor its gradient."""
    weights = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    distances = torch.tensor([0.0, 1.0, 5.0, 9.0], dtype=torch.float64).expand(3, 4)
    measured = torch.tensor([float("nan"), 0.0, 5.0], dtype=torch.float64)
    valid = torch.tensor([True, False, True])
    loss = spread_loss(weights, distances, measured, valid)
    loss.backward()
    assert torch.isfinite(loss)
    assert weights.grad is not None
    assert torch.equal(weights.grad[:2], torch.zeros(2, 4, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda w: spread_loss(w, distances, measured, valid), (weights,))


def test_eikonal_by_hand() -> None:
    gradient = torch.tensor([[3.0, 4.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    loss = eikonal(gradient)
    assert loss.item() == pytest.approx((16 + 0 + 1) / 3, rel=1e-5)
    loss.backward()
    assert torch.isfinite(gradient.grad).all()


def coordinates(shape: tuple[int, int, int], voxel: tuple[float, float, float]) -> list[torch.Tensor]:
    axes = [v * torch.arange(n, dtype=torch.float64) for n, v in zip(shape, voxel, strict=True)]
    return list(torch.meshgrid(*axes, indexing="ij"))


def test_hessian_of_known_fields() -> None:
    voxel = (0.4, 0.4, 0.2)
    x, y, z = coordinates((6, 7, 5), voxel)
    assert float(hessian((0.3 * x - y + 2 * z + 1)[None], voxel)) == pytest.approx(0, abs=1e-9)
    # Half x squared has one entry of 1/m: a second difference of 0.16 m over a 0.4 m voxel, one of nine entries.
    assert float(hessian((x * x / 2)[None], voxel)) == pytest.approx(0.4 / 9)
    # x z has two equal mixed entries of 1/m: 0.08 m over sqrt(0.4 * 0.2).
    assert float(hessian((x * z)[None], voxel)) == pytest.approx(2 * 0.08 / math.sqrt(0.08) / 9)


def test_hessian_equals_loops() -> None:
    sdf = torch.randn(1, 4, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s, voxel = sdf[0].numpy(), (0.5, 1.0, 2.0)
    entries = {(a, b): [] for a in range(3) for b in range(3)}
    unit = np.eye(3, dtype=int)
    for i in range(1, 3):
        for j in range(1, 4):
            for k in range(1, 3):
                p = np.array([i, j, k])
                for a in range(3):
                    for b in range(3):
                        if a == b:
                            d = s[tuple(p + unit[a])] - 2 * s[tuple(p)] + s[tuple(p - unit[a])]
                        else:
                            d = s[tuple(p + unit[a] + unit[b])] - s[tuple(p + unit[a] - unit[b])]
                            d = (d - s[tuple(p - unit[a] + unit[b])] + s[tuple(p - unit[a] - unit[b])]) / 4
                        entries[a, b].append(abs(d) / math.sqrt(voxel[a] * voxel[b]))
    expected = np.mean([np.mean(v) for v in entries.values()])
    assert float(hessian(sdf, voxel)) == pytest.approx(expected)


def test_hessian_of_a_crease_does_not_depend_on_resolution() -> None:
    """|x| on an even number of voxels per metre: one crease of slope change 2 somewhere along x."""
    values = []
    for n, v in ((9, 1.0), (9, 0.25)):
        x, *_ = coordinates((n, 3, 3), (v, v, v))
        values.append(float(hessian((x - 4 * v).abs()[None], (v, v, v))))
    assert values[0] == pytest.approx(values[1])
    assert values[0] == pytest.approx(2 / 7 / 9)


def test_hessian_of_a_flat_grid_is_zero() -> None:
    assert float(hessian(torch.randn(1, 5, 5, 2), (1.0, 1.0, 1.0))) == 0


def test_smoothness_by_hand() -> None:
    values = torch.tensor([[[[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]]])
    image = torch.zeros(1, 3, 2, 3)
    valid = torch.ones(1, 2, 3, dtype=torch.bool)
    assert float(edge_aware_smoothness(values, image, valid)) == pytest.approx(1.5)
    image[..., 2] = math.log(2)
    assert float(edge_aware_smoothness(values, image, valid)) == pytest.approx((1 + 2 * 0.5) / 2)
    valid[0, :, 2] = False
    values[..., 2] = math.nan
    assert float(edge_aware_smoothness(values, image, valid)) == pytest.approx(1.0)
    assert float(edge_aware_smoothness(values, image, valid & False)) == 0


def test_disparity_is_normalised_per_image() -> None:
    depth = torch.tensor([[[1.0, 2.0]], [[10.0, 20.0]]])
    valid = torch.ones(2, 1, 2, dtype=torch.bool)
    out = normalised_disparity(depth, valid)
    assert torch.allclose(out[0], out[1])
    assert out[0].flatten().tolist() == pytest.approx([4 / 3, 2 / 3])
    assert torch.isfinite(normalised_disparity(depth, valid & False)).all()


def test_sparsity_terms_by_hand() -> None:
    assert float(matter(torch.tensor([-1.0, 1.0, -3.0, 0.0]))) == pytest.approx(1.0)
    sdf = torch.tensor([[1.0, -1.0, -2.0], [-5.0, -5.0, -5.0]])
    distances = torch.tensor([[1.0, 5.0, 9.0], [1.0, 5.0, 9.0]])
    surface = torch.tensor([4.0, 4.0])
    valid = torch.tensor([True, False])
    assert float(hidden_matter(sdf, distances, surface, valid)) == pytest.approx(2.0)
    assert float(hidden_matter(sdf, distances, surface, valid & False)) == 0


def test_averages_ignore_nan_outside_the_mask() -> None:
    values = torch.tensor([1.0, math.nan, 3.0], requires_grad=True)
    mean = masked_mean(values, torch.tensor([True, False, True]))
    mean.backward()
    assert mean.item() == 2.0
    assert values.grad.tolist() == [0.5, 0.0, 0.5]
    weights, kept = valid_weights(
        torch.tensor([[0.2, 0.2, 0.4], [0.0, 0.0, 0.0]]), torch.tensor([[True, False, True]] * 2)
    )
    assert weights[0].tolist() == pytest.approx([1 / 3, 0, 2 / 3])
    assert kept.tolist() == [True, False]
    assert weights[1].tolist() == [0, 0, 0]
