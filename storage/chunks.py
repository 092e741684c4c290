"""Direct reads of committed chunks: record, cached shard index, pread, checksum, decode. No zarr."""

import hashlib
import json
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from storage.codecs import EMPTY, decode_chunk, decode_index, index_size
from storage.commit import CommitRecord, ShardEntry, commit_path, read_record, record_units, schema_error
from storage.errors import CueMissing, StoreDamage, StoreError, StoreRebuilt
from storage.layout import INIT, SPARE_ROOT, TABLE_ARRAYS, UnitId, encode_json, generation_path
from storage.schema import SCHEMA_VERSION, SceneTable, StoreAttributes

OPEN_SHARDS = 128
"""Shard files kept open per reader; each costs a descriptor and 16 bytes per chunk."""
_REPAIR = "Run `occflow verify --repair` on the store, then `occflow cues` again to rebuild the unit."


def read_attributes(root: Path) -> StoreAttributes:
    """Root attributes of a store.

    Raises:
        StoreError: there is no store at this path.
        SchemaVersionError: it has another schema version.
        StoreDamage: its root zarr.json was changed.
    """
    path = root / "zarr.json"
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if (root / SPARE_ROOT).exists():
            raise StoreDamage(f"{path}: missing. Run `occflow verify --repair`: it restores it from a copy.") from error
        raise StoreError(f"{root}: no cue store here (no zarr.json). Check the path, or run `occflow cues`.") from error
    return parse_attributes(raw, path)


