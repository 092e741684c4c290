"""A small residual image backbone, for networks that have no pre-trained weights to start from."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.config import BackboneConfig, norm_groups


class ResidualBlock2d(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a strided 1x1 convolution where the size changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1)
        self.norm1 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.norm2 = group_norm(channels)
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride)

    def forward(self, x: Float[Tensor, "b ch h w"]) -> Float[Tensor, "b out _h _w"]:
        """Strided features."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResidualBackbone(nn.Module):
    """Four levels at strides 4, 8, 16, 32: a strided stem, then stages of residual blocks with GroupNorm.

    ConvNeXt's first layer cuts the image into patches that do not overlap, and its blocks start as almost nothing: made
    for long training. Overlapping 3x3 convolutions see edges and gradients from the first step on.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        first = config.dims[0]
        self.stem = nn.Sequential(nn.Conv2d(3, first, kernel_size=3, stride=2, padding=1), group_norm(first), nn.ReLU())
        self.stages = nn.ModuleList()
        before = first
        for dim, depth in zip(config.dims, config.depths, strict=True):
            rest = (ResidualBlock2d(dim, dim, 1) for _ in range(depth - 1))
            self.stages.append(nn.Sequential(ResidualBlock2d(before, dim, 2), *rest))
            before = dim

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n _c _h _w"]]:
        """Normalised images to features; level l has ceil(size / stride) cells, of which the last may reach past the
        image."""
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm that takes about eight channels together (`model.config.norm_groups`)."""
    return nn.GroupNorm(norm_groups(channels), channels)
