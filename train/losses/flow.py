"""Optical-flow supervision (eqs. 9 and 11): where samples land in the target frame against where the cue says."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from train.losses.averages import valid_weights

OUTLIER_MEDIANS = 100.0
"""A ray whose loss exceeds this many medians is an outlier."""
OUTLIER_PIXELS = 1e3
"""A ray whose loss exceeds this many pixels is an outlier."""


def sample_errors(
    cue: Float[Tensor, "*rays 2"],
    pixels: Float[Tensor, "*rays 2"],
    landed: Float[Tensor, "*rays samples 2"],
    in_front: Bool[Tensor, "*rays samples"],
    cap: float,
) -> Float[Tensor, "*rays samples"]:
    """|O(x) - (x_i - x)|₁ of every sample, in pixels.

    Args:
        cue: the flow cue at each ray's pixel, render pixels (u, v).
        pixels: the ray's own pixel x.
        landed: projection x_i of each sample in the target camera.
        in_front: false where a sample is behind the target camera (its `landed` is meaningless): its error is 0.
        cap: errors are cut here, pixels. A sample just in front of the lens projects 1e5 px away and would drown the
            ray; beyond the image's size the error carries no further information.
    """
    error = (cue[..., None, :] - (landed - pixels[..., None, :])).abs().sum(dim=-1)
    return torch.where(in_front, error.clamp_max(cap), torch.zeros_like(error))


def ray_errors(
    errors: Float[Tensor, "*rays samples"],
    weights: Float[Tensor, "*rays samples"],
    in_front: Bool[Tensor, "*rays samples"],
) -> tuple[Float[Tensor, "*rays"], Bool[Tensor, "*rays"]]:
    """Eq. 9: errors averaged by rendering weight over the samples in front of the camera, and rays that have any."""
    shares, kept = valid_weights(weights, in_front)
    return (shares * errors).sum(dim=-1), kept


def inliers(errors: Float[Tensor, "*rays"], mask: Bool[Tensor, "*rays"]) -> Bool[Tensor, "*rays"]:
    """`mask` without the rays that exceed OUTLIER_MEDIANS times the masked median, or OUTLIER_PIXELS, or are NaN.

    The median is that of rays with a non-zero error, so that a frame solved almost everywhere does not drop the rest.
    """
    detached = errors.detach()
    mask = mask & torch.isfinite(detached)
    positive = mask & (detached > 0)
    # By a sort, not by picking the positive ones out: how many those are, a host would have to ask a GPU and wait.
    ordered = torch.where(positive, detached, torch.full_like(detached, torch.inf)).flatten().sort().values
    median = ordered.gather(0, (positive.sum(dtype=torch.long) - 1).clamp_min(0).div(2, rounding_mode="floor")[None])
    return mask & (detached <= OUTLIER_MEDIANS * median) & (detached <= OUTLIER_PIXELS)


@dataclass
class FlowLoss:
    """Static and dynamic part of eq. 11, the dynamic part's scale γ, and how many rays each used or dropped."""

    static: Float[Tensor, ""]
    dynamic: Float[Tensor, ""]
    gamma: Float[Tensor, ""]
    static_rays: Int[Tensor, ""]
    dynamic_rays: Int[Tensor, ""]
    dropped: Int[Tensor, ""]

    @property
    def total(self) -> Float[Tensor, ""]:
        """L_flow = L_s + γ L_d."""
        return self.static + self.gamma * self.dynamic


def flow_loss(
    errors: Float[Tensor, "*rays"],
    static: Bool[Tensor, "*rays"],
    dynamic: Bool[Tensor, "*rays"],
    sampled: Int[Tensor, ""] | int,
    gamma_max: float = 20.0,
    balance: bool = True,
    weights: Float[Tensor, "*rays"] | None = None,
) -> FlowLoss:
    """Eq. 11: both parts are sums over their rays divided by M_all, so γ = M_all / M_d makes the second a mean.

    A worked case: 100 rays, 10 dynamic of error 2 and 90 static of error 1: L_s = 0.9, L_d = 0.2, γ = 10, total 2.9.

    Args:
        errors: eq. 9 per ray, pixels.
        static, dynamic: disjoint masks of the rays that take part.
        sampled: M_all, the number of all sampled rays.
        gamma_max: upper bound of γ.
        balance: False leaves γ = 1 (no dynamic disentanglement).
        weights: what each ray's error counts, 0..1, by the confidence of its cue; None: all of it. Which rays are
            outliers, and how many rays there are, does not depend on it.
    """
    good_static, good_dynamic = inliers(errors, static), inliers(errors, dynamic)
    if weights is not None:
        errors = torch.where(good_static | good_dynamic, errors, torch.zeros_like(errors)) * weights
    zeros = torch.zeros_like(errors)
    m_static, m_dynamic = good_static.sum(), good_dynamic.sum()
    m_all = torch.zeros_like(m_dynamic).add(sampled).clamp_min(1)
    gamma = (m_all / m_dynamic.clamp_min(1)).clamp_max(gamma_max) if balance else errors.new_ones(())
    dropped = static.sum() + dynamic.sum() - m_static - m_dynamic
    return FlowLoss(
        static=torch.where(good_static, errors, zeros).sum() / m_all,
        dynamic=torch.where(good_dynamic, errors, zeros).sum() / m_all,
        gamma=gamma,
        static_rays=m_static,
        dynamic_rays=m_dynamic,
        dropped=dropped,
    )
