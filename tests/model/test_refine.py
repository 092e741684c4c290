"""The refine module: sizes, the softmax over levels, and odd sizes."""

import torch

from model.config import RefineConfig
from model.refine import Refine, voxel_norm


def test_output_is_twice_the_size_and_channels_last() -> None:
    refine = Refine(RefineConfig(channels=8, blocks=(1, 2, 1)), in_channels=6, factor=2)
    out = refine(torch.randn(2, 5, 7, 3, 6))
    assert out.shape == (2, 10, 14, 6, 8)
    assert torch.isfinite(out).all()


def test_levels_are_combined_with_weights_that_sum_to_one() -> None:
    refine = Refine(RefineConfig(channels=8), in_channels=8, factor=2)
    torch.nn.init.normal_(refine.level_logits.weight, std=2.0)
    same = torch.randn(1, 8, 1, 1, 1)
    levels = [same.expand(1, 8, *size) for size in ((8, 8, 4), (4, 4, 2), (2, 2, 1))]
    torch.testing.assert_close(refine.combine(list(levels)), levels[0].contiguous(), atol=1e-5, rtol=1e-5)


def test_one_level_alone_is_taken_as_it_is() -> None:
    refine = Refine(RefineConfig(channels=8), in_channels=8, factor=2)
    with torch.no_grad():
        refine.level_logits.weight.zero_()
        refine.level_logits.bias.copy_(torch.tensor([-50.0, 50.0, -50.0]))
    levels = [torch.randn(1, 8, *size) for size in ((8, 8, 4), (4, 4, 2), (2, 2, 1))]
    expected = torch.nn.functional.interpolate(levels[1], size=(8, 8, 4), mode="trilinear")
    torch.testing.assert_close(refine.combine(levels), expected)


def test_an_isolated_change_reaches_far_through_the_coarse_levels() -> None:
    refine = Refine(RefineConfig(channels=8), in_channels=4, factor=2)
    volume = torch.randn(1, 32, 32, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(refine(volume)[0, 32, 32, 4].sum(), volume)
    assert gradient[0, 16 - 12, 16].abs().sum() > 0


def test_what_all_voxels_have_in_common_does_not_pass_the_norm() -> None:
    volume, common = torch.randn(2, 16, 6, 5, 3), torch.randn(2, 16, 1, 1, 1) * 20
    torch.testing.assert_close(voxel_norm(16)(volume + common), voxel_norm(16)(volume), atol=1e-4, rtol=1e-4)
