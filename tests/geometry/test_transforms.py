"""Rigid transforms against scipy's Rotation, numpy's general inverse and hand-computed poses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from geometry.transforms import (
    check_rigid,
    compose,
    from_quaternion,
    from_rotation_translation,
    invert,
    rotate_vectors,
    to_quaternion,
    transform_points,
    yaw_transform,
)

ANGLES = st.floats(-np.pi, np.pi, allow_nan=False)
METRES = st.floats(-1e5, 1e5, allow_nan=False)


def _random_poses(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.random(count, random_state=seed).as_matrix()
    poses[:, :3, 3] = rng.normal(0, 50, (count, 3))
    return poses


@settings(max_examples=100, deadline=None)
@given(angles=st.tuples(ANGLES, ANGLES, ANGLES), scale=st.floats(0.01, 100), translation=st.tuples(*[METRES] * 3))
def test_quaternion_matches_scipy(
    angles: tuple[float, float, float], scale: float, translation: tuple[float, float, float]
) -> None:
    rotation = Rotation.from_euler("zyx", angles)
    x, y, z, w = rotation.as_quat() * scale  # of any length: it is normalised
    pose = from_quaternion([w, x, y, z], translation)
    np.testing.assert_allclose(pose[:3, :3], rotation.as_matrix(), atol=1e-12)
    np.testing.assert_array_equal(pose[:3, 3], translation)
    np.testing.assert_array_equal(pose[3], [0, 0, 0, 1])


@settings(max_examples=100, deadline=None)
@given(angles=st.tuples(ANGLES, ANGLES, ANGLES))
def test_quaternion_of_a_rotation_matches_scipy(angles: tuple[float, float, float]) -> None:
    rotation = Rotation.from_euler("zyx", angles)
    found = to_quaternion(rotation.as_matrix())
    x, y, z, w = rotation.as_quat()
    assert found[0] >= 0
    assert abs(abs(found @ [w, x, y, z]) - 1) < 1e-12
    np.testing.assert_allclose(from_quaternion(found, [0, 0, 0])[:3, :3], rotation.as_matrix(), atol=1e-12)


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, 0.8, 0), (0, 0.6, -0.8)])
def test_half_turns_keep_their_axis(axis: tuple[float, float, float]) -> None:
    n = np.array(axis)
    half_turn = 2 * np.outer(n, n) - np.eye(3)
    q = to_quaternion(half_turn)
    assert abs(q[0]) < 1e-12
    assert abs(abs(q[1:] @ n) - 1) < 1e-12


@pytest.mark.parametrize("q", [[0, 0, 0, 0], [np.nan, 0, 0, 1], [1, 0, 0], [np.inf, 0, 0, 0]])
def test_impossible_quaternions_are_refused(q: list[float]) -> None:
    with pytest.raises(ValueError, match="quaternion"):
        from_quaternion(q, [0, 0, 0])


def test_inverse_is_the_general_inverse() -> None:
    poses = _random_poses(20).reshape(4, 5, 4, 4)
    np.testing.assert_allclose(invert(poses), np.linalg.inv(poses), atol=1e-10)
    np.testing.assert_allclose(invert(invert(poses)), poses, atol=1e-12)
    in_torch = invert(torch.as_tensor(poses))
    assert in_torch.dtype == torch.float64
    np.testing.assert_allclose(in_torch.numpy(), invert(poses), atol=1e-12)


def test_points_go_there_and_back() -> None:
    poses = _random_poses(6)
    points = np.random.default_rng(1).normal(0, 30, (6, 11, 3))
    moved = transform_points(poses, points)
    for pose, before, after in zip(poses, points, moved, strict=True):
        for p, q in zip(before, after, strict=True):
            np.testing.assert_allclose(q, pose[:3, :3] @ p + pose[:3, 3], atol=1e-10)
    np.testing.assert_allclose(transform_points(invert(poses), moved), points, atol=1e-10)
    in_torch = transform_points(torch.as_tensor(poses), torch.as_tensor(points))
    np.testing.assert_allclose(in_torch.numpy(), moved, atol=1e-12)


def test_leading_axes_broadcast() -> None:
    poses = _random_poses(3)
    points = np.random.default_rng(1).normal(0, 30, (5, 3))
    moved = transform_points(poses, points)
    assert moved.shape == (3, 5, 3)
    np.testing.assert_allclose(moved[2], transform_points(poses[2], points), atol=1e-12)


def test_chain_of_transforms_is_their_product() -> None:
    global_from_ego, ego_from_cam = _random_poses(2)
    points = np.random.default_rng(2).normal(0, 30, (7, 3))
    in_steps = transform_points(global_from_ego, transform_points(ego_from_cam, points))
    np.testing.assert_allclose(transform_points(global_from_ego @ ego_from_cam, points), in_steps, atol=1e-10)
    np.testing.assert_allclose(compose(global_from_ego, ego_from_cam), global_from_ego @ ego_from_cam, atol=1e-12)
    several = compose(torch.as_tensor(_random_poses(6).reshape(2, 3, 4, 4)), torch.as_tensor(_random_poses(2))[:, None])
    assert several.shape == (2, 3, 4, 4)


def test_vectors_do_not_translate() -> None:
    pose = yaw_transform(np.pi / 2, [100.0, 200.0, 300.0])
    np.testing.assert_allclose(rotate_vectors(pose, np.array([[2.0, 0, 5]])), [[0, 2, 5]], atol=1e-12)
    np.testing.assert_allclose(transform_points(pose, np.array([[2.0, 0, 5]])), [[100, 202, 305]], atol=1e-12)


def test_yaw_turns_counter_clockwise_from_above() -> None:
    pose = yaw_transform(np.pi / 6, (0.0, 0.0, 1.0))
    expected = [np.sqrt(3) / 2, 0.5, 1.0]
    np.testing.assert_allclose(transform_points(pose, np.array([[1.0, 0, 0]]))[0], expected, atol=1e-12)
    np.testing.assert_allclose(pose[:3, :3], Rotation.from_euler("z", np.pi / 6).as_matrix(), atol=1e-12)


def test_float32_keeps_millimetres_after_recentring() -> None:
    """Global coordinates of 1e5 m: relative poses are taken in float64, then used in float32."""
    a, b = yaw_transform(0.3, [1e5, 2e5, 0]), yaw_transform(0.31, [1e5 + 4, 2e5 + 1, 0])
    relative = invert(a) @ b
    points = np.array([[30.0, -20, 1]])
    exact = transform_points(invert(a), transform_points(b, points))
    single = transform_points(torch.as_tensor(relative, dtype=torch.float32), torch.as_tensor(points).float())
    np.testing.assert_allclose(single.numpy(), exact, atol=1e-4)


def test_rigid_transforms_pass_the_check() -> None:
    check_rigid("poses", _random_poses(5))
    check_rigid("pose", from_rotation_translation(np.eye(3), np.array([1.0, 2, 3])))


@pytest.mark.parametrize(
    ("rotation", "complaint"),
    [
        (np.eye(3) * 1.01, "off the identity by 0.02"),
        (np.diag([1.0, 1.0, -1.0]), "determinant"),
        (np.full((3, 3), np.nan), "finite: False"),
    ],
)
def test_what_is_not_rigid_is_named(rotation: np.ndarray, complaint: str) -> None:
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[1, :3, :3] = rotation
    with pytest.raises(ValueError, match=rf"pose of frame 7.*{complaint}"):
        check_rigid("pose of frame 7", poses)


def test_a_translation_in_the_last_row_is_named() -> None:
    """Files of row vectors hold the transposed matrix: its rotation is one too, its translation would be lost."""
    poses = _random_poses(3)
    poses[1] = poses[1].T
    with pytest.raises(ValueError, match=r"pose of frame 7: the last row is .*expected 0, 0, 0, 1.*transposed"):
        check_rigid("pose of frame 7", poses)


def test_rigid_check_wants_matrices() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 4\)"):
        check_rigid("pose", np.eye(3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_does_not_round_geometry(dtype: torch.dtype) -> None:
    """Under bfloat16 autocast a matrix product would move points by decimetres."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.from_numpy(np.stack([yaw_transform(0.3, (10.0, -4.0, 1.5)), yaw_transform(-2.0, (0.0, 1.0, 0.0))]))
    matrix = matrix.to(dtype)
    points = ((torch.rand(2, 50, 3, generator=generator, dtype=torch.float64) - 0.5) * 80).to(dtype).requires_grad_()

    def all_of_it() -> tuple[torch.Tensor, ...]:
        again = compose(matrix, matrix.flip(0))
        return transform_points(matrix, points), rotate_vectors(matrix, points), invert(matrix), again

    plain = all_of_it()
    (slope,) = torch.autograd.grad(plain[0].sum(), points)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = all_of_it()
        (cast_slope,) = torch.autograd.grad(cast[0].sum(), points)
        rounded = points @ matrix[..., :3, :3].swapaxes(-1, -2)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    for one, other in zip((*plain, slope), (*cast, cast_slope), strict=True):
        assert one.dtype == other.dtype == dtype
        assert torch.allclose(one, other, atol=tolerance)
    if dtype == torch.float32:
        assert (rounded - plain[1]).abs().max() > 0.01, "autocast no longer rounds products: this test is idle"
