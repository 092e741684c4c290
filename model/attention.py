"""Multi-scale deformable attention in pure PyTorch, and the initial values of its offsets."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


def deformable_attention(
    values: Sequence[Float[Tensor, "batch dim _h _w"]],
    locations: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries dim"]:
    """Weighted sum of bilinear samples: `out[q, head] = Σ_level Σ_point weight * value[level][head] at location`.

    Args:
        values: one map per level; `dim` is cut into `heads` equal parts, head-major.
        locations: (u, v) across the map, 0..1 from edge to edge: pixel centres at (i + 0.5) / size. A sample outside
            reads zero.
        weights: any weights; softmax over levels and points is the caller's.
    """
    batch, queries, heads = locations.shape[:3]
    # Queries run along the fastest axis, so that the weighted sum over the few points is vectorised.
    grids = rearrange(locations, "b q h l p xy -> l (b h) p q xy") * 2 - 1
    weights = rearrange(weights, "b q h l p -> l (b h) 1 p q")
    total: Tensor | None = None
    for value, grid, weight in zip(values, grids, weights, strict=True):
        by_head = rearrange(value, "b (h d) y x -> (b h) d y x", h=heads).contiguous()
        sampled = F.grid_sample(by_head, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        level = (sampled * weight).sum(dim=2)
        total = level if total is None else total + level
    assert total is not None, "deformable attention needs at least one level"
    return rearrange(total, "(b h) d q -> b q (h d)", b=batch, h=heads, q=queries)


def split_sampling(
    raw: Float[Tensor, "batch queries outputs"], heads: int, levels: int
) -> tuple[Float[Tensor, "batch queries heads levels points 2"], Float[Tensor, "batch queries heads options"]]:
    """Offsets (u, v) and logits (options = levels x points) from the outputs of one sampling layer.

    Offsets and logits come from one linear layer: one matrix product instead of two.
    """
    options = raw.shape[-1] // (3 * heads)
    offsets, logits = raw.split([heads * options * 2, heads * options], dim=-1)
    return (
        rearrange(offsets, "b q (h l p xy) -> b q h l p xy", h=heads, l=levels, xy=2),
        rearrange(logits, "b q (h o) -> b q h o", h=heads),
    )


def init_sampling(
    layer: nn.Linear, heads: int, levels: int, points: int, reach: float = 1.0, spread: bool = True
) -> None:
    """Start a sampling layer (outputs as in `split_sampling`) with equal weights and one fixed star of offsets.

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


def masked_softmax(
    logits: Float[Tensor, "*rows options"], mask: Float[Tensor, "*rows options"]
) -> Float[Tensor, "*rows options"]:
    """Softmax over the options whose mask is 1; a row without any gives zeros, not NaN."""
    logits = logits.masked_fill(mask == 0, -1e4)
    return torch.softmax(logits, dim=-1) * mask
