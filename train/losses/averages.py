"""Averages that survive having nothing to average: masked means, and eq. 8's and 9's sums over the samples of a ray."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MIN_WEIGHT = 1e-3
"""Sum of rendering weights over valid samples below which a ray says nothing and is dropped (and counted)."""


def masked_mean(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean of `values` where `mask`; zero, with a zero gradient, where the mask is empty.

    Values outside the mask may be anything, NaN included: neither they nor their gradient reach the result.
    """
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum() / mask.sum().clamp_min(1)


def valid_weights(
    weights: Float[Tensor, "*rays samples"], valid: Bool[Tensor, "*rays samples"]
) -> tuple[Float[Tensor, "*rays samples"], Bool[Tensor, "*rays"]]:
    """Rendering weights shared out among the valid samples, so that they sum to one on every ray kept.

    Without the division an empty volume, whose weights are all zero, would be free of loss.

    Returns:
        weights (…, samples), zero on invalid samples and on rays that are not kept, and kept (…), true where the valid
        samples hold at least MIN_WEIGHT between them.
    """
    masked = torch.where(valid, weights, torch.zeros_like(weights))
    total = masked.sum(dim=-1)
    kept = total > MIN_WEIGHT
    safe = torch.where(kept, total, torch.ones_like(total))
    return torch.where(kept[..., None], masked / safe[..., None], torch.zeros_like(masked)), kept
