"""From features to flow: matching, warping, propagation and upsampling. Flow is (u, v) in pixels of its own map.

All of it in float32: a coordinate of 150 has a step of a whole pixel in bfloat16, and of an eighth in float16.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

Map = Float[Tensor, "n channels h w"]
Flow = Float[Tensor, "n 2 h w"]

OUTSIDE = -1e9
"""Score of a candidate outside the image."""


def coordinates(like: Float[Tensor, "n c h w"]) -> Float[Tensor, "2 h w"]:
    """(u, v) of every pixel, centres on whole numbers."""
    height, width = like.shape[-2:]
    v, u = torch.meshgrid(
        torch.arange(height, device=like.device, dtype=torch.float32),
        torch.arange(width, device=like.device, dtype=torch.float32),
        indexing="ij",
    )
    return torch.stack([u, v])


def sample(
    values: Map, at: Float[Tensor, "n rows columns 2"], padding: str = "zeros"
) -> Float[Tensor, "n c rows columns"]:
    """Bilinear samples at pixel positions, centres on whole numbers."""
    height, width = values.shape[-2:]
    half = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=values.device)
    return F.grid_sample(values.float(), (at - half) / half, padding_mode=padding, align_corners=True)


def warp(values: Map, flow: Flow, padding: str = "zeros") -> Map:
    """`values` of the second image seen from the first; what lies outside is 0, or the edge with padding "border"."""
    return sample(values, rearrange(coordinates(flow) + flow, "n c h w -> n h w c"), padding)


def attend(query: Map, key: Map, value: Map) -> Map:
    """For every place of `query`, the mean of `value` weighted by the softmax of its similarity to `key`."""
    q, k, v = (rearrange(x.float(), "n c h w -> n 1 (h w) c") for x in (query, key, value))
    # Fused kernels want values as wide as keys; they spare the (h w) x (h w) scores.
    v = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
    out = F.scaled_dot_product_attention(q, k, v)[..., : value.shape[1]]
    return rearrange(out, "n 1 (h w) c -> n c h w", h=query.shape[-2])


def match_global(first: Map, second: Map) -> Flow:
    """Expected displacement under the softmax of all correlations, for `first` -> `second`."""
    place = coordinates(first)
    return attend(first, second, place.expand(len(first), -1, -1, -1)) - place


def window_correlation(first: Map, second: Map, flow: Flow, radius: int) -> Float[Tensor, "n window h w"]:
    """Scaled dot products with the (2 radius + 1)^2 places around where `flow` leads, row by row."""
    centre = rearrange(coordinates(first) + flow, "n c h w -> n h w c")
    steps = torch.arange(-radius, radius + 1, device=first.device, dtype=torch.float32)
    first = first.float() * first.shape[1] ** -0.5
    width = first.shape[-1]
    rows = []
    # One row of the window at a time: all 81 features per pixel at once would take gigabytes at 1/4 resolution.
    for dy in steps:
        offsets = torch.stack([steps, dy.expand_as(steps)], dim=-1)
        at = (centre[:, :, :, None] + offsets).flatten(2, 3)
        samples = sample(second, at).unflatten(-1, (width, len(steps)))
        rows.append(torch.einsum("nchw,nchwk->nkhw", first, samples))
    return torch.cat(rows, dim=1)


def match_local(first: Map, second: Map, radius: int) -> Flow:
    """Expected displacement under the softmax of the correlations within `radius`."""
    n, _, height, width = first.shape
    score = window_correlation(first, second, first.new_zeros(n, 2, height, width, dtype=torch.float32), radius)
    steps = torch.arange(-radius, radius + 1, device=first.device, dtype=torch.float32)
    dv, du = (grid.reshape(1, -1, 1, 1) for grid in torch.meshgrid(steps, steps, indexing="ij"))
    u, v = coordinates(first)
    outside = (u + du < 0) | (u + du >= width) | (v + dv < 0) | (v + dv >= height)
    weight = score.masked_fill(outside, OUTSIDE).softmax(dim=1)
    return torch.cat([(weight * du).sum(1, keepdim=True), (weight * dv).sum(1, keepdim=True)], dim=1)


class Propagation(nn.Module):
    """Flow carried to where matching is weak: attention of the features to themselves, with the flow as value."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        for projection in (self.q_proj, self.k_proj):
            nn.init.xavier_uniform_(projection.weight)

    def forward(self, features: Map, flow: Flow, radius: int | None) -> Flow:
        """Over the whole image, or within `radius`."""
        channels_last = rearrange(features.float(), "n c h w -> n h w c")
        query = self.q_proj(channels_last)
        # Globally the published networks were trained with keys made from the queries, locally from the features.
        key = self.k_proj(query if radius is None else channels_last)
        query, key = (rearrange(x, "n h w c -> n c h w") for x in (query, key))
        if radius is None:
            return attend(query, key, flow)
        score = (query[:, :, None] * _neighbours(key, radius)).sum(1) * query.shape[1] ** -0.5
        return (score.softmax(1)[:, None] * _neighbours(flow, radius)).sum(2)


def _neighbours(x: Map, radius: int) -> Float[Tensor, "n channels window h w"]:
    """Values of the window around each pixel, row by row; 0 outside the image (and no less eligible for that)."""
    size = 2 * radius + 1
    window = F.unfold(x, size, padding=radius)
    return rearrange(window, "n (c k) (h w) -> n c k h w", c=x.shape[1], h=x.shape[-2])


def upsample_convex(flow: Flow, weights: Float[Tensor, "n weights h w"], factor: int) -> Float[Tensor, "n 2 H W"]:
    """Flow `factor` times finer, each pixel a convex mix of nine coarse ones (RAFT), by 9 factor^2 `weights`."""
    mix = rearrange(weights.float(), "n (k a b) h w -> n 1 k a b h w", k=9, a=factor, b=factor).softmax(dim=2)
    coarse = rearrange(_neighbours(factor * flow, 1), "n c k h w -> n c k 1 1 h w")
    return rearrange((mix * coarse).sum(2), "n c a b h w -> n c (h a) (w b)")


def upsample_bilinear(flow: Flow, factor: int) -> Float[Tensor, "n 2 H W"]:
    """Flow `factor` times finer, corner pixels kept in the corners."""
    return F.interpolate(flow, scale_factor=factor, mode="bilinear", align_corners=True) * factor
