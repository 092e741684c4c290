"""Direct reads of committed chunks: record, cached shard index, one read, checksum, decode. No zarr."""

import hashlib
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from storage.backend import ObjectBackend, backend
from storage.codecs import EMPTY, decode_chunk
from storage.commit import (
    CommitRecord,
    ShardEntry,
    commit_path,
    read_record,
    read_records,
    record_units,
)
from storage.errors import CueMissing, StoreDamage, StoreRebuilt
from storage.layout import INIT, TABLE_ARRAYS, UnitId, generation_path
from storage.location import Location, ObjectPath
from storage.schema import SceneTable
from storage.shards import LocalShard, RemoteShard, RowCache

OPEN_SHARDS = 128
"""Shard files kept open per reader; each costs a descriptor and 16 bytes per chunk."""
REMOTE_SHARDS = 1024
"""The same in a bucket, where one costs no descriptor, but a request to open."""
RECORDS_S = 5.0
"""Seconds for which a listing of a bucket's records is believed: so long a new unit may stay unseen."""
KEPT_SMALL = 256
"""Decoded keyframes of small arrays that a reader keeps."""
_REPAIR = "Run `occflow verify --repair` on the store, then `occflow cues` again to rebuild the unit."


class ChunkReader:
    """Chunks of committed units of one store, by name and position. Threads may share it; pickles as its path.

    Args:
        ahead: in a bucket, read the records of a whole scene when one of them is wanted, several at a time, and
            believe a listing of the records for RECORDS_S: for readers that go through scenes.
    """

    def __init__(self, root: Location, *, ahead: bool = False) -> None:
        self.root = root
        self._ahead_of = ahead
        self._listing_lock = threading.Lock()
        self._listing: tuple[float, set[UnitId]] = (-RECORDS_S, set())
        self._remote = ObjectBackend(root) if isinstance(root, ObjectPath) else None
        self._rows = RowCache()
        self._lock = threading.Lock()
        self._shards: OrderedDict[str, LocalShard | RemoteShard] = OrderedDict()
        self._small: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._records: dict[UnitId, CommitRecord] = {}
        self._stamps: dict[UnitId, tuple[int, int] | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "ahead": self._ahead_of}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"], ahead=state["ahead"])

    def record(self, unit: UnitId) -> CommitRecord | None:
        """The unit's record, None when it is not committed. A found record is kept: the reader sees one generation."""
        with self._lock:
            known = self._records.get(unit)
        if known is not None:
            return known
        if self._remote is not None and self._ahead_of:
            return self._record_ahead(unit)
        stamp = _stamp(commit_path(self.root, unit))
        found = read_record(self.root, unit)
        if found is not None:
            with self._lock:
                if unit not in self._records:
                    self._records[unit], self._stamps[unit] = found, stamp
                found = self._records[unit]
        return found

    def _record_ahead(self, unit: UnitId) -> CommitRecord | None:
        """As `record`, with all records of its scene."""
        # Not the lock of shards: requests that others have under way, and are waited for here, take that one.
        with self._listing_lock:
            listed, present = self._listing
            if time.monotonic() - listed > RECORDS_S:
                present = set(record_units(self.root))
                self._listing = (time.monotonic(), present)
            wanted = [u for u in present if u.scene == unit.scene and u not in self._records]
            if unit in wanted:
                for one, found in zip(wanted, read_records(self.root, wanted), strict=True):
                    if isinstance(found, CommitRecord):
                        self._records[one] = found
                    elif one == unit and found is not None:
                        raise found
            return self._records.get(unit)

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

    def prefetch(self, wanted: Iterable[tuple[CommitRecord, str, int]]) -> None:
        """Fetch all chunks of (record, array, keyframe), several requests at a time; nothing on a disk.

        What fails here fails again, and is told, when it is read.
        """
        if self._remote is None:
            return
        pool, under_way = self._remote.client.pool, list[Future[None]]()
        for record, name, t in wanted:
            under_way.append(pool.submit(self._ahead, record, record.shard(name), t))
        for future in under_way:
            future.exception()

    def _ahead(self, record: CommitRecord, entry: ShardEntry, t: int) -> None:
        shard = self._open(record, entry)
        if isinstance(shard, RemoteShard):
            shard.ahead(t - record.frames[0])

    def table(self, scene: str) -> SceneTable:
        """The scene's table. Raises CueMissing, StoreDamage, StoreRebuilt."""
        record = self.require(UnitId(INIT, scene))
        path = f"{generation_path(scene, record.generation)}/frames/zarr.json"
        try:
            raw = backend(self.root).get(path)
        except FileNotFoundError as error:
            raise self._gone(record, path) from error
        if hashlib.sha256(raw).hexdigest() != record.metadata.get(path):
            raise StoreDamage(f"{self.root / path}: changed after it was committed. {_REPAIR}")
        rest = json.loads(raw)["attributes"]
        arrays: dict[str, Any] = {name: self.block(record, f"frames/{name}") for name in TABLE_ARRAYS}
        sizes = {name: rest[name] for name in ("max_image_bytes", "max_sweep_bytes", "max_lidar_points")}
        return SceneTable(tokens=tuple(rest["tokens"]), tags=tuple(rest["tags"]), **arrays, **sizes)

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
            return decode_chunk(data, layout.codec, np.dtype(layout.dtype), layout.chunk, borrow=borrow)
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
                shard = LocalShard(Path(str(path)))
                # After the open: data of another commit at this path is only ever there after the record of this one
                # is gone. In a bucket there never is any: no two commits write one key.
                if self._stamps.get(record.unit) != _stamp(commit_path(self.root, record.unit)):
                    self._check_current(record, entry.key)
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


def _position(record: CommitRecord, entry: ShardEntry, t: int, rest: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Number of a chunk in its shard, and its shape without the axes that `t` and `rest` stand for. IndexError."""
    layout = entry.layout
    first, end = record.frames
    if not first <= t < end or any(not 0 <= p < n for p, n in zip(rest, layout.shape[1:], strict=False)):
        raise IndexError(f"array {layout.name!r} of unit {record.unit}: no position {(t, *rest)} in {layout.shape}")
    number, at = t - first, 1 + len(rest)
    for p, cells in zip(rest, layout.grid[1:], strict=False):
        number = number * cells + p
    for cells in layout.grid[at:]:
        number *= cells
    return number, layout.chunk[at:]


def _stamp(path: Location) -> tuple[int, int] | None:
    """What changes when a file is replaced; None without a file, and for an object: nobody asks for it."""
    if isinstance(path, ObjectPath):
        return None
    try:
        state = os.stat(path)
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_mtime_ns
