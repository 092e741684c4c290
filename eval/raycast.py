"""Walks rays through a voxel grid to the first occupied voxel: compiled where numba is there, else vectorised."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from geometry.compiled import compile_loops
from geometry.grid import VoxelGrid

Backend = Literal["auto", "numba", "numpy"]
Pairs = tuple[Int[np.ndarray, "rays"], Int[np.ndarray, "rays"]]


@dataclass(frozen=True)
class Hits:
    """Where rays end.

    voxel: flat index ([x, y, z], C order) of the first occupied voxel, -1 for a miss.
    distance: metres from the origin to where the ray leaves that voxel; for a miss to where it leaves the grid, 0 when
        it never meets the grid.
    """

    voxel: Int[np.ndarray, "rays"]
    distance: Float[np.ndarray, "rays"]


def cast_rays(
    occupied: Bool[np.ndarray, "x y z"],
    grid: VoxelGrid,
    origins: Float[np.ndarray, "origins 3"],
    directions: Float[np.ndarray, "directions 3"],
    backend: Backend = "auto",
    workers: int = 1,
    pairs: Pairs | None = None,
) -> Hits:
    """Voxel traversal after Amanatides and Woo (1987), starting in, and including, the origin's voxel.

    Origins outside the grid enter it first. A voxel is left at the nearest of its three far planes; at a tie x steps
    before y before z, so a voxel touched in one point counts. The distance to a plane is computed from the plane, not
    by adding steps up: no error accumulates, and all backends give the same bits.

    Args:
        occupied: as `grid.shape`.
        origins, directions: metres, the grid's frame; directions of unit length, else distances are in multiples.
        backend: `numba`, `numpy` (same result, about ten times slower), or `auto` for whichever is there.
        workers: threads that share the rays (the compiled walk releases the interpreter's lock).
        pairs: rows of `origins` and of `directions` that each ray takes; default row by row.

    Raises:
        ValueError: shapes that disagree, or a direction that is not finite or has zero length.
        ImportError: numba asked for by name and absent.
    """
    if occupied.shape != grid.shape:
        raise ValueError(f"occupancy of shape {occupied.shape} on a grid of {grid.shape} voxels")
    start, step = rays_in_voxels(grid, origins, directions)
    walk = _pick(backend)
    volume = np.ascontiguousarray(occupied)
    first, second = paired(len(start), len(step), pairs)
    n = len(first)
    voxel, distance = np.full(n, -1, dtype=np.int64), np.zeros(n)
    if workers <= 1 or n < 2 * workers:
        walk(volume, start, step, first, second, voxel, distance)
        return Hits(voxel, distance)
    parts = [slice(a, b) for a, b in itertools.pairwise(np.linspace(0, n, workers + 1).astype(np.int64).tolist())]
    with ThreadPoolExecutor(workers) as pool:  # slices are views: every thread fills its own part of the result
        list(pool.map(lambda p: walk(volume, start, step, first[p], second[p], voxel[p], distance[p]), parts))
    return Hits(voxel, distance)


def paired(origins: int, directions: int, pairs: Pairs | None) -> Pairs:
    """Rows of each ray; without `pairs` row by row, for which there must be as many origins as directions."""
    if pairs is not None:
        return np.ascontiguousarray(pairs[0]), np.ascontiguousarray(pairs[1])
    if origins != directions:
        raise ValueError(f"{origins} origins for {directions} directions: say which belong together by `pairs`")
    rows = np.arange(origins)
    return rows, rows


def rays_in_voxels(
    grid: VoxelGrid, origins: Float[np.ndarray, "origins 3"], directions: Float[np.ndarray, "directions 3"]
) -> tuple[Float[np.ndarray, "origins 3"], Float[np.ndarray, "directions 3"]]:
    """Origins in voxel coordinates and directions in voxels per metre, float64; what every backend starts from.

    Raises:
        ValueError: a ray that is not finite, or has zero length.
    """
    origins, directions = np.asarray(origins, dtype=np.float64), np.asarray(directions, dtype=np.float64)
    if not (np.isfinite(origins).all() and np.isfinite(directions).all() and directions.any(axis=1).all()):
        raise ValueError("rays need finite origins and finite directions of non-zero length; drop the others first")
    start = np.ascontiguousarray(grid.index_coordinates(origins))
    return start, np.ascontiguousarray(directions / np.asarray(grid.voxel_size))


_Walk = Callable[..., None]


def _pick(backend: Backend) -> _Walk:
    if backend == "numpy":
        return _walk_vectorised
    try:
        return _compiled()
    except ImportError:
        if backend == "numba":
            raise
        return _walk_vectorised


@cache
def _compiled() -> _Walk:
    return compile_loops(_walk_each)


def _enter(
    shape: tuple[int, int, int], start: np.ndarray, step: np.ndarray
) -> tuple[Int[np.ndarray, "entering"], Int[np.ndarray, "entering 3"]]:
    """Which rays meet the grid, and the voxel in which each begins; all in voxel coordinates."""
    size = np.array(shape)
    parallel = step == 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        lower, upper = (0.0 - start) / step, (size - start) / step
    near_axis = np.where(parallel, -np.inf, np.minimum(lower, upper))
    far = np.where(parallel, np.inf, np.maximum(lower, upper)).min(axis=1)
    near = np.maximum(near_axis.max(axis=1), 0.0)
    in_slabs = (~parallel | ((start >= 0.0) & (start < size))).all(axis=1)
    rays = np.flatnonzero(in_slabs & (far > near))
    position = start[rays] + near[rays, None] * step[rays]
    index = np.clip(np.floor(position).astype(np.int64), 0, size - 1)
    # Rounding may put an entry point on the wrong side of the face that it enters through: that axis is known exactly.
    entry = np.where(near[rays] > 0.0, near_axis[rays].argmax(axis=1), -1)
    first = np.where(step[rays] > 0.0, 0, size - 1)
    return rays, np.where(entry[:, None] == np.arange(3), first, index)


def _walk_each(
    occupied: np.ndarray,
    start: np.ndarray,
    step: np.ndarray,
    first_row: np.ndarray,
    second_row: np.ndarray,
    voxel: np.ndarray,
    distance: np.ndarray,
) -> None:
    """One ray after the other; fills `voxel` and `distance`. Plain loops, for numba to compile; entry as `_enter`."""
    nx, ny, nz = occupied.shape
    for r in range(len(voxel)):
        i, j = first_row[r], second_row[r]
        ox, oy, oz = start[i, 0], start[i, 1], start[i, 2]
        sx, sy, sz = step[j, 0], step[j, 1], step[j, 2]
        near, far, entry, meets = -np.inf, np.inf, 0, True
        for a in range(3):
            o, s, n = start[i, a], step[j, a], occupied.shape[a]
            if s == 0.0:
                meets = meets and 0.0 <= o < n
                continue
            first, last = (0.0 - o) / s, (n - o) / s
            if first > last:
                first, last = last, first
            if first > near:
                near, entry = first, a
            far = min(far, last)
        if near <= 0.0:
            near, entry = 0.0, -1
        if not meets or not far > near:
            continue
        ix = min(max(int(np.floor(ox + near * sx)), 0), nx - 1)
        iy = min(max(int(np.floor(oy + near * sy)), 0), ny - 1)
        iz = min(max(int(np.floor(oz + near * sz)), 0), nz - 1)
        px, py, pz = sx > 0.0, sy > 0.0, sz > 0.0
        if entry == 0:
            ix = 0 if px else nx - 1
        elif entry == 1:
            iy = 0 if py else ny - 1
        elif entry == 2:
            iz = 0 if pz else nz - 1
        tx = (ix + (1 if px else 0) - ox) / sx if sx != 0.0 else np.inf
        ty = (iy + (1 if py else 0) - oy) / sy if sy != 0.0 else np.inf
        tz = (iz + (1 if pz else 0) - oz) / sz if sz != 0.0 else np.inf
        # Only the plane of the axis that was stepped along is new; a division costs more than the rest of a step.
        inside = True
        while inside:
            leave = min(tx, ty, tz)
            if occupied[ix, iy, iz]:
                voxel[r] = (ix * ny + iy) * nz + iz
                break
            if tx == leave:
                ix += 1 if px else -1
                inside = 0 <= ix < nx
                tx = (ix + (1 if px else 0) - ox) / sx
            elif ty == leave:
                iy += 1 if py else -1
                inside = 0 <= iy < ny
                ty = (iy + (1 if py else 0) - oy) / sy
            else:
                iz += 1 if pz else -1
                inside = 0 <= iz < nz
                tz = (iz + (1 if pz else 0) - oz) / sz
        distance[r] = leave


def _walk_vectorised(
    occupied: np.ndarray,
    start: np.ndarray,
    step: np.ndarray,
    first_row: np.ndarray,
    second_row: np.ndarray,
    voxel: np.ndarray,
    distance: np.ndarray,
) -> None:
    """All rays one voxel at a time; the same arithmetic as `_walk_each`, so the same bits."""
    ny, nz = occupied.shape[1:]
    flat, size = occupied.reshape(-1), np.array(occupied.shape)
    nx, start, step = len(occupied), start[first_row], step[second_row]
    rays, index = _enter((nx, ny, nz), start, step)
    begin, pace = start[rays], step[rays]
    while len(rays):
        with np.errstate(divide="ignore", invalid="ignore"):
            planes = np.where(pace != 0.0, (index + (pace > 0.0) - begin) / pace, np.inf)
        each, axis = np.arange(len(rays)), planes.argmin(axis=1)
        distance[rays] = planes[each, axis]
        here = (index[:, 0] * ny + index[:, 1]) * nz + index[:, 2]
        hit = flat[here]
        voxel[rays[hit]] = here[hit]
        index[each, axis] += np.where(pace[each, axis] > 0.0, 1, -1)
        moved = index[each, axis]
        going = ~hit & (moved >= 0) & (moved < size[axis])
        rays, index, begin, pace = rays[going], index[going], begin[going], pace[going]
