"""Splatting against a slow loop over pixels and Gaussians, hand-computed cases, identities and float64 gradients."""

import math

import pytest
import torch
from torch import Tensor

from model.splat import MAX_ALPHA, PIXEL_VARIANCE, Gaussians, project_gaussians, splat

K = torch.tensor([[[100.0, 0, 32], [0, 100, 16], [0, 0, 1]]], dtype=torch.float64)
CENTRE = torch.tensor([[[32.0, 16.0]]], dtype=torch.float64)


def gaussians(points: list, opacity: list, features: list | None = None, **other: object) -> Gaussians:
    values = features if features is not None else [[] for _ in opacity]
    places, alpha, what = (torch.tensor([row], dtype=torch.float64) for row in (points, opacity, values))
    return Gaussians(places, alpha, what.reshape(1, len(opacity), -1), **{"scale": 0.2, **other})  # type: ignore[arg-type]


def slow(K: Tensor, pixels: Tensor, gs: Gaussians) -> tuple[list, list, list]:
    """Opacity, depth sum and feature sums of one view's pixels: one pixel and one Gaussian after the other."""
    places, scale = gs.points[0], gs.scale
    order = sorted((k for k in range(len(places)) if places[k, 2] > 4 * scale), key=lambda k: float(places[k, 2]))
    (fx, s, cx), (_, fy, cy), _ = K[0].tolist()
    opacities, depths, sums = [], [], []
    for pixel in pixels[0].tolist():
        left, opacity, depth = 1.0, 0.0, 0.0
        total = [0.0] * gs.features.shape[-1]
        for k in order:
            x, y, z = places[k].tolist()
            uv = torch.tensor([(fx * x + s * y) / z + cx, fy * y / z + cy], dtype=torch.float64)
            jacobian = torch.tensor(
                [[fx / z, s / z, -(fx * x + s * y) / z**2], [0, fy / z, -fy * y / z**2]], dtype=torch.float64
            )
            covariance = scale**2 * jacobian @ jacobian.T + PIXEL_VARIANCE * torch.eye(2, dtype=torch.float64)
            off = torch.tensor(pixel, dtype=torch.float64) - uv
            alpha = float(gs.opacity[0, k]) * math.exp(-0.5 * float(off @ torch.linalg.inv(covariance) @ off))
            alpha = min(alpha, MAX_ALPHA)
            share = 1.0 if gs.share is None else float(gs.share[0, k])
            alpha = 1 - (1 - alpha) ** (1 / share)
            weight, left = left * alpha, left * (1 - alpha)
            opacity, depth = opacity + weight, depth + weight * z
            total = [t + weight * float(f) for t, f in zip(total, gs.features[0, k], strict=True)]
        opacities.append(opacity)
        depths.append(depth)
        sums.append(total)
    return opacities, depths, sums


@pytest.mark.parametrize("shared", [False, True])
def test_equal_to_one_pixel_and_one_gaussian_at_a_time(shared: bool) -> None:
    g = torch.Generator().manual_seed(0)
    count = 40
    points = torch.rand((1, count, 3), generator=g, dtype=torch.float64) * torch.tensor([4.0, 3, 14]) - torch.tensor(
        [2.0, 1.5, 2]
    )
    opacity = torch.rand((1, count), generator=g, dtype=torch.float64)
    features = torch.randn((1, count, 2), generator=g, dtype=torch.float64)
    share = 0.1 + 0.9 * torch.rand((1, count), generator=g, dtype=torch.float64) if shared else None
    gs = Gaussians(points, opacity, features, 0.2, share=share)
    skewed = K + torch.tensor([[0, 5.0, 0], [0, -10, 0], [0, 0, 0]])
    pixels = torch.rand((1, 30, 2), generator=g, dtype=torch.float64) * torch.tensor([64.0, 32.0])
    opacities, depths, sums = slow(skewed, pixels, gs)
    whole = splat(gs, skewed, pixels)
    assert (points[0, :, 2] < 0).any()
    assert max(opacities) > 0.5 > min(opacities)
    for render in (whole, splat(gs, skewed, pixels, pairs=7 * count)):
        torch.testing.assert_close(render.opacity[0], torch.tensor(opacities, dtype=torch.float64))
        torch.testing.assert_close(render.depth_sum[0], torch.tensor(depths, dtype=torch.float64))
        torch.testing.assert_close(render.sums[0], torch.tensor(sums, dtype=torch.float64))


def test_one_gaussian_by_hand() -> None:
    """10 m ahead and 0.2 m wide it is 2 px wide; 2 px beside its centre α = 0.8 exp(-½ 4 / (4 + 1/12))."""
    pixels = torch.tensor([[[32.0, 16.0], [34.0, 16.0], [32.0, 60.0]]], dtype=torch.float64)
    render = splat(gaussians([[0, 0, 10.0]], [0.8], [[3.0]]), K, pixels)
    beside = 0.8 * math.exp(-0.5 * 4 / (4 + 1 / 12))
    assert render.opacity[0].tolist() == pytest.approx([0.8, beside, 0.0], abs=1e-12)
    assert render.depth[0, :2].tolist() == pytest.approx([10.0, 10.0])
    assert render.sums[0, :2, 0].tolist() == pytest.approx([2.4, 3 * beside])
    assert render.mean[0, :2, 0].tolist() == pytest.approx([3.0, 3.0])
    assert render.depth[0, 2].item() == pytest.approx(0.0, abs=1e-9)


