"""Photometric reprojection (eq. 8): every sample of a ray is looked up in the neighbour frames and compared."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from train.losses.averages import masked_mean, valid_weights

L1_SHARE = 0.15
"""Share of the absolute difference; the rest is (1 - SSIM) / 2."""
_C1, _C2 = 0.01**2, 0.03**2
"""SSIM's stabilisers for colours in [0, 1]."""


@dataclass
class Comparison:
    """Loss per ray of one neighbour, warped and un-warped, and where it means anything. All (n, rows, columns)."""

    warped: Float[Tensor, "n rows columns"]
    identity: Float[Tensor, "n rows columns"]
    valid: Bool[Tensor, "n rows columns"]


def masked_ssim(
    x: Float[Tensor, "n channels rows columns"],
    y: Float[Tensor, "n channels rows columns"],
    mask: Bool[Tensor, "n rows columns"],
) -> Float[Tensor, "n rows columns"]:
    """Structural similarity over 3x3 windows of the ray grid, averaged over channels, in [-1, 1].

    SSIM = (2 μx μy + c1)(2 σxy + c2) / ((μx² + μy² + c1)(σx² + σy² + c2)), with the window's statistics taken over its
    masked-in rays alone: a dropped ray is not filled with any colour (filled with the target's own, it would reward
    matter in front of the lens). Meaningless where the mask is false. Values outside the mask must be finite.
    """
    m = mask[:, None].to(x.dtype)
    count = F.avg_pool2d(m, 3, 1, 1, divisor_override=1).clamp_min(1)

    def window(v: Tensor) -> Tensor:
        return F.avg_pool2d(v * m, 3, 1, 1, divisor_override=1) / count

    mean_x, mean_y = window(x), window(y)
    var_x = (window(x * x) - mean_x * mean_x).clamp_min(0)
    var_y = (window(y * y) - mean_y * mean_y).clamp_min(0)
    cov = window(x * y) - mean_x * mean_y
    ssim = (2 * mean_x * mean_y + _C1) * (2 * cov + _C2)
    ssim = ssim / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))
    return ssim.mean(dim=1)


def compare(
    target: Float[Tensor, "n 3 rows columns"],
    colours: Float[Tensor, "n 3 rays samples"],
    weights: Float[Tensor, "n rays samples"],
    in_view: Bool[Tensor, "n rays samples"],
    unwarped: Float[Tensor, "n 3 rows columns"],
    usable: Bool[Tensor, "n rows columns"],
) -> Comparison:
    """Eq. 8 for one neighbour: 0.15 L1, weight-averaged per sample, + 0.85 (1 - SSIM)/2 of the weight-blended colour.

    Args:
        target: the current image's colours on the ray grid, [0, 1]; NaN marks a ray as unusable.
        colours: the neighbour's colours at every sample's projection; rays = rows x columns, row-major.
        weights: rendering weights.
        in_view: samples in front of the neighbour camera and inside its image; the others contribute nothing.
        unwarped: the neighbour's colours at the same pixels, for the identity loss.
        usable: rays to consider at all (camera there, neighbour there, static where the neighbour asks for it).
    """
    rows, columns = target.shape[-2:]
    finite = torch.isfinite(target).all(dim=1)
    in_view = in_view & torch.isfinite(colours).all(dim=1)
    target = torch.where(finite[:, None], target, torch.zeros_like(target))
    colours = torch.where(in_view[:, None], colours, torch.zeros_like(colours))
    shares, kept = valid_weights(weights, in_view)
    valid = rearrange(kept, "n (i j) -> n i j", i=rows, j=columns) & finite & usable

    flat_target = rearrange(target, "n c i j -> n c (i j) 1")
    difference = (colours - flat_target).abs().mean(dim=1)
    l1 = rearrange((shares * difference).sum(dim=-1), "n (i j) -> n i j", i=rows, j=columns)
    blended = rearrange((shares[:, None] * colours).sum(dim=-1), "n c (i j) -> n c i j", i=rows, j=columns)
    warped = L1_SHARE * l1 + (1 - L1_SHARE) * (1 - masked_ssim(target, blended, valid)) / 2

    with torch.no_grad():
        there = torch.isfinite(unwarped).all(dim=1)
        still = torch.where(there[:, None], unwarped, torch.zeros_like(unwarped))
        identity = L1_SHARE * (still - target).abs().mean(dim=1)
        identity = identity + (1 - L1_SHARE) * (1 - masked_ssim(target, still, finite & there)) / 2
        identity = torch.where(there, identity, torch.full_like(identity, torch.inf))
    return Comparison(warped=warped, identity=identity, valid=valid)


def lowest(comparisons: list[Comparison]) -> Comparison:
    """Several images as one: each ray is judged by the image, of those that it is valid in, that explains it best.

    Identity losses likewise. One comparison is returned as it is.
    """
    if len(comparisons) == 1:
        return comparisons[0]
    valid = torch.stack([c.valid for c in comparisons])
    warped, identity = (
        torch.where(valid, loss, torch.full_like(loss, torch.inf)).amin(dim=0)
        for loss in (torch.stack([c.warped for c in comparisons]), torch.stack([c.identity for c in comparisons]))
    )
    some = valid.any(dim=0)
    return Comparison(torch.where(some, warped, torch.zeros_like(warped)), identity, some)


@dataclass
class PhotometricLoss:
    """The loss, and how many rays each neighbour compared, dropped and found stationary (identity was lower)."""

    loss: Float[Tensor, ""]
    rays: Int[Tensor, ""]
    dropped: Int[Tensor, ""]
    stationary: Int[Tensor, ""]


def photometric_loss(
    comparisons: list[Comparison], variant: Literal["mean", "min"] = "mean", automask: bool = True
) -> PhotometricLoss:
    """Neighbours combined per ray, stationary pixels masked, averaged over rays. Zero without any comparison.

    variant "mean": the neighbours' losses are averaged, each after its own minimum with its identity loss.
    variant "min": the lowest over neighbours and identities (occlusion-aware, after monodepth2).
    """
    if not comparisons:
        raise ValueError("photometric_loss needs at least one neighbour; pass one whose rays are all unusable instead")
    warped = torch.stack([c.warped for c in comparisons])
    valid = torch.stack([c.valid for c in comparisons])
    identity = torch.stack([c.identity for c in comparisons])
    stationary = valid & (identity < warped.detach())
    per_ray = torch.minimum(warped, identity) if automask else warped
    if variant == "mean":
        count = valid.sum(dim=0)
        summed = torch.where(valid, per_ray, torch.zeros_like(per_ray)).sum(dim=0)
        loss = masked_mean(summed / count.clamp_min(1), count > 0)
    else:
        lowest = torch.where(valid, per_ray, torch.full_like(per_ray, torch.inf)).amin(dim=0)
        loss = masked_mean(lowest, valid.any(dim=0))
    rays = valid.sum()
    return PhotometricLoss(loss, rays, dropped=valid.numel() - rays, stationary=stationary.sum())
