"""The convolutional encoder: images to features at 1/8, or at 1/8 and 1/4 of their size."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pipelines.cues.unimatch.variants import Variant


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with instance normalisation beside a shortcut, which is projected where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride)) if changes else None

    def forward(self, x: Float[Tensor, "n inputs h w"]) -> Float[Tensor, "n outputs oh ow"]:
        """Features at 1/stride of the size."""
        y = F.relu(F.instance_norm(self.conv1(x)))
        y = F.relu(F.instance_norm(self.conv2(y)))
        shortcut = x if self.downsample is None else F.instance_norm(self.downsample(x))
        return F.relu(shortcut + y)


class Encoder(nn.Module):
    """A small residual network. Two scales come from one 3x3 kernel, applied with strides 1 and 2 (TridentNet)."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        first, second, third = variant.widths
        self.conv1 = nn.Conv2d(3, first, 7, stride=2, padding=3, bias=False)
        self.layer1 = nn.Sequential(ResidualBlock(first, first, 1), ResidualBlock(first, first, 1))
        self.layer2 = nn.Sequential(ResidualBlock(first, second, 2), ResidualBlock(second, second, 1))
        last = 2 if variant.scales == 1 else 1
        self.layer3 = nn.Sequential(ResidualBlock(second, third, last), ResidualBlock(third, third, 1))
        self.conv2 = nn.Conv2d(third, variant.channels, 1)
        self.trident_conv = (
            None if variant.scales == 1 else nn.Conv2d(variant.channels, variant.channels, 3, padding=1, bias=False)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "n 3 H W"]) -> list[Float[Tensor, "n channels h w"]]:
        """Features from coarse to fine: at 1/8, and for two scales at 1/4; `images` normalised."""
        x = F.relu(F.instance_norm(self.conv1(images)))
        x = self.conv2(self.layer3(self.layer2(self.layer1(x))))
        if self.trident_conv is None:
            return [x]
        return [F.conv2d(x, self.trident_conv.weight, stride=2, padding=1), self.trident_conv(x)]
