"""The two Triton kernels of deformable attention. Imported only where triton is installed; `fused.py` launches them.

One program has BQ queries of one head in one view (a camera of a frame, a BEV slice, a batch element). A frame has
`cameras` views. Layouts, all contiguous but the references, which are read by strides so that what is shared is not
copied: values (views, cells, heads * dim), the cells of all levels one after the other; references (views, levels,
points, 2, queries); offsets (frames, heads, levels, points, 2, queries), logits without the 2; seen (views, points,
queries).

The softmax is over the levels and points that are seen. It is never stored: its maximum and its sum are found first,
and the gradient of a logit is w_i (g·s_i - g·out), with s_i the sample and g the gradient of the view's result.
"""

from typing import no_type_check

import triton
import triton.language as tl

# no_type_check: tests check annotations by decorating every function of this package, and Triton needs the bare one.


@triton.jit
@no_type_check
def softmax_parts(
    logits, seen, view, row, queries, points, q, inside, LEVELS: tl.constexpr, MASKED: tl.constexpr, BQ: tl.constexpr
):
    """Largest logit and Σ exp(logit - largest) of each query over what is seen; the sum is 0 where nothing is."""
    top = tl.full((BQ,), -1.0e30, tl.float32)
    total = tl.zeros((BQ,), tl.float32)
    for level in range(LEVELS):
        for point in range(points):
            here = inside
            if MASKED:
                here = inside & (tl.load(seen + (view * points + point) * queries + q, mask=inside, other=0) != 0)
            x = tl.load(logits + ((row * LEVELS + level) * points + point) * queries + q, mask=here, other=0.0)
            x = tl.where(here, x.to(tl.float32), -1.0e30)
            new = tl.maximum(top, x)
            total = total * tl.exp(top - new) + tl.where(here, tl.exp(x - new), 0.0)
            top = new
    return top, total


