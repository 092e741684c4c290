"""One rigid motion per instance: by hand, by identities, against a slow version by SVD, gradcheck, hostile rays."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from train.losses.instance_flow import rigid_motion, rigid_motion_loss


def tensors(*columns: list) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(column, dtype=torch.float64) for column in columns)


def scattered(seed: int = 0) -> dict:
    """Three things of 7, 5 and 1 rays, and 4 rays on none."""
    rng = np.random.default_rng(seed)
    things = np.array([1] * 7 + [2] * 5 + [3] + [0] * 4)
    rng.shuffle(things)
    return {
        "places": torch.from_numpy(rng.normal(0, 2, (len(things), 2)) + 20),
        "flow": torch.from_numpy(rng.normal(0, 1, (len(things), 2))),
        "weights": torch.from_numpy(rng.uniform(0.1, 1, len(things))),
        "things": torch.from_numpy(things),
        "count": 4,
    }


def slow_loss(places: np.ndarray, flow: np.ndarray, weights: np.ndarray, things: np.ndarray) -> float:
    """Thing by thing, the rotation by the SVD of the points' covariance."""
    off, mass = 0.0, 0.0
    for thing in sorted(set(things.tolist()) - {0}):
        p, f, w = places[things == thing], flow[things == thing], weights[things == thing]
        if len(p) < 2:
            continue
        here, there = np.average(p, axis=0, weights=w), np.average(p + f, axis=0, weights=w)
        U, _, V = np.linalg.svd((w[:, None] * (p - here)).T @ (p + f - there))
        flip = np.diag([1.0, np.linalg.det(V.T @ U.T)])
        left = p + f - ((p - here) @ (V.T @ flip @ U.T).T + there)
        off, mass = off + (w * np.sqrt((left**2).sum(axis=1) + 1e-6)).sum(), mass + w.sum()
    return off / mass


def test_two_ends_that_come_together_by_hand() -> None:
    places, flow = tensors([[9, 1], [11, 1]], [[0.2, 0], [-0.2, 0]])
    loss, rays = rigid_motion_loss(places, flow, torch.ones(2, dtype=torch.float64), torch.tensor([1, 1]), 2)
    assert loss.item() == pytest.approx(0.2, abs=1e-5)
    assert rays == 2


def test_the_heavier_end_says_where_the_thing_goes_by_hand() -> None:
    """Weights 3 and 1, one end moves by (1, 0) along the thing: it goes 0.75 m where the heavy end moved, 0.25 m where
    the light one did, and 3/4 x 0.25 + 1/4 x 0.75 = 0.375 m are left on average either way."""
    places, heavy, light = tensors([[0, 0], [2, 0]], [[1, 0], [0, 0]], [[0, 0], [1, 0]])
    weights, things = torch.tensor([3.0, 1.0], dtype=torch.float64), torch.tensor([1, 1])
    for flow, goes in ((heavy, 0.75), (light, 0.25)):
        fitted = rigid_motion(places, flow, weights, things, 2)
        assert fitted.flatten().tolist() == pytest.approx([goes, 0, goes, 0], abs=1e-5)
        assert rigid_motion_loss(places, flow, weights, things, 2)[0].item() == pytest.approx(0.375, abs=1e-4)


