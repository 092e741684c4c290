"""Writes whole shards: one block of one array into one file."""

import itertools
from collections.abc import Iterator

import numpy as np

from storage.backend import Batch
from storage.codecs import shard_pieces
from storage.commit import ShardEntry
from storage.errors import StoreError
from storage.layout import RAGGED, ArrayLayout
from storage.schema import ArraySpec


def _chunks(block: np.ndarray, layout: ArrayLayout) -> Iterator[np.ndarray | None]:
    """The shard's chunks in C order, filled up to full chunk shape; None beyond the array."""
    ends = (block.shape[0], *layout.shape[1:])
    for position in itertools.product(*(range(n) for n in layout.grid)):
        corner = [p * c for p, c in zip(position, layout.chunk, strict=True)]
        if any(low >= size for low, size in zip(corner, ends, strict=True)):
            yield None
            continue
        piece = block[tuple(slice(low, low + c) for low, c in zip(corner, layout.chunk, strict=True))]
        if piece.shape != layout.chunk:
            full = np.full(layout.chunk, layout.fill, block.dtype)
            full[tuple(slice(0, n) for n in piece.shape)] = piece
            piece = full
        yield piece


def check_block(name: str, array: np.ndarray, spec: ArraySpec, layout: ArrayLayout, frames: int) -> None:
    """Raise StoreError unless the array fits its place; ragged axes may be shorter, nothing else may differ."""
    if array.dtype != np.dtype(layout.dtype):
        raise StoreError(f"array {name!r}: dtype {array.dtype} given, the schema says {layout.dtype}; cast it first.")
    want = (frames, *layout.shape[1:])
    ragged = (False, *(symbol in RAGGED for symbol in spec.shape))
    fits = len(array.shape) == len(want) and all(
        n <= full if loose else n == full for n, full, loose in zip(array.shape, want, ragged, strict=True)
    )
    if not fits:
        raise StoreError(
            f"array {name!r}: shape {array.shape} given, expected {want}"
            + (f" (or less along axis {ragged.index(True)})" if any(ragged) else "")
            + ". The sizes were fixed by the scene's init unit; if they are wrong, commit init again with right ones."
        )


def write_shard(array: np.ndarray, layout: ArrayLayout, block: int, batch: Batch) -> ShardEntry:
    """Encode one block of one array into a file of the batch. Raises OSError."""
    key = layout.shard_key(block)
    size, sha256 = batch.add(key, shard_pieces(_chunks(array, layout), layout.codec))
    return ShardEntry(layout, key, size, sha256)
