"""The residual backbone: its levels, and that it takes ConvNeXt's place in the network."""

import pytest
import torch

from model.config import BackboneConfig
from model.residual import ResidualBackbone, ResidualBlock2d


@pytest.mark.parametrize("size", [(64, 176), (33, 50)])
def test_levels_cover_the_image(size: tuple[int, int]) -> None:
    config = BackboneConfig(kind="residual", depths=(1, 2, 1, 1), dims=(8, 16, 24, 32))
    levels = ResidualBackbone(config)(torch.rand(2, 3, *size))
    assert [level.shape[1] for level in levels] == [8, 16, 24, 32]
    for level, stride in zip(levels, (4, 8, 16, 32), strict=True):
        assert level.shape[-2:] == (-(-size[0] // stride), -(-size[1] // stride))


def test_a_cell_sees_where_it_is() -> None:
    """A bright spot moves the features most in the cell that holds it."""
    torch.manual_seed(0)
    backbone = ResidualBackbone(BackboneConfig(kind="residual", depths=(1, 1, 1, 1), dims=(16, 16, 16, 16)))
    dark = torch.zeros(1, 3, 64, 64)
    lit = dark.clone()
    lit[:, :, 20:24, 40:44] = 5.0
    with torch.no_grad():
        change = (backbone(lit)[0] - backbone(dark)[0]).abs().sum(dim=1)[0]
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert abs(row - 5) <= 1
    assert abs(column - 10) <= 1


def test_block_by_hand() -> None:
    """With its second convolution at zero a block passes on what is positive of its input."""
    block = ResidualBlock2d(8, 8, 1)
    torch.nn.init.zeros_(block.conv2.weight)
    torch.nn.init.zeros_(block.conv2.bias)
    x = torch.randn(1, 8, 5, 5)
    assert torch.allclose(block(x), x.clamp_min(0))