@pytest.mark.parametrize("yaw", [0.0, 0.3, -1.5, 3.0])
def test_rigid_motions_are_free_and_any_turn_is_one(yaw: float) -> None:
    """Each thing by its own motion, about a place far off; a linear yaw rate would leave (1 - cos yaw) of its size."""
    case = scattered()
    turn = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]], dtype=torch.float64)
    along = torch.tensor([[0.0, 0.0], [3.0, -1.0], [-8.0, 0.5], [2.0, 2.0]], dtype=torch.float64)
    case["flow"] = case["places"] @ turn.T - case["places"] + along[case["things"]]
    fitted = rigid_motion(**case)[case["things"] > 0]
    assert torch.allclose(fitted, case["flow"][case["things"] > 0], atol=1e-4)
    assert rigid_motion_loss(**case)[0].item() == pytest.approx(1e-3, rel=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_against_a_slow_version(seed: int) -> None:
    case = scattered(seed)
    loss, rays = rigid_motion_loss(**case)
    expected = slow_loss(*(case[k].numpy() for k in ("places", "flow", "weights", "things")))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert rays == 12


def test_no_rigid_motion_fits_better() -> None:
    """The weighted squares at the fit against 200 other motions of each thing."""
    case = scattered(2)
    off = case["flow"] - rigid_motion(**case)
    rng = np.random.default_rng(0)
    for thing in (1, 2):
        of_it = case["things"] == thing
        p, f, w = (case[k][of_it].numpy() for k in ("places", "flow", "weights"))
        best = (w[:, None] * off[of_it].numpy() ** 2).sum()
        centre = np.average(p, axis=0, weights=w)
        for scale in (1e-3, 0.1, 1.0):
            for _ in range(70):
                q, r = p - centre, p + f - np.average(p + f, axis=0, weights=w)
                fit = math.atan2((w * (q[:, 0] * r[:, 1] - q[:, 1] * r[:, 0])).sum(), (w * (q * r).sum(1)).sum())
                yaw, shift = fit + rng.normal() * scale, rng.normal(size=2) * scale
                turn = np.array([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
                assert (w[:, None] * (r - q @ turn.T - shift) ** 2).sum() >= best - 1e-9


def test_it_says_nothing_of_what_the_motion_is() -> None:
    """The fit is in the graph: no pull on a thing's mean motion, and none to turn it (to first order of the turn)."""
    case = scattered(1)
    case["flow"] = (case["flow"] * 1e-3).requires_grad_()
    loss, _ = rigid_motion_loss(**case)
    (slope,) = torch.autograd.grad(loss, case["flow"])
    for thing in (1, 2):
        of_it = case["things"] == thing
        assert slope[of_it].abs().max() > 1e-4
        assert slope[of_it].sum(dim=0).abs().max() < 1e-9
        q = case["places"][of_it] - case["places"][of_it].mean(dim=0)
        assert (q[:, 0] * slope[of_it][:, 1] - q[:, 1] * slope[of_it][:, 0]).sum().abs() < 1e-3 * slope[of_it].norm()
    assert (slope[case["things"] == 3] == 0).all()
    assert (slope[case["things"] == 0] == 0).all()


def test_gradients() -> None:
    case = scattered(3)
    rest = (case["weights"], case["things"], case["count"])
    flow = case["flow"].requires_grad_()
    assert torch.autograd.gradcheck(lambda f: rigid_motion_loss(case["places"], f, *rest)[0], (flow,))
    places = case["places"].requires_grad_()
    loss, _ = rigid_motion_loss(places, flow, *rest)
    assert torch.autograd.grad(loss, places, allow_unused=True) == (None,)


def test_hostile_rays() -> None:
    """No ray, none on a thing, one pixel, no weight: no loss and no slope. All in one place: no turn, all finite."""
    here, there = torch.tensor([[5.0, 1.0]] * 3), torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    ones, none = torch.ones(3), torch.zeros(3, dtype=torch.long)
    for weights, things in ((ones, none), (ones, torch.tensor([1, 2, 0])), (torch.zeros(3), none + 1)):
        flow = there.clone().requires_grad_()
        loss, rays = rigid_motion_loss(here, flow, weights, things, 3)
        (slope,) = torch.autograd.grad(loss, flow)
        assert (loss.item(), rays.item(), slope.abs().max().item()) == (0, 0, 0)
    empty = rigid_motion_loss(here[:0], there[:0], ones[:0], none[:0], 3)
    assert (empty[0].item(), empty[1].item()) == (0, 0)
    flow = torch.tensor([[1.0, 0.0], [1.0, 0.6], [1.0, 0.0]], requires_grad=True)
    loss, rays = rigid_motion_loss(here, flow, ones, none + 1, 2)
    (slope,) = torch.autograd.grad(loss, flow)
    # From one place there is no turn: the mean is (1, 0.2), which 0.2, 0.4 and 0.2 m are off.
    assert loss.item() == pytest.approx(0.8 / 3, abs=1e-4)
    assert torch.isfinite(slope).all()
