"""Feature pyramid over the backbone's four levels, giving all of them one width."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """Lateral 1x1, top-down nearest upsampling and addition, 3x3 output (FPN, CVPR 2017)."""

    def __init__(self, in_dims: Sequence[int], dim: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(in_dim, dim, kernel_size=1) for in_dim in in_dims)
        self.outputs = nn.ModuleList(nn.Conv2d(dim, dim, kernel_size=3, padding=1) for _ in in_dims)
        for conv in [*self.laterals, *self.outputs]:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, levels: list[Float[Tensor, "n _c _h _w"]]) -> list[Float[Tensor, "n dim _h _w"]]:
        """Fine-to-coarse features in, the same sizes at width `dim` out."""
        merged = [lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)]
        for fine in range(len(merged) - 2, -1, -1):
            merged[fine] = merged[fine] + F.interpolate(merged[fine + 1], size=merged[fine].shape[-2:], mode="nearest")
        return [output(level) for output, level in zip(self.outputs, merged, strict=True)]
