"""Multi-scale deformable attention in pure PyTorch, and the initial values of its offsets."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from geometry.constants import constant


def deformable_attention(
    values: Sequence[Float[Tensor, "batch dim _h _w"]],
    references: Float[Tensor, "#batch levels points 2 queries"],
    offsets: Float[Tensor, "batch heads levels points 2 queries"],
    weights: Float[Tensor, "batch heads levels points queries"],
) -> Float[Tensor, "batch queries dim"]:
    """`out[q, head] = Σ_level Σ_point weight * value[level][head](reference + offset)`, bilinear.

    Queries are the last axis of all that describes the samples, so that everything here is vectorised along them.

    Args:
        values: one map per level; `dim` is cut into `heads` equal parts, head-major.
        references: (u, v) across each level's map, -1..1 from edge to edge. A sample outside reads zero.
        offsets: (u, v) in cells of the level's map.
        weights: any weights; softmax over levels and points is the caller's.
    """
    heads = offsets.shape[1]
    total: Tensor | None = None
    for level, value in enumerate(values):
        by_head = rearrange(value, "b (h d) y x -> (b h) d y x", h=heads).contiguous()
        cell = constant(((2 / value.shape[-1],), (2 / value.shape[-2],)), value)
        places = torch.addcmul(references[:, None, level], offsets[:, :, level], cell)
        grid = rearrange(places, "b h p xy q -> (b h) p q xy")
        sampled = F.grid_sample(by_head, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weighted = (sampled * weights[:, :, level].flatten(0, 1)[:, None]).sum(dim=2)
        total = weighted if total is None else total + weighted
    assert total is not None, "deformable attention needs at least one level"
    return rearrange(total, "(b h) d q -> b q (h d)", h=heads)


def sampling_from(
    layer: nn.Linear, tokens: Float[Tensor, "batch queries inputs"], heads: int, levels: int
) -> tuple[Float[Tensor, "batch heads levels points 2 queries"], Float[Tensor, "batch heads levels points queries"]]:
    """Offsets (u, v) and logits that one linear layer predicts for each query, with the queries as the last axis.

    One matrix product for both, and no transposition after it.
    """
    raw = layer.weight @ tokens.transpose(1, 2) + layer.bias[:, None]
    options = raw.shape[1] // (3 * heads)
    offsets, logits = raw.split([heads * options * 2, heads * options], dim=1)
    return (
        rearrange(offsets, "b (h l p xy) q -> b h l p xy q", h=heads, l=levels, xy=2),
        rearrange(logits, "b (h l p) q -> b h l p q", h=heads, l=levels),
    )


def softmax_over_samples(
    logits: Float[Tensor, "batch heads levels points queries"],
    seen: Bool[Tensor, "batch points queries"] | None = None,
) -> Float[Tensor, "batch heads levels points queries"]:
    """Softmax over levels and points together; over the points that are `seen` only, and zeros where none is."""
    if seen is None:
        return torch.softmax(logits.flatten(2, 3), dim=2).view_as(logits)
    mask = seen[:, None, None]
    weights = torch.softmax(logits.masked_fill(~mask, -1e4).flatten(2, 3), dim=2).view_as(logits)
    return weights * mask


def init_sampling(
    layer: nn.Linear, heads: int, levels: int, points: int, reach: float = 1.0, spread: bool = True
) -> None:
    """Start a sampling layer (outputs as in `sampling_from`) with equal weights and one fixed star of offsets.

    Head k looks along the angle 2πk / heads; point i lies `reach * (i + 1)` cells out, or `reach` if not `spread`.
    Zero weights keep it so for all queries until gradients say otherwise.
    """
    angles = torch.arange(heads, device=layer.weight.device) * (2 * math.pi / heads)
    star = torch.stack([angles.cos(), angles.sin()], dim=-1)
    star = star / star.abs().amax(dim=-1, keepdim=True).clamp_min(1e-6)
    steps = torch.arange(1, points + 1, device=star.device) if spread else torch.ones(points, device=star.device)
    offsets = star[:, None, None] * (reach * steps)[None, None, :, None]
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.bias[: heads * levels * points * 2] = offsets.expand(heads, levels, points, 2).reshape(-1)


def init_projection(layer: nn.Linear) -> None:
    """Xavier weights and zero bias, for value and output projections."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
