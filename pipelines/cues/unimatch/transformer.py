"""The transformer that makes two feature maps comparable: self- and cross-attention inside (shifted) windows."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

Tokens = Float[Tensor, "n windows length channels"]

FAR = -100.0
"""Added to the score of two places that share a window only because the shifted map wraps around (Swin)."""


class AttentionLayer(nn.Module):
    """One attention, one head; the feed-forward step, where there is one, sees the source beside the message."""

    def __init__(self, channels: int, feed_forward: bool, expansion: int = 4) -> None:
        super().__init__()
        self.q_proj = nn.Linear(channels, channels, bias=False)
        self.k_proj = nn.Linear(channels, channels, bias=False)
        self.v_proj = nn.Linear(channels, channels, bias=False)
        self.merge = nn.Linear(channels, channels, bias=False)
        self.norm1 = nn.LayerNorm(channels)
        self.mlp: nn.Sequential | None = None
        if feed_forward:
            wide = 2 * channels
            self.mlp = nn.Sequential(
                nn.Linear(wide, wide * expansion, bias=False),
                nn.GELU(),
                nn.Linear(wide * expansion, channels, bias=False),
            )
            self.norm2 = nn.LayerNorm(channels)

    def forward(self, source: Tokens, target: Tokens, mask: Float[Tensor, "windows length length"] | None) -> Tokens:
        """`source` plus what it gathers from `target`, window by window."""
        # Windows stand where heads do, so that one mask per window serves the whole batch.
        message = F.scaled_dot_product_attention(
            self.q_proj(source), self.k_proj(target), self.v_proj(target), attn_mask=mask
        )
        message = self.norm1(self.merge(message))
        if self.mlp is not None:
            message = self.norm2(self.mlp(torch.cat([source, message], dim=-1)))
        return source + message


class TransformerBlock(nn.Module):
    """Self-attention, then cross-attention with the feed-forward step."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.self_attn = AttentionLayer(channels, feed_forward=False)
        self.cross_attn_ffn = AttentionLayer(channels, feed_forward=True)

    def forward(self, source: Tokens, target: Tokens, mask: Float[Tensor, "windows length length"] | None) -> Tokens:
        """`source`, informed by itself and by `target`."""
        return self.cross_attn_ffn(self.self_attn(source, source, mask), target, mask)


class FeatureTransformer(nn.Module):
    """A stack of blocks; every second one looks through windows shifted by half their size."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerBlock(channels) for _ in range(layers))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, first: Float[Tensor, "n channels h w"], second: Float[Tensor, "n channels h w"], splits: int
    ) -> tuple[Float[Tensor, "n channels h w"], Float[Tensor, "n channels h w"]]:
        """Both maps, each informed by the other; `splits` windows per side divide h and w."""
        height, width = first.shape[-2:]
        shift = (height // splits // 2, width // splits // 2)
        mask = shifted_mask(height, width, splits, first.device) if splits > 1 else None
        x = torch.cat([first, second])
        for i, layer in enumerate(self.layers):
            shifted = splits > 1 and i % 2 == 1
            if shifted:
                x = x.roll((-shift[0], -shift[1]), dims=(-2, -1))
            tokens = to_windows(x, splits)
            # All but attention works token by token, so whole blocks can stay in the windows' layout.
            tokens = layer(tokens, torch.cat(tokens.chunk(2)[::-1]), mask if shifted else None)
            x = from_windows(tokens, splits, height)
            if shifted:
                x = x.roll(shift, dims=(-2, -1))
        new_first, new_second = x.chunk(2)
        return new_first, new_second


def to_windows(x: Float[Tensor, "n channels h w"], splits: int) -> Tokens:
    """A map as tokens of splits x splits windows, row by row."""
    return rearrange(x, "n c (a h) (b w) -> n (a b) (h w) c", a=splits, b=splits)


def from_windows(tokens: Tokens, splits: int, height: int) -> Float[Tensor, "n channels h w"]:
    """Back to a map that is `height` high."""
    return rearrange(tokens, "n (a b) (h w) c -> n c (a h) (b w)", a=splits, h=height // splits)


def shifted_mask(height: int, width: int, splits: int, device: torch.device) -> Float[Tensor, "windows length length"]:
    """What to add to the scores of shifted windows: FAR between places that are not neighbours in the image."""

    def bands(size: int) -> Tensor:
        window = size // splits
        index = torch.arange(size, device=device)
        return (index >= size - window).float() + (index >= size - window // 2)

    region = 3 * bands(height)[:, None] + bands(width)[None, :]
    labels = to_windows(region[None, None], splits)[0, ..., 0]
    return torch.where(labels[:, :, None] == labels[:, None, :], 0.0, FAR)


def sine_position(
    height: int, width: int, channels: int, device: torch.device
) -> Float[Tensor, "channels height width"]:
    """Sines and cosines of row (first half of the channels) and column, one turn over the map at the least (DETR)."""
    half = channels // 2
    index = torch.arange(half, device=device, dtype=torch.float32)
    period = 10000.0 ** (2 * torch.div(index, 2, rounding_mode="floor") / half)

    def waves(size: int) -> Float[Tensor, "half size"]:
        place = torch.arange(1, size + 1, device=device, dtype=torch.float32) / (size + 1e-6) * 2 * math.pi
        angle = place / period[:, None]
        return torch.where(index[:, None] % 2 == 0, angle.sin(), angle.cos())

    rows = waves(height)[:, :, None].expand(half, height, width)
    columns = waves(width)[:, None, :].expand(half, height, width)
    return torch.cat([rows, columns])


def window_position(
    height: int, width: int, channels: int, splits: int, device: torch.device
) -> Float[Tensor, "channels height width"]:
    """The position inside each window, the same in all."""
    return sine_position(height // splits, width // splits, channels, device).repeat(1, splits, splits)
