"""Scale-invariant range loss between rendered ranges and LiDAR returns (after Eigen et al.)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

VARIANCE_FOCUS = 0.85
_MIN_RANGE = 1e-3
_MIN_VARIANCE = 1e-12


def scale_invariant_loss(
    rendered: Float[Tensor, "*rays"], measured: Float[Tensor, "*rays"], valid: Bool[Tensor, "*rays"]
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
    return (second - VARIANCE_FOCUS * mean * mean).clamp_min(_MIN_VARIANCE).sqrt()
