"""NeuS weights: identities, a hand-computed case, agreement of the two forms, extremes, gradients."""

import math

import pytest
import torch

from model.opacity import Temperature, log_keep_consecutive, log_keep_gradient, weights_from_log_keep


def test_weights_of_equation_13_by_hand() -> None:
    sdf = torch.tensor([2.0, 1.0, -1.0, 0.5, -3.0], dtype=torch.double)
    xi = 1.7
    phi = [1 / (1 + math.exp(-xi * s)) for s in sdf.tolist()]
    expected, passed = [], 1.0
    for i in range(4):
        alpha = max((phi[i] - phi[i + 1]) / phi[i], 0.0)
        expected.append(alpha * passed)
        passed *= 1 - alpha
    weights, left = weights_from_log_keep(log_keep_consecutive(sdf, xi))
    assert weights.tolist() == pytest.approx(expected, abs=1e-12)
    assert left.item() == pytest.approx(passed, abs=1e-12)
    assert expected[2] == 0.0, "the signed distance rises there, so nothing may be absorbed"


def test_weights_and_what_is_left_sum_to_one() -> None:
    for inv_s in (0.1, 3.0, 200.0):
        sdf = torch.randn(20, 65)
        weights, left = weights_from_log_keep(log_keep_consecutive(sdf, inv_s))
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1) + left, torch.ones(20))


def test_a_falling_field_telescopes_to_its_two_ends() -> None:
    sdf = torch.linspace(3.0, -2.0, 40, dtype=torch.double)
    weights, left = weights_from_log_keep(log_keep_consecutive(sdf, 2.0))
    assert left.item() == pytest.approx((torch.sigmoid(2.0 * sdf[-1]) / torch.sigmoid(2.0 * sdf[0])).item())
    assert weights.sum().item() == pytest.approx(1 - left.item())


def test_both_forms_agree_on_a_straight_field() -> None:
    edges = torch.linspace(0, 10, 51, dtype=torch.double)
    slope = -0.8
    sdf = 4.0 + slope * edges
    middle = (sdf[1:] + sdf[:-1]) / 2
    gradient = log_keep_gradient(middle, torch.full_like(middle, slope), edges.diff(), 5.0, anneal=1.0)
    torch.testing.assert_close(gradient, log_keep_consecutive(sdf, 5.0))


def test_annealing_gives_weight_to_surfaces_without_slope() -> None:
    sdf, slope, length = torch.full((8,), 0.5), torch.zeros(8), torch.full((8,), 0.2)
    start, _ = weights_from_log_keep(log_keep_gradient(sdf, slope, length, 3.0, anneal=0.0))
    end, left = weights_from_log_keep(log_keep_gradient(sdf, slope, length, 3.0, anneal=1.0))
    assert (start > 0).all()
    assert (end == 0).all()
    assert left == 1


@pytest.mark.parametrize("inv_s", [1e-3, 1.0, 1e5])
def test_extremes_stay_finite_forwards_and_backwards(inv_s: float) -> None:
    sdf = torch.tensor([100.0, 50.0, 1e-6, -50.0, -100.0, 100.0, -1e4], requires_grad=True)
    weights, left = weights_from_log_keep(log_keep_consecutive(sdf, inv_s))
    (gradient,) = torch.autograd.grad((weights * torch.arange(6)).sum(), sdf)
    assert torch.isfinite(weights).all()
    assert torch.isfinite(gradient).all()
    assert (weights.sum() + left).item() == pytest.approx(1.0, abs=1e-5)


def test_gradients_of_the_weights() -> None:
    falling = torch.tensor([[2.0, 1.1, 0.3, -0.4, -1.5]], dtype=torch.double, requires_grad=True)
    inv_s = torch.tensor(1.3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, t: weights_from_log_keep(log_keep_consecutive(s, t)), (falling, inv_s))
    slope = torch.tensor([[-0.9, -0.2, 0.4, -0.7, -1.0]], dtype=torch.double, requires_grad=True)
    length = torch.full((1, 5), 0.3, dtype=torch.double)
    for anneal in (0.0, 0.4, 1.0):
        assert torch.autograd.gradcheck(
            lambda s, d, t, a=anneal: weights_from_log_keep(log_keep_gradient(s, d, length, t, a)),
            (falling, slope, inv_s),
        )


def test_temperature_is_exp_of_ten_v_and_freezes() -> None:
    temperature = Temperature(0.1)
    assert temperature().item() == pytest.approx(math.e, rel=1e-6)
    temperature.freeze()
    assert not temperature.v.requires_grad
    temperature.freeze(False)
    assert temperature.v.requires_grad