@triton.jit
@no_type_check
def forward_kernel(
    values, references, offsets, logits, seen, sizes, scales, out,
    queries, cells, points, cameras, stride_view, stride_level, stride_point, stride_axis,
    HEADS: tl.constexpr, DIM: tl.constexpr, LEVELS: tl.constexpr, MASKED: tl.constexpr,
    BD: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """out (views, queries, heads * dim), float32."""
    q = tl.program_id(0) * BQ + tl.arange(0, BQ)
    head = tl.program_id(1)
    view = tl.program_id(2).to(tl.int64)
    d = tl.arange(0, BD)
    inside = q < queries
    row = (view // cameras) * HEADS + head
    acc = tl.zeros((BQ, BD), tl.float32)
    used = tl.sum(inside.to(tl.int32), axis=0)
    if MASKED:
        hits = tl.zeros((BQ,), tl.int32)
        for point in range(points):
            hits += tl.load(seen + (view * points + point) * queries + q, mask=inside, other=0).to(tl.int32)
        used = tl.sum(hits, axis=0)
    if used > 0:
        top, total = softmax_parts(logits, seen, view, row, queries, points, q, inside, LEVELS, MASKED, BQ)
        share = tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)
        base = values + view * cells * (HEADS * DIM) + head * DIM
        for level in range(LEVELS):
            height = tl.load(sizes + level * 3)
            width = tl.load(sizes + level * 3 + 1)
            start = tl.load(sizes + level * 3 + 2)
            for point in range(points):
                here = inside
                if MASKED:
                    here = inside & (tl.load(seen + (view * points + point) * queries + q, mask=inside, other=0) != 0)
                sample = (row * LEVELS + level) * points + point
                logit = tl.load(logits + sample * queries + q, mask=here, other=0.0).to(tl.float32)
                weight = tl.exp(tl.where(here, logit - top, -1.0e30)) * share
                place = references + view * stride_view + level * stride_level + point * stride_point + q
                x = tl.load(place, mask=here, other=0.0) * tl.load(scales + level * 4)
                y = tl.load(place + stride_axis, mask=here, other=0.0) * tl.load(scales + level * 4 + 1)
                offset = offsets + sample * 2 * queries + q
                x += tl.load(scales + level * 4 + 2) + tl.load(offset, mask=here, other=0.0).to(tl.float32)
                y += tl.load(scales + level * 4 + 3) + tl.load(offset + queries, mask=here, other=0.0).to(tl.float32)
                here = here & (x > -1) & (x < width) & (y > -1) & (y < height)
                x = tl.where(here, x, 0.0)
                y = tl.where(here, y, 0.0)
                left, upper = tl.floor(x), tl.floor(y)
                fx, fy = x - left, y - upper
                i, j = left.to(tl.int32), upper.to(tl.int32)
                cell = base + (start + j * width + i)[:, None] * (HEADS * DIM) + d[None, :]
                wide = d[None, :] < DIM
                m00 = (here & (i >= 0) & (j >= 0))[:, None] & wide
                m01 = (here & (i + 1 < width) & (j >= 0))[:, None] & wide
                m10 = (here & (i >= 0) & (j + 1 < height))[:, None] & wide
                m11 = (here & (i + 1 < width) & (j + 1 < height))[:, None] & wide
                below = cell + width * (HEADS * DIM)
                v00 = tl.load(cell, mask=m00, other=0.0).to(tl.float32)
                v01 = tl.load(cell + HEADS * DIM, mask=m01, other=0.0).to(tl.float32)
                v10 = tl.load(below, mask=m10, other=0.0).to(tl.float32)
                v11 = tl.load(below + HEADS * DIM, mask=m11, other=0.0).to(tl.float32)
                acc += (weight * (1 - fx) * (1 - fy))[:, None] * v00 + (weight * fx * (1 - fy))[:, None] * v01
                acc += (weight * (1 - fx) * fy)[:, None] * v10 + (weight * fx * fy)[:, None] * v11
    to = out + (view * queries + q)[:, None] * (HEADS * DIM) + head * DIM + d[None, :]
    tl.store(to, acc, mask=inside[:, None] & (d[None, :] < DIM))


@triton.jit
@no_type_check
def backward_kernel(
    values, references, offsets, logits, seen, sizes, scales, out, grad, d_values, d_offsets, d_logits,
    queries, cells, points, cameras, stride_view, stride_level, stride_point, stride_axis,
    HEADS: tl.constexpr, DIM: tl.constexpr, LEVELS: tl.constexpr, MASKED: tl.constexpr,
    BD: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """Adds to d_values, d_offsets and d_logits, float32 and zero before; several views may share a frame's."""
    q = tl.program_id(0) * BQ + tl.arange(0, BQ)
    head = tl.program_id(1)
    view = tl.program_id(2).to(tl.int64)
    d = tl.arange(0, BD)
    inside = q < queries
    row = (view // cameras) * HEADS + head
    used = tl.sum(inside.to(tl.int32), axis=0)
    if MASKED:
        hits = tl.zeros((BQ,), tl.int32)
        for point in range(points):
            hits += tl.load(seen + (view * points + point) * queries + q, mask=inside, other=0).to(tl.int32)
        used = tl.sum(hits, axis=0)
    if used > 0:
        top, total = softmax_parts(logits, seen, view, row, queries, points, q, inside, LEVELS, MASKED, BQ)
        share = tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)
        wide = d[None, :] < DIM
        at = (view * queries + q)[:, None] * (HEADS * DIM) + head * DIM + d[None, :]
        g = tl.load(grad + at, mask=inside[:, None] & wide, other=0.0).to(tl.float32)
        mean = tl.sum(g * tl.load(out + at, mask=inside[:, None] & wide, other=0.0), axis=1)
        first = view * cells * (HEADS * DIM) + head * DIM
        for level in range(LEVELS):
            height = tl.load(sizes + level * 3)
            width = tl.load(sizes + level * 3 + 1)
            start = tl.load(sizes + level * 3 + 2)
            for point in range(points):
                known = inside
                if MASKED:
                    known = inside & (tl.load(seen + (view * points + point) * queries + q, mask=inside, other=0) != 0)
                sample = (row * LEVELS + level) * points + point
                logit = tl.load(logits + sample * queries + q, mask=known, other=0.0).to(tl.float32)
                weight = tl.exp(tl.where(known, logit - top, -1.0e30)) * share
                place = references + view * stride_view + level * stride_level + point * stride_point + q
                x = tl.load(place, mask=known, other=0.0) * tl.load(scales + level * 4)
                y = tl.load(place + stride_axis, mask=known, other=0.0) * tl.load(scales + level * 4 + 1)
                offset = sample * 2 * queries + q
                x += tl.load(scales + level * 4 + 2) + tl.load(offsets + offset, mask=known, other=0.0).to(tl.float32)
                y += tl.load(scales + level * 4 + 3)
                y += tl.load(offsets + offset + queries, mask=known, other=0.0).to(tl.float32)
                here = known & (x > -1) & (x < width) & (y > -1) & (y < height)
                x = tl.where(here, x, 0.0)
                y = tl.where(here, y, 0.0)
                left, upper = tl.floor(x), tl.floor(y)
                fx, fy = x - left, y - upper
                i, j = left.to(tl.int32), upper.to(tl.int32)
                cell = first + (start + j * width + i)[:, None] * (HEADS * DIM) + d[None, :]
                m00 = (here & (i >= 0) & (j >= 0))[:, None] & wide
                m01 = (here & (i + 1 < width) & (j >= 0))[:, None] & wide
                m10 = (here & (i >= 0) & (j + 1 < height))[:, None] & wide
                m11 = (here & (i + 1 < width) & (j + 1 < height))[:, None] & wide
                below = cell + width * (HEADS * DIM)
                # What the gradient has to do with each of the four cells, summed over the head's channels.
                g00 = tl.sum(g * tl.load(values + cell, mask=m00, other=0.0).to(tl.float32), axis=1)
                g01 = tl.sum(g * tl.load(values + cell + HEADS * DIM, mask=m01, other=0.0).to(tl.float32), axis=1)
                g10 = tl.sum(g * tl.load(values + below, mask=m10, other=0.0).to(tl.float32), axis=1)
                g11 = tl.sum(g * tl.load(values + below + HEADS * DIM, mask=m11, other=0.0).to(tl.float32), axis=1)
                on_sample = (1 - fy) * ((1 - fx) * g00 + fx * g01) + fy * ((1 - fx) * g10 + fx * g11)
                tl.atomic_add(d_logits + sample * queries + q, weight * (on_sample - mean), mask=known, sem="relaxed")
                along_x = weight * ((1 - fy) * (g01 - g00) + fy * (g11 - g10))
                along_y = weight * ((1 - fx) * (g10 - g00) + fx * (g11 - g01))
                tl.atomic_add(d_offsets + offset, along_x, mask=here, sem="relaxed")
                tl.atomic_add(d_offsets + offset + queries, along_y, mask=here, sem="relaxed")
                tl.atomic_add(d_values + cell, (weight * (1 - fx) * (1 - fy))[:, None] * g, mask=m00, sem="relaxed")
                tl.atomic_add(
                    d_values + cell + HEADS * DIM, (weight * fx * (1 - fy))[:, None] * g, mask=m01, sem="relaxed"
                )
                tl.atomic_add(d_values + below, (weight * (1 - fx) * fy)[:, None] * g, mask=m10, sem="relaxed")
                tl.atomic_add(d_values + below + HEADS * DIM, (weight * fx * fy)[:, None] * g, mask=m11, sem="relaxed")
