"""Projection and back-projection by hand, in two cameras, behind the camera; K under resizing and cropping."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geometry.cameras import (
    MIN_DEPTH,
    ImageTransform,
    camera_directions,
    check_intrinsics,
    in_image,
    pixel_centres,
    project,
    scale_intrinsics,
    unproject,
)
from geometry.transforms import from_rotation_translation, invert, transform_points, yaw_transform

K = np.array([[100.0, 0.0, 32.0], [0.0, 120.0, 24.0], [0.0, 0.0, 1.0]])
EGO_AXES = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
"""ego_from_cam rotation of a camera that looks forward."""


def test_projection_by_hand() -> None:
    points = np.array([[0.0, 0, 5], [1, -2, 10], [-3, 4, 2]])
    uv, depth, valid = project(K, points)
    np.testing.assert_allclose(uv, [[32, 24], [42, 0], [-118, 264]])
    np.testing.assert_array_equal(depth, [5, 10, 2])
    assert valid.all()
    skewed = K + np.array([[0, 7.0, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(project(skewed, points)[0], [[32, 24], [42 - 1.4, 0], [-118 + 14, 264]])


@settings(max_examples=60, deadline=None)
@given(u=st.floats(-200, 200), v=st.floats(-200, 200), depth=st.floats(0.01, 1000), skew=st.floats(-5, 5))
def test_unproject_inverts_project(u: float, v: float, depth: float, skew: float) -> None:
    matrix = K.copy()
    matrix[0, 1] = skew
    points = unproject(matrix, np.array([[u, v]]), np.array([depth]))
    assert points[0, 2] == pytest.approx(depth)
    uv, z, valid = project(matrix, points)
    assert valid.all()
    np.testing.assert_allclose(uv, [[u, v]], atol=1e-8)
    np.testing.assert_allclose(z, [depth])
    # by the definition: K times the point is depth times homogeneous pixel coordinates
    np.testing.assert_allclose(matrix @ points[0], depth * np.array([u, v, 1]), atol=1e-7 * depth)


def test_numpy_and_torch_agree_in_batches() -> None:
    rng = np.random.default_rng(0)
    matrices = K + np.stack([np.diag([i, 2.0 * i, 0]) for i in range(4)])
    points = rng.normal(0, 5, (4, 9, 3))
    here, there = project(matrices, points), project(torch.as_tensor(matrices), torch.as_tensor(points))
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a, b.numpy())
    assert not here[2].all()
    uv = rng.uniform(0, 60, (4, 9, 2))
    directions = camera_directions(matrices, uv)
    np.testing.assert_allclose(directions, camera_directions(torch.as_tensor(matrices), torch.as_tensor(uv)).numpy())
    np.testing.assert_array_equal(directions[..., 2], 1)


def test_points_behind_the_camera() -> None:
    """Not valid, finite coordinates, and no gradient that could blow up."""
    points = torch.tensor([[1.0, 1, -5], [1, 1, 0], [1, 1, MIN_DEPTH / 2], [0, 0, 3]], requires_grad=True)
    uv, depth, valid = project(torch.as_tensor(K, dtype=torch.float32), points)
    assert valid.tolist() == [False, False, False, True]
    assert depth.tolist() == pytest.approx([-5, 0, MIN_DEPTH / 2, 3])
    assert torch.isfinite(uv).all()
    uv.sum().backward()
    assert points.grad is not None
    assert torch.isfinite(points.grad).all()
    assert (points.grad[:3, 2] == 0).all()
    assert points.grad[3].tolist() == pytest.approx([100 / 3, 40, 0])


def test_nan_points_are_not_valid() -> None:
    uv, _, valid = project(K, np.array([[np.nan, 0.0, 5.0], [0.0, 0.0, np.nan]]))
    assert valid.tolist() == [True, False]
    assert not in_image(uv, 48, 64)[0]


def test_gradients_of_projection() -> None:
    rng = np.random.default_rng(0)
    points = torch.as_tensor(rng.uniform([-2, -2, 1], [2, 2, 9], (6, 3))).requires_grad_()
    matrix = torch.as_tensor(K).requires_grad_()
    assert torch.autograd.gradcheck(lambda k, p: project(k, p)[0], (matrix, points))
    uv = torch.as_tensor(rng.uniform(0, 60, (6, 2))).requires_grad_()
    depth = torch.as_tensor(rng.uniform(1, 9, 6)).requires_grad_()
    assert torch.autograd.gradcheck(unproject, (matrix, uv, depth))


def test_a_point_seen_in_two_cameras() -> None:
    """Each camera has its own time, so its own ego pose. A point of the world that does not move must be carried from
    one picture into the other by depth, K and poses alone; the two viewing rays must meet in it."""
    point = np.array([1012.0, 505.0, 1.3])
    ego_from_cam = [
        from_rotation_translation(EGO_AXES, np.array([1.7, 0.0, 1.5])),
        from_rotation_translation(yaw_transform(0.9, [0, 0, 0])[:3, :3] @ EGO_AXES, np.array([1.5, 0.5, 1.5])),
    ]
    global_from_ego = [yaw_transform(0.1, [1000.0, 500, 0]), yaw_transform(-0.2, [1001.0, 500.3, 0])]
    global_from_cam = [pose @ mount for pose, mount in zip(global_from_ego, ego_from_cam, strict=True)]
    matrices = [K, np.array([[80.0, 0, 30], [0, 80, 20], [0, 0, 1]])]
    uv, depth = [], []
    for matrix, pose in zip(matrices, global_from_cam, strict=True):
        p, z, valid = project(matrix, transform_points(invert(pose), point[None]))
        assert valid.all()
        uv.append(p)
        depth.append(z)
    second_from_first = invert(global_from_cam[1]) @ global_from_cam[0]
    carried = project(matrices[1], transform_points(second_from_first, unproject(matrices[0], uv[0], depth[0])))
    np.testing.assert_allclose(carried[0], uv[1], atol=1e-7)
    np.testing.assert_allclose(carried[1], depth[1], atol=1e-9)
    # rays o + s d of both cameras: the least-squares crossing point
    origins = [pose[:3, 3] for pose in global_from_cam]
    rays = [
        pose[:3, :3] @ camera_directions(matrix, p)[0]
        for pose, matrix, p in zip(global_from_cam, matrices, uv, strict=True)
    ]
    s, residual, *_ = np.linalg.lstsq(np.stack([rays[0], -rays[1]], axis=1), origins[1] - origins[0], rcond=None)
    np.testing.assert_allclose(origins[0] + s[0] * rays[0], point, atol=1e-6)
    assert residual.max() < 1e-12


def test_the_wrong_ego_pose_shows() -> None:
    """35 ms at 8 m/s: reusing one pose for every camera of a keyframe moves this point by several pixels."""
    ego_from_cam = from_rotation_translation(yaw_transform(np.pi / 2, [0, 0, 0])[:3, :3] @ EGO_AXES, np.zeros(3))
    point = np.array([[3.0, 6.0, 0.5]])
    uv = [
        project(K, transform_points(invert(yaw_transform(0.0, [0.28 * late, 0, 0]) @ ego_from_cam), point))[0]
        for late in (0, 1)
    ]
    assert np.linalg.norm(uv[1] - uv[0]) == pytest.approx(100 * 0.28 / 6)


def test_pixel_centres_and_image_area() -> None:
    centres = pixel_centres(2, 3)
    assert centres.shape == (2, 3, 2)
    assert centres[1, 2].tolist() == [2.5, 1.5]
    assert in_image(centres, 2, 3).all()
    edges = np.array([[0.0, 0], [3, 1], [2.999, 1.999], [-1e-9, 1], [1, 2]])
    assert in_image(edges, 2, 3).tolist() == [True, False, True, False, False]
    assert in_image(np.array([[0.9, 1.0], [1.0, 1.0]]), 3, 3, border=1.0).tolist() == [False, True]


def test_nuscenes_crop() -> None:
    """x 0.88 and the top 280 rows, as is usual for nuScenes."""
    transform = ImageTransform.fit((900, 1600), (512, 1408))
    assert (transform.scale, transform.left, transform.top) == pytest.approx((0.88, 0, 280))
    raw = np.array([[1266.0, 0, 816.8], [0, 1266.0, 492.0], [0, 0, 1]])
    expected = [[1266 * 0.88, 0, 816.8 * 0.88], [0, 1266 * 0.88, 492 * 0.88 - 280], [0, 0, 1]]
    np.testing.assert_allclose(transform.intrinsics(raw), expected)


def test_kitti_crop() -> None:
    """Width-fitted, bottom-kept: 1226 wide becomes 1216, the top 15 rows go."""
    transform = ImageTransform.fit((370, 1226), (352, 1216))
    assert transform.scale == pytest.approx(1216 / 1226)
    assert transform.left == pytest.approx(0)
    assert transform.top == pytest.approx(14.98, abs=0.005)
    bottom_right = transform.image_from_raw @ [1226, 370, 1]
    np.testing.assert_allclose(bottom_right, [1216, 352, 1])


def test_crop_of_a_wide_image_is_centred() -> None:
    transform = ImageTransform.fit((100, 400), (50, 100))
    assert (transform.scale, transform.left, transform.top) == (0.5, 50, 0)
    centred = ImageTransform.fit((300, 100), (50, 100), keep="centre")
    assert (centred.scale, centred.left, centred.top) == (1.0, 0, 125)


@pytest.mark.parametrize(("raw_hw", "out_hw"), [((900, 1600), (512, 1408)), ((370, 1226), (352, 1216))])
def test_projection_follows_the_crop(raw_hw: tuple[int, int], out_hw: tuple[int, int]) -> None:
    transform = ImageTransform.fit(raw_hw, out_hw)
    raw_K = np.array([[700.0, 0, raw_hw[1] / 2], [0, 710.0, raw_hw[0] / 2], [0, 0, 1]])
    points = np.random.default_rng(0).uniform([-8, -3, 4], [8, 3, 40], (30, 3))
    raw_uv = project(raw_K, points)[0]
    uv = project(transform.intrinsics(raw_K), points)[0]
    np.testing.assert_allclose(uv, transform.scale * raw_uv - [transform.left, transform.top], atol=1e-9)
    render_K = scale_intrinsics(transform.intrinsics(raw_K), 0.5, 0.25)
    np.testing.assert_allclose(project(render_K, points)[0], uv * [0.5, 0.25], atol=1e-9)


def test_resized_pixels_lie_where_k_says() -> None:
    """A picture whose value is its own raw u coordinate, resized by an ordinary image library: pixel i of the result
    shows the raw coordinate (i + 0.5 + left) / scale. An origin at pixel centres would be half a pixel off."""
    raw_u = np.tile(np.arange(160, dtype=np.float32) + 0.5, (90, 1))
    transform = ImageTransform.fit((90, 160), (45, 60))
    assert (transform.scale, transform.left) == (0.5, 10)
    resized = np.asarray(Image.fromarray(raw_u).resize((80, 45), Image.Resampling.BILINEAR))
    shown = resized[:, 10:70]
    u = pixel_centres(45, 60)[..., 0]
    expected = (u + transform.left) / transform.scale
    np.testing.assert_allclose(shown[:, 2:-2], expected[:, 2:-2], atol=1e-3)


def test_scaled_intrinsics_fit_block_means() -> None:
    """Render resolution is a whole factor below: a render pixel covers a block of network pixels."""
    blocks = pixel_centres(8, 12).reshape(4, 2, 4, 3, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(blocks, pixel_centres(4, 4) * [3, 2])
    scaled = scale_intrinsics(torch.as_tensor(K), 1 / 3, 1 / 2)
    np.testing.assert_allclose(scaled.numpy(), [[100 / 3, 0, 32 / 3], [0, 60, 12], [0, 0, 1]])
    assert K[0, 0] == 100


@pytest.mark.parametrize(
    "matrix",
    [
        np.diag([0.0, 100, 1]),
        np.diag([100.0, -100, 1]),
        np.diag([100.0, 100, 0]),
        np.full((3, 3), np.inf),
        np.eye(4),
        np.empty((0,)),
    ],
)
def test_singular_intrinsics_are_named(matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match="camera CAM_X"):
        check_intrinsics("camera CAM_X", matrix)
    check_intrinsics("camera CAM_X", K)


@pytest.mark.parametrize(
    ("matrix", "hint"),
    [
        (K.T, "is it transposed"),
        (2 * K, "divide it by its last entry"),
        (K + 0.1 * np.eye(3, k=-1), "below the diagonal"),
    ],
)
def test_intrinsics_that_would_project_elsewhere_are_named(matrix: np.ndarray, hint: str) -> None:
    """Positive focals and a determinant are not enough: what lies below the diagonal is read by nobody."""
    with pytest.raises(ValueError, match=rf"camera CAM_X.*{hint}"):
        check_intrinsics("camera CAM_X", matrix)
