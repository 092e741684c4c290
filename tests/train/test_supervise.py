"""Every cue against an analytic world: at the true depth and motion the losses vanish, elsewhere they do not."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from geometry.transforms import invert, transform_points
from model.fields import Fields
from model.network import OccFlow
from model.render import Renderer
from train.batch import Batch, collate
from train.cast import CameraCast, cast_camera_rays, cast_ranges
from train.config import TrainConfig
from train.data import KeyframeDataset
from train.losses.photometric import photometric_loss
from train.module import StageModule
from train.rays import RayGrid, camera_rays, lidar_rays
from train.supervise import (
    calm_static,
    compare_with,
    everything_free,
    everything_static,
    matter_on_jittered_grid,
    separate_motion,
    supervise_flow,
)
from train.supervise_lidar import supervise_ranges

Make = Callable[..., TrainConfig]
FULL = RayGrid(top=0, left=0, stride=1, rows=16, columns=32)


def batch_at(config: TrainConfig, t: int, stage: int = 2) -> Batch:
    return collate([KeyframeDataset(config, stage, [("a", t)], 2**24)[0, 0]])


def true_cast(world: Any, batch: Batch, t: int, scale: float = 1.0, motion: bool = True) -> CameraCast:
    """Three samples per ray, at 0.5, 1 and 1.5 of (scale times) the true depth, all weight on the middle one."""
    pixels = FULL.pixels()
    rays = camera_rays(batch.K, batch.ref_from_cam, pixels)
    looks = [world.look(world.camera_time(t, c), c, world.render_size) for c in range(2)]
    depth = torch.from_numpy(np.stack([look["depth"].reshape(-1) for look in looks])).float()
    kind = torch.from_numpy(np.stack([look["kind"].reshape(-1) for look in looks]))
    middle = scale * torch.where(depth.isinf(), torch.full_like(depth, 40.0), depth)
    ranges = middle / rays.depth_per_metre.reshape(2, -1)
    distances = ranges[..., None] * torch.tensor([0.5, 1.0, 1.5])
    origins, directions = rays.origins.reshape(2, -1, 3), rays.directions.reshape(2, -1, 3)
    points = origins[:, :, None] + distances[..., None] * directions[:, :, None]
    weights = torch.zeros_like(distances)
    weights[..., 1] = 0.9
    ego = invert(world.ego(t * 0.5))
    velocity = torch.from_numpy(ego[:2, :2] @ np.array(world.box_velocity)).float()
    flow = torch.where((kind == 1)[..., None, None], velocity * 0.5, torch.zeros(2)).expand(-1, -1, 3, -1)
    there = batch.camera_valid.flatten()[:, None].expand(-1, 512)
    return CameraCast(
        grid=FULL,
        size=(16, 32),
        pixels=pixels,
        colours=FULL.pick(batch.images.flatten(0, 1)).float() / 255,
        met=there,
        usable=there,
        weights=weights.requires_grad_(),
        distances=distances,
        points=points,
        flow=(flow if motion else torch.zeros_like(flow)).clone().requires_grad_(),
        range=ranges,
        depth=middle,
        surface=points[:, :, 1:2],
        sdf=torch.ones_like(distances),
    )


def box_rays(world: Any, t: int) -> torch.Tensor:
    kinds = [world.look(world.camera_time(t, c), c, world.render_size)["kind"].reshape(-1) for c in range(2)]
    return torch.from_numpy(np.stack(kinds)) == 1


def test_a_static_scene_at_true_depth_has_no_dynamic_rays(make_world: Any, tiny_config: Make, tmp_path: Any) -> None:
    world = make_world(box_velocity=(0.0, 0.0))
    batch = batch_at(tiny_config(store=world.write(tmp_path / "s.zarr")), 2)
    assert batch.movable is not None
    batch.movable[:] = True
    motion = separate_motion(true_cast(world, batch, 2), batch, pixels=0.1)
    assert not motion.dynamic.any()
    assert motion.static.all()
    wrong = separate_motion(true_cast(world, batch, 2, scale=0.5), batch, pixels=0.1)
    assert wrong.dynamic.any()


def test_the_moving_box_is_dynamic_and_nothing_else(world: Any, tiny_config: Make) -> None:
    batch = batch_at(tiny_config(), 1)
    assert batch.movable is not None
    assert batch.flow_next is not None
    known = FULL.pick(batch.flow_next.known.flatten(0, 1)).flatten(1)
    batch.movable[:] = True
    motion = separate_motion(true_cast(world, batch, 1), batch, pixels=0.5)
    assert motion.dynamic.sum() > 5
    assert torch.equal(motion.dynamic, box_rays(world, 1) & known)
    batch.movable[:] = False
    assert not separate_motion(true_cast(world, batch, 1), batch, pixels=0.5).dynamic.any()


def test_photometric_loss_is_least_at_the_true_depth(world: Any, tiny_config: Make) -> None:
    batch = batch_at(tiny_config(), 1, stage=1)
    both, later = {}, {}
    for scale in (0.6, 0.8, 1.0, 1.25, 1.6):
        cast = true_cast(world, batch, 1, scale)
        still = everything_static(cast)
        # Further away the texture is finer than these few pixels.
        near = still.static & ~box_rays(world, 1) & (true_cast(world, batch, 1).depth < 5.5)
        comparisons = [compare_with(cast, view, still, near) for view in (batch.earlier, batch.later)]
        both[scale] = photometric_loss(comparisons, automask=False).loss.item()
        later[scale] = photometric_loss(comparisons[1:], automask=False).loss.item()
    for losses in (both, later):
        assert min(losses, key=lambda s: losses[s]) == 1.0
    # The later keyframe is a metre away, the earlier sweep a third of one: a small baseline says little.
    assert later[1.0] < 0.5 * min(later[0.8], later[1.25])


def test_true_motion_explains_the_box(world: Any, tiny_config: Make) -> None:
    batch = batch_at(tiny_config(), 1)
    box = box_rays(world, 1)
    losses = []
    for motion in (True, False):
        cast = true_cast(world, batch, 1, motion=motion)
        moving = everything_free(cast)
        comparison = compare_with(cast, batch.later, moving, box & cast.usable)
        assert comparison.valid.any()
        loss = photometric_loss([comparison], automask=False).loss
        (gradient,) = torch.autograd.grad(loss, cast.flow)
        assert (gradient[box].abs().sum() > 0).item()
        assert (gradient[~box] == 0).all()
        losses.append(loss.item())
    assert losses[0] < 0.6 * losses[1]


def test_static_rays_take_no_gradient_to_the_flow_and_dynamic_rays_none_to_the_geometry(
    world: Any, tiny_config: Make
) -> None:
    config = tiny_config()
    batch = batch_at(config, 1)
    cast = true_cast(world, batch, 1, scale=1.1)
    motion = separate_motion(true_cast(world, batch, 1), batch, pixels=0.5)
    flow = supervise_flow(cast, batch, motion, config)
    assert flow.dynamic_rays > 5
    assert flow.static_rays > 300
    (to_weights,) = torch.autograd.grad(flow.dynamic, cast.weights, retain_graph=True, allow_unused=True)
    assert to_weights is None or (to_weights == 0).all()
    (to_flow,) = torch.autograd.grad(flow.static, cast.flow, retain_graph=True, allow_unused=True)
    assert to_flow is None or (to_flow == 0).all()
    (to_flow,) = torch.autograd.grad(flow.dynamic, cast.flow, retain_graph=True)
    assert (to_flow[~motion.dynamic] == 0).all()
    assert (to_flow[motion.dynamic].abs().sum() > 0).item()


def test_flow_loss_vanishes_at_truth_and_is_stated_at_the_reference_width(world: Any, tiny_config: Make) -> None:
    config = tiny_config()
    batch = batch_at(config, 1)
    motion = separate_motion(true_cast(world, batch, 1), batch, pixels=0.5)
    truth = supervise_flow(true_cast(world, batch, 1), batch, motion, config)
    still = supervise_flow(true_cast(world, batch, 1, motion=False), batch, motion, config)
    # 1/64 px of storage, in pixels at 704 from 32: below 22 * 0.04 px on average.
    assert truth.total.item() < 1.0
    assert still.dynamic.item() > 20 * truth.dynamic.item()
    assert still.static.item() == pytest.approx(truth.static.item())
    half = config.model_copy(update={"loss": config.loss.model_copy(update={"reference_width": 352})})
    narrower = supervise_flow(true_cast(world, batch, 1), batch, motion, half)
    assert narrower.static.item() == pytest.approx(truth.static.item() / 2)


@pytest.mark.parametrize("triangulated", [0, 100])
def test_switches_choose_the_parts(world: Any, tiny_config: Make, triangulated: int) -> None:
    """Also where points are triangulated from both cues, so that the sample has read them anyhow."""
    counts = {}
    for forward in (False, True):
        for backward in (False, True):
            switches = {"forward_static_flow": forward, "backward_static_flow": backward}
            config = tiny_config(ablation=switches, rays={"triangulated": triangulated})
            batch = batch_at(config, 1)
            assert (batch.flow_back is not None) == backward
            motion = separate_motion(true_cast(world, batch, 1), batch, pixels=0.5)
            counts[forward, backward] = supervise_flow(true_cast(world, batch, 1), batch, motion, config).static_rays
    assert counts[False, False] == 0
    assert counts[True, True] == counts[True, False] + counts[False, True] > counts[True, False] > 0


def test_no_cue_no_neighbour_no_returns_is_no_loss(world: Any, tiny_config: Make) -> None:
    config = tiny_config()
    batch = batch_at(config, 1)
    assert batch.flow_next is not None
    assert batch.flow_back is not None
    assert batch.return_valid is not None
    for mask in (
        batch.flow_next.known,
        batch.flow_back.known,
        batch.later.valid,
        batch.earlier.valid,
        batch.return_valid,
    ):
        mask[:] = False
    cast = true_cast(world, batch, 1)
    motion = separate_motion(cast, batch, 0.5)
    assert not motion.dynamic.any()
    photo = photometric_loss([compare_with(cast, view, motion, motion.static) for view in (batch.earlier, batch.later)])
    flow = supervise_flow(cast, batch, motion, config)
    assert (photo.loss.item(), photo.rays, flow.total.item(), flow.static_rays) == (0, 0, 0, 0)
    nobody = everything_static(cast)
    nobody.static = nobody.static & False
    assert calm_static(cast, nobody, config.loss).item() == 0
    (gradient,) = torch.autograd.grad(photo.loss + flow.total, cast.weights, allow_unused=True)
    assert gradient is None or torch.isfinite(gradient).all()


def wall_fields(config: TrainConfig, x: float) -> Fields:
    """Matter beyond the plane at x metres ahead."""
    grid = config.model.grid.build()
    centres = torch.from_numpy(grid.centres()).float()
    return Fields(sdf=(x - centres[..., 0])[None], flow=torch.zeros(1, *grid.shape, 2), grid=grid)


def half_a_wall_fields(config: TrainConfig, x: float) -> Fields:
    """That wall to the left alone; to the right nothing, 30 m from any surface."""
    wall = wall_fields(config, x)
    sdf = wall.sdf.clone()
    sdf[:, :, : wall.grid.shape[1] // 2] = 30.0
    return Fields(sdf, wall.flow, wall.grid)


def test_cast_finds_a_wall_and_the_far_sample_holds_the_rest(world: Any, tiny_config: Make) -> None:
    config = tiny_config()
    batch = batch_at(config, 1)
    renderer = Renderer(config.model.render.model_copy(update={"temperature_v": 0.3, "samples": 96}))
    count = 2 * 512
    kwargs: dict[str, Any] = {"jitter": torch.full((1, count), 0.5), "step": 10**6, "with_flow": True}
    with torch.no_grad():
        cast = cast_camera_rays(wall_fields(config, 12.0), renderer, batch, FULL, far_sample=True, **kwargs)
        ahead = cast.image(cast.depth)[0, 10, 16]
        assert ahead == pytest.approx(11.0, abs=0.5)  # the camera stands 1 m ahead of the ego origin
        assert torch.allclose(cast.weights.sum(dim=-1), torch.ones(2, 512), atol=1e-4)
        empty = cast_camera_rays(wall_fields(config, 1e4), renderer, batch, FULL, far_sample=True, **kwargs)
        exit_distance = empty.distances[..., -1]
        assert torch.allclose(empty.range, exit_distance, rtol=1e-3)
        without = cast_camera_rays(wall_fields(config, 12.0), renderer, batch, FULL, far_sample=False, **kwargs)
    assert without.weights.shape[-1] == cast.weights.shape[-1] - 1
    surface = transform_points(invert(batch.ref_from_cam[0]), cast.surface[:, :, 0])
    assert torch.allclose(surface[..., 2], cast.depth, rtol=1e-4)


def returns_ahead(config: TrainConfig, count: int) -> tuple[Batch, Renderer]:
    """A batch whose returns lie side by side 10 m ahead of the ego origin, and a renderer with sharp surfaces."""
    batch = batch_at(config, 1)
    y = torch.linspace(-6, 6, count)
    batch.return_points = torch.stack([torch.full_like(y, 10.0), y, torch.full_like(y, 1.8)], dim=-1)[None]
    batch.return_valid = batch.return_own = torch.ones(1, count, dtype=torch.bool)
    return batch, Renderer(config.model.render.model_copy(update={"temperature_v": 0.3, "samples": 96}))


def test_lidar_loss_knows_the_right_wall(world: Any, tiny_config: Make) -> None:
    """Returns on a plane 10 m ahead: that plane's field has the least loss, whatever the scale of the others."""
    config = tiny_config()
    batch, renderer = returns_ahead(config, 128)
    assert batch.return_origins is not None
    batch.return_origins = batch.return_origins[:, :128]
    losses, spreads = {}, {}
    weights = config.loss.model_copy(update={"lidar_spread": 1.0})
    with torch.no_grad():
        for x in (5.0, 10.0, 20.0):
            generator = torch.Generator().manual_seed(0)
            fields = wall_fields(config, x)
            found = supervise_ranges(fields, renderer, batch, weights, step=10**6, far_sample=True, generator=generator)
            assert found.returns == 128
            losses[x], spreads[x] = found.ranges.item(), found.spread.item()
        rays, measured = lidar_rays(batch.return_points, batch.return_origins)
        ranges = cast_ranges(
            wall_fields(config, 10.0), renderer, rays, jitter=torch.zeros(1, 128), step=10**6, far_sample=True
        ).range
    assert losses[10.0] < 0.05
    assert spreads[10.0] < 0.1
    assert spreads[5.0] == pytest.approx(math.log(2), abs=0.1)
    assert spreads[20.0] == pytest.approx(math.log(2), abs=0.1)
    assert losses[10.0] < 0.2 * min(losses[5.0], losses[20.0])
    assert torch.allclose(ranges, measured, rtol=0.05)


