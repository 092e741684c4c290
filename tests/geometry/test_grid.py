"""Voxel grids by hand, and ray clipping against a march along the ray."""

import numpy as np
import pytest
import torch

from geometry.grid import KITTI_GRID, NUSCENES_GRID, VoxelGrid

GRID = VoxelGrid((-1.0, -2.0, 0.0), (3.0, 2.0, 5.0), (4, 8, 5))


def test_voxels_by_hand() -> None:
    assert GRID.voxel_size == (1.0, 0.5, 1.0)
    centres = GRID.centres()
    assert centres.shape == (4, 8, 5, 3)
    assert centres[0, 0, 0].tolist() == [-0.5, -1.75, 0.5]
    assert centres[3, 7, 4].tolist() == [2.5, 1.75, 4.5]
    assert centres[2, 0, 1].tolist() == [1.5, -1.75, 1.5]
    indices = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), axis=-1)
    np.testing.assert_allclose(GRID.index_coordinates(centres), indices + 0.5)
    np.testing.assert_allclose(GRID.index_coordinates(torch.as_tensor(centres)).numpy(), indices + 0.5)


def test_lower_edges_are_inside_and_upper_ones_not() -> None:
    points = np.array([[-1.0, -2, 0], [3, 0, 1], [0, 2, 1], [0, 0, 5], [2.999, 1.999, 4.999], [-1.001, 0, 1]])
    expected = [True, False, False, False, True, False]
    assert GRID.contains(points).tolist() == expected
    assert GRID.contains(torch.as_tensor(points)).tolist() == expected
    assert not GRID.contains(np.array([[np.nan, 0.0, 1.0]])).any()


def test_normalised_coordinates() -> None:
    points = torch.tensor([[-1.0, -2, 0], [3, 2, 5], [1, 0, 2.5], [-0.5, -1.75, 0.5]])
    expected = torch.tensor([[-1.0, -1, -1], [1, 1, 1], [0, 0, 0], [-0.75, -0.875, -0.8]])
    torch.testing.assert_close(GRID.normalise(points), expected)


def test_published_extents() -> None:
    assert NUSCENES_GRID.voxel_size == pytest.approx((0.4, 0.4, 0.4))
    assert VoxelGrid.from_voxel_size((-40.0, -40.0, -1.0), (40.0, 40.0, 5.4), 0.4) == NUSCENES_GRID
    assert KITTI_GRID.voxel_size == pytest.approx((0.2, 0.2, 0.2))
    assert VoxelGrid.from_voxel_size((0.0, -25.6, -2.2), (51.2, 25.6, 4.2), 0.2) == KITTI_GRID
    half = NUSCENES_GRID.coarsen(2)
    assert half.shape == (100, 100, 8)
    assert half.voxel_size == pytest.approx((0.8, 0.8, 0.8))
    assert (half.lower, half.upper) == (NUSCENES_GRID.lower, NUSCENES_GRID.upper)


