"""Depth per image cell against LiDAR returns: cross-entropy over log-spaced depths (not in the paper)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from model.pixel_depth import MIN_DEPTH, PixelDepth
from train.losses.averages import masked_mean


def pixel_depth_loss(
    predicted: PixelDepth,
    place: Float[Tensor, "views returns 2"],
    depth: Float[Tensor, "views returns"],
    valid: Bool[Tensor, "views returns"],
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the returns' depths under the distribution of the cell they fall into; zero without any.

    A depth between two bins counts for both, by nearness; one beyond the first or last for that one. A worked case:
    even logits over 8 bins give ln 8 = 2.079 wherever the returns are.

    Args:
        place: where a return falls, (u, v) in -1..1 across the image.
        depth: along the camera's axis, metres; may be anything where not valid.
        valid: in the image and in front of the camera.
    """
    bins = predicted.bins
    depth = torch.where(valid, depth, torch.ones_like(depth))
    where = bins.position(depth.clamp_min(MIN_DEPTH).log()).clamp(0, bins.count - 1)
    lower = where.floor().clamp_max(bins.count - 2)
    share = where - lower
    place = torch.where(valid[..., None], place, torch.zeros_like(place))
    logits = F.grid_sample(
        predicted.logits, place[:, :, None], mode="nearest", padding_mode="border", align_corners=False
    )[..., 0]
    likelihood = logits.log_softmax(dim=1)
    below = likelihood.gather(1, lower.long()[:, None])[:, 0]
    above = likelihood.gather(1, lower.long()[:, None] + 1)[:, 0]
    return masked_mean(-((1 - share) * below + share * above), valid)
