"""What rays to returns should render: their range (scale-invariant, after Eigen et al.), at one place, past nothing."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from train.losses.averages import masked_mean, valid_weights

VARIANCE_FOCUS = 0.85
_MIN_RANGE = 1e-3
_MIN_VARIANCE = 1e-12
FREE_M = 0.2
"""What a ray has passed is so far from any matter: more than the distance at which a voxel counts as occupied."""
FREE_UNTIL_M = 1.0
"""So far before its return a ray is still in free space: one that grazes the ground is near it before it meets it."""


def scale_invariant_loss(
    rendered: Float[Tensor, "*rays"],
    measured: Float[Tensor, "*rays"],
    valid: Bool[Tensor, "*rays"],
    focus: float = VARIANCE_FOCUS,
) -> Float[Tensor, ""]:
    """sqrt(mean(δ²) - 0.85 mean(δ)²) with δ = ln(rendered) - ln(measured) over the valid rays; zero without any.

    Ranges along the ray in metres. A worked case: ratios e and 1/e give δ = ±1: sqrt(1 - 0) = 1; ratios e and e give
    sqrt(1 - 0.85) = 0.387. Not a number in either range removes the ray.
    """
    valid = valid & torch.isfinite(rendered.detach()) & torch.isfinite(measured)
    safe_rendered = torch.where(valid, rendered, torch.ones_like(rendered)).clamp_min(_MIN_RANGE)
    safe_measured = torch.where(valid, measured, torch.ones_like(measured)).clamp_min(_MIN_RANGE)
    delta = safe_rendered.log() - safe_measured.log()
    count = valid.sum().clamp_min(1)
    second = (delta * delta).sum() / count
    mean = delta.sum() / count
    # The square root's slope is infinite at zero: an exact fit must give a zero gradient, not NaN.
    return (second - focus * mean * mean).clamp_min(_MIN_VARIANCE).sqrt()


def spread_loss(
    weights: Float[Tensor, "*rays samples"],
    distances: Float[Tensor, "*rays samples"],
    measured: Float[Tensor, "*rays"],
    valid: Bool[Tensor, "*rays"],
) -> Float[Tensor, ""]:
    """Mean over the valid rays of Σ w_i |ln d_i - ln d| / Σ w_i: the form of eqs. 8-9, for ranges. Zero without rays.

    The range loss above looks at the rendered range alone, and a ray whose weights lie half before and half behind the
    return renders it exactly; here both halves cost. A worked case: weights 1/2 at 10 m and 1/2 at 40 m, measured 20 m:
    ln 2 = 0.693, where the rendered 25 m are off by 0.223. Rays that hold no weight say nothing.

    Args:
        weights: rendering weights, not negative.
        distances: of the samples along the ray, metres.
        measured: ranges, metres.
        valid: rays to count; not a number in a range removes the ray.
    """
    valid = valid & torch.isfinite(measured)
    safe_measured = torch.where(valid, measured, torch.ones_like(measured)).clamp_min(_MIN_RANGE)
    error = (distances.clamp_min(_MIN_RANGE).log() - safe_measured.log()[..., None]).abs()
    shares, kept = valid_weights(weights, valid[..., None].expand_as(weights))
    return masked_mean((shares * error).sum(dim=-1), valid & kept)


def surface_loss(sdf: Float[Tensor, "*rays"], valid: Bool[Tensor, "*rays"]) -> Float[Tensor, ""]:
    """Mean of |sdf|, metres, over the valid returns: each lies on a surface. Zero without any.

    Rendering cannot ask for matter where there is none: samples there have no weight, and so no gradient. A ray to a
    tree whose place is empty renders the wall behind it, and the losses above then move the wall. A worked case:
    distances of 0.5 m and -0.2 m at two returns: 0.35 in the mean.

    Args:
        sdf: signed distance at the returns, metres; not a number removes the return.
        valid: returns to count.
    """
    return masked_mean(sdf.abs(), valid & torch.isfinite(sdf.detach()))


def free_space_loss(
    sdf: Float[Tensor, "*rays samples"],
    distances: Float[Tensor, "*rays samples"],
    measured: Float[Tensor, "*rays"],
    valid: Bool[Tensor, "*rays"],
) -> Float[Tensor, ""]:
    """Mean of max(0, FREE_M - sdf), metres, over the samples that the valid rays passed before their returns.

    Rendering alone does not ask for it: a ray that starts inside matter leaves it without any weight (a surface is
    where signed distance falls), and renders its return all the same. Left alone for long, everything that only
    outgoing rays cross fills up. A worked case: distances of -0.3, 0.1 and 0.5 m before the return cost 0.5, 0.1 and 0:
    0.2 in the mean.

    Args:
        sdf: signed distance at the samples, metres; distances: of the samples along the ray, metres.
        measured: ranges, metres; not a number removes the ray.
        valid: rays to count.
    """
    passed = (valid & torch.isfinite(measured))[..., None] & (distances < measured[..., None] - FREE_UNTIL_M)
    return masked_mean((FREE_M - sdf).clamp_min(0), passed)
