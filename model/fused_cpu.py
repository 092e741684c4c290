"""Launches the CPU kernels of deformable attention (`sampling_cpu.py`) and gives them back their gradients."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.sampling_cpu import block_size, compiled

Sizes = tuple[tuple[int, int], ...]

WORK_PER_THREAD = 2**18
"""Least channels of samples that are worth a thread: about 0.5 ms."""


class FusedOnCPU(torch.autograd.Function):
    """Saves inputs; samples and weights are worked out again on the way back. All sums are added up in an order that
    does not depend on the number of threads."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        offsets: Tensor,
        logits: Tensor,
        references: Tensor,
        seen: Tensor | None,
        sizes: Sizes,
        tables: tuple[Tensor, Tensor],
        add_cameras: bool,
    ) -> Tensor:
        ctx.sizes, ctx.tables, ctx.dtypes = sizes, tables, (values.dtype, offsets.dtype, logits.dtype)
        if references.stride(1) == 0:
            references = references[:, :1]
        seen = torch.empty(0, 0, 0, dtype=torch.bool) if seen is None else seen
        offsets, logits, references = (x.float().contiguous() for x in (offsets, logits, references))
        inputs = (_with_border(values, sizes, offsets.shape[1]), offsets, logits, references, seen.contiguous())
        ctx.save_for_backward(*inputs)
        rows, queries = len(offsets if add_cameras else values), offsets.shape[-1]
        out = torch.zeros(rows, queries, values.shape[-1])
        _run(False, logits.shape[0] * logits.shape[1], inputs, tables, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        padded, offsets, logits = ctx.saved_tensors[:3]
        frames, heads = offsets.shape[:2]
        # A frame's offsets serve all its cameras. Where there are more threads than heads, each camera adds up its own.
        slots = frames if torch.get_num_threads() <= frames * heads else len(padded)
        d_values = torch.zeros_like(padded)
        d_offsets, d_logits = (x.new_zeros(slots, *x.shape[1:]) for x in (offsets, logits))
        results = (gradient.float().contiguous(), d_values, d_offsets, d_logits)
        _run(True, slots * heads, ctx.saved_tensors, ctx.tables, *results)
        if slots > frames:
            d_offsets, d_logits = (_add_in_order(x.unflatten(0, (frames, -1))) for x in (d_offsets, d_logits))
        sums = (_without_border(d_values, ctx.sizes), d_offsets, d_logits)
        return *(x.to(dtype) for x, dtype in zip(sums, ctx.dtypes, strict=True)), *(None,) * 5


def _run(backward: bool, heads: int, inputs: Sequence[Tensor], tables: tuple[Tensor, Tensor], *results: Tensor) -> None:
    """One kernel over its items, shared by torch's number of threads: each has a run of them, and none writes where
    another does. `heads`: of all frames, or of all views; on the way forward each has as many items as blocks."""
    padded, offsets, logits, references, seen = inputs
    frames, _, levels, points, queries = logits.shape
    if not len(padded) * queries:
        return
    arrays = (x.detach().numpy() for x in (padded, *tables, references, offsets, logits, seen.view(torch.uint8)))
    block = block_size(levels * points, queries)
    items = heads if backward else heads * -(-queries // block)
    arguments = (len(padded) // frames, block, *arrays, *(x.numpy() for x in results))
    kernel = compiled()[backward]
    work = len(padded) * queries * levels * points * results[0].shape[-1]
    threads = max(1, min(torch.get_num_threads(), items, work // WORK_PER_THREAD))
    if threads == 1:
        kernel(0, items, *arguments)
        return
    bounds = [items * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: kernel(*part, *arguments), itertools.pairwise(bounds)))


def _with_border(values: Float[Tensor, "views cells dim"], sizes: Sizes, heads: int) -> Float[Tensor, "views heads n"]:
    """Values head by head, in float32, with a border of zeros around each level."""
    padded = torch.zeros(len(values), heads, _padded_cells(sizes) * (values.shape[-1] // heads))
    for inner, level in _levels(padded, values, sizes):
        inner.copy_(level)
    return padded


def _without_border(padded: Float[Tensor, "views heads n"], sizes: Sizes) -> Float[Tensor, "views cells dim"]:
    """The same of a gradient, back: what fell on the border is dropped."""
    views, heads, size = padded.shape
    values = torch.empty(views, sum(h * w for h, w in sizes), size // _padded_cells(sizes) * heads)
    for inner, level in _levels(padded, values, sizes):
        level.copy_(inner)
    return values


def _padded_cells(sizes: Sizes) -> int:
    return sum((height + 2) * (width + 2) for height, width in sizes)


def _levels(padded: Tensor, values: Tensor, sizes: Sizes) -> Iterator[tuple[Tensor, Tensor]]:
    """Each level of both, as views of (views, heads, height, width, dim of a head)."""
    heads = padded.shape[1]
    cells = values.unflatten(-1, (heads, -1)).transpose(1, 2)
    bordered = padded.unflatten(-1, (_padded_cells(sizes), -1))
    first = first_bordered = 0
    for height, width in sizes:
        area, all_of_it = height * width, (height + 2) * (width + 2)
        whole = bordered[:, :, first_bordered : first_bordered + all_of_it].unflatten(2, (height + 2, width + 2))
        yield whole[:, :, 1:-1, 1:-1], cells[:, :, first : first + area].unflatten(2, (height, width))
        first, first_bordered = first + area, first_bordered + all_of_it


def _add_in_order(parts: Float[Tensor, "frames cameras ..."]) -> Float[Tensor, "frames ..."]:
    """Sum over cameras, bit for bit as if one had been added after the other."""
    total, *rest = parts.unbind(dim=1)
    for part in rest:
        total = total + part
    return total
