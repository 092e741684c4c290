"""Voxel traversal against a slow walk in exact rational arithmetic, on random and on adversarial grids."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.raycast import cast_rays
from eval.raycast_torch import cast_rays_torch
from geometry.grid import NUSCENES_GRID, VoxelGrid

GRID = VoxelGrid((-2.0, -1.0, -0.5), (2.0, 1.0, 1.5), (8, 4, 4))  # voxels of 0.5 m: every plane is exact in binary


def slow_walk(
    occupied: np.ndarray, grid: VoxelGrid, origin: tuple[float, ...], direction: tuple[float, ...]
) -> tuple[int, float]:
    """(flat voxel or -1, distance) by Amanatides and Woo's incremental walk, without any rounding."""
    o, d = [Fraction(v) for v in origin], [Fraction(v) for v in direction]
    low, size = [Fraction(v) for v in grid.lower], [Fraction(v) for v in grid.voxel_size]
    n = grid.shape
    enter, leave = Fraction(0), None
    for a in range(3):
        first, last = low[a], low[a] + size[a] * n[a]
        if d[a] == 0:
            if not first <= o[a] < last:
                return -1, 0.0
            continue
        near, far = sorted(((first - o[a]) / d[a], (last - o[a]) / d[a]))
        enter, leave = max(enter, near), far if leave is None else min(leave, far)
    if leave is None or leave <= enter:
        return -1, 0.0
    cell, t_max, t_delta, step = [], [], [], []
    for a in range(3):
        at = (o[a] + enter * d[a] - low[a]) / size[a]
        i = min(max(math.floor(at), 0), n[a] - 1)
        if d[a] < 0 and enter > 0 and at == n[a]:
            i = n[a] - 1
        cell.append(i)
        step.append(1 if d[a] > 0 else -1)
        plane = low[a] + size[a] * (i + (1 if d[a] > 0 else 0))
        t_max.append((plane - o[a]) / d[a] if d[a] else None)
        t_delta.append(size[a] / abs(d[a]) if d[a] else None)
    while True:
        a = min((k for k in range(3) if t_max[k] is not None), key=lambda k: (t_max[k], k))
        if occupied[tuple(cell)]:
            return int(np.ravel_multi_index(cell, n)), float(t_max[a])
        out = float(t_max[a])
        cell[a] += step[a]
        if not 0 <= cell[a] < n[a]:
            return -1, out
        t_max[a] += t_delta[a]


def check(occupied: np.ndarray, grid: VoxelGrid, origins: np.ndarray, directions: np.ndarray) -> None:
    want = [slow_walk(occupied, grid, tuple(o), tuple(d)) for o, d in zip(origins, directions, strict=True)]
    for backend in ("numba", "numpy"):
        got = cast_rays(occupied, grid, origins, directions, backend)
        np.testing.assert_array_equal(got.voxel, [w[0] for w in want], err_msg=backend)
        np.testing.assert_allclose(got.distance, [w[1] for w in want], atol=1e-9, err_msg=backend)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.2, 1.0])
def test_random_grids_and_rays(density: float) -> None:
    rng = np.random.default_rng(int(density * 100))
    grid = VoxelGrid((-2.1, -1.3, -0.7), (2.7, 1.5, 1.1), (12, 7, 5))
    occupied = rng.random(grid.shape) < density
    origins = rng.uniform(-3.5, 3.5, (400, 3))  # many of them outside
    directions = rng.normal(size=(400, 3))
    check(occupied, grid, origins, directions / np.linalg.norm(directions, axis=1, keepdims=True))


def test_rays_along_edges_faces_and_diagonals() -> None:
    rng = np.random.default_rng(0)
    occupied = rng.random(GRID.shape) < 0.15
    corners = np.stack(np.meshgrid(*[np.arange(-2.5, 3.0, 0.5)] * 3, indexing="ij"), -1).reshape(-1, 3)
    ways = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3, indexing="ij"), -1).reshape(-1, 3)
    ways = ways[np.abs(ways).sum(axis=1) > 0]
    origins = np.repeat(corners, len(ways), axis=0)
    directions = np.tile(ways, (len(corners), 1))
    some = rng.choice(len(origins), 3000, replace=False)
    check(occupied, GRID, origins[some], directions[some])


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**16),
    st.tuples(*[st.integers(-6, 6)] * 3),
    st.tuples(*[st.integers(-4, 4)] * 3).filter(any),
)
def test_exact_lattice_rays(seed: int, origin: tuple[int, ...], direction: tuple[int, ...]) -> None:
    occupied = np.random.default_rng(seed).random(GRID.shape) < 0.1
    check(occupied, GRID, np.array([origin]) * 0.5, np.array([direction], dtype=np.float64))


