"""Removes data that no commit record refers to: leftovers of killed writers and generations that were replaced."""

from pathlib import Path

from storage import files
from storage.commit import CommitRecord, commit_path, is_init, read_record, read_records, record_units
from storage.errors import StoreDamage
from storage.layout import INIT, UnitId, generation_path
from storage.location import Location
from storage.schema import ArraySpec


def generation_folders(root: Path, scene: str) -> list[Path]:
    """Folders of all generations of a scene that are on disk."""
    base = root / generation_path(scene, 0)
    return [base, *sorted(p for p in base.glob("generations/*") if p.is_dir())]


def collect_unit(root: Path, unit: UnitId, specs: tuple[ArraySpec, ...], record: CommitRecord | None) -> None:
    """Remove the unit's shards, of any generation, that its record does not name. The caller holds the unit's lock."""
    named = {root / shard.key for shard in record.shards} if record is not None else set()
    for folder in generation_folders(root, unit.scene):
        for spec in specs:
            axes = len(spec.shape)
            path = folder / spec.name / ".".join(["c", str(unit.block), *["0"] * axes])
            if path not in named:
                files.remove_file(path)


def referenced(root: Location, scene: str) -> set[str]:
    """Keys of the files that the scene's readable records name, data and metadata."""
    found: set[str] = set()
    for record in read_records(root, [unit for unit in record_units(root) if unit.scene == scene]):
        if isinstance(record, CommitRecord):
            found.update(shard.key for shard in record.shards)
            found.update(record.metadata)
    return found


def collect_scene(root: Path, scene: str) -> None:
    """Remove the records of blocks that belong to an earlier init of the scene, then every file nobody names.

    For stores on a disk, as all of this file but `referenced`; claims.py has the like for buckets.

    The caller holds the scene's init lock, so that no block of it is being written.
    """
    init = read_record(root, UnitId(INIT, scene))
    if init is not None:
        for unit in record_units(root):
            if unit.scene == scene and not is_init(unit) and _is_stale(root, unit, init):
                files.remove_file(commit_path(root, unit))
    keep = referenced(root, scene)
    base = root / generation_path(scene, 0)
    for path in sorted(p for p in base.rglob("*") if p.is_file()):
        if path.relative_to(root).as_posix() not in keep:
            files.remove_file(path)
            files.prune_empty(path.parent, base)


def _is_stale(root: Path, unit: UnitId, init: CommitRecord) -> bool:
    try:
        record = read_record(root, unit)
    except StoreDamage:
        return True
    return record is not None and record.init != init.init
