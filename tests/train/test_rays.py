"""Ray grids, camera rays and landings: round trips, a point seen in two cameras, points behind the camera."""

import math

import numpy as np
import pytest
import torch

from geometry.cameras import project
from geometry.transforms import from_rotation_translation, invert, transform_points, yaw_transform
from train.rays import RayGrid, camera_rays, draw_ray_grid, land, lidar_rays

CAMERA_AXES = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Camera (x right, y down, z forward) looking along ego x, as columns in the ego frame."""


def test_grid_picks_its_own_pixels() -> None:
    v, u = torch.meshgrid(torch.arange(20), torch.arange(30), indexing="ij")
    image = torch.stack([u, v]) + 0.5
    grid = RayGrid(top=2, left=3, stride=4, rows=4, columns=6)
    picked = grid.pick(image)
    assert picked.shape == (2, 4, 6)
    assert torch.equal(picked.reshape(2, -1).T, grid.pixels())
    assert grid.pixels()[0].tolist() == [3.5, 2.5]
    assert grid.pixels()[-1].tolist() == [3 + 4 * 5 + 0.5, 2 + 4 * 3 + 0.5]


def test_drawn_grids_fit_and_reach_every_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(10, 14, dtype=torch.bool)
    strides = set()
    for _ in range(600):
        grid = draw_ray_grid((10, 14), (4, 6), (1, 9), generator)
        strides.add(grid.stride)
        pixels = grid.pixels().long()
        seen[pixels[:, 1], pixels[:, 0]] = True
    assert strides == {1, 2}
    assert seen.all()


def test_a_grid_too_large_for_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rays.grid \(16, 44\) at a stride of 4 .* 32x88"):
        draw_ray_grid((32, 88), (16, 44), (4, 8), torch.Generator())


def test_camera_ray_passes_through_its_pixel() -> None:
    K = torch.tensor([[50.0, 0.0, 44.0], [0.0, 55.0, 16.0], [0.0, 0.0, 1.0]]).double()
    ref_from_cam = torch.from_numpy(
        yaw_transform(0.7, [1.0, -2.0, 1.5]) @ from_rotation_translation(CAMERA_AXES, np.zeros(3))
    )
    pixels = RayGrid(0, 0, 7, 5, 12).pixels().double()
    rays = camera_rays(K.expand(1, 2, 3, 3), ref_from_cam.expand(1, 2, 4, 4), pixels)
    assert torch.allclose(torch.linalg.vector_norm(rays.directions, dim=-1), torch.ones(1, 120).double())
    points = rays.origins + 13.0 * rays.directions
    uv, depth, valid = project(K, transform_points(invert(ref_from_cam), points[0, 60:]))
    assert valid.all()
    assert torch.allclose(uv, pixels, atol=1e-9)
    assert torch.allclose(depth, 13.0 * rays.depth_per_metre[0, 60:])


def test_landing_of_a_point_seen_by_two_cameras_and_its_motion() -> None:
    """A point 10 m ahead; the second camera stands 2 m to the left and the point moves 1 m left and 2 m away."""
    K = torch.tensor([[[100.0, 0.0, 50.0], [0.0, 100.0, 30.0], [0.0, 0.0, 1.0]]])
    cam_from_ref = torch.from_numpy(invert(from_rotation_translation(CAMERA_AXES, np.array([0.0, 2.0, 0.0])))).float()[
        None
    ]
    points = torch.tensor([[[[10.0, 0.0, 0.0], [-10.0, 0.0, 0.0], [10.0, 40.0, 0.0]]]])
    still = land(points, cam_from_ref, K, (60, 100))
    assert still.uv[0, 0, 0].tolist() == pytest.approx([50 + 100 * 2 / 10, 30])
    assert still.in_front[0, 0].tolist() == [True, False, True]
    assert still.in_view[0, 0].tolist() == [True, False, False]
    moved = land(points, cam_from_ref, K, (60, 100), motion=torch.tensor([2.0, 1.0]).expand(1, 1, 3, 2))
    assert moved.uv[0, 0, 0].tolist() == pytest.approx([50 + 100 * 1 / 12, 30], abs=1e-4)


def test_ego_motion_round_trip() -> None:
    """Ray points taken to another ego pose's camera and back are where they were, at coordinates of 1e6 m."""
    world_a = yaw_transform(0.3, [1.1e6, -7.0e5, 30.0])
    world_b = yaw_transform(0.5, [1.1e6 + 4.0, -7.0e5 + 1.0, 30.1])
    b_from_a = torch.from_numpy(invert(world_b) @ world_a).float()
    a_from_b = torch.from_numpy(invert(world_a) @ world_b).float()
    points = torch.randn(50, 3) * 20
    assert torch.allclose(transform_points(a_from_b, transform_points(b_from_a, points)), points, atol=1e-4)


def test_lidar_rays_reach_their_returns() -> None:
    points = torch.tensor([[[3.0, 4.0, 1.0], [0.0, 0.0, 1.0]]])
    rays, ranges = lidar_rays(points, torch.tensor([0.0, 0.0, 1.0]).expand(1, 2, 3))
    assert ranges.tolist() == [[5.0, 0.0]]
    assert rays.directions[0, 0].tolist() == pytest.approx([0.6, 0.8, 0.0])
    assert math.isclose(float(torch.linalg.vector_norm(rays.directions[0, 1])), 1.0)
