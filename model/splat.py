"""Gaussians drawn as soft ellipses into camera images: projected, sorted by depth, composited front to back."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from geometry.cameras import project

MAX_ALPHA = 0.99
"""What one Gaussian may take of the light: its logarithm stays finite."""
PIXEL_VARIANCE = 1 / 12
"""Square pixels: the variance of a unit square, added to every ellipse, so that none falls between pixel centres."""
NEAR_SCALES = 4.0
"""A Gaussian whose centre is nearer to the camera's plane than so many of its scales is not drawn: there perspective is
not the linear map that turns it into an ellipse."""
MIN_OPACITY = 1e-6
"""Smallest Σw that is divided by."""


@dataclass(frozen=True)
class Gaussians:
    """g isotropic Gaussians for each of n views, in that view's camera frame (x right, y down, z forward), metres."""

    points: Float[Tensor, "n g 3"]
    opacity: Float[Tensor, "n g"]
    """α at the centre, 0..1; 0 for padding."""
    features: Float[Tensor, "n g features"]
    scale: float
    """Standard deviation in every direction, metres."""
    shy: Float[Tensor, "n g shy"] | None = None
    """More features, from which opacities learn nothing: they are averaged with weights outside the graph."""
    share: Float[Tensor, "n g"] | None = None
    """Probability with which each was drawn from all there are, in (0, 1]; None: these are all. What a Gaussian takes
    of the light is taken 1 / share times, so that the expected log-transmittance is that of all of them."""


@dataclass(frozen=True)
class SplatRender:
    """What p pixels of each of n views see."""

    sums: Float[Tensor, "n p features"]
    """Σ w f of the features, and after them of the shy ones."""
    depth_sum: Float[Tensor, "n p"]
    """Σ w z, metres of camera z."""
    opacity: Float[Tensor, "n p"]
    """Σ w, in [0, 1)."""

    @property
    def depth(self) -> Float[Tensor, "n p"]:
        """Camera z, metres, of what is drawn; 0 where nothing is."""
        return self.depth_sum / self.opacity.clamp_min(MIN_OPACITY)

    @property
    def mean(self) -> Float[Tensor, "n p features"]:
        """Features of what is drawn; 0 where nothing is."""
        return self.sums / self.opacity.clamp_min(MIN_OPACITY)[..., None]


def project_gaussians(
    K: Float[Tensor, "n 3 3"], points: Float[Tensor, "n g 3"], scale: float
) -> tuple[Float[Tensor, "n g 2"], Float[Tensor, "n g 3"], Float[Tensor, "n g"], Bool[Tensor, "n g"]]:
    """Centres, inverse covariances (uu, uv, vv) in pixels, depths, and which are far enough in front to be drawn.

    The covariance is scale² J Jᵀ + PIXEL_VARIANCE, J being the slope of the projection at the centre. A worked case:
    focal length 100 px, straight ahead at 10 m, scale 0.2 m: 2 px across, variance 4 + 1/12.
    """
    uv, z, _ = project(K, points)
    drawn = z > NEAR_SCALES * scale
    safe = torch.where(drawn[..., None], points, torch.ones_like(points))
    depth = safe[..., 2]
    x, y = safe[..., 0] / depth, safe[..., 1] / depth
    fx, skew, fy = (K[:, None, i, j] for i, j in ((0, 0), (0, 1), (1, 1)))
    along_u, along_v = fx * x + skew * y, fy * y
    unit = (scale / depth).square()
    uu = unit * (fx * fx + skew * skew + along_u * along_u) + PIXEL_VARIANCE
    cross = unit * (skew * fy + along_u * along_v)
    vv = unit * (fy * fy + along_v * along_v) + PIXEL_VARIANCE
    inverse = torch.stack([vv, -cross, uu], dim=-1) / (uu * vv - cross * cross)[..., None]
    return uv, inverse, z, drawn


