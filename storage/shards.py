"""Open shards: a file's descriptor on a disk; range requests in a bucket, the chunks of a row by one request."""

import os
import threading
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from storage.backend import ObjectBackend
from storage.codecs import EMPTY, decode_index, index_size
from storage.commit import ShardEntry
from storage.errors import StoreDamage

WHOLE_SHARD = 64 << 10
"""Bytes up to which a shard in a bucket is read whole, with its index: small arrays cost one request per block."""
ROW = 8 << 20
"""Bytes up to which all chunks of a row (its cameras') are read by one request, when one of them is wanted."""
KEPT = 64 << 20
"""Bytes of such rows that a reader keeps: the cameras of a keyframe are read one after another."""
LEAST_BUFFER = 1 << 20
"""Bytes that a thread's memory for reading has from the beginning."""


_PROBE = bytearray(1)
_scratch = threading.local()


def _buffer(length: int) -> memoryview:
    """Memory of this thread, the same at each call: new memory for every chunk costs as much as reading it."""
    held: bytearray = getattr(_scratch, "held", bytearray())
    if len(held) < length:
        held = _scratch.held = bytearray(max(length, LEAST_BUFFER))
    return memoryview(held)[:length]


def _chunks(entry: ShardEntry) -> int:
    return int(np.prod(entry.layout.grid))


def _per_row(entry: ShardEntry) -> int:
    """Chunks of a row: the cameras of a keyframe, or of one of its sweep slots."""
    return next((cells for cells in reversed(entry.layout.grid[1:]) if cells > 1), 1)


def rows(entry: ShardEntry, frame: int, slot: int | None = None) -> range:
    """Rows of a keyframe (its number in the block), or of one sweep slot where the array is cut along these."""
    layout = entry.layout
    number, count = frame * layout.steps[0], layout.steps[0]
    if slot is not None and len(layout.grid) > 1 and layout.grid[1] > 1:
        number, count = number + slot * layout.steps[1], layout.steps[1]
    width = _per_row(entry)
    return range(number // width, -(-(number + count) // width))


def _spans(index: np.ndarray, entry: ShardEntry) -> list[tuple[int, int]]:
    """Where the chunks of each row lie: one after another, as they were written. (0, 0) where a row has none.

    All at once, when a shard is opened: asked for row by row they cost a twentieth of reading a sample.
    """
    starts, lengths = np.moveaxis(index.reshape(-1, _per_row(entry), 2), -1, 0)
    there = starts != EMPTY
    first = np.where(there, starts, np.uint64(entry.size)).min(1)
    last = np.minimum(np.where(there, starts + lengths, np.uint64(0)).max(1), np.uint64(entry.size))
    return [(low, high) if high > low else (0, 0) for low, high in zip(first.tolist(), last.tolist(), strict=True)]


class LocalShard:
    """A shard's descriptor and index. Closed when the last user lets go, so a cache may drop it at any time."""

    def __init__(self, path: Path, entry: ShardEntry) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.index: np.ndarray = np.empty((0, 2), np.uint64)
        self._spans: list[tuple[int, int]] = []

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def size(self) -> int | None:
        """Its size now, None once it was removed."""
        state = os.fstat(self._descriptor)
        return state.st_size if state.st_nlink else None

    def read_index(self, entry: ShardEntry) -> None:
        """Read the index. Raises StoreDamage, OSError."""
        length = index_size(_chunks(entry))
        self.index = decode_index(os.pread(self._descriptor, length, entry.size - length))
        self._spans = _spans(self.index, entry)

    def read(self, number: int, offset: int, length: int) -> memoryview:
        """The bytes of chunk `number`, which lie there; valid until this thread reads again."""
        view = _buffer(length)
        return view[: os.preadv(self._descriptor, [view], offset)]

    def ahead(self, row: int) -> None:
        """Have the kernel read a row that will be wanted, where its end is not in memory; does not wait."""
        first, last = self._spans[row]
        if last > first and hasattr(os, "posix_fadvise") and not self._in_memory(last - 1):
            os.posix_fadvise(self._descriptor, first, last - first, os.POSIX_FADV_WILLNEED)

    def _in_memory(self, at: int) -> bool:
        """Whether a read of that byte would not wait. Advising a row that is there looks at each of its pages."""
        try:
            return os.preadv(self._descriptor, [_PROBE], at, os.RWF_NOWAIT) == 1
        except (AttributeError, OSError):  # it would wait, or this system cannot say
            return False


class RowCache:
    """Rows of chunks of a reader's shards, least recently used first out; a row wanted twice is requested once."""

    def __init__(self, limit: int = KEPT) -> None:
        self._limit = limit
        self._size = 0
        self._lock = threading.Lock()
        self._rows: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()

    def get(self, shard: "RemoteShard", row: int, offset: int, length: int) -> bytes:
        """The row's bytes, requested if they are not there. Raises as the request."""
        key = (shard.key, row)
        with self._lock:
            found = self._rows.get(key)
            mine = found is None
            if found is None:
                found = self._rows[key] = Future()
            self._rows.move_to_end(key)
        if not mine:
            return found.result()
        try:
            data = shard.request(offset, length)
        except BaseException as error:
            with self._lock:
                self._rows.pop(key, None)
            found.set_exception(error)
            raise
        found.set_result(data)
        with self._lock:
            self._size += len(data)
            for old in [key for key, future in self._rows.items() if future.done()]:
                if self._size <= self._limit:
                    break
                self._size -= len(self._rows.pop(old).result())
        return data


class RemoteShard:
    """A shard in a bucket: its index, and its content where that is small."""

    def __init__(self, place: ObjectBackend, entry: ShardEntry, rows: RowCache, *, whole: bool = False) -> None:
        self.key = entry.key
        self._place, self._entry, self._rows = place, entry, rows
        self._start = 0 if whole or entry.size <= WHOLE_SHARD else entry.size - index_size(_chunks(entry))
        self._tail = self.request(self._start, entry.size - self._start)
        self.index: np.ndarray = np.empty((0, 2), np.uint64)
        self._spans: list[tuple[int, int]] = []

    def size(self) -> int | None:
        """Its committed size: nothing else ever comes to lie under this key, and a removed object answers so."""
        return self._entry.size

    def read_index(self, entry: ShardEntry) -> None:
        """Read the index. Raises StoreDamage."""
        if len(self._tail) != entry.size - self._start:
            raise StoreDamage(f"{entry.size} bytes were committed, but fewer are there")
        self.index = decode_index(self._tail[-index_size(_chunks(entry)) :])
        self._spans = _spans(self.index, entry)

    def request(self, offset: int, length: int) -> bytes:
        """Bytes of the object. Raises FileNotFoundError, ObjectStoreError."""
        return self._place.client.get_range(self._place.key(self.key), offset, length)

    def read(self, number: int, offset: int, length: int) -> bytes:
        """The bytes of chunk `number`, which lie there. Raises FileNotFoundError, ObjectStoreError."""
        if offset >= self._start:
            return self._tail[offset - self._start : offset - self._start + length]
        row = number // _per_row(self._entry)
        first, last = self._spans[row]
        if last - first > ROW:
            return self.request(offset, length)
        data = self._rows.get(self, row, first, last - first)
        return data[offset - first : offset - first + length]

    def ahead(self, row: int) -> None:
        """Fetch a row that will be wanted. Raises as `read`."""
        first, last = self._spans[row]
        if first < self._start and last - first <= ROW:
            self._rows.get(self, row, first, last - first)