def test_a_ray_that_starts_in_an_occupied_voxel_ends_there() -> None:
    occupied = np.zeros(GRID.shape, dtype=bool)
    occupied[4, 2, 1] = occupied[6, 2, 1] = True
    hits = cast_rays(occupied, GRID, np.array([[0.125, 0.25, 0.25]]), np.array([[1.0, 0.0, 0.0]]))
    assert hits.voxel[0] == np.ravel_multi_index((4, 2, 1), GRID.shape)
    assert hits.distance[0] == pytest.approx(0.375)  # leaves x in [0, 0.5) at 0.5


def test_distance_is_where_the_ray_leaves() -> None:
    occupied = np.zeros(GRID.shape, dtype=bool)
    occupied[6, 2, 1] = True  # x in [1, 1.5)
    hits = cast_rays(occupied, GRID, np.array([[-1.75, 0.25, 0.25]]), np.array([[1.0, 0.0, 0.0]]))
    assert hits.distance[0] == pytest.approx(1.5 + 1.75)


def test_a_miss_leaves_the_grid_and_a_ray_that_never_meets_it_has_zero() -> None:
    empty = np.zeros(GRID.shape, dtype=bool)
    origins = np.array([[0.0, 0.0, 0.0], [5.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    directions = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    hits = cast_rays(empty, GRID, origins, directions)
    assert (hits.voxel == -1).all()
    np.testing.assert_allclose(hits.distance, [1.5, 7.0, 0.0, 0.0])


def test_threads_share_the_rays_without_changing_them() -> None:
    rng = np.random.default_rng(3)
    occupied = rng.random(GRID.shape) < 0.1
    origins, directions = rng.uniform(-2, 2, (101, 3)), rng.normal(size=(101, 3))
    one, three = (cast_rays(occupied, GRID, origins, directions, workers=w) for w in (1, 3))
    np.testing.assert_array_equal(one.voxel, three.voxel)
    np.testing.assert_array_equal(one.distance, three.distance)
    assert len(cast_rays(occupied, GRID, np.zeros((0, 3)), np.zeros((0, 3)), workers=3).voxel) == 0


@pytest.mark.parametrize("direction", [[0.0, 0.0, 0.0], [np.nan, 0.0, 1.0], [np.inf, 0.0, 0.0]])
def test_hostile_directions_are_refused(direction: list[float]) -> None:
    with pytest.raises(ValueError, match="non-zero length"):
        cast_rays(np.zeros(GRID.shape, dtype=bool), GRID, np.zeros((1, 3)), np.array([direction]))


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2, 2\)"):
        cast_rays(np.zeros((2, 2, 2), dtype=bool), GRID, np.zeros((1, 3)), np.ones((1, 3)))


def test_all_backends_give_the_same_bits() -> None:
    rng = np.random.default_rng(11)
    grid = VoxelGrid((-2.1, -1.3, -0.7), (2.7, 1.5, 1.1), (12, 7, 5))
    corners = np.stack(np.meshgrid(*[np.arange(-2.5, 3.0, 0.5)] * 3, indexing="ij"), -1).reshape(-1, 3)
    ways = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3, indexing="ij"), -1).reshape(-1, 3)
    ways = ways[np.abs(ways).sum(axis=1) > 0]
    lattice = rng.choice(len(corners), 500), rng.choice(len(ways), 500)
    free = rng.normal(size=(500, 3))
    for box, origins, directions in (
        (GRID, corners[lattice[0]], ways[lattice[1]]),
        (grid, rng.uniform(-3.5, 3.5, (500, 3)), free / np.linalg.norm(free, axis=1, keepdims=True)),
        (NUSCENES_GRID, rng.uniform(-45, 45, (500, 3)), free * [1.0, 1.0, 0.05]),
    ):
        for density in (0.0, 0.01, 0.2, 1.0):
            occupied = rng.random(box.shape) < density
            numba, plain = (cast_rays(occupied, box, origins, directions, b) for b in ("numba", "numpy"))
            torch = cast_rays_torch(occupied, box, origins, directions)
            for other in (plain, torch):
                np.testing.assert_array_equal(numba.voxel, other.voxel)
                assert numba.distance.tobytes() == other.distance.tobytes()


def test_torch_refuses_what_the_others_refuse() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2, 2\)"):
        cast_rays_torch(np.zeros((2, 2, 2), dtype=bool), GRID, np.zeros((1, 3)), np.ones((1, 3)))
    with pytest.raises(ValueError, match="non-zero length"):
        cast_rays_torch(np.zeros(GRID.shape, dtype=bool), GRID, np.zeros((1, 3)), np.zeros((1, 3)))
    assert len(cast_rays_torch(np.zeros(GRID.shape, bool), GRID, np.zeros((0, 3)), np.zeros((0, 3))).voxel) == 0
