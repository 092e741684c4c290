"""Commit records: what a committed unit consists of, and the file that makes it visible."""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from storage import files
from storage.backend import ObjectBackend, backend
from storage.errors import SchemaVersionError, StoreDamage, StoreError, closed_to_user
from storage.layout import INIT, ArrayLayout, UnitId, encode_json
from storage.location import Location, ObjectPath
from storage.schema import SCHEMA_VERSION


@dataclass(frozen=True)
class Provenance:
    """Where a unit's data comes from.

    Attributes:
        fingerprint: hex digest over everything that should make a rebuild happen; compared by `is_current`.
        config_digest: of the extractor's configuration and algorithm version.
        input_digest: of the raw files' content.
        weights_digest: of the model weights, "" for none.
        upstream: fingerprints of the units this one was made from, by cue name.
        licence: of the labeller.
        code_version: of the program that extracted.
        seconds: wall-clock time of the extraction.
        quality: small figures of this block; numbers that are not finite are recorded as null.
        notes: one line per thing that was skipped or impossible.
    """

    fingerprint: str
    config_digest: str = ""
    input_digest: str = ""
    weights_digest: str = ""
    upstream: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    code_version: str = ""
    seconds: float = 0.0
    quality: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] | list[str] = ()


@dataclass(frozen=True)
class ShardEntry:
    """One shard file of a committed unit, with all that is needed to read it without zarr."""

    layout: ArrayLayout
    key: str
    size: int
    sha256: str


@dataclass(frozen=True)
class CommitRecord:
    """A committed unit.

    Attributes:
        unit: what was committed.
        generation: which generation folder holds it.
        frames: first keyframe and one past the last.
        init: digest of the scene's init unit that this unit was written under (its own, for an init unit).
        shards: the data files.
        metadata: SHA-256 of every zarr.json that belongs to the unit, by path below the store's root.
        provenance: where the data comes from.
        sizes: for an init unit, the value of every axis symbol of the schema; the scene's blocks rely on it.
        committed_at: UTC, ISO 8601.
    """

    unit: UnitId
    generation: int
    frames: tuple[int, int]
    init: str
    shards: tuple[ShardEntry, ...]
    metadata: Mapping[str, str]
    provenance: Provenance
    sizes: Mapping[str, int] = field(default_factory=dict)
    committed_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    schema_version: int = SCHEMA_VERSION

    @property
    def fingerprint(self) -> str:
        """The fingerprint this unit was committed with."""
        return self.provenance.fingerprint

    @property
    def bytes(self) -> int:
        """Size of the unit's data files."""
        return sum(shard.size for shard in self.shards)

    def shard(self, name: str) -> ShardEntry:
        """The shard of an array, by the array's schema name. Raises KeyError."""
        for entry in self.shards:
            if entry.layout.name == name:
                return entry
        raise KeyError(f"unit {self.unit} holds no array {name!r}; it holds {[s.layout.name for s in self.shards]}")


def commit_key(unit: UnitId) -> str:
    """The file whose presence makes a unit visible, below the store's root."""
    return f"commits/{unit}.json"


LocationT = TypeVar("LocationT", Path, ObjectPath, Location)


def commit_path(root: LocationT, unit: UnitId) -> LocationT:
    """The same as a path."""
    return root / "commits" / f"{unit}.json"


def plain(value: Any) -> Any:
    """JSON-able copy: numpy scalars and arrays to Python's, tuples to lists, not-finite numbers to None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def encode_record(record: CommitRecord) -> bytes:
    """The record's file content; its own SHA-256 is part of it, so that a changed record is noticed."""
    content = plain(asdict(record))
    digest = hashlib.sha256(encode_json(content)).hexdigest()
    return encode_json({"record": content, "sha256": digest})


def _intact(raw: bytes) -> bool:
    """Whether these are the bytes of `encode_record`; without encoding anew, which would take as long as all the rest.

    Everything but the record's own text follows from its digest.
    """
    head, tail = b'{"record": ', len(b', "sha256": ""}\n') + 64
    text = raw[len(head) : -tail]
    digest = hashlib.sha256(text + b"\n").hexdigest()
    return raw == head + text + f', "sha256": "{digest}"}}\n'.encode()


