"""Compares a store with its commit records, file by file and chunk by chunk, and takes damaged units back."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from storage import files
from storage.asides import damaged_asides
from storage.attributes import parse_attributes, read_attributes
from storage.backend import LocalBackend, ObjectBackend, backend
from storage.chunks import ChunkReader
from storage.claims import unnamed
from storage.collect import referenced
from storage.commit import CommitRecord, read_record
from storage.errors import SchemaVersionError, StoreDamage, StoreError
from storage.invariants import broken_rules
from storage.layout import (
    INIT,
    PENDING,
    SPARE_ROOT,
    UnitId,
    cue_layout,
    cue_specs,
    generation_path,
    group_metadata,
    owner_of,
    root_metadata,
)
from storage.location import Location, ObjectPath, as_location
from storage.schema import StoreAttributes
from storage.store import CueStore
from storage.work import Specs


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: `schema` (another schema version), `root` (root zarr.json or its copy), `record` (undecodable or
            misplaced record), `missing`, `size`, `digest` (a shard against its record), `metadata` (a zarr.json),
            `chunk` (does not decode), `value` (decodes, but breaks a rule), `orphan` (data without a record),
            `temporary` (left by a killed writer), `aside` (facts of raw files, index or journal, not whole).
        path: the file.
        detail: what was found and what was expected.
        unit: the unit concerned, where there is one.
    """

    kind: str
    path: Location
    detail: str
    unit: UnitId | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.path}: {self.detail}"


def verify(path: str | Path | ObjectPath, *, decode: bool = True) -> list[Finding]:
    """Everything that is wrong with a store, in the order root, records and their data, data without record.

    Args:
        path: the store (of cues or of truth).
        decode: also decode every chunk of files whose digest fits, and check the rules between values.

    Raises:
        StoreError: there is no store at this path.
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
        kind = "root" if _intact_root(root, SPARE_ROOT) is not None else "schema"
        return [Finding(kind, main, str(error))], None
    except StoreError as error:
        return [Finding("root", main, str(error))], None
    expected = root_metadata(attributes)
    return [
        Finding("root", root / key, "is not what `create` wrote")
        for key in ("zarr.json", SPARE_ROOT)
        if not place.exists(key) or place.get(key) != expected
    ], attributes


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
    init = _readable(root, UnitId(INIT, unit.scene))
    if init is None or init.init != record.init:
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


def _readable(root: Location, unit: UnitId) -> CommitRecord | None:
    try:
        return read_record(root, unit)
    except StoreError:
        return None


def _verify_shard(root: Location, record: CommitRecord, key: str, size: int, sha256: str) -> Finding | None:
    path = root / key
    try:
        found_size, found_digest = backend(root).digest(key)
    except FileNotFoundError:
        return Finding("missing", path, f"{size} bytes were committed", record.unit)
    except OSError as error:
        return Finding("missing", path, f"cannot be read: {error.strerror or error}", record.unit)
    if found_size != size:
        return Finding("size", path, f"{found_size} bytes, {size} were committed", record.unit)
    if found_digest != sha256:
        return Finding("digest", path, f"SHA-256 {found_digest}, committed was {sha256}", record.unit)
    return None


def _verify_metadata(root: Location, record: CommitRecord) -> Iterator[Finding]:
    for name, sha256 in record.metadata.items():
        try:
            intact = backend(root).digest(name)[1] == sha256
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
    init = _readable(root, UnitId(INIT, record.unit.scene))
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


def repair(path: str | Path | ObjectPath, findings: Iterable[Finding]) -> list[UnitId]:
    """Put right what can be put right without extracting anything, and take back the units that cannot.

    Restored in place: the root, and zarr.json files whose content follows from the record. Removed: data without a
    record, what killed writers left, asides that are not whole. Taken back (record first, then data, so that the next
    `occflow cues` makes them again): units with a damaged record, shard, chunk or value. Kind `schema` is left alone.

    Returns:
        The units taken back, sorted.

    Raises:
        StoreError: the root and its copy are both lost, or the disk refuses.
    """
    root = as_location(path)
    listed = list(findings)
    _restore_root(root)
    store = CueStore.open(root)
    taken = {f.unit for f in listed if f.unit and f.kind in ("record", "missing", "size", "digest", "chunk", "value")}
    for finding in listed:
        if finding.kind == "metadata" and finding.unit is not None and finding.unit not in taken:
            record = _readable(root, finding.unit)
            if record is None or not _restore_metadata(store, record, _key(root, finding.path)):
                taken.add(finding.unit)
    for unit in sorted(taken):
        store.discard(unit)
    store.sweep_temporaries()
    backend(root).delete(_key(root, finding.path) for finding in listed if finding.kind == "aside")
    for scene in sorted({_key(root, f.path).split("/")[1] for f in listed if f.kind == "orphan"}):
        store.collect(scene)
    return sorted(taken)


def _key(root: Location, path: Location) -> str:
    """The key of a path below the store's root."""
    return str(path).removeprefix(str(root)).lstrip("/")


def _restore_root(root: Location) -> None:
    """Write root and copy anew from whichever of the two is intact."""
    content = _intact_root(root, "zarr.json") or _intact_root(root, SPARE_ROOT)
    if content is not None:
        _replace(root, {"zarr.json": content, SPARE_ROOT: content})
        return
    main, spare = root / "zarr.json", root / SPARE_ROOT
    with contextlib.suppress(StoreDamage):
        read_attributes(root)
    raise StoreDamage(
        f"{main}: damaged, and so is its copy {spare}. Make a new store with `occflow cues`; the arrays below "
        f"{root / 'scenes'} are still readable with zarr."
    )


def _intact_root(root: Location, key: str) -> bytes | None:
    """Content of a root zarr.json, None unless it is what `create` wrote under this schema version."""
    try:
        content = backend(root).get(key)
        return content if root_metadata(parse_attributes(content, root / key)) == content else None
    except (StoreError, OSError):
        return None


def _restore_metadata(store: CueStore, record: CommitRecord, key: str) -> bool:
    """Write a zarr.json anew if its content follows from the record; False if it does not (a table's tokens)."""
    layouts = [entry.layout for entry in record.shards]
    if record.unit.cue == INIT:
        folder = generation_path(record.unit.scene, record.generation)
        step = store.attributes.block_keyframes
        specs = [spec for cue in cue_specs(store.attributes.kind, store.attributes.profile).values() for spec in cue]
        layouts += [cue_layout(spec, record.sizes, step, folder) for spec in specs]
    arrays = {f"{layout.path}/zarr.json": layout.metadata() for layout in layouts}
    content = arrays.get(key, group_metadata())
    if hashlib.sha256(content).hexdigest() != record.metadata.get(key):
        return False
    _replace(store.path, {key: content})
    return True


def _replace(root: Location, contents: Mapping[str, bytes]) -> None:
    """Write small files anew, each in one step."""
    try:
        backend(root).replace(contents)
    except OSError as error:
        raise files.explain(error, root, "repairing the store") from error
