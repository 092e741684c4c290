"""Dynamic disentanglement (eq. 10): which rays move, and the pull to zero on the flow of those that do not."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from train.losses.averages import masked_mean

NEAR_ZERO_WEIGHT = 1e-2
"""Samples with a smaller rendering weight are empty or hidden space: nothing else supervises their flow."""


@dataclass
class Motion:
    """Which rays are dynamic and which static; both false where the camera is missing. (n, rays)."""

    dynamic: Bool[Tensor, "n rays"]
    static: Bool[Tensor, "n rays"]


def disentangle(
    cue: Float[Tensor, "n rays 2"],
    cue_valid: Bool[Tensor, "n rays"],
    static_flow: Float[Tensor, "n rays 2"],
    static_valid: Bool[Tensor, "n rays"],
    movable: Bool[Tensor, "n rays"],
    usable: Bool[Tensor, "n rays"],
    threshold: float,
) -> Motion:
    """Eq. 10: dynamic flow = cue - static flow; a ray is dynamic where it is longer than `threshold` AND movable.

    Args:
        cue: optical flow cue, render pixels.
        static_flow: flow that rendered depth and ego-motion alone would give, render pixels, no gradient.
        static_valid: false where the surface point is behind the target camera.
        movable: the mask of things that could move.
        usable: false for rays of a missing camera.
        threshold: pixels at render scale.

    Rays without a cue count as static: nothing shows that they move.
    """
    residual = torch.linalg.vector_norm(cue - static_flow, dim=-1)
    known = cue_valid & static_valid & torch.isfinite(residual)
    dynamic = known & movable & usable & (torch.where(known, residual, torch.zeros_like(residual)) > threshold)
    return Motion(dynamic=dynamic, static=usable & ~dynamic)


def static_flow_regularisation(
    flow: Float[Tensor, "n rays samples 2"],
    weights: Float[Tensor, "n rays samples"],
    static: Bool[Tensor, "n rays"],
    empty_share: float = 0.2,
) -> Float[Tensor, ""]:
    """L_dreg: L1 of the object flow rendered on static rays, the rendering weights detached.

    Adds `empty_share` times the mean L1 of the flow at those rays' samples of near-zero weight. Metres per interval.
    """
    weights = weights.detach()
    rendered = (weights[..., None] * flow).sum(dim=-2).abs().sum(dim=-1)
    loss = masked_mean(rendered, static)
    if empty_share:
        empty = (weights < NEAR_ZERO_WEIGHT) & static[..., None]
        loss = loss + empty_share * masked_mean(flow.abs().sum(dim=-1), empty)
    return loss
