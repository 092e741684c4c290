"""The files of a unit: whether arrays are what it takes, then whole shards, one block of one array into one file."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from storage.backend import Batch
from storage.codecs import shard_pieces
from storage.commit import CommitRecord, ShardEntry
from storage.errors import StoreError
from storage.invariants import broken_rules
from storage.layout import (
    RAGGED,
    TABLE_ARRAYS,
    ArrayLayout,
    UnitId,
    blocks,
    cue_layout,
    generation_path,
    group_metadata,
    group_paths,
    table_layout,
)
from storage.schema import ArraySpec, SceneTable
from storage.tables import table_metadata


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


def check_unit(
    unit: UnitId,
    arrays: Mapping[str, np.ndarray],
    specs: Sequence[ArraySpec],
    init: CommitRecord,
    block_keyframes: int,
) -> range:
    """The block's keyframes, once the arrays are what the cue needs. Raises StoreError."""
    spans = blocks(init.frames[1], block_keyframes)
    if unit.block >= len(spans):
        raise StoreError(f"unit {unit}: scene {unit.scene!r} has blocks 0 to {len(spans) - 1}.")
    names = {spec.name for spec in specs}
    missing = {spec.name for spec in specs if not spec.optional} - set(arrays)
    if missing or set(arrays) - names:
        raise StoreError(f"unit {unit}: arrays missing {sorted(missing)}, left over {sorted(set(arrays) - names)}.")
    for spec in specs:
        if spec.name not in arrays:
            continue
        layout = cue_layout(spec, init.sizes, block_keyframes, generation_path(unit.scene, init.generation))
        _check_array(f"{unit} {spec.name}", arrays[spec.name], spec, layout, len(spans[unit.block]))
    broken = broken_rules(arrays, init.frames[1])
    if broken:
        raise StoreError(f"unit {unit}: {'; '.join(broken)}. The extractor is at fault; nothing was written.")
    return spans[unit.block]


def _check_array(name: str, array: np.ndarray, spec: ArraySpec, layout: ArrayLayout, frames: int) -> None:
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


Written = tuple[tuple[ShardEntry, ...], dict[str, str]]
"""The shards of a unit, and the SHA-256 of the zarr.json files that belong to it, by key."""


def write_block(arrays: Mapping[str, np.ndarray], layouts: Sequence[ArrayLayout], block: int, batch: Batch) -> Written:
    """Write one block of a cue's arrays, and get it into place. Raises OSError."""
    shards = tuple(write_shard(arrays[layout.name], layout, block, batch) for layout in layouts)
    metadata = {key: batch.add_fixed(key, content) for key, content in _array_metadata(layouts).items()}
    batch.land()
    return shards, metadata


def write_table(
    table: SceneTable, sizes: Mapping[str, int], folder: str, scene: str, cues: Sequence[ArrayLayout], batch: Batch
) -> Written:
    """Write a scene's table and the metadata of all its arrays (`cues`: those of the cues). Raises OSError."""
    tables = [table_layout(name, sizes, folder) for name in TABLE_ARRAYS]
    arrays = [*tables, *cues]
    contents = {f"{path}/zarr.json": group_metadata() for path in group_paths([a.path for a in arrays], scene)}
    contents[f"{folder}/frames/zarr.json"] = table_metadata(table)
    contents |= _array_metadata(arrays)
    shards = tuple(
        write_shard(np.asarray(getattr(table, name)), layout, 0, batch)
        for name, layout in zip(TABLE_ARRAYS, tables, strict=True)
    )
    metadata = {key: batch.add_fixed(key, content) for key, content in contents.items()}
    batch.land()
    return shards, metadata


def _array_metadata(layouts: Sequence[ArrayLayout]) -> dict[str, bytes]:
    return {f"{layout.path}/zarr.json": layout.metadata() for layout in layouts}
