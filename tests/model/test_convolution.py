"""The flat route of the 3D convolution gives what the plain one gives."""

import pytest
import torch
from torch import nn

from model.convolution import Conv3d


@pytest.mark.parametrize("height", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_same_result_and_gradients_as_conv3d(height: int, stride: int, bias: bool) -> None:
    conv = Conv3d(3, 5, kernel_size=3, stride=stride, padding=1, bias=bias).double()
    plain = nn.Conv3d(3, 5, kernel_size=3, stride=stride, padding=1, bias=bias).double()
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(2, 3, 7, 6, height, dtype=torch.double, requires_grad=True)
    ours, theirs = conv.flat_forward(x), plain(x)
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, [x, conv.weight], gradient),
        torch.autograd.grad(theirs, [x, plain.weight], gradient),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_tall_volumes_and_pointwise_kernels_take_the_plain_route(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("flat route taken")

    monkeypatch.setattr(Conv3d, "flat_forward", refuse)
    Conv3d(2, 2, kernel_size=3, padding=1)(torch.zeros(1, 2, 3, 3, 5))
    Conv3d(2, 2, kernel_size=1)(torch.zeros(1, 2, 3, 3, 1))
    with pytest.raises(AssertionError, match="flat route"):
        Conv3d(2, 2, kernel_size=3, padding=1)(torch.zeros(1, 2, 3, 3, 4))
