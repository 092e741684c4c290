"""Compares a store with its commit records, file by file and chunk by chunk."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from storage import files
from storage.asides import damaged_asides
from storage.attributes import intact_root, read_attributes
from storage.backend import LocalBackend, ObjectBackend, backend
from storage.chunks import ChunkReader
from storage.claims import unnamed
from storage.collect import referenced
from storage.commit import CommitRecord, commit_path, read_record, read_sound_record
from storage.errors import SchemaVersionError, StoreDamage, StoreError
from storage.finding import Finding
from storage.invariants import broken_rules
from storage.layout import INIT, PENDING, SPARE_ROOT, UnitId, cue_specs, owner_of, root_metadata
from storage.location import Location, ObjectPath, as_location
from storage.schema import StoreAttributes
from storage.work import Specs


def verify(path: str | Path | ObjectPath, *, decode: bool = True) -> list[Finding]:
    """Everything that is wrong with a store, in the order root, records and their data, data without record.

    Args:
        path: the store (of cues or of truth).
        decode: also decode every chunk of files whose digest fits, and check the rules between values.

    Raises:
        StoreError: there is no store at this path, or a record that this user may not read.
    """
    root = as_location(path)
    found, attributes = _verify_root(root)
    if any(finding.kind == "schema" for finding in found):
        return found
    source = ChunkReader(root)
    for name in backend(root).children("commits")[1]:
        if name.endswith(".json") and name != Path(SPARE_ROOT).name:
            found.extend(_verify_unit(root, root / "commits" / name, source, decode))
    found.extend(_orphans(root, attributes))
    found.extend(_temporaries(root))
    found.extend(Finding("aside", root / key, detail) for key, detail in damaged_asides(root))
    return found


def _verify_root(root: Location) -> tuple[list[Finding], StoreAttributes | None]:
    place, main = backend(root), root / "zarr.json"
    if not place.exists("zarr.json") and not place.exists(SPARE_ROOT):
        raise StoreError(f"{root}: no cue store here (no zarr.json). Check the path, or run `occflow cues`.")
    try:
        attributes = read_attributes(root)
    except SchemaVersionError as error:
        # A whole copy of this version says that the root's version is a flipped bit.
        kind = "root" if intact_root(root, SPARE_ROOT) is not None else "schema"
        return [Finding(kind, main, str(error))], None
    except StoreError as error:
        return [Finding("root", main, str(error))], None
    expected = root_metadata(attributes)
    return [
        Finding("root", root / key, "is not what `create` wrote")
        for key in ("zarr.json", SPARE_ROOT)
        if not place.exists(key) or place.get(key) != expected
    ], attributes


def verify_unit(path: str | Path | ObjectPath, unit: UnitId) -> list[Finding]:
    """As `verify`, of one unit; nothing where it is not committed."""
    root = as_location(path)
    return list(_verify_unit(root, commit_path(root, unit), ChunkReader(root), decode=True))


def _verify_unit(root: Location, path: Location, source: ChunkReader, decode: bool) -> Iterator[Finding]:
    try:
        unit = UnitId.parse(path.stem)
    except StoreError as error:
        yield Finding("record", path, f"{error} Remove the file by hand if it is not needed")
        return
    try:
        record = read_record(root, unit)
    except SchemaVersionError as error:
        yield Finding("schema", path, str(error), unit)
        return
    except StoreDamage as error:
        yield Finding("record", path, str(error), unit)
        return
    if record is None:
        return
    init = read_sound_record(root, UnitId(INIT, unit.scene))
    if init is None:
        yield Finding("waiting", path, "readers do not see it before its scene's init unit is committed again", unit)
    elif init.init != record.init:
        yield Finding("record", path, "belongs to no committed init unit of its scene; readers do not see it", unit)
    yield from _verify_metadata(root, record)
    sound = True
    for entry in record.shards:
        finding = _verify_shard(root, record, entry.key, entry.size, entry.sha256)
        if finding is not None:
            sound = False
            yield finding
    if decode and sound:
        yield from _verify_content(root, record, source)


def _verify_shard(root: Location, record: CommitRecord, key: str, size: int, sha256: str) -> Finding | None:
    path = root / key
    try:
        found_size, found_digest = backend(root).digest(key)
    except FileNotFoundError:
        return Finding("missing", path, f"{size} bytes were committed", record.unit)
    except PermissionError as error:
        return _denied(path, error, record.unit)
    except OSError as error:
        return Finding("missing", path, f"cannot be read: {error.strerror or error}", record.unit)
    if found_size != size:
        return Finding("size", path, f"{found_size} bytes, {size} were committed", record.unit)
    if found_digest != sha256:
        return Finding("digest", path, f"SHA-256 {found_digest}, committed was {sha256}", record.unit)
    return None


def _denied(path: Location, error: PermissionError, unit: UnitId) -> Finding:
    remedy = "let this user read it, then verify again"
    return Finding("denied", path, f"cannot be read ({error.strerror or error}): {remedy}", unit)


def _verify_metadata(root: Location, record: CommitRecord) -> Iterator[Finding]:
    for name, sha256 in record.metadata.items():
        try:
            intact = backend(root).digest(name)[1] == sha256
        except PermissionError as error:
            yield _denied(root / name, error, record.unit)
            continue
        except OSError as error:
            yield Finding("metadata", root / name, f"cannot be read: {error.strerror or error}", record.unit)
            continue
        if not intact:
            yield Finding("metadata", root / name, "changed after it was committed", record.unit)


def _verify_content(root: Location, record: CommitRecord, source: ChunkReader) -> Iterator[Finding]:
    arrays = {}
    for entry in record.shards:
        try:
            arrays[entry.layout.name] = source.block(record, entry.layout.name)
        except (StoreError, ValueError) as error:
            yield Finding("chunk", root / entry.key, str(error), record.unit)
    init = read_sound_record(root, UnitId(INIT, record.unit.scene))
    if init is not None:
        where = root / record.shards[0].key
        for line in broken_rules(arrays, init.frames[1]):
            yield Finding("value", where, line, record.unit)


def _busy(root: Path, scene: str) -> bool:
    """Whether a writer is at work in the scene: it holds the scene's init lock, at least shared."""
    lock = root / PENDING / f"{UnitId(INIT, scene)}.lock"
    if not lock.exists():
        return False
    with files.lock(lock, timeout_s=0) as free:
        return not free


