"""Deformable attention as one kernel: all levels, points and cameras of a query in one pass, nothing between is kept.

The plain way (`attention.py`) samples level by level, stores every sample (at the paper's size 192 per query, head and
camera on the vertical planes), multiplies by its weight and sums. Besides, it gathers the queries that each camera
sees, and how many those are the host has to ask. Here a program looks at the flags and passes by.
"""

import importlib.util
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from geometry.compiled import installed
from model.fused_cpu import FusedOnCPU

Kernel = Literal["auto", "plain", "triton", "numba"]


class LaunchShape(NamedTuple):
    """How many queries one program of a kernel takes, at most, and by how many warps of 32 threads it is run."""

    queries: int
    warps: int


FORWARD, BACKWARD = LaunchShape(32, 4), LaunchShape(16, 4)
"""The quickest of six on one H200, over all calls of the paper's encoder (`bench_attention.py --sweep`)."""


class FlatMaps(NamedTuple):
    """Feature maps of all levels, one after the other along `cells`, row-major: channels last throughout."""

    values: Float[Tensor, "views cells dim"]
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each level."""

    @classmethod
    def join(cls, levels: Sequence[Float[Tensor, "views dim _h _w"]]) -> "FlatMaps":
        """Maps in the usual layout, joined."""
        flat = [level.flatten(2).transpose(1, 2) for level in levels]
        return cls(torch.cat(flat, dim=1), tuple((level.shape[-2], level.shape[-1]) for level in levels))


def use_fused(kernel: Kernel, like: Tensor) -> bool:
    """Whether deformable attention on `like`'s device and in its precision runs as a fused kernel.

    `auto`: on a CPU where numba is installed; on a GPU where triton is, but where torch is told to be deterministic:
    that kernel's backward pass adds up in any order. Never in float64, which is for checks. Raises RuntimeError where a
    kernel is asked for by name and cannot run.
    """
    place = like.device.type
    if kernel == "plain" or like.dtype == torch.float64:
        return False
    if kernel == "auto":
        if place == "cpu":
            return installed()
        return place == "cuda" and not torch.are_deterministic_algorithms_enabled() and _triton_installed()
    if kernel == "numba":
        found, runs, where = installed(), place == "cpu", "CPUs"
    else:
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        found, runs, where = _triton_installed(), place == "cuda" or interpreted, "CUDA devices"
    if not (found and runs):
        why = f"it runs on {where}, these tensors are on {like.device}" if found else f"{kernel} is not installed"
        raise RuntimeError(f"model.attention = '{kernel}': {why}; set model.attention to 'auto' or 'plain'")
    return True


def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def fused_attention(
    maps: FlatMaps,
    references: Float[Tensor, "#views #levels points 2 queries"],
    offsets: Float[Tensor, "frames heads levels points 2 queries"],
    logits: Float[Tensor, "frames heads levels points queries"],
    seen: Bool[Tensor, "views points queries"] | None = None,
    extents: tuple[tuple[int, int], ...] | None = None,
    *,
    kernel: Kernel = "auto",
    add_cameras: bool = False,
) -> Float[Tensor, "rows queries dim"]:
    """`out[view, q, head] = Σ_level Σ_point softmax(logits) value[view, level][head](reference + offset)`, bilinear.

    The same as `deformable_attention` of `softmax_over_samples(logits, seen)`, with offsets and logits per frame and
    views = frames x cameras, frame-major. Float32 inside and in the result, whatever the inputs are.

    Args:
        references: constants, no gradient. (u, v) across each level's map, -1..1 from edge to edge; with `extents`, in
            the units of those. A sample outside reads zero.
        offsets: (u, v) in cells of the level's map.
        seen: points that take part, per view; None: all. A query with none in a view gets zeros there.
        extents: (width, height) that each level's cells cover, for references in pixels.
        kernel: as it was given to `use_fused`, which said yes.
        add_cameras: one row per frame, the sum over its cameras, instead of one per view.
    """
    if references.requires_grad:
        raise ValueError("fused_attention takes references as constants; detach them, or use deformable_attention")
    if references.device.type == "cpu" and kernel != "triton":
        tables = _tables(maps.sizes, extents, references.device, border=1)
        return FusedOnCPU.apply(maps.values, offsets, logits, references, seen, maps.sizes, tables, add_cameras)
    sizes, scales = _tables(maps.sizes, extents, maps.values.device)
    views, levels, points, queries = len(maps.values), len(maps.sizes), offsets.shape[3], offsets.shape[5]
    places = references.float().expand(views, levels, points, 2, queries)
    out = _Fused.apply(maps.values, offsets, logits, places, seen, sizes, scales)
    return out.unflatten(0, (len(offsets), -1)).sum(dim=1) if add_cameras else out


@lru_cache(maxsize=64)
def _tables(
    sizes: tuple[tuple[int, int], ...],
    extents: tuple[tuple[int, int], ...] | None,
    device: torch.device,
    border: int = 0,
) -> tuple[Tensor, Tensor]:
    """(height, width, first cell) and (x scale, y scale, x shift, y shift) per level: cell coordinate of a pixel centre
    i = reference * scale + shift. Each level has `border` more cells on every side. Kept, because to copy them to a GPU
    at each step would make the host wait."""
    rows, scales, start = [], [], 0
    for level, (height, width) in enumerate(sizes):
        rows.append([height, width, start])
        start += (height + 2 * border) * (width + 2 * border)
        if extents is None:
            scales.append([width / 2, height / 2, width / 2 - 0.5, height / 2 - 0.5])
        else:
            scales.append([width / extents[level][0], height / extents[level][1], -0.5, -0.5])
    # A tensor made in inference mode could not be kept for a backward pass later.
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=torch.int32, device=device), torch.tensor(scales, device=device)


class _Fused(torch.autograd.Function):
    """Launches the kernels. Saves inputs and result; samples and weights are worked out again on the way back."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        offsets: Tensor,
        logits: Tensor,
        places: Tensor,
        seen: Tensor | None,
        sizes: Tensor,
        scales: Tensor,
    ) -> Tensor:
        from model.sampling_kernels import forward_kernel

        values, offsets, logits = values.contiguous(), offsets.contiguous(), logits.contiguous()
        if places.stride(-1) != 1:
            places = places.contiguous()
        flags = None if seen is None else seen.contiguous().view(torch.uint8)
        out = values.new_empty(len(values), offsets.shape[-1], values.shape[-1], dtype=torch.float32)
        grid, numbers, constants = _launch(values, offsets, places, flags, FORWARD)
        forward_kernel[grid](values, places, offsets, logits, flags, sizes, scales, out, *numbers, **constants)
        ctx.save_for_backward(values, offsets, logits, places, flags, sizes, scales, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        from model.sampling_kernels import backward_kernel

        values, offsets, logits, places, flags, sizes, scales, out = ctx.saved_tensors
        sums = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in (values, offsets, logits)]
        grid, numbers, constants = _launch(values, offsets, places, flags, BACKWARD)
        backward_kernel[grid](
            values, places, offsets, logits, flags, sizes, scales, out, gradients[0].contiguous(), *sums,
            *numbers, **constants,
        )  # fmt: skip
        d_values, d_offsets, d_logits = sums
        return d_values.to(values.dtype), d_offsets.to(offsets.dtype), d_logits.to(logits.dtype), *(None,) * 4


def _launch(
    values: Tensor, offsets: Tensor, places: Tensor, flags: Tensor | None, shape: LaunchShape
) -> tuple[tuple[int, int, int], tuple[int, ...], dict[str, Any]]:
    """Grid, numbers and compile-time constants of both kernels."""
    views, cells, width = values.shape
    frames, heads, levels, points, _, queries = offsets.shape
    dim = width // heads
    block = min(shape.queries, max(16, 1 << (queries - 1).bit_length()))
    numbers = (queries, cells, points, views // frames, *places.stride()[:4])
    constants = {
        "HEADS": heads, "DIM": dim, "LEVELS": levels, "MASKED": flags is not None,
        "BD": 1 << (dim - 1).bit_length(), "BQ": block, "num_warps": shape.warps,
    }  # fmt: skip
    return (-(-queries // block), heads, views), numbers, constants
