"""Depth-aware lifting: voxels hear of the surface that their pixels predict, where it is."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from geometry.grid import VoxelGrid
from geometry.transforms import invert
from model.config import DepthLiftConfig
from model.depth_lift import DepthLift
from model.pixel_depth import DepthBins, PixelDepth
from model.visibility import CameraRig

GRID = VoxelGrid((0.0, -4.0, -2.0), (20.0, 4.0, 2.0), (20, 8, 4))
CONFIG = DepthLiftConfig(bins=32, context=2, nearest_m=1.0, farthest_m=40.0)
HEIGHT, WIDTH, FOCAL = 32, 64, 64.0


def rig(*yaws: float, valid: tuple[bool, ...] | None = None) -> CameraRig:
    """Cameras at the origin that look along x, turned by `yaws` about z."""
    poses = []
    for yaw in yaws:
        c, s = math.cos(yaw), math.sin(yaw)
        pose = torch.eye(4)
        pose[:3, :3] = torch.tensor([[s, 0.0, c], [-c, 0.0, s], [0.0, -1.0, 0.0]])
        poses.append(pose)
    K = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1.0]]).repeat(1, len(yaws), 1, 1)
    there = torch.tensor([valid or (True,) * len(yaws)])
    return CameraRig.build(K, torch.stack(poses)[None], there, (HEIGHT, WIDTH))


def lift(grid: VoxelGrid = GRID) -> DepthLift:
    """A lift whose linear layer passes on what the voxels read."""
    module = DepthLift(CONFIG, feature_dim=8, dim=6, grid=grid)
    module.project.weight.data = torch.eye(6)
    module.project.bias.data.zero_()
    return module


def wall(depth: float) -> tuple[PixelDepth, Tensor]:
    """What the head would predict if every pixel were sure of a surface at `depth` metres; context 1 and -2."""
    log_depths = torch.linspace(0, math.log(40), 32)
    logits = -((log_depths - math.log(depth)).abs() * 60)[None, :, None, None].expand(1, -1, 8, 16)
    context = torch.tensor([1.0, -2.0])[None, :, None, None].expand(1, -1, 8, 16)
    return PixelDepth(logits, DepthBins(0.0, math.log(40), 32)), context


def test_a_wall_is_where_the_pixels_say() -> None:
    module, cameras = lift(), rig(0.0)
    module.head.forward = lambda *_: wall(8.0)  # type: ignore[method-assign]
    features = module(torch.zeros(1, 8, 8, 16), cameras)[0][0]
    ahead = features[:, 4, 2]
    depths = torch.arange(20) + 0.5
    here, hidden, farther, sign, first, second = ahead[2:].unbind(dim=-1)
    assert depths[2:][here.argmax()].item() == pytest.approx(8.0, abs=1.0)
    assert (hidden[depths[2:] < 6] < 0.1).all()
    assert (hidden[depths[2:] > 10] > 0.9).all()
    assert (farther[depths[2:] < 7] > 0).all()
    assert (farther[depths[2:] > 9] < 0).all()
    assert torch.allclose(farther, 2 * (math.log(8.0) - depths[2:].log()).clamp(-1, 1), atol=0.02)
    assert (sign.abs() <= 1).all()
    assert torch.allclose(first, here, atol=1e-5)
    assert torch.allclose(second, -2 * here, atol=1e-5)


def test_the_distance_to_the_wall_in_metres() -> None:
    config = CONFIG.model_copy(update={"metric_m": (1.0, 4.0)})
    module = DepthLift(config, feature_dim=8, dim=8, grid=GRID)
    module.project.weight.data = torch.eye(8)
    module.project.bias.data.zero_()
    module.head.forward = lambda *_: wall(8.0)  # type: ignore[method-assign]
    ahead = module(torch.zeros(1, 8, 8, 16), rig(0.0))[0][0][2:, 4, 2]
    metres = 8.0 - (torch.arange(20) + 0.5)[2:]
    for column, length in ((4, 1.0), (5, 4.0)):
        assert torch.allclose(ahead[:, column], (metres / length).tanh(), atol=0.1 / length)
    assert torch.allclose(ahead[:, 6], ahead[:, 0], atol=1e-5), "the context comes last"


def test_mixing_starts_as_the_identity_and_reaches_the_neighbours() -> None:
    torch.manual_seed(0)
    module = DepthLift(CONFIG.model_copy(update={"mix": True}), feature_dim=8, dim=6, grid=GRID)
    volume, lifted = torch.randn(2, 1, *GRID.shape, 6)
    assert module.mix is not None
    assert torch.equal(module.add(volume, lifted), volume + lifted)
    assert torch.equal(lift().add(volume, lifted), volume + lifted), "without it nothing is mixed"
    module.mix.conv2.weight.data.normal_()
    changed = volume.clone()
    changed[0, 10, 4, 2] += 100 * torch.randn(6)
    difference = (module.add(changed, lifted) - module.add(volume, lifted)).abs().amax(dim=-1)[0]
    assert difference[8:13, 2:7].min() > 0, "two convolutions reach two voxels"


def test_what_no_camera_sees_is_zero() -> None:
    """Behind the only camera, beside its field of view, or with the camera missing."""
    module = lift(VoxelGrid((-20.0, -20.0, -2.0), (20.0, 20.0, 2.0), (20, 20, 2)))
    level = torch.randn(1, 8, 8, 16)
    seen = module(level, rig(0.0))[0][0].abs().sum(dim=-1) > 0
    assert not seen[:10].any()
    assert not seen[12, 0].any()
    assert seen[15, 9:11].all()
    nothing = module(level, rig(0.0, valid=(False,)))[0]
    assert torch.equal(nothing, torch.zeros_like(nothing))


def test_cameras_that_both_see_a_voxel_are_averaged() -> None:
    module = lift()
    level = torch.randn(2, 8, 8, 16)
    together = module(level, rig(0.0, 0.2))[0][0]
    alone = [module(level[i : i + 1], rig(yaw))[0][0] for i, yaw in enumerate((0.0, 0.2))]
    sees = [part.abs().sum(dim=-1) > 0 for part in alone]
    both = sees[0] & sees[1]
    assert both.any()
    assert torch.allclose(together[both], (alone[0] + alone[1])[both] / 2, atol=1e-5)
    only = sees[0] & ~sees[1]
    assert only.any()
    assert torch.allclose(together[only], alone[0][only], atol=1e-5)


def test_the_order_of_cameras_does_not_matter() -> None:
    module, level = lift(), torch.randn(2, 8, 8, 16)
    assert torch.allclose(module(level, rig(0.0, 1.0))[0], module(level.flip(0), rig(1.0, 0.0))[0], atol=1e-5)


def test_every_part_learns_and_hostile_poses_stay_finite() -> None:
    module, level = lift(), torch.randn(1, 8, 8, 16, requires_grad=True)
    cameras = rig(0.0)
    shifted = cameras._replace(cam_from_ref=invert(torch.eye(4)).repeat(1, 1, 1, 1))
    for one in (cameras, shifted):
        out, _ = module(level, one)
        assert torch.isfinite(out).all()
    module(level, cameras)[0].square().sum().backward()
    assert level.grad is not None
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("values", [{"bins": 1}, {"bins": 8, "nearest_m": 5.0, "farthest_m": 5.0}, {"bins": -1}])
def test_impossible_settings_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        DepthLiftConfig.model_validate(values)
