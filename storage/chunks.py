"""Direct reads of committed chunks: record, cached shard index, one read, checksum, decode. No zarr."""

import contextlib
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from storage.backend import ObjectBackend, backend
from storage.codecs import EMPTY, decode_chunk
from storage.commit import CommitRecord, ShardEntry, record_units
from storage.errors import StoreDamage, StoreRebuilt
from storage.layout import INIT, TABLE_ARRAYS, UnitId, generation_path
from storage.location import Location, ObjectPath
from storage.records import KnownRecords
from storage.schema import SceneTable
from storage.shards import LocalShard, RemoteShard, RowCache, rows

OPEN_SHARDS = 128
"""Shard files kept open per reader; each costs a descriptor and 16 bytes per chunk."""
REMOTE_SHARDS = 1024
"""The same in a bucket, where one costs no descriptor, but a request to open."""
KEPT_SMALL = 256
"""Decoded keyframes of small arrays that a reader keeps."""
_REPAIR = "Run `occflow verify --repair` on the store, then `occflow cues` again to rebuild the unit."


class ChunkReader:
    """Chunks of committed units of one store, by name and position. Threads may share it; pickles as its path.

    Args:
        ahead: as for KnownRecords.
    """

    def __init__(self, root: Location, *, ahead: bool = False) -> None:
        self.root = root
        self._known = KnownRecords(root, ahead=ahead)
        self._remote = ObjectBackend(root) if isinstance(root, ObjectPath) else None
        self._rows = RowCache()
        self._lock = threading.Lock()
        self._shards: OrderedDict[str, LocalShard | RemoteShard] = OrderedDict()
        self._small: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "ahead": self._known.ahead}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"], ahead=state["ahead"])

    def record(self, unit: UnitId) -> CommitRecord | None:
        """As KnownRecords.record."""
        return self._known.record(unit)

    def visible(self, unit: UnitId) -> CommitRecord | None:
        """As KnownRecords.visible."""
        return self._known.visible(unit)

    def require(self, unit: UnitId) -> CommitRecord:
        """As KnownRecords.require. Raises CueMissing."""
        return self._known.require(unit)

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
        number, shape = _position(record, entry, t, rest)
        return self._decode(record, entry, number).reshape(shape)

    def borrowed(self, record: CommitRecord, name: str, t: int, *rest: int) -> np.ndarray:
        """As `chunk`, for use before this thread reads again: an array that is not compressed is not copied."""
        entry = record.shard(name)
        number, shape = _position(record, entry, t, rest)
        return self._decode(record, entry, number, borrow=True).reshape(shape)

    def small(self, record: CommitRecord, name: str, t: int) -> np.ndarray:
        """As `chunk` of a whole keyframe, read-only, and decoded once for all cameras: for lengths and targets."""
        entry = record.shard(name)
        key = entry.key, t
        with self._lock:
            known = self._small.get(key)
        if known is None:
            known = self.chunk(record, name, t)
            known.setflags(write=False)
            with self._lock:
                self._small[key] = known
                while len(self._small) > KEPT_SMALL:
                    self._small.popitem(last=False)
        return known

    def block(self, record: CommitRecord, name: str) -> np.ndarray:
        """All of a unit's part of an array, (frames, ...). Raises as `chunk`."""
        entry = record.shard(name)
        layout = entry.layout
        shard = self._load(record, entry, whole=True) if self._remote is not None else None
        shape = (record.frames[1] - record.frames[0], *layout.shape[1:])
        out = np.full(tuple(max(n, s) for n, s in zip(shape, layout.shard, strict=True)), layout.fill, layout.dtype)
        for number, position in enumerate(np.ndindex(*layout.grid)):
            corner = [p * c for p, c in zip(position, layout.chunk, strict=True)]
            if all(low < n for low, n in zip(corner, shape, strict=True)):
                place = tuple(slice(low, low + c) for low, c in zip(corner, layout.chunk, strict=True))
                out[place] = self._decode(record, entry, number, shard)
        return np.ascontiguousarray(out[tuple(slice(0, n) for n in shape)])

    @property
    def remote(self) -> bool:
        """Whether every read is a request, so that `prefetch` is worth its while."""
        return self._remote is not None

    def prefetch(self, wanted: Iterable[tuple[CommitRecord, str, int, int | None]]) -> None:
        """Fetch all cameras of (record, array, keyframe, sweep slot or None for all): from a bucket by several requests
        at a time, and wait for them; on a disk the kernel is asked to read what is not in memory, while this goes on.

        What fails here fails again, and is told, when it is read.
        """
        if self._remote is None:
            for one in wanted:
                with contextlib.suppress(StoreDamage, StoreRebuilt, OSError):
                    self._ahead(*one)
            return
        pool, under_way = self._remote.client.pool, list[Future[None]]()
        for one in wanted:
            under_way.append(pool.submit(self._ahead, *one))
        for future in under_way:
            future.exception()

    def _ahead(self, record: CommitRecord, name: str, t: int, slot: int | None) -> None:
        entry = record.shard(name)
        if (entry.key, t) in self._small:  # decoded and kept: nothing of it will be read
            return
        shard = self._open(record, entry)
        for row in rows(entry, t - record.frames[0], slot):
            shard.ahead(row)

    def table(self, scene: str) -> SceneTable:
        """The scene's table. Raises CueMissing, StoreDamage, StoreRebuilt."""
        record = self.require(UnitId(INIT, scene))
        rest = self._table_attributes(record)
        arrays: dict[str, Any] = {name: self.block(record, f"frames/{name}") for name in TABLE_ARRAYS}
        sizes = {name: rest[name] for name in ("max_image_bytes", "max_sweep_bytes", "max_lidar_points")}
        return SceneTable(tokens=tuple(rest["tokens"]), tags=tuple(rest["tags"]), **arrays, **sizes)

    def tokens(self, scene: str) -> tuple[str, ...]:
        """The tokens of the scene's keyframes, from one small file. Raises as `table`."""
        return tuple(self._table_attributes(self.require(UnitId(INIT, scene)))["tokens"])

    def _table_attributes(self, record: CommitRecord) -> dict[str, Any]:
        path = f"{generation_path(record.unit.scene, record.generation)}/frames/zarr.json"
        try:
            raw = backend(self.root).get(path)
        except FileNotFoundError as error:
            raise self._gone(record, path) from error
        if hashlib.sha256(raw).hexdigest() != record.metadata.get(path):
            self._known.check_current(record, path)  # another table may have been committed at the same path
            raise StoreDamage(f"{self.root / path}: changed after it was committed. {_REPAIR}")
        return json.loads(raw)["attributes"]

    def _decode(
        self,
        record: CommitRecord,
        entry: ShardEntry,
        number: int,
        shard: LocalShard | RemoteShard | None = None,
        *,
        borrow: bool = False,
    ) -> np.ndarray:
        if shard is None:
            shard = self._open(record, entry)
        offset, length = shard.index[number].tolist()
        if offset == EMPTY or offset + length > entry.size:
            raise StoreDamage(f"{self._where(record, entry, number)} is not in the shard. {_REPAIR}")
        try:
            data = shard.read(number, offset, length)
        except FileNotFoundError as error:
            raise self._gone(record, entry.key) from error
        try:
            layout = entry.layout
            return decode_chunk(data, layout.codec, layout.stored, layout.chunk, borrow=borrow)
        except StoreDamage as error:
            raise StoreDamage(f"{self._where(record, entry, number)}: {error}. {_REPAIR}") from error

    def _where(self, record: CommitRecord, entry: ShardEntry, number: int) -> str:
        return f"{self.root / entry.key}: chunk {number} of unit {record.unit}"

    def _open(self, record: CommitRecord, entry: ShardEntry) -> LocalShard | RemoteShard:
        """The open shard, checked to be still in place and whole."""
        with self._lock:
            shard = self._shards.get(entry.key)
            if shard is not None:
                self._shards.move_to_end(entry.key)
        size = shard.size() if shard is not None else None
        if shard is None or size is None:
            shard = self._load(record, entry)
            with self._lock:
                self._shards[entry.key] = shard
                while len(self._shards) > (OPEN_SHARDS if self._remote is None else REMOTE_SHARDS):
                    self._shards.popitem(last=False)
        elif size != entry.size:
            raise self._truncated(entry, size)
        return shard

    def _load(self, record: CommitRecord, entry: ShardEntry, *, whole: bool = False) -> LocalShard | RemoteShard:
        path = self.root / entry.key
        shard: LocalShard | RemoteShard
        try:
            if self._remote is not None:
                shard = RemoteShard(self._remote, entry, self._rows, whole=whole)
            else:
                shard = LocalShard(Path(str(path)), entry)
                # After the open: data of another commit at this path is only ever there after the record of this one
                # is gone. In a bucket there never is any: no two commits write one key.
                if not self._known.unchanged(record):
                    self._known.check_current(record, entry.key)
        except FileNotFoundError as error:
            raise self._gone(record, entry.key) from error
        size = shard.size()
        if size != entry.size:
            raise self._truncated(entry, size or 0)
        try:
            shard.read_index(entry)
        except (StoreDamage, OSError) as error:
            raise StoreDamage(f"{path}: {error}. {_REPAIR}") from error
        return shard

    def _truncated(self, entry: ShardEntry, size: int) -> StoreDamage:
        return StoreDamage(f"{self.root / entry.key}: {size} bytes, but {entry.size} were committed. {_REPAIR}")

    def _gone(self, record: CommitRecord, key: str) -> StoreDamage:
        """The error for a missing file: damage, unless that is due to another commit. Raises StoreRebuilt."""
        self._known.check_current(record, key)
        return StoreDamage(f"{self.root / key}: this committed file is missing. {_REPAIR}")


def _position(record: CommitRecord, entry: ShardEntry, t: int, rest: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Number of a chunk in its shard, and its shape without the axes that `t` and `rest` stand for. IndexError."""
    layout = entry.layout
    first, end = record.frames
    inside = first <= t < end
    number = (t - first) * layout.steps[0]
    for p, length, step in zip(rest, layout.shape[1:], layout.steps[1:], strict=False):
        inside = inside and 0 <= p < length
        number += p * step
    if not inside:
        raise IndexError(f"array {layout.name!r} of unit {record.unit}: no position {(t, *rest)} in {layout.shape}")
    return number, layout.chunk[1 + len(rest) :]
