"""Restores what a damaged store can do without extracting anything, and takes back the units that it cannot restore."""

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from storage import files
from storage.asides import damaged_asides
from storage.attributes import intact_root, read_attributes
from storage.backend import backend
from storage.commit import CommitRecord, is_init, read_sound_record
from storage.errors import StoreDamage
from storage.finding import Finding
from storage.layout import INIT, SPARE_ROOT, UnitId, cue_layout, cue_specs, generation_path, group_metadata
from storage.location import Location, ObjectPath, as_location
from storage.store import CueStore
from storage.verify import verify_unit

TAKEN_BACK = ("record", "missing", "size", "digest", "chunk", "value")
"""Kinds of finding that only making the unit anew puts right."""
LEFT_ALONE = ("denied", "schema")
"""Kinds of finding that neither repair nor the next `occflow cues` puts right."""


def repair(path: str | Path | ObjectPath, findings: Iterable[Finding]) -> list[UnitId]:
    """Put right what can be put right without extracting anything, and take back the units that cannot.

    Restored in place: the root, and zarr.json files whose content follows from the record. Removed: data without a
    record, what killed writers left, asides that are not whole. Taken back (record first, then data, so that the next
    `occflow cues` makes them again): units with a damaged record, shard, chunk or value. Left alone: `schema` and
    `denied`, of which nothing is known, and `waiting`, for blocks are whole again as soon as `occflow cues` has
    committed their scene's table. Findings grow old: each unit is looked at once more, right before it is taken
    back, and stays where it is sound by now.

    Returns:
        The units taken back, sorted.

    Raises:
        StoreError: the root and its copy are both lost, or the disk refuses.
    """
    root = as_location(path)
    listed = list(findings)
    _restore_root(root)
    store = CueStore.open(root)
    named = {f.unit for f in listed if f.unit is not None and f.kind in (*TAKEN_BACK, "metadata")}
    # Blocks first: without its init unit a block can only be told to wait.
    taken = [unit for unit in sorted(named, key=lambda unit: (is_init(unit), unit)) if not _put_right(store, unit)]
    store.sweep_temporaries()
    asides = {_key(root, finding.path) for finding in listed if finding.kind == "aside"}
    if asides:
        backend(root).delete(asides.intersection(key for key, _ in damaged_asides(root)))
    for scene in sorted({_key(root, f.path).split("/")[1] for f in listed if f.kind == "orphan"}):
        store.collect(scene)
    return sorted(taken)


def _put_right(store: CueStore, unit: UnitId) -> bool:
    """Restore a unit's metadata where that is all it lacks; otherwise take the unit back and return False.

    A unit that is gone by now, or that was made anew since it was found damaged, is left alone: True.
    """
    looked_at = read_sound_record(store.path, unit)
    found = verify_unit(store.path, unit)
    lost = any(finding.kind in TAKEN_BACK for finding in found)
    for finding in found:
        if finding.kind == "metadata" and not lost:
            record = read_sound_record(store.path, unit)
            lost = record is None or not _restore_metadata(store, record, _key(store.path, finding.path))
    # A rebuild that was published while it was looked at takes the files away that were being read.
    lost = lost and read_sound_record(store.path, unit) == looked_at
    if lost:
        store.discard(unit)
    return not lost


def _key(root: Location, path: Location) -> str:
    """The key of a path below the store's root."""
    return str(path).removeprefix(str(root)).lstrip("/")


def _restore_root(root: Location) -> None:
    """Write root and copy anew from whichever of the two is intact."""
    content = intact_root(root, "zarr.json") or intact_root(root, SPARE_ROOT)
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
