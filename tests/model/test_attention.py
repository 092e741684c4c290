"""Deformable attention against a slow loop."""

import torch
from torch import Tensor

from model.attention import deformable_attention, init_sampling, sampling_from, softmax_over_samples


def _bilinear(image: Tensor, u: float, v: float) -> Tensor:
    """Value (C,) of an image (C, H, W) at (u, v) in 0..1 by the four pixels around, zero outside."""
    channels, height, width = image.shape
    x, y = u * width - 0.5, v * height - 0.5
    x0, y0 = int(torch.tensor(x).floor()), int(torch.tensor(y).floor())
    out = torch.zeros(channels, dtype=image.dtype)
    for i, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
        for j, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
            if 0 <= i < width and 0 <= j < height:
                out += wx * wy * image[:, j, i]
    return out


def test_equals_the_slow_loop_over_levels_heads_and_points() -> None:
    batch, queries, heads, levels, points, dim = 2, 3, 2, 2, 3, 6
    values = [torch.randn(batch, dim, 4, 7, dtype=torch.double), torch.randn(batch, dim, 2, 3, dtype=torch.double)]
    references = torch.rand(batch, levels, points, 2, queries, dtype=torch.double) * 2.4 - 1.2
    offsets = torch.randn(batch, heads, levels, points, 2, queries, dtype=torch.double)
    weights = torch.rand(batch, heads, levels, points, queries, dtype=torch.double)
    expected = torch.zeros(batch, queries, dim, dtype=torch.double)
    part = dim // heads
    for b in range(batch):
        for q in range(queries):
            for h in range(heads):
                for level, value in enumerate(values):
                    for p in range(points):
                        size = torch.tensor([value.shape[3], value.shape[2]])
                        place = (references[b, level, p, :, q] + 1) / 2 + offsets[b, h, level, p, :, q] / size
                        u, v = place.tolist()
                        sample = _bilinear(value[b, h * part : (h + 1) * part], u, v)
                        expected[b, q, h * part : (h + 1) * part] += weights[b, h, level, p, q] * sample
    torch.testing.assert_close(deformable_attention(values, references, offsets, weights), expected)


def test_gradients_reach_values_places_and_weights() -> None:
    value = torch.randn(1, 4, 3, 5, dtype=torch.double, requires_grad=True)
    # Away from cell boundaries, where bilinear sampling has no derivative.
    cells = torch.tensor([[[0.7, 1.3], [2.2, 0.9]], [[3.4, 1.8], [1.6, 0.7]]], dtype=torch.double)
    references = torch.full((1, 1, 2, 2, 1), -1.0, dtype=torch.double, requires_grad=True)
    offsets = cells.reshape(1, 2, 1, 2, 2, 1).requires_grad_()
    weights = torch.rand(1, 2, 1, 2, 1, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda v, *rest: deformable_attention([v], *rest), (value, references, offsets, weights)
    )


def test_softmax_ignores_unseen_points_and_gives_zero_without_any() -> None:
    logits = torch.tensor([[1.0, 50.0, 1.0], [3.0, 2.0, 1.0]]).T.reshape(1, 1, 1, 3, 2)
    seen = torch.tensor([[True, False, True], [False, False, False]]).T[None]
    weights = softmax_over_samples(logits, seen)[0, 0, 0].T
    assert torch.allclose(weights, torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]))


def test_softmax_runs_over_levels_and_points_together() -> None:
    weights = softmax_over_samples(torch.randn(2, 3, 4, 5, 6))
    torch.testing.assert_close(weights.sum(dim=(2, 3)), torch.ones(2, 3, 6))


def test_initial_offsets_are_a_star_and_initial_weights_are_equal() -> None:
    layer = torch.nn.Linear(6, 4 * 2 * 3 * 3)
    init_sampling(layer, heads=4, levels=2, points=3)
    offsets, logits = sampling_from(layer, torch.randn(1, 5, 6), heads=4, levels=2)
    assert offsets.shape == (1, 4, 2, 3, 2, 5)
    assert torch.all(logits == 0)
    right, up = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for i in range(3):
        assert torch.allclose(offsets[0, 0, 1, i, :, 0], right * (i + 1), atol=1e-6)
        assert torch.allclose(offsets[0, 1, 0, i, :, 4], up * (i + 1), atol=1e-6)


def test_sampling_is_the_linear_layer_split_head_by_head() -> None:
    layer, tokens = torch.nn.Linear(6, 2 * 2 * 3 * 3), torch.randn(1, 4, 6)
    offsets, logits = sampling_from(layer, tokens, heads=2, levels=2)
    raw = layer(tokens)[0, 3]
    assert torch.allclose(offsets[0, 1, 0, 2, :, 3], raw[[12 + 4, 12 + 5]], atol=1e-6)
    assert torch.allclose(logits[0, 1, 1, 0, 3], raw[24 + 6 + 3], atol=1e-6)