def _orphans(root: Location, attributes: StoreAttributes | None) -> Iterator[Finding]:
    place = backend(root)
    specs = cue_specs(attributes.kind, attributes.profile) if attributes is not None else {}
    for scene in place.children("scenes")[0]:
        # A record of another version names files in a way that is not known here.
        with contextlib.suppress(SchemaVersionError):
            for key in _nameless(place, scene, specs):
                if not key.endswith("/zarr.json"):
                    yield Finding("orphan", root / key, "no commit record names this file", owner_of(key, specs)[0])


def _nameless(place: LocalBackend | ObjectBackend, scene: str, specs: Specs) -> list[str]:
    """Keys of a scene's files that no record names; on a disk none while a writer is at work in the scene."""
    if isinstance(place, ObjectBackend):
        return unnamed(place, scene, specs)
    if _busy(place.root, scene):
        return []
    named = referenced(place.root, scene)
    return [key for key in place.list(f"scenes/{scene}") if key not in named]


def _temporaries(root: Location) -> Iterator[Finding]:
    if isinstance(root, ObjectPath):
        return
    for folder in sorted((root / PENDING).glob("*")):
        if folder.is_dir():
            with files.lock(folder.parent / f"{folder.name}.lock", timeout_s=0) as free:
                if free:
                    yield Finding("temporary", folder, "left by a writer that was killed")