def parse_attributes(raw: bytes, path: Path) -> StoreAttributes:
    """Attributes from the content of a root zarr.json. Raises SchemaVersionError, StoreDamage."""
    try:
        attributes = json.loads(raw)["attributes"]
        content, digest = attributes["occflow"], attributes["occflow_sha256"]
        version = content["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreDamage(f"{path}: not the root of a cue store, or damaged ({error!r}). {_REPAIR}") from error
    if version != SCHEMA_VERSION:
        raise schema_error(path, version)
    if hashlib.sha256(encode_json(content)).hexdigest() != digest:
        raise StoreDamage(f"{path}: the store's attributes were changed after they were written. {_REPAIR}")
    tuples = {f.name: tuple(content[f.name]) for f in fields(StoreAttributes) if isinstance(content[f.name], list)}
    return StoreAttributes(**{**content, **tuples})


@dataclass
class _OpenShard:
    """A shard's descriptor and index. Closed when the last user lets go, so a cache may drop it at any time."""

    descriptor: int
    index: np.ndarray

    def __del__(self) -> None:
        os.close(self.descriptor)


class ChunkReader:
    """Chunks of committed units of one store, by name and position. Threads may share it; pickles as its path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._shards: OrderedDict[str, _OpenShard] = OrderedDict()
        self._records: dict[UnitId, CommitRecord] = {}
        self._stamps: dict[UnitId, tuple[int, int] | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"])

    def record(self, unit: UnitId) -> CommitRecord | None:
        """The unit's record, None when it is not committed. A found record is kept: the reader sees one generation."""
        with self._lock:
            known = self._records.get(unit)
        if known is not None:
            return known
        stamp = _stamp(commit_path(self.root, unit))
        found = read_record(self.root, unit)
        if found is not None:
            with self._lock:
                if unit not in self._records:
                    self._records[unit], self._stamps[unit] = found, stamp
                found = self._records[unit]
        return found

    def visible(self, unit: UnitId) -> CommitRecord | None:
        """As `record`, but None also for a block that was committed under another init unit than the scene's."""
        record = self.record(unit)
        if record is None:
            return None
        init = self.record(UnitId(INIT, unit.scene))
        return record if init is not None and init.init == record.init else None

    def require(self, unit: UnitId) -> CommitRecord:
        """As `visible`. Raises CueMissing."""
        record = self.visible(unit)
        if record is None:
            raise CueMissing(
                f"{self.root}: unit {unit} is not committed. Run `occflow cues CONFIG --scenes {unit.scene}"
                + (f" --cues {unit.cue}`." if unit.cue != INIT else "`.")
            )
        return record

    def scenes(self) -> list[str]:
        """Scenes whose init unit is committed, sorted."""
        return [unit.scene for unit in record_units(self.root) if unit.cue == INIT]

    def chunk(self, record: CommitRecord, name: str, t: int, *rest: int) -> np.ndarray:
        """One chunk, without its cut axes: array `name` at keyframe `t` and, where the chunk is one camera's, at
        `rest`.

        Raises:
            IndexError: outside the array.
            StoreDamage: the file is missing, truncated or changed.
            StoreRebuilt: the unit was committed anew, or taken back, since its record was read.
        """
        entry = record.shard(name)
        layout = entry.layout
        position = (t - record.frames[0], *rest)
        if not record.frames[0] <= t < record.frames[1] or any(
            not 0 <= p < n for p, n in zip(rest, layout.shape[1:], strict=False)
        ):
            raise IndexError(f"array {name!r} of unit {record.unit}: no position {(t, *rest)} in {layout.shape}")
        number = 0
        for axis, cells in enumerate(layout.grid):
            number = number * cells + (position[axis] if axis < len(position) else 0)
        data = self._decode(record, entry, number)
        return data.reshape(layout.chunk[len(position) :])

    def block(self, record: CommitRecord, name: str) -> np.ndarray:
        """All of a unit's part of an array, (frames, ...). Raises as `chunk`."""
        entry = record.shard(name)
        layout = entry.layout
        shape = (record.frames[1] - record.frames[0], *layout.shape[1:])
        out = np.full(tuple(max(n, s) for n, s in zip(shape, layout.shard, strict=True)), layout.fill, layout.dtype)
        for number, position in enumerate(np.ndindex(*layout.grid)):
            corner = [p * c for p, c in zip(position, layout.chunk, strict=True)]
            if all(low < n for low, n in zip(corner, shape, strict=True)):
                place = tuple(slice(low, low + c) for low, c in zip(corner, layout.chunk, strict=True))
                out[place] = self._decode(record, entry, number)
        return np.ascontiguousarray(out[tuple(slice(0, n) for n in shape)])

    def table(self, scene: str) -> SceneTable:
        """The scene's table. Raises CueMissing, StoreDamage, StoreRebuilt."""
        record = self.require(UnitId(INIT, scene))
        path = f"{generation_path(scene, record.generation)}/frames/zarr.json"
        try:
            raw = (self.root / path).read_bytes()
        except FileNotFoundError as error:
            raise self._gone(record, path) from error
        if hashlib.sha256(raw).hexdigest() != record.metadata.get(path):
            raise StoreDamage(f"{self.root / path}: changed after it was committed. {_REPAIR}")
        rest = json.loads(raw)["attributes"]
        arrays: dict[str, Any] = {name: self.block(record, f"frames/{name}") for name in TABLE_ARRAYS}
        sizes = {name: rest[name] for name in ("max_image_bytes", "max_sweep_bytes", "max_lidar_points")}
        return SceneTable(tokens=tuple(rest["tokens"]), tags=tuple(rest["tags"]), **arrays, **sizes)

    def _decode(self, record: CommitRecord, entry: ShardEntry, number: int) -> np.ndarray:
        shard = self._open(record, entry)
        offset, length = (int(n) for n in shard.index[number])
        where = f"{self.root / entry.key}: chunk {number} of unit {record.unit}"
        if offset == EMPTY or offset + length > entry.size:
            raise StoreDamage(f"{where} is not in the shard. {_REPAIR}")
        data = os.pread(shard.descriptor, length, offset)
        try:
            return decode_chunk(data, entry.layout.codec, np.dtype(entry.layout.dtype), entry.layout.chunk)
        except StoreDamage as error:
            raise StoreDamage(f"{where}: {error}. {_REPAIR}") from error

    def _open(self, record: CommitRecord, entry: ShardEntry) -> _OpenShard:
        """The open shard, checked to be still in place and whole."""
        with self._lock:
            shard = self._shards.get(entry.key)
            if shard is not None:
                self._shards.move_to_end(entry.key)
        state = os.fstat(shard.descriptor) if shard is not None else None
        if shard is None or state is None or state.st_nlink == 0:
            shard = self._load(record, entry)
            with self._lock:
                self._shards[entry.key] = shard
                while len(self._shards) > OPEN_SHARDS:
                    self._shards.popitem(last=False)
        elif state.st_size != entry.size:
            raise self._truncated(entry, state.st_size)
        return shard

    def _load(self, record: CommitRecord, entry: ShardEntry) -> _OpenShard:
        path = self.root / entry.key
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise self._gone(record, entry.key) from error
        shard = _OpenShard(descriptor, np.empty((0, 2), np.uint64))
        # After the open: data of another commit at this path is only ever there after the record of this one is gone.
        if self._stamps.get(record.unit) != _stamp(commit_path(self.root, record.unit)):
            self._check_current(record, entry.key)
        size = os.fstat(descriptor).st_size
        if size != entry.size:
            raise self._truncated(entry, size)
        chunks = int(np.prod(entry.layout.grid))
        length = index_size(chunks)
        try:
            shard.index = decode_index(os.pread(descriptor, length, size - length))
        except (StoreDamage, OSError) as error:
            raise StoreDamage(f"{path}: {error}. {_REPAIR}") from error
        return shard

    def _truncated(self, entry: ShardEntry, size: int) -> StoreDamage:
        return StoreDamage(f"{self.root / entry.key}: {size} bytes, but {entry.size} were committed. {_REPAIR}")

    def _check_current(self, record: CommitRecord, key: str) -> None:
        """Raise StoreRebuilt unless the unit is still committed with the same data."""
        stamp = _stamp(commit_path(self.root, record.unit))
        current = read_record(self.root, record.unit)
        if current is None or (current.init, current.shards) != (record.init, record.shards):
            state = "was rebuilt" if current is not None else "is no longer committed"
            raise StoreRebuilt(
                f"{self.root / key}: unit {record.unit} {state} since this reader opened it. Open the store again "
                "(a new StoreReader) to read what is committed now."
            )
        with self._lock:
            self._stamps[record.unit] = stamp

    def _gone(self, record: CommitRecord, key: str) -> StoreDamage:
        """The error for a missing file: damage, unless that is due to another commit. Raises StoreRebuilt."""
        self._check_current(record, key)
        return StoreDamage(f"{self.root / key}: this committed file is missing. {_REPAIR}")


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None without a file."""
    try:
        state = os.stat(path)
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_mtime_ns
