"""What splatted images cost: depth against returns, and what could move against masks."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from train.losses.averages import masked_mean

_SMALL = 1e-4


def depth_error(
    rendered: Float[Tensor, "*pixels"], measured: Float[Tensor, "*pixels"], valid: Bool[Tensor, "*pixels"], edge: float
) -> Float[Tensor, ""]:
    """Mean of |ln rendered - ln measured| beyond ln(1 + edge / (2 measured)) over the valid pixels; zero without any.

    Centres of voxels of `edge` metres are right to half of it, so that much is free. A worked case: rendered 12 m,
    measured 10 m, edge 0.8 m: ln 1.2 - ln 1.04 = 0.143. Camera z, metres.
    """
    safe = torch.where(valid, rendered, torch.ones_like(rendered)).clamp_min(_SMALL)
    goal = torch.where(valid, measured, torch.ones_like(measured)).clamp_min(_SMALL)
    error = (safe.log() - goal.log()).abs() - torch.log1p(edge / 2 / goal)
    return masked_mean(error.clamp_min(0), valid)


def balanced_cross_entropy(
    predicted: Float[Tensor, "*pixels"], label: Bool[Tensor, "*pixels"], valid: Bool[Tensor, "*pixels"]
) -> Float[Tensor, ""]:
    """Half the mean of -ln p over the valid pixels with the label plus half the mean of -ln(1 - p) over those without.

    Of a street's pixels few can move: counted alike, "nothing can" would be a good answer. A worked case: p = 0.5
    everywhere gives ln 2; a kind that is nowhere counts 0.
    """
    p = predicted.clamp(_SMALL, 1 - _SMALL)
    yes = masked_mean(-p.log(), valid & label)
    no = masked_mean(-torch.log1p(-p), valid & ~label)
    return 0.5 * (yes + no)
