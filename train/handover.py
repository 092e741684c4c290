"""Batches made in a worker process, as one piece of shared memory.

Between processes every tensor costs a file descriptor and a round trip, and its content a copy: a batch is some 35
tensors. Here samples are stacked straight into shared memory, once, and one descriptor travels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes; every tensor begins at a multiple of it."""


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies in the piece of memory."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def view(self, memory: Tensor) -> Tensor:
        """The tensor, in that memory (uint8, one axis)."""
        size = prod(self.shape) * self.dtype.itemsize
        return memory[self.offset : self.offset + size].view(self.dtype).view(self.shape)


class Shelf:
    """Places for tensors, one after another."""

    def __init__(self) -> None:
        self.size = 0

    def place(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Slot:
        """The next place."""
        slot = Slot(self.size, dtype, shape)
        size = prod(shape) * dtype.itemsize
        self.size += -(-size // ALIGNMENT) * ALIGNMENT
        return slot


def shared_memory(size: int) -> Tensor:
    """So many bytes that another process can be given, uint8, not set."""
    # What PyTorch's own collate function allocates in a worker: `share_memory_` would copy.
    storage = torch.UntypedStorage._new_shared(size)
    return torch.empty(0, dtype=torch.uint8).set_(storage)


@dataclass(frozen=True)
class Form:
    """An object to be made on arrival: its class, and its fields as slots, forms or plain values."""

    kind: Callable[..., Any]
    parts: dict[str, Any]


class Parcel:
    """What a worker sends: memory, and a form whose slots lie in it. It arrives as `unpack(memory, form)`."""

    def __init__(self, memory: Tensor, form: Any, unpack: Callable[[Tensor, Any], Any]) -> None:
        self.memory, self.form, self._unpack = memory, form, unpack

    def __reduce__(self) -> tuple[Callable[[Tensor, Any], Any], tuple[Tensor, Any]]:
        return self._unpack, (self.memory, self.form)
