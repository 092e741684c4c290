"""Walks rays through a voxel grid to the first occupied voxel: compiled where numba is there, else vectorised."""

import inspect
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from geometry.grid import VoxelGrid

Backend = Literal["auto", "numba", "numpy"]


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
    origins: Float[np.ndarray, "rays 3"],
    directions: Float[np.ndarray, "rays 3"],
    backend: Backend = "auto",
    workers: int = 1,
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

    Raises:
        ValueError: shapes that disagree, or a direction that is not finite or has zero length.
        ImportError: numba asked for by name and absent.
    """
    if occupied.shape != grid.shape:
        raise ValueError(f"occupancy of shape {occupied.shape} on a grid of {grid.shape} voxels")
    origins, directions = np.asarray(origins, dtype=np.float64), np.asarray(directions, dtype=np.float64)
    if not (np.isfinite(origins).all() and np.isfinite(directions).all() and directions.any(axis=1).all()):
        raise ValueError("rays need finite origins and finite directions of non-zero length; drop the others first")
    start = np.ascontiguousarray(grid.index_coordinates(origins))
    step = np.ascontiguousarray(directions / np.asarray(grid.voxel_size))
    walk = _pick(backend)
    volume = np.ascontiguousarray(occupied)
    voxel, distance = np.full(len(start), -1, dtype=np.int64), np.zeros(len(start))
    rays, index = _enter(grid.shape, start, step)
    if workers <= 1:
        walk(volume, start, step, rays, index, voxel, distance)
        return Hits(voxel, distance)
    with ThreadPoolExecutor(workers) as pool:
        parts = [p for p in np.array_split(np.arange(len(rays)), workers) if len(p)]
        list(pool.map(lambda p: walk(volume, start, step, rays[p], index[p], voxel, distance), parts))
    return Hits(voxel, distance)


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
    import numba

    # In tests the shape checker wraps every function; numba wants the bare one.
    plain = inspect.unwrap(_walk_each)
    try:
        return numba.njit(cache=True, nogil=True)(plain)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return numba.njit(nogil=True)(plain)


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
    rays: np.ndarray,
    index: np.ndarray,
    voxel: np.ndarray,
    distance: np.ndarray,
) -> None:
    """One ray after the other; fills `voxel` and `distance` of `rays`. Plain loops, for numba to compile."""
    nx, ny, nz = occupied.shape
    for k in range(len(rays)):
        r = rays[k]
        ox, oy, oz = start[r, 0], start[r, 1], start[r, 2]
        sx, sy, sz = step[r, 0], step[r, 1], step[r, 2]
        ix, iy, iz = index[k, 0], index[k, 1], index[k, 2]
        while 0 <= ix < nx and 0 <= iy < ny and 0 <= iz < nz:
            tx = (ix + (1 if sx > 0.0 else 0) - ox) / sx if sx != 0.0 else np.inf
            ty = (iy + (1 if sy > 0.0 else 0) - oy) / sy if sy != 0.0 else np.inf
            tz = (iz + (1 if sz > 0.0 else 0) - oz) / sz if sz != 0.0 else np.inf
            leave = min(tx, ty, tz)
            distance[r] = leave
            if occupied[ix, iy, iz]:
                voxel[r] = (ix * ny + iy) * nz + iz
                break
            if tx == leave:
                ix += 1 if sx > 0.0 else -1
            elif ty == leave:
                iy += 1 if sy > 0.0 else -1
            else:
                iz += 1 if sz > 0.0 else -1


def _walk_vectorised(
    occupied: np.ndarray,
    start: np.ndarray,
    step: np.ndarray,
    rays: np.ndarray,
    index: np.ndarray,
    voxel: np.ndarray,
    distance: np.ndarray,
) -> None:
    """All rays one voxel at a time; the same arithmetic as `_walk_each`, so the same bits."""
    ny, nz = occupied.shape[1:]
    flat, size = occupied.reshape(-1), np.array(occupied.shape)
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
