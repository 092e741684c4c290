"""Only algorithms that give the same bits every time, for as long as a run lasts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch


@contextmanager
def deterministic(mode: Literal["off", "warn", "strict"]) -> Iterator[None]:
    """`strict` raises RuntimeError at the first operation that has no deterministic form, `warn` warns of it.

    On a CPU a run repeats itself bit for bit without it. On a GPU the gradients of trilinear look-ups are sums in any
    order, and torch has no other form of them: `strict` stops there and says so.
    """
    if mode == "off":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, fill = torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    # cuBLAS reads it when it is first used; without it deterministic matrix products are refused.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=mode == "warn")
    torch.backends.cudnn.benchmark = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
