"""Deformable attention's two compiled kernels for CPUs; `fused_cpu.py` launches them.

Plain loops, for numba to compile, where it is installed; it is loaded at the first use. Layouts, all contiguous, and
float32 where nothing else is said: values (views, heads, cells * dim), with a border of zeros one cell wide around each
level, so that no corner of a sample lies outside; references (1 or views, 1 or levels, points, 2, queries); offsets
(frames, heads, levels, points, 2, queries), logits without the 2; seen (views, points, queries), bytes, or of no view
where all is seen; result and its gradient (views, or frames where their cameras are added up, queries, heads * dim).

Both work on a block of a view's queries at a time. `_prepare` has the block's softmax and places, which the compiler
does for eight queries at once, along the last axis; then sample by sample the head's channels, eight at once again.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from geometry.compiled import compile_loops

_F = np.float32
_NEVER = _F(-1e30)
"""In place of the logit of what is not seen."""
_LEAST = _F(-87.0)
"""exp of less is below float32's normal numbers."""
_LOG2_E = _F(1 / math.log(2))
# ln 2 in two parts, of which the first has so few digits that whole multiples of it are exact.
_LN2_HIGH, _LN2_LOW = _F(355 / 512), _F(math.log(2) - 355 / 512)
_C2, _C3, _C4, _C5, _C6 = (_F(1 / math.factorial(power)) for power in range(2, 7))
_0, _1, _HALF = _F(0), _F(1), _F(0.5)

_LIBERTIES = ("contract", "reassoc", "nsz")
"""What the compiler may do to sums and products. It may not assume away NaN: a network that has gone wrong must show
it."""

SCRATCH = 1024
"""Samples of one block, about: 16 bytes each stay in the nearest cache."""


def block_size(samples: int, queries: int) -> int:
    """Queries of one block: 8 to 64, and no more than there are by much."""
    most = min(max(SCRATCH // samples, 8), 64, max(queries, 8))
    return most // 8 * 8


@cache
def compiled() -> tuple[Callable[..., None], Callable[..., None]]:
    """The forward and the backward kernel."""
    # What a kernel calls it finds by its name in this module, and there it must be compiled too.
    parts = {"_exp": compile_loops(_exp, ["contract"]), "_prepare": compile_loops(_prepare, _LIBERTIES)}
    globals().update(parts, _add=compile_loops(_add))
    return compile_loops(_forward, _LIBERTIES), compile_loops(_backward, _LIBERTIES)


def _exp(x: Any) -> Any:
    """exp(x) for x <= 0, to 4e-7: 2^n times the Taylor series at what is left, at most ln(2) / 2. A call of the C
    library's takes as long as four channels of a sample."""
    x = _LEAST if x < _LEAST else x
    n = np.floor(x * _LOG2_E + _HALF)
    f = (x - n * _LN2_HIGH) - n * _LN2_LOW
    series = _1 + f * (_1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * _C6)))))
    exponent = np.int32(127) + (np.int32(n) if n == n else np.int32(0))
    return series * np.int32(exponent << 23).view(np.float32)


