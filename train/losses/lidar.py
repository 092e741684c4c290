"""Scale-invariant range loss between rendered ranges and LiDAR returns (after Eigen et al.)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from train.losses.averages import masked_mean, valid_weights

VARIANCE_FOCUS = 0.85
_MIN_RANGE = 1e-3
_MIN_VARIANCE = 1e-12


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