def test_without_a_far_sample_rays_that_hold_no_light_are_dropped_and_counted(world: Any, tiny_config: Make) -> None:
    """A wall to the left, nothing to the right: no range is rendered there, and 0 m is none."""
    config = tiny_config()
    batch, renderer = returns_ahead(config, 64)
    batch.return_origins = torch.tensor([0.0, 0.0, 1.8]).expand(1, 64, 3)
    fields = half_a_wall_fields(config, 10.0)
    assert batch.return_points is not None
    seen, clear = batch.return_points[..., 1] > 2, batch.return_points[..., 1].abs() > 2
    found = {}
    for name, valid in (("all", clear), ("seen", seen)):
        batch.return_valid = valid
        found[name] = supervise_ranges(
            fields, renderer, batch, config.loss.model_copy(update={"surface": 1.0}),
            step=10**6, far_sample=False, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    assert found["seen"].ranges < 0.05
    assert found["all"].ranges.item() == pytest.approx(found["seen"].ranges.item(), abs=1e-6)
    assert found["seen"].returns == found["all"].returns == seen.sum()
    assert found["all"].surface > 10, "what is missing is still asked for"

    kwargs: dict[str, Any] = {"jitter": torch.full((1, 1024), 0.5), "step": 10**6, "with_flow": True}
    with torch.no_grad():
        cast, whole = (
            cast_camera_rays(fields, renderer, batch, FULL, far_sample=far, **kwargs) for far in (False, True)
        )
    lit = cast.weights.sum(dim=-1) > 1e-3
    assert (cast.usable == lit).all()
    assert 0.1 < lit.float().mean() < 0.9
    assert whole.usable.all()
    assert cast.depth[cast.usable].min() > 1.0


def test_a_volume_is_as_empty_without_a_far_sample_as_with_one(tiny_config: Make) -> None:
    """A wall to the left, nothing to the right: rays that hold no light are not usable, but cameras see them."""
    told = []
    for far in (True, False):
        config = tiny_config(rays={"far_sample": far})
        batch = batch_at(config, 1)
        batch.camera_valid[:, 1] = False
        module = StageModule(config, 1, OccFlow(config.model), total_steps=10)
        module.whole_steps = 10**6
        with torch.no_grad():
            cast = module._cast(half_a_wall_fields(config, 10.0), batch, torch.Generator().manual_seed(0))
        module._record_cast(cast, everything_static(cast))
        told.append(module.numbers)
    with_far, without = told
    assert 0.1 < with_far["render/opacity"] < 0.9
    assert without["render/opacity"] == pytest.approx(with_far["render/opacity"], abs=1e-6)
    assert without["rays/usable"] < 0.9 * with_far["rays/usable"]


def test_rays_that_start_inside_matter_are_seen_by_the_free_space_term_alone(world: Any, tiny_config: Make) -> None:
    """A ball of matter around the LiDAR, a wall where the returns are: rendering leaves the ball without weight."""
    config = tiny_config()
    batch, renderer = returns_ahead(config, 64)
    batch.return_origins = torch.tensor([0.0, 0.0, 1.8]).expand(1, 64, 3)
    wall = wall_fields(config, 10.0)
    grid = wall.grid
    axes = [
        torch.arange(n) * size + low + size / 2
        for n, size, low in zip(grid.shape, grid.voxel_size, grid.lower, strict=True)
    ]
    ball = (torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) - batch.return_origins[0, 0]).norm(dim=-1) - 4.0
    found = {}
    with torch.no_grad():
        for name, sdf in (("wall", wall.sdf), ("ball and wall", torch.minimum(wall.sdf, ball))):
            found[name] = supervise_ranges(
                Fields(sdf, wall.flow, grid), renderer, batch, config.loss.model_copy(update={"free_space": 1.0}),
                step=10**6, far_sample=True, generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
    assert found["ball and wall"].ranges < 0.05
    assert found["wall"].free < 0.01
    # 4.2 m at its middle, none 4.2 m further, over the 9.6 m to a metre before the return: 0.92 m, less what voxels of
    # 1.6 m round off at the middle.
    assert 0.5 < found["ball and wall"].free < 0.92


def test_what_is_missing_is_drawn_to_its_returns_by_the_surface_term_alone(world: Any, tiny_config: Make) -> None:
    """A wall behind the returns, the volume empty where they are: only the surface term says anything there."""
    config = tiny_config()
    batch, renderer = returns_ahead(config, 64)
    batch.return_origins = torch.tensor([0.0, 0.0, 1.8]).expand(1, 64, 3)
    wall = wall_fields(config, 20.0)
    sdf = wall.sdf.clone().requires_grad_()
    terms = supervise_ranges(
        Fields(sdf, wall.flow, wall.grid), renderer, batch,
        config.loss.model_copy(update={"surface": 1.0, "lidar_spread": 1.0, "free_space": 1.0}),
        step=10**6, far_sample=True, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert terms.surface.item() == pytest.approx(10.0, abs=0.1)
    at_returns = wall.grid.index_coordinates(batch.return_points[0]).floor().long()
    drawn = {}
    for name in ("ranges", "spread", "free", "surface"):
        (gradient,) = torch.autograd.grad(getattr(terms, name), sdf, retain_graph=True)
        drawn[name] = gradient[0][tuple(at_returns.T)].abs().max().item()
    assert drawn["surface"] > 1e-3
    assert max(drawn["ranges"], drawn["spread"], drawn["free"]) < 1e-6 * drawn["surface"]


def test_matter_on_a_half_full_grid(tiny_config: Make) -> None:
    """Matter beyond x = 0 with depth growing to 25.6 m: half the volume, 12.8 m deep on average."""
    fields = wall_fields(tiny_config(), 0.0)
    loss = matter_on_jittered_grid(fields, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(6.4, abs=0.1)