def test_the_nearer_one_hides_the_other_whatever_their_order() -> None:
    """0.6 of the light goes to 5 m, half of the rest to 10 m: depth (0.6 · 5 + 0.2 · 10) / 0.8 = 6.25 m."""
    for points, opacity in (([[0, 0, 5.0], [0, 0, 10.0]], [0.6, 0.5]), ([[0, 0, 10.0], [0, 0, 5.0]], [0.5, 0.6])):
        render = splat(gaussians(points, opacity), K, CENTRE)
        assert render.opacity.item() == pytest.approx(0.8)
        assert render.depth.item() == pytest.approx(6.25)


def test_what_is_behind_or_at_the_lens_is_not_drawn() -> None:
    points = [[0, 0, -5.0], [0.1, 0, 0.0], [0, 0, 0.79], [0, 0, 10.0]]
    values = torch.tensor([points], dtype=torch.float64, requires_grad=True)
    opacity = torch.full((1, 4), 0.5, dtype=torch.float64, requires_grad=True)
    render = splat(Gaussians(values, opacity, opacity[..., None], 0.2), K, CENTRE)
    assert render.opacity.item() == pytest.approx(0.5)
    assert render.depth.item() == pytest.approx(10.0)
    (render.depth.sum() + render.sums.sum()).backward()
    assert values.grad is not None
    assert opacity.grad is not None
    assert torch.isfinite(values.grad).all()
    assert not opacity.grad[0, :3].any()
    assert not values.grad[0, :3].any()
    assert opacity.grad[0, 3] > 0


def test_nothing_in_view_or_none_at_all() -> None:
    none = Gaussians(*(torch.zeros((1, 0, *shape), dtype=torch.float64) for shape in ((3,), (), (1,))), scale=0.2)
    for gs in (none, gaussians([[0, 0, -3.0]], [1.0]), gaussians([[0, 0, 9.0]], [0.0])):
        render = splat(gs, K, CENTRE)
        assert render.opacity.item() == render.depth.item() == 0.0


def test_opaque_matter_leaves_finite_numbers() -> None:
    opacity = torch.ones((1, 50), dtype=torch.float64, requires_grad=True)
    points = torch.tensor([[[0, 0, 3.0 + k] for k in range(50)]], dtype=torch.float64)
    render = splat(Gaussians(points, opacity, points[..., :0], 0.2), K, CENTRE)
    assert render.opacity.item() == pytest.approx(1.0)
    render.depth.sum().backward()
    assert opacity.grad is not None
    assert torch.isfinite(opacity.grad).all()


@pytest.mark.parametrize("pairs", [2**24, 8])
def test_gradients(pairs: int) -> None:
    g = torch.Generator().manual_seed(1)
    points = torch.rand((1, 4, 3), generator=g, dtype=torch.float64) * 0.3 + torch.tensor([-0.1, -0.1, 5.0])
    opacity = 0.2 + 0.5 * torch.rand((1, 4), generator=g, dtype=torch.float64)
    features = torch.randn((1, 4, 1), generator=g, dtype=torch.float64)
    share = torch.tensor([[1.0, 0.5, 0.3, 1.0]], dtype=torch.float64)
    pixels = CENTRE + torch.tensor([[[0.0, 0], [1.5, -1], [-3, 2]]], dtype=torch.float64)

    def render(points: Tensor, opacity: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = splat(Gaussians(points, opacity, features, 0.1, share=share), K, pixels, pairs)
        return out.sums, out.depth_sum, out.opacity

    inputs = [t.requires_grad_() for t in (points, opacity, features)]
    assert torch.autograd.gradcheck(render, inputs)


def test_shy_features_teach_no_opacity() -> None:
    opacity = torch.tensor([[0.6, 0.5]], dtype=torch.float64, requires_grad=True)
    shy = torch.tensor([[[1.0], [4.0]]], dtype=torch.float64, requires_grad=True)
    points = torch.tensor([[[0, 0, 5.0], [0, 0, 10.0]]], dtype=torch.float64)
    render = splat(Gaussians(points, opacity, points[..., :0], 0.2, shy=shy), K, CENTRE)
    assert render.sums.item() == pytest.approx(0.6 * 1 + 0.2 * 4)
    render.sums.sum().backward()
    assert opacity.grad is None or not opacity.grad.any()
    assert shy.grad is not None
    assert shy.grad.flatten().tolist() == pytest.approx([0.6, 0.2])


def test_half_of_the_gaussians_take_as_much_light_in_expectation() -> None:
    """Log-transmittance, over all draws of one of two: the mean is that of both together."""
    both = splat(gaussians([[0, 0, 5.0], [0, 0, 10.0]], [0.6, 0.5]), K, CENTRE)
    share = torch.tensor([[0.5]], dtype=torch.float64)
    one = splat(gaussians([[0, 0, 5.0]], [0.6], share=share), K, CENTRE)
    other = splat(gaussians([[0, 0, 10.0]], [0.5], share=share), K, CENTRE)
    mean = 0.5 * (torch.log1p(-one.opacity) + torch.log1p(-other.opacity))
    assert mean.item() == pytest.approx(torch.log1p(-both.opacity).item())


def test_the_ellipse_leans_as_perspective_does() -> None:
    """Beside the axis a ball is drawn longer away from it: 100 px · 0.2 m / 10 m across, times sqrt(1 + 1) along."""
    _, inverse, depth, drawn = project_gaussians(K, torch.tensor([[[10.0, 0, 10]]], dtype=torch.float64), 0.2)
    assert inverse[0, 0].tolist() == pytest.approx([1 / (8 + 1 / 12), 0, 1 / (4 + 1 / 12)])
    assert (depth.item(), drawn.item()) == (10.0, True)