def splat(
    gaussians: Gaussians,
    K: Float[Tensor, "n 3 3"],
    pixels: Float[Tensor, "n p 2"],
    pairs: int = 2**24,
) -> SplatRender:
    """What the pixels see: w_i = α_i Π (1 - α_j) over the Gaussians j in front of i, α falling off as a Gaussian.

    Every pixel is compared with every Gaussian of its view; no more than about `pairs` at a time are held in memory,
    also for the gradient (what is left is computed again on the way back). Gaussians behind the camera take no part.
    Differentiable in points, opacity and features.

    Args:
        pixels: continuous pixel positions, K's units.
    """
    uv, inverse, depth, drawn = project_gaussians(K, gaussians.points, gaussians.scale)
    opacity = torch.where(drawn, gaussians.opacity, torch.zeros_like(gaussians.opacity))
    order = torch.where(drawn, depth, torch.full_like(depth, torch.inf)).detach().argsort(dim=1, stable=True)
    safe_depth = torch.where(drawn, depth, torch.zeros_like(depth))
    features = torch.cat([torch.ones_like(depth)[..., None], safe_depth[..., None], gaussians.features], dim=-1)
    share = torch.ones_like(depth) if gaussians.share is None else gaussians.share
    shy = features[..., :0] if gaussians.shy is None else gaussians.shy
    rows = [t.gather(1, _like(order, t)) for t in (uv, inverse, opacity, share, features, shy)]
    per_part = max(1, pairs // max(1, order.numel()))
    parts = pixels.split(per_part, dim=1)
    if len(parts) == 1 or not torch.is_grad_enabled():
        sums = [_composite(part, *rows) for part in parts]
    else:
        sums = [checkpoint(_composite, part, *rows, use_reentrant=False, preserve_rng_state=False) for part in parts]
    total = torch.cat(sums, dim=1)
    return SplatRender(sums=total[..., 2:], depth_sum=total[..., 1], opacity=total[..., 0])


def _like(order: Tensor, values: Tensor) -> Tensor:
    return order if values.ndim == 2 else order[..., None].expand(*order.shape, values.shape[-1])


def _composite(
    pixels: Float[Tensor, "n p 2"],
    uv: Float[Tensor, "n g 2"],
    inverse: Float[Tensor, "n g 3"],
    opacity: Float[Tensor, "n g"],
    share: Float[Tensor, "n g"],
    features: Float[Tensor, "n g features"],
    shy: Float[Tensor, "n g shy"],
) -> Float[Tensor, "n p all"]:
    """Σ w f of Gaussians sorted by depth: features, then shy ones."""
    du = pixels[:, :, None, 0] - uv[:, None, :, 0]
    dv = pixels[:, :, None, 1] - uv[:, None, :, 1]
    a, b, c = (inverse[:, None, :, k] for k in range(3))
    alpha = (opacity[:, None] * torch.exp(-0.5 * (a * du * du + 2 * b * du * dv + c * dv * dv))).clamp_max(MAX_ALPHA)
    log_keep = torch.log1p(-alpha) / share[:, None]
    # Shifted, not log_after - log_keep: differences of sums lose digits.
    log_before = torch.nn.functional.pad(log_keep.cumsum(dim=-1)[..., :-1], (1, 0))
    weights = torch.exp(log_before) * -torch.expm1(log_keep)
    return torch.cat([_mix(weights, features), _mix(weights.detach(), shy)], dim=-1)


def _mix(weights: Float[Tensor, "n p g"], features: Float[Tensor, "n g k"]) -> Float[Tensor, "n p k"]:
    """Σ w f; as no matrix product where that would be rounded (bfloat16, TF32): depths reach 40 m."""
    if weights.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        return weights @ features
    mixed = [(weights * feature[:, None]).sum(dim=-1) for feature in features.unbind(-1)]
    return torch.stack(mixed, dim=-1) if mixed else weights.new_zeros((*weights.shape[:2], 0))
