"""Consistency of flow within an instance: what lies on one thing moves as one rigid body over the ground."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_NO_TURN = 1e-6
"""Added to the cosine's sum, m² per unit of weight: a thing seen in one place turns by nothing, not by 0/0."""


def rigid_motion_loss(
    places: Float[Tensor, " rays 2"],
    flow: Float[Tensor, " rays 2"],
    weights: Float[Tensor, " rays"],
    things: Int[Tensor, " rays"],
    count: int,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Weighted mean length of what one rigid motion per thing leaves of the flow, metres per interval.

    A worked case: a thing of two rays 2 m apart that move towards each other by 0.2 m each. No rigid motion brings
    its ends together, so both are off by 0.2, and that is the loss.

    Args:
        places: where each ray ends, horizontally, metres; no gradient is taken to it.
        flow: what moves there, metres per interval.
        weights: how much each ray counts, in the fit and in the mean.
        things: which thing a ray lies on, 1 .. `count` - 1; 0: on none, it takes no part and its values may be anything
            finite.

    Returns:
        the loss, zero with a zero gradient where no thing has two rays, and the number of rays in it.
    """
    weights = torch.where(things > 0, weights, torch.zeros_like(weights)).detach()
    rays = _sum((weights > 0).to(flow.dtype)[:, None], things, count)
    member = (weights > 0) & (rays[:, 0] > 1).index_select(0, things)
    off = flow - rigid_motion(places.detach(), flow, weights, things, count)
    # A length has no slope at zero.
    length = (off.square().sum(dim=-1) + 1e-6).sqrt()
    mass = torch.where(member, weights, torch.zeros_like(weights))
    total = mass.sum()
    loss = (mass * length).sum() / torch.where(total > 0, total, torch.ones_like(total))
    return loss, member.sum()


def rigid_motion(
    places: Float[Tensor, " rays 2"],
    flow: Float[Tensor, " rays 2"],
    weights: Float[Tensor, " rays"],
    things: Int[Tensor, " rays"],
    count: int,
) -> Float[Tensor, " rays 2"]:
    """The flow at each ray of the rigid motion that is nearest to its thing's, by weighted least squares.

    A thing's points p go to R(θ) (p - c) + c + m. With c and m the weighted means of places and flow, q = p - c and
    r = q + f - m, the squares of r - R q are least at tan θ = Σ w (q × r) / Σ w (q · r): a turn by any angle, and no
    small-angle stretch. Meaningless on rays of thing 0.
    """
    mass = _sum(weights[:, None], things, count)
    mass = torch.where(mass > 0, mass, torch.ones_like(mass))
    means = _sum(weights[:, None] * torch.cat([places, flow], dim=1), things, count) / mass
    means = means.index_select(0, things)
    mean_flow = means[:, 2:]
    q = places - means[:, :2]
    r = q + flow - mean_flow
    along, across = (q * r).sum(dim=1), q[:, 0] * r[:, 1] - q[:, 1] * r[:, 0]
    turn = _sum(weights[:, None] * torch.stack([along, across], dim=1), things, count) / mass
    cosine, sine = turn[:, 0] + _NO_TURN, turn[:, 1]
    length = (cosine.square() + sine.square()).clamp_min(_NO_TURN**2).sqrt()
    cosine, sine = (value.div(length).index_select(0, things) for value in (cosine, sine))
    turned = torch.stack([cosine * q[:, 0] - sine * q[:, 1], sine * q[:, 0] + cosine * q[:, 1]], dim=1)
    return mean_flow + turned - q


def _sum(values: Float[Tensor, " rays columns"], things: Int[Tensor, " rays"], count: int) -> Tensor:
    """Sums over each thing's rays, (count, columns)."""
    return values.new_zeros(count, values.shape[1]).index_add(0, things, values)