def test_impossible_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        VoxelGrid((0.0, 0.0, 0.0), (1.0, 0.0, 1.0), (1, 1, 1))
    with pytest.raises(ValueError, match="empty"):
        VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1, 0, 1))
    with pytest.raises(ValueError, match="whole number"):
        VoxelGrid.from_voxel_size((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.3)
    with pytest.raises(ValueError, match="coarsened by 2"):
        GRID.coarsen(2)


# origin, direction, entry, exit
BY_HAND = [
    ((-3.0, 0, 1), (1.0, 0, 0), 2, 6),  # along x through the box
    ((1.0, 0, 1), (1.0, 0, 0), 0, 2),  # from inside
    ((1.0, 0, 1), (-1.0, 0, 0), 0, 2),  # and backwards
    ((1.0, 0, 2.5), (0.0, 0, 1), 0, 2.5),
    ((-3.0, 0, 1), (2.0, 0, 0), 1, 3),  # distances in multiples of the direction
    ((-3.0, 0, 1), (-1.0, 0, 0), 0, 0),  # the box lies behind
    ((-3.0, 3, 1), (1.0, 0, 0), 0, 0),  # passes beside it, never in the slab of y
    ((-3.0, -4, 1), (1.0, 1, 0), 2, 6),  # diagonal: x in [2, 6], y in [2, 6]
    ((-3.0, -4.5, 1), (1.0, 1, 0), 2.5, 6),
    ((-3.0, -9, 1), (1.0, 1, 0), 0, 0),  # diagonal, past the corner
    ((0.0, 0, 1), (0.0, 0, 0), 0, np.inf),  # a ray of no length that starts inside never leaves
    ((-3.0, 0, 1), (0.0, 0, 0), 0, 0),  # and one outside never comes in
    ((-3.0, 0, 1), (1.0, -0.0, 0), 2, 6),  # negative zero
]


@pytest.mark.parametrize(("origin", "direction", "entry", "leaves"), BY_HAND)
def test_clip_by_hand(origin: tuple[float, ...], direction: tuple[float, ...], entry: float, leaves: float) -> None:
    o, d = np.array(origin), np.array(direction)
    for found in (GRID.clip(o, d), GRID.clip(torch.as_tensor(o), torch.as_tensor(d))):
        near, far = (float(x) for x in found)
        assert near == pytest.approx(entry)
        assert far == pytest.approx(leaves) or (leaves == np.inf and far > 1e30)
    single = GRID.clip(torch.as_tensor(o, dtype=torch.float32), torch.as_tensor(d, dtype=torch.float32))
    assert float(single[0]) == pytest.approx(entry)


def _march(origin: np.ndarray, direction: np.ndarray, step: float) -> tuple[float, float] | None:
    """First and last distance inside the box, found by walking; None where the ray never is."""
    distances = np.arange(0, 30, step)
    points = origin + distances[:, None] * direction
    inside = np.ones(len(points), dtype=bool)
    for axis in range(3):
        inside &= (points[:, axis] >= GRID.lower[axis]) & (points[:, axis] < GRID.upper[axis])
    if not inside.any():
        return None
    return float(distances[inside][0]), float(distances[inside][-1])


def test_clip_agrees_with_a_march() -> None:
    rng = np.random.default_rng(5)
    origins = rng.uniform([-6, -7, -4], [8, 7, 9], (400, 3))
    directions = rng.uniform([-3, -4, -2], [5, 4, 7], (400, 3)) - origins
    directions[rng.random((400, 3)) < 0.25] = 0.0
    moving = np.abs(directions).max(axis=1) > 0
    origins, directions = origins[moving], directions[moving]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    near, far = GRID.clip(origins, directions)
    step = 0.004
    hits = zeros = 0
    for i in range(len(origins)):
        walked = _march(origins[i], directions[i], step)
        if walked is None:
            assert far[i] - near[i] < step  # missed, or a corner cut between two steps
            zeros += near[i] == far[i] == 0
            continue
        assert near[i] == pytest.approx(walked[0], abs=2 * step)
        assert far[i] == pytest.approx(walked[1], abs=2 * step)
        hits += 1
    assert hits > 60
    assert zeros > 60
    near_t, far_t = GRID.clip(torch.as_tensor(origins), torch.as_tensor(directions))
    np.testing.assert_allclose(near_t.numpy(), near, atol=1e-12)
    np.testing.assert_allclose(far_t.numpy(), far, atol=1e-12)
    np.testing.assert_array_equal(GRID.exit_distance(origins, directions), far)
    single = GRID.clip(torch.as_tensor(origins).float(), torch.as_tensor(directions).float())
    np.testing.assert_allclose(single[1].numpy(), far, atol=1e-4)


def test_clip_gradients_stay_finite_beside_zero_components() -> None:
    origin = torch.tensor([[-3.0, 0.25, 1.0]], dtype=torch.float64, requires_grad=True)
    direction = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    near, far = GRID.clip(origin, direction)
    (near + 10 * far).sum().backward()
    assert origin.grad is not None
    assert direction.grad is not None
    assert origin.grad.tolist() == [[-11.0, 0.0, 0.0]]
    assert torch.isfinite(direction.grad).all()