def _prepare(
    view: int,
    row: int,
    head: int,
    first: int,
    count: int,
    sizes: np.ndarray,
    scales: np.ndarray,
    references: np.ndarray,
    offsets: np.ndarray,
    logits: np.ndarray,
    seen: np.ndarray,
    weight: np.ndarray,
    across: np.ndarray,
    down: np.ndarray,
    cell: np.ndarray,
    hit: np.ndarray,
) -> bool:
    """Fills the scratch (samples, block) with what queries first..first + count - 1 of a head read in a view: weight by
    softmax, place between four cells, the upper left one's number or -1 to read nothing; `hit` (block) with whether a
    query sees anything. False if none does, and then nothing else is filled."""
    levels, points = logits.shape[2:4]
    every = np.ones(len(hit), np.uint8)
    hit[:] = 0
    top, total = np.full(len(hit), _NEVER), np.zeros(len(hit), np.float32)
    for point in range(points):
        flags = seen[view, point, first : first + count] if len(seen) else every[:count]
        for k in range(count):
            hit[k] |= flags[k]
    if not hit.any():
        return False
    for point in range(points):
        flags = seen[view, point, first : first + count] if len(seen) else every[:count]
        for level in range(levels):
            given, to = logits[row, head, level, point, first : first + count], weight[level * points + point]
            for k in range(count):
                to[k] = given[k] if flags[k] else _NEVER
                top[k] = to[k] if to[k] > top[k] else top[k]
    for sample in range(levels * points):
        to = weight[sample]
        for k in range(count):
            share = _exp(to[k] - top[k])
            share = _0 if to[k] == _NEVER else share
            to[k] = share
            total[k] += share
    for k in range(count):
        total[k] = _1 / total[k] if total[k] != _0 else _0
    shared_view, shared_level = len(references) == 1, references.shape[1] == 1
    for level in range(levels):
        height, width, start = sizes[level]
        rows, columns, stride = _F(height), _F(width), np.int32(width + 2)
        for point in range(points):
            sample = level * points + point
            place = references[0 if shared_view else view, 0 if shared_level else level, point]
            us, vs = place[0, first : first + count], place[1, first : first + count]
            offset = offsets[row, head, level, point]
            du, dv = offset[0, first : first + count], offset[1, first : first + count]
            w, fx, fy, at = weight[sample], across[sample], down[sample], cell[sample]
            for k in range(count):
                w[k] *= total[k]
                x = us[k] * scales[level, 0] + scales[level, 2] + du[k]
                y = vs[k] * scales[level, 1] + scales[level, 3] + dv[k]
                inside = (x > -_1) & (x < columns) & (y > -_1) & (y < rows) & (w[k] != _0)
                x, y = (x if inside else _0), (y if inside else _0)
                left, upper = np.floor(x), np.floor(y)
                fx[k], fy[k] = x - left, y - upper
                corner = start + (np.int32(upper) + np.int32(1)) * stride + np.int32(left) + np.int32(1)
                at[k] = corner if inside else np.int32(-1)
    return True