def _layout(value: Mapping[str, Any]) -> ArrayLayout:
    lists = {key: tuple(value[key]) for key in ("shape", "chunk", "shard")}
    return ArrayLayout(**{**value, **lists})


def decode_record(raw: bytes, path: Location) -> CommitRecord:
    """The inverse of `encode_record`.

    Raises:
        SchemaVersionError: written under another schema version.
        StoreDamage: not what was written.
    """
    remedy = "Run `occflow verify --repair` on the store, then `occflow cues` again."
    try:
        found = json.loads(raw)
        content = found["record"]
        if not _intact(raw):
            raise StoreDamage(f"{path}: this commit record was changed after it was written. {remedy}")
        # Only now: the digest is computed alike in every version, and tells another version from a flipped bit.
        if content["schema_version"] != SCHEMA_VERSION:
            raise schema_error(path, content["schema_version"])
        shards = tuple(ShardEntry(**{**entry, "layout": _layout(entry["layout"])}) for entry in content["shards"])
        return CommitRecord(
            **{
                **content,
                "unit": UnitId(**content["unit"]),
                "frames": (content["frames"][0], content["frames"][1]),
                "shards": shards,
                "provenance": Provenance(**content["provenance"]),
            }
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise StoreDamage(f"{path}: this commit record cannot be decoded ({error}). {remedy}") from error


def schema_error(path: Location, found: object) -> SchemaVersionError:
    """The error for data of another schema version."""
    return SchemaVersionError(
        f"{path}: written under store schema version {found}; this program reads version {SCHEMA_VERSION}. Extract the "
        "cues again into a new store (`occflow cues`), or read this one with the release that wrote it."
    )


def as_read(record: CommitRecord) -> CommitRecord:
    """The record as its file will be read: plain numbers, lists for tuples."""
    return decode_record(encode_record(record), Path(f"{record.unit}.json"))


def read_record(root: Location, unit: UnitId) -> CommitRecord | None:
    """The unit's record, None when it is not committed.

    Raises:
        StoreDamage, SchemaVersionError: as decoding it.
        StoreError: this user may not read it, so that nobody takes its data for nobody's.
    """
    try:
        raw = backend(root).get(commit_key(unit))
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise closed_to_user(commit_path(root, unit)) from error
    return parse_record(root, unit, raw)


def read_sound_record(root: Location, unit: UnitId) -> CommitRecord | None:
    """As `read_record`, but None also where the record cannot be read."""
    try:
        return read_record(root, unit)
    except StoreError:
        return None


def read_records(root: Location, units: Iterable[UnitId]) -> list[CommitRecord | StoreDamage | None]:
    """As `read_record` of many, in their order, with several requests under way where they are requests.

    A damaged record is returned as the error. Raises SchemaVersionError.
    """

    def read(unit: UnitId) -> CommitRecord | StoreDamage | None:
        try:
            return read_record(root, unit)
        except StoreDamage as error:
            return error

    place = backend(root)
    return place.client.each(read, units) if isinstance(place, ObjectBackend) else [read(unit) for unit in units]


def parse_record(root: Location, unit: UnitId, raw: bytes) -> CommitRecord:
    """The record from its file's content. Raises as `read_record`."""
    path = commit_path(root, unit)
    record = decode_record(raw, path)
    if record.unit != unit:
        raise StoreDamage(f"{path}: this record is of unit {record.unit}. Run `occflow verify --repair` on the store.")
    return record


def record_units(root: Location) -> list[UnitId]:
    """Units that have a record file, readable or not, sorted; files of other names are not records."""
    found = []
    for name in backend(root).children("commits")[1]:
        if name.endswith(".json") and name.count("--") >= 2:
            with contextlib.suppress(StoreError):
                found.append(UnitId.parse(name.removesuffix(".json")))
    return sorted(found)


def publish(root: Path, record: CommitRecord, scratch: Path, *, replace: bool) -> bool:
    """Make a unit of a store on a disk visible in one step; False when `replace` is False and another record is there.

    Raises OSError. If that is from making the record's folder durable, the unit is visible all the same: its data is
    durable, and a repeated commit finds it committed.
    """
    return files.put(commit_path(root, record.unit), encode_record(record), scratch, replace=replace)


def is_init(unit: UnitId) -> bool:
    """Whether this is the unit that opens a scene."""
    return unit.cue == INIT
