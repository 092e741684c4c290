"""The 3D refine module: residual 3D convolutions, a 3D feature pyramid and a deconvolution to the output voxels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from model.config import RefineConfig
from model.convolution import Conv3d


def voxel_norm(channels: int) -> nn.GroupNorm:
    """Each channel of each sample to zero mean and unit deviation over the volume: BatchNorm for a batch of one, with
    the same result in training and evaluation.

    What all voxels have in common must go. Early training wants the whole field moved, the fastest way is a vector
    added to every voxel, and with a norm that lets it pass (groups of channels) it drowned the scene within 20 steps.
    """
    return nn.GroupNorm(channels, channels)


class ResidualBlock3d(nn.Module):
    """Two 3x3x3 convolutions around a shortcut, which is a strided 1x1x1 convolution where the size changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv3d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = voxel_norm(channels)
        self.conv2 = Conv3d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = voxel_norm(channels)
        same = stride == 1 and in_channels == channels
        strided = Conv3d(in_channels, channels, kernel_size=1, stride=stride, bias=False)
        self.shortcut = nn.Identity() if same else nn.Sequential(strided, voxel_norm(channels))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Float[Tensor, "b ch x y z"]) -> Float[Tensor, "b out _x _y _z"]:
        """Strided features."""
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


class Refine(nn.Module):
    """Residual stages at falling resolution, merged top-down, combined by a softmax over levels, upsampled."""

    def __init__(self, config: RefineConfig, in_channels: int, factor: int) -> None:
        super().__init__()
        width = config.channels
        self.stages = nn.ModuleList()
        dims = [width * multiplier for multiplier in config.multipliers]
        before = in_channels
        for dim, blocks, stride in zip(dims, config.blocks, config.strides, strict=True):
            first = ResidualBlock3d(before, dim, stride)
            self.stages.append(nn.Sequential(first, *(ResidualBlock3d(dim, dim, 1) for _ in range(blocks - 1))))
            before = dim
        self.laterals = nn.ModuleList(Conv3d(dim, width, kernel_size=1) for dim in dims)
        self.outputs = nn.ModuleList(Conv3d(width, width, kernel_size=3, padding=1) for _ in dims)
        self.level_logits = Conv3d(width, len(dims), kernel_size=1)
        self.deconv = nn.ConvTranspose3d(width, width, kernel_size=factor, stride=factor, bias=False)
        self.norm = voxel_norm(width)

    def forward(self, volume: Float[Tensor, "b x y z dim"]) -> Float[Tensor, "b out_x out_y out_z ch"]:
        """Fused volume at TPV cells to refined features at output voxels, both channels last."""
        # A permuted channels-last volume already is channels_last_3d memory, two to four times faster here.
        x = volume.permute(0, 4, 1, 2, 3).contiguous(memory_format=torch.channels_last_3d)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        refined = self.combine(self.pyramid(levels))
        refined = F.relu(self.norm(self.deconv(refined)))
        return refined.permute(0, 2, 3, 4, 1)

    def pyramid(self, levels: list[Tensor]) -> list[Tensor]:
        """3D FPN: each level at one width, with everything coarser added."""
        merged = [lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)]
        for fine in range(len(merged) - 2, -1, -1):
            merged[fine] = merged[fine] + _resize(merged[fine + 1], merged[fine])
        return [output(level) for output, level in zip(self.outputs, merged, strict=True)]

    def combine(self, levels: list[Tensor]) -> Tensor:
        """Sum of the levels at the finest one's size, with weights that are a softmax over levels in every cell."""
        weights = torch.softmax(self.level_logits(levels[0]), dim=1)
        total = levels[0] * weights[:, :1]
        for index, level in enumerate(levels[1:], start=1):
            total = total + _resize(level, levels[0]) * weights[:, index : index + 1]
        return total


def _resize(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[-3:] == like.shape[-3:]:
        return x
    return F.interpolate(x, size=like.shape[-3:], mode="trilinear", align_corners=False)
