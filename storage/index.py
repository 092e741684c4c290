"""A consolidated copy of what status needs of every commit record, so that 10,000 units take one read, not 10,000.

Only a cache: an entry counts for nothing unless its record's file is, by inode, size and times, the very one that was
read. What is new or changed is read again; what is gone is dropped; an index that is damaged is as good as none.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import astuple, dataclass
from typing import Any

from storage.backend import ObjectBackend, backend
from storage.commit import read_record
from storage.errors import StoreDamage, StoreError
from storage.layout import UnitId, encode_json
from storage.location import Location

INDEX = "commits/.index"
_FORMAT = 1
_WORTH_WRITING = 50
"""Records read anew before the index is written again: it costs as much as reading about so many."""


@dataclass(frozen=True)
class UnitSummary:
    """What status says of a committed unit.

    Attributes:
        frames: first keyframe and one past the last.
        init: digest of the init unit it was written under.
        bytes: of its data files.
        seconds: that its extraction took.
        notes: what was skipped or impossible.
        committed_at: when its record was published, seconds since the epoch.
    """

    frames: tuple[int, int]
    init: str
    bytes: int
    seconds: float
    notes: tuple[str, ...]
    committed_at: float


@dataclass(frozen=True)
class Summaries:
    """Every unit that has a record: `units` those that can be read, `damaged` the others and why."""

    units: dict[UnitId, UnitSummary]
    damaged: dict[UnitId, str]


def read_summaries(root: Location) -> Summaries:
    """Summaries of all records, by way of the index; renews the index where that is worth it and allowed.

    Raises SchemaVersionError for a record of another schema version.
    """
    known = _read_index(root)
    units: dict[UnitId, UnitSummary] = {}
    damaged: dict[UnitId, str] = {}
    entries: dict[str, list[Any]] = {}
    fresh = 0
    for stem, stamp in _stamps(root).items():
        try:
            unit = UnitId.parse(stem)
        except StoreError:
            continue
        entry = known.get(stem)
        if entry is None or entry[0] != stamp:
            fresh += 1
            try:
                record = read_record(root, unit)
            except StoreDamage as error:
                damaged[unit] = str(error)
                continue
            if record is None:
                continue
            notes = tuple(record.provenance.notes)
            seconds = record.provenance.seconds
            summary = UnitSummary(record.frames, record.init, record.bytes, seconds, notes, stamp[0] / 1e9)
            entry = [stamp, *astuple(summary)]
        entries[stem] = entry
        frames, init, size, seconds, notes, committed_at = entry[1:]
        units[unit] = UnitSummary(tuple(frames), init, size, seconds, tuple(notes), committed_at)
    if fresh >= _WORTH_WRITING or len(known) - len(entries) >= _WORTH_WRITING:
        _write_index(root, entries)
    return Summaries(units, damaged)


def _stamps(root: Location) -> dict[str, list[Any]]:
    """By stem of the record's file: its time of publication in ns, and what else changes when it is replaced."""
    found: dict[str, list[Any]] = {}
    place = backend(root)
    if isinstance(place, ObjectBackend):
        for info in place.client.children(place.key("commits"))[1]:
            name = info.key.rpartition("/")[2]
            if name.endswith(".json") and name.count("--") >= 2:
                found[name[:-5]] = [int(info.changed.timestamp() * 1e9), info.size, info.tag]
        return dict(sorted(found.items()))
    with contextlib.suppress(FileNotFoundError), os.scandir(f"{root}/commits") as listing:
        for item in listing:
            if item.name.endswith(".json") and item.name.count("--") >= 2:
                with contextlib.suppress(FileNotFoundError):
                    state = item.stat()
                    found[item.name[:-5]] = [state.st_mtime_ns, state.st_size, state.st_ino, state.st_ctime_ns]
    return dict(sorted(found.items()))


def _read_index(root: Location) -> dict[str, list[Any]]:
    """The index's entries, none when there is no index, or not a whole one of this format."""
    with contextlib.suppress(OSError, ValueError):
        body = index_body(backend(root).get(INDEX))
        return json.loads(body) if body is not None else {}
    return {}


def index_body(content: bytes) -> bytes | None:
    """The entries in an index's file, None unless it is a whole one of this format."""
    head, _, body = content.partition(b"\n")
    return body if head == f"{_FORMAT} {hashlib.sha256(body).hexdigest()}".encode() else None


def _write_index(root: Location, entries: dict[str, list[Any]]) -> None:
    """Replace the index in one step. A store that cannot be written to does without."""
    body = encode_json(entries)
    content = f"{_FORMAT} {hashlib.sha256(body).hexdigest()}\n".encode() + body
    with contextlib.suppress(OSError, StoreError):
        backend(root).replace({INDEX: content})
