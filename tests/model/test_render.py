"""Rendering: exact depth of a plane, rays that miss, views, and the parts they are made of."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from geometry.grid import VoxelGrid
from geometry.warp import sample_volume
from model.config import RenderConfig
from model.fields import Fields, sample_field
from model.render import Renderer, camera_rays, render_view, sample_edges, to_camera_depth

GRID = VoxelGrid((-8.0, -8.0, -2.0), (8.0, 8.0, 4.0), (32, 32, 12))


def _wall(distance: float, flow: tuple[float, float] = (0.0, 0.0)) -> Fields:
    """Matter beyond the plane x = distance, with an exact signed distance."""
    x = torch.as_tensor(GRID.centres()[..., 0], dtype=torch.float32)
    return Fields((distance - x)[None], torch.tensor(flow).expand(1, *GRID.shape, 2), GRID)


def _renderer(alpha: str, v: float = 0.18, samples: int = 256) -> Renderer:
    return Renderer(RenderConfig(alpha=alpha, temperature_v=v, samples=samples))


@pytest.mark.parametrize("alpha", ["consecutive", "gradient"])
@pytest.mark.parametrize("jitter", [None, 0.0, 0.9])
def test_a_plane_renders_its_exact_distance_along_any_ray(alpha: str, jitter: float | None) -> None:
    slanted = torch.nn.functional.normalize(torch.tensor([1.0, 0.4, -0.1]), dim=0)
    directions = torch.stack([torch.tensor([1.0, 0.0, 0.0]), slanted])[None]
    origins = torch.tensor([[-4.0, 0.3, 0.2], [-4.0, 0.3, 0.2]])[None]
    shift = None if jitter is None else torch.full((1, 2), jitter)
    rays = _renderer(alpha)(_wall(2.5, (1.5, -0.5)), origins, directions, jitter=shift)
    expected = torch.tensor([[6.5, 6.5 / slanted[0].item()]])
    torch.testing.assert_close(rays.range(), expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(rays.opacity, torch.ones(1, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(rays.mean_flow(), torch.tensor([1.5, -0.5]).expand(1, 2, 2))
    assert rays.valid.all()


def test_samples_run_from_the_origin_to_the_exit_with_one_shift_per_ray() -> None:
    origins = torch.tensor([[[0.0, 0.0, 0.0], [-20.0, 0.0, 0.0]]])
    directions = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    edges, valid = sample_edges(GRID, origins, directions, samples=3, jitter=torch.tensor([[0.0, 0.5]]))
    assert valid.all()
    assert edges[0, 0].tolist() == pytest.approx([0.0, 2.0, 4.0, 6.0])
    assert edges[0, 1].tolist() == pytest.approx([14.0, 18.0, 22.0, 26.0])


def test_samples_lie_in_the_middle_unless_told_otherwise() -> None:
    ray = torch.zeros(1, 1, 3), torch.tensor([[[1.0, 0.0, 0.0]]])
    edges, _ = sample_edges(GRID, *ray, samples=3)
    assert edges[0, 0].tolist() == pytest.approx([1.0, 3.0, 5.0, 7.0])
    rays = _renderer("consecutive", samples=3)(_wall(2.5), *ray)
    assert rays.distances[0, 0].tolist() == pytest.approx([2.0, 4.0, 6.0])
    assert rays.sdf[0, 0].tolist() == pytest.approx([0.5, -1.5, -3.5], abs=1e-5)


def test_a_veil_has_the_whole_motion_of_what_it_is_made_of() -> None:
    """Rendered motion is a mean, not a share: matter that holds half of the light moves as fast as a wall does."""
    fields = _wall(8.2, (1.5, -0.5))  # behind the volume: a little light ends before its exit
    rays = _renderer("consecutive")(fields, torch.zeros(1, 1, 3), torch.tensor([[[1.0, 0.0, 0.0]]]))
    assert 1e-3 < rays.opacity.item() < 0.5
    torch.testing.assert_close(rays.mean_flow(), torch.tensor([[[1.5, -0.5]]]))


def test_rays_without_a_sample_in_the_volume_are_flagged_and_harmless() -> None:
    fields = _wall(2.5)
    fields.sdf.requires_grad_()
    nan = float("nan")
    origins = torch.tensor([[[20.0, 0, 0], [0.0, 0, 0], [0.0, 0, 0], [0.0, 0, 0], [nan, 0, 0]]])
    directions = torch.tensor([[[1.0, 0, 0], [0.0, 0, 0], [nan, 0, 0], [1.0, 0, 0], [1.0, 0, 0]]])
    for alpha in ("consecutive", "gradient"):
        rays = _renderer(alpha)(fields, origins, directions)
        assert rays.valid.tolist() == [[False, False, False, True, False]]
        assert rays.opacity[0, :3].tolist() == [0, 0, 0]
        assert rays.range()[0, 3].item() == pytest.approx(2.5, abs=5e-3)
        (gradient,) = torch.autograd.grad(rays.range().sum() + rays.mean_flow().sum(), fields.sdf)
        assert torch.isfinite(gradient).all()
        assert torch.isfinite(rays.range()).all()


def test_an_empty_volume_is_transparent_and_a_thin_one_still_has_a_depth() -> None:
    origins, directions = torch.zeros(1, 1, 3), torch.tensor([[[1.0, 0.0, 0.0]]])
    empty = _wall(1e3)
    rays = _renderer("consecutive")(empty, origins, directions)
    assert rays.opacity.item() == pytest.approx(0.0, abs=1e-6)
    faint = Fields(_wall(2.5).sdf + 1.0, empty.flow, GRID)
    rays = _renderer("consecutive", v=0.05)(Fields(faint.sdf.clamp_min(0.8), faint.flow, GRID), origins, directions)
    assert 0.01 < rays.opacity.item() < 0.5
    assert rays.range().item() < 2.8, "divided by the weight sum, not pulled to zero by transparency"
    assert rays.range().item() > 1.5


def test_flow_is_only_rendered_on_request() -> None:
    rays = _renderer("consecutive")(
        _wall(2.0), torch.zeros(1, 1, 3), torch.tensor([[[1.0, 0.0, 0.0]]]), with_flow=False
    )
    assert rays.flow is None
    with pytest.raises(ValueError, match="with_flow=True"):
        rays.mean_flow()


def test_annealing_follows_the_step() -> None:
    renderer = Renderer(RenderConfig(alpha="gradient", anneal_steps=100, samples=32))
    behind = Fields(-_wall(2.5).sdf, _wall(0.0).flow, GRID)
    args = behind, torch.tensor([[[3.0, 0.0, 0.0]]]), torch.tensor([[[1.0, 0.0, 0.0]]])
    start, half, end = (renderer(*args, step=step).opacity.item() for step in (0, 50, 100))
    assert start == pytest.approx(0.0, abs=1e-6), "leaving matter is transparent whatever the annealing"
    flat = Fields(torch.full((1, *GRID.shape), 0.5), behind.flow, GRID)
    start, half, end = (renderer(flat, *args[1:], step=step).opacity.item() for step in (0, 50, 100))
    assert start > half > end == pytest.approx(0.0, abs=1e-6)
    assert renderer(flat, *args[1:], step=10_000).opacity.item() == end
    grazed = torch.zeros(1, 1, 3), torch.nn.functional.normalize(torch.tensor([[[0.2, 1.0, 0.0]]]), dim=-1)
    half, end, later, done = (renderer(_wall(2.5), *grazed, step=step).weights for step in (50, 100, 150, None))
    assert not torch.allclose(half, end, atol=1e-3)
    torch.testing.assert_close(later, end, rtol=0, atol=0)
    torch.testing.assert_close(done, end, rtol=0, atol=0)


def test_a_view_has_the_plane_at_constant_camera_depth(look: Callable[..., Tensor]) -> None:
    pose = look(0.0, (-4.0, 0.0, 1.0))
    K = torch.tensor([[30.0, 0, 8.0], [0, 30.0, 4.0], [0, 0, 1]])
    renderer = _renderer("consecutive")
    fields = _wall(2.5, (0.7, 0.2))
    view = render_view(renderer, fields, K, pose, (8, 16), chunk=50)
    assert view.depth.shape == (8, 16)
    torch.testing.assert_close(view.depth, torch.full((8, 16), 6.5), atol=5e-3, rtol=0)
    assert view.range.max() > view.depth.max() + 0.1
    torch.testing.assert_close(view.flow, torch.tensor([0.7, 0.2]).expand(8, 16, 2))
    assert view.valid.all()
    whole = render_view(renderer, fields, K, pose, (8, 16), chunk=10_000)
    torch.testing.assert_close(whole.depth, view.depth)
    with pytest.raises(ValueError, match="batch 2"):
        render_view(
            renderer, Fields(fields.sdf.repeat(2, 1, 1, 1), fields.flow.repeat(2, 1, 1, 1, 1), GRID), K, pose, (2, 2)
        )


def test_rays_pass_through_the_pixels_they_are_made_from(look: Callable[..., Tensor]) -> None:
    pose, K = look(0.8, (1.0, 2.0, 1.5)), torch.tensor([[30.0, 0.5, 8.0], [0, 28.0, 4.0], [0, 0, 1]])
    uv = torch.tensor([[0.5, 0.5], [9.0, 7.5]])
    origins, directions = camera_rays(K, pose, uv)
    assert torch.allclose(directions.norm(dim=-1), torch.ones(2))
    points = origins + 5.0 * directions
    local = (torch.linalg.inv(pose) @ torch.cat([points, torch.ones(2, 1)], 1).T)[:3]
    torch.testing.assert_close(((K @ local) / local[2]).T[:, :2], uv, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(to_camera_depth(torch.full((2,), 5.0), directions, pose), local[2])


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("compiled", [False, True])
def test_spreading_the_look_up_over_cores_changes_nothing(
    threads: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr("model.fields.use_compiled", lambda *_: False)
    monkeypatch.setattr("geometry.lookup.POINTS_PER_THREAD", 4096)
    volume = torch.randn(1, 2, *GRID.shape, requires_grad=True)
    points = torch.rand(1, 137, 97, 3) * 18 - 9
    expected = sample_volume(volume, points, GRID)
    torch.set_num_threads(threads)
    result = sample_field(volume, points, GRID)
    torch.testing.assert_close(result, expected)
    weight = torch.randn_like(expected)
    (ours,), (theirs,) = (torch.autograd.grad((x * weight).sum(), volume) for x in (result, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_gradient_of_the_rendered_distance_and_flow() -> None:
    grid = VoxelGrid((0.0, -1.0, -1.0), (4.0, 1.0, 1.0), (4, 2, 2))
    sdf = (torch.tensor([1.6, 0.7, -0.3, -1.4])[:, None, None].expand(4, 2, 2) + 0.05 * torch.randn(4, 2, 2)).double()
    sdf = sdf[None].requires_grad_()
    flow = torch.randn(1, 4, 2, 2, 2, dtype=torch.double, requires_grad=True)
    origins = torch.tensor([[[0.1, 0.2, 0.1]]], dtype=torch.double)
    directions = torch.nn.functional.normalize(torch.tensor([[[1.0, 0.1, -0.1]]], dtype=torch.double), dim=-1)
    for alpha in ("consecutive", "gradient"):
        renderer = _renderer(alpha, v=0.1, samples=7).double()

        def render(s: Tensor, f: Tensor, renderer: Renderer = renderer) -> tuple[Tensor, Tensor]:
            rays = renderer(Fields(s, f, grid), origins, directions)
            return rays.range(), rays.mean_flow()

        assert torch.autograd.gradcheck(render, (sdf, flow))


def test_the_gradient_field_of_a_plane_is_its_normal() -> None:
    gradient = _wall(2.5).sdf_gradient()
    assert torch.allclose(gradient[0, 0], torch.tensor(-1.0), atol=1e-4)
    assert torch.allclose(gradient[0, 1:], torch.tensor(0.0), atol=1e-4)
    flat = VoxelGrid((0.0, 0.0, 0.0), (4.0, 4.0, 1.0), (4, 4, 1))
    assert Fields(torch.randn(1, 4, 4, 1), torch.zeros(1, 4, 4, 1, 2), flat).sdf_gradient().shape == (1, 3, 4, 4, 1)
