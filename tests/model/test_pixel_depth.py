"""What image cells are told of their rays, and depths among bins."""

import math

import pytest
import torch

from geometry.transforms import invert
from model.config import DepthLiftConfig
from model.pixel_depth import DepthBins, PixelDepthHead, ray_map
from model.visibility import CameraRig

BINS = DepthBins(0.0, math.log(40.0), 5)


def forward_camera(height: float, pitch: float = 0.0) -> CameraRig:
    """One camera `height` metres above the ego origin that looks along x, turned down by `pitch`."""
    pose = torch.eye(4)
    axes = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    c, s = math.cos(pitch), math.sin(pitch)
    pose[:3, :3] = torch.tensor([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]]) @ axes
    pose[2, 3] = height
    K = torch.tensor([[50.0, 0, 40.0], [0, 50.0, 20.0], [0, 0, 1.0]])
    return CameraRig.build(K[None, None], pose[None, None], torch.ones(1, 1, dtype=torch.bool), (40, 80))


def test_bins_by_hand() -> None:
    """Five bins from 1 to 40 m: the middle one at sqrt(40) m."""
    assert BINS.centres(torch.zeros(1)).exp().tolist() == pytest.approx([1, 40**0.25, 40**0.5, 40**0.75, 40], rel=1e-5)
    assert BINS.position(torch.tensor([40.0]).sqrt().log()).item() == pytest.approx(2.0, abs=1e-5)
    assert BINS.position(torch.tensor([400.0]).log()).item() > 4


def test_a_ray_knows_where_the_ground_is() -> None:
    """Camera 1.5 m up, cell centre 10 pixels below the middle: falls 0.2 m a metre, meets z = 0 at 7.5 m of depth."""
    rays = ray_map(forward_camera(1.5), (2, 4), BINS, ground_z=0.0)
    assert rays.shape == (1, 5, 2, 4)
    upper, lower = rays[0, :, 0, 2], rays[0, :, 1, 2]
    assert lower[3].item() == pytest.approx(math.log(7.5) / math.log(40), abs=1e-5)
    assert lower[4] == 1
    assert upper[3:].tolist() == [1.0, 0.0]
    assert torch.allclose(rays[0, :3].norm(dim=0), torch.ones(2, 4))
    # u = 50 of a camera centred at 40: to the right, which is -y.
    assert torch.allclose(lower[:3] / lower[0], torch.tensor([1.0, -0.2, -0.2]), atol=1e-6)
    higher = ray_map(forward_camera(1.5), (2, 4), BINS, ground_z=1.0)
    assert higher[0, 3, 1, 2].item() == pytest.approx(math.log(2.5) / math.log(40), abs=1e-5)


def test_a_turned_camera_and_one_below_the_ground() -> None:
    """Looking down by 45 degrees the middle row falls a metre a metre of x, and depth is along the axis."""
    down = ray_map(forward_camera(1.5, math.pi / 4), (1, 1), BINS, ground_z=0.0)
    assert down[0, 3].item() == pytest.approx(math.log(1.5 * math.sqrt(2)) / math.log(40), abs=1e-5)
    below = ray_map(forward_camera(-1.0, 0.5), (2, 2), BINS, ground_z=0.0)
    assert (below[0, 3] == 1).all()
    assert (below[0, 4] == 0).all()


def test_head_shapes_hostile_rigs_and_gradients() -> None:
    head = PixelDepthHead(DepthLiftConfig(bins=8, context=3, width=16), feature_dim=6)
    level = torch.randn(1, 6, 5, 10, requires_grad=True)
    depth, context = head(level, forward_camera(1.5))
    assert depth.logits.shape == (1, 8, 5, 10)
    assert context.shape == (1, 3, 5, 10)
    assert depth.bins.count == 8
    rig = forward_camera(1.5)
    missing = CameraRig.build(
        rig.K * float("nan"), invert(rig.cam_from_ref) * float("nan"), torch.zeros(1, 1, dtype=torch.bool), (40, 80)
    )
    assert torch.isfinite(head(level, missing)[0].logits).all()
    (depth.logits.square().sum() + context.square().sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in head.parameters())