def _forward(
    begin: int,
    end: int,
    cameras: int,
    block: int,
    values: np.ndarray,
    sizes: np.ndarray,
    scales: np.ndarray,
    references: np.ndarray,
    offsets: np.ndarray,
    logits: np.ndarray,
    seen: np.ndarray,
    out: np.ndarray,
) -> None:
    """Adds to `out`. An item is a block of queries of a head in a frame, in all its cameras one after the other."""
    heads, levels, points, queries = logits.shape[1:]
    dim = out.shape[2] // heads
    blocks = (queries + block - 1) // block
    per_row = len(values) // len(out)
    weight, across, down = np.empty((3, levels * points, block), np.float32)
    cell, hit = np.empty((levels * points, block), np.int32), np.empty(block, np.uint8)
    for item in range(begin, end):
        frame, head, first = item // (heads * blocks), item // blocks % heads, item % blocks * block
        count = min(block, queries - first)
        for view in range(frame * cameras, (frame + 1) * cameras):
            if not _prepare(
                view, frame, head, first, count, sizes, scales, references, offsets, logits, seen,
                weight, across, down, cell, hit,
            ):  # fmt: skip
                continue
            flat = values[view, head]
            for k in range(count):
                if not hit[k]:
                    continue
                to = out[view // per_row, first + k, head * dim : (head + 1) * dim]
                for level in range(levels):
                    step = (sizes[level, 1] + 2) * dim
                    for sample in range(level * points, (level + 1) * points):
                        if cell[sample, k] < 0:
                            continue
                        at = cell[sample, k] * dim
                        fx = across[sample, k]
                        lower = weight[sample, k] * down[sample, k]
                        upper = weight[sample, k] - lower
                        w01, w11 = upper * fx, lower * fx
                        w00, w10 = upper - w01, lower - w11
                        above, below = flat[at : at + 2 * dim], flat[at + step : at + step + 2 * dim]
                        for d in range(dim):
                            to[d] += w00 * above[d] + w01 * above[dim + d] + w10 * below[d] + w11 * below[dim + d]


def _backward(
    begin: int,
    end: int,
    cameras: int,
    block: int,
    values: np.ndarray,
    sizes: np.ndarray,
    scales: np.ndarray,
    references: np.ndarray,
    offsets: np.ndarray,
    logits: np.ndarray,
    seen: np.ndarray,
    gradient: np.ndarray,
    d_values: np.ndarray,
    d_offsets: np.ndarray,
    d_logits: np.ndarray,
) -> None:
    """Adds to d_values, and to d_offsets and d_logits of each frame, or of each view if they have that many. An item is
    a head in one of those. With s_i the gradient's product with sample i, a logit's is w_i (s_i - Σ w_j s_j)."""
    heads, levels, points, queries = logits.shape[1:]
    dim = gradient.shape[2] // heads
    per_slot, per_row = len(values) // len(d_logits), len(values) // len(gradient)
    weight, across, down, product, along_x, along_y = np.empty((6, levels * points, block), np.float32)
    cell, hit = np.empty((levels * points, block), np.int32), np.empty(block, np.uint8)
    mean = np.empty(block, np.float32)
    for item in range(begin, end):
        slot, head = item // heads, item % heads
        for view in range(slot * per_slot, (slot + 1) * per_slot):
            flat, d_flat = values[view, head], d_values[view, head]
            for first in range(0, queries, block):
                count = min(block, queries - first)
                if not _prepare(
                    view, view // cameras, head, first, count, sizes, scales, references, offsets, logits, seen,
                    weight, across, down, cell, hit,
                ):  # fmt: skip
                    continue
                product[:], along_x[:], along_y[:], mean[:] = _0, _0, _0, _0
                for k in range(count):
                    if not hit[k]:
                        continue
                    g = gradient[view // per_row, first + k, head * dim : (head + 1) * dim]
                    for level in range(levels):
                        step = (sizes[level, 1] + 2) * dim
                        for sample in range(level * points, (level + 1) * points):
                            if cell[sample, k] < 0:
                                continue
                            at = cell[sample, k] * dim
                            w, fx, fy = weight[sample, k], across[sample, k], down[sample, k]
                            above, below = flat[at : at + 2 * dim], flat[at + step : at + step + 2 * dim]
                            g00, g01, g10, g11 = _0, _0, _0, _0
                            for d in range(dim):
                                g00 += g[d] * above[d]
                                g01 += g[d] * above[dim + d]
                                g10 += g[d] * below[d]
                                g11 += g[d] * below[dim + d]
                            gx, gy = _1 - fx, _1 - fy
                            on = gy * (gx * g00 + fx * g01) + fy * (gx * g10 + fx * g11)
                            product[sample, k] = on
                            mean[k] += w * on
                            along_x[sample, k] = w * (gy * (g01 - g00) + fy * (g11 - g10))
                            along_y[sample, k] = w * (gx * (g10 - g00) + fx * (g11 - g01))
                            w00, w01, w10, w11 = w * gx * gy, w * fx * gy, w * gx * fy, w * fx * fy
                            above, below = d_flat[at : at + 2 * dim], d_flat[at + step : at + step + 2 * dim]
                            for d in range(dim):
                                above[d] += w00 * g[d]
                                above[dim + d] += w01 * g[d]
                            for d in range(dim):
                                below[d] += w10 * g[d]
                                below[dim + d] += w11 * g[d]
                _add(slot, head, first, count, weight, product, mean, along_x, along_y, d_offsets, d_logits)


def _add(
    slot: int,
    head: int,
    first: int,
    count: int,
    weight: np.ndarray,
    product: np.ndarray,
    mean: np.ndarray,
    along_x: np.ndarray,
    along_y: np.ndarray,
    d_offsets: np.ndarray,
    d_logits: np.ndarray,
) -> None:
    """Adds a block's scratch to d_offsets and d_logits; by itself, because a product and a sum in one instruction would
    round otherwise than one after the other, as where cameras are added up later."""
    levels, points = d_logits.shape[2:4]
    for level in range(levels):
        for point in range(points):
            sample = level * points + point
            to = d_logits[slot, head, level, point, first : first + count]
            to_x = d_offsets[slot, head, level, point, 0, first : first + count]
            to_y = d_offsets[slot, head, level, point, 1, first : first + count]
            w, on, x, y = weight[sample], product[sample], along_x[sample], along_y[sample]
            for k in range(count):
                to[k] += w[k] * (on[k] - mean[k])
                to_x[k] += x[k]
                to_y[k] += y[k]
