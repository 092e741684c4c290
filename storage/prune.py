"""Finds and removes what no reader can see: leftovers of killed writers, replaced generations, blocks that went stale.

Nothing committed is touched. Scenes with a writer at work, or with a damaged record, are left alone and told.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage import files
from storage.commit import CommitRecord, commit_path, is_init, read_record, record_units
from storage.errors import StoreDamage, StoreError
from storage.layout import INIT, PENDING, UnitId
from storage.store import CueStore
from storage.work import unit_lock


@dataclass(frozen=True)
class Leftover:
    """A file or folder that can go: where, its size in bytes, and why nobody needs it; `kept`: it stays all the same.

    A kept one stands for a whole scene that cannot be looked at now; `why` says what to do first.
    """

    path: Path
    bytes: int
    why: str
    kept: bool = False


def prune(path: str | Path, *, dry_run: bool = False) -> list[Leftover]:
    """Remove what no commit record names, and records that readers do not see.

    Args:
        dry_run: only say what would go.

    Returns:
        What went (or would go), and with `kept` the scenes that were passed over.

    Raises:
        StoreError: there is no store at this path, or the disk refuses.
        SchemaVersionError: a record of another schema version, which names files in a way that is not known here.
    """
    store = CueStore.open(path)
    root = store.path
    if not isinstance(root, Path):
        raise StoreError(
            f"{root}: pruning works on a disk so far; `occflow verify --repair` cleans a store in a bucket."
        )
    found = list(_scratch(root))
    try:
        if not dry_run:
            store.sweep_temporaries()
        for scene in sorted(p for p in (root / "scenes").glob("*") if p.is_dir()):
            # Whoever holds this lock alone keeps every writer of the scene out.
            with unit_lock(root, UnitId(INIT, scene.name), timeout_s=0) as free:
                if not free:
                    found.append(Leftover(scene, 0, "a writer is at work in this scene; prune again later", kept=True))
                    continue
                left = list(_scene(root, scene))
                found += left
                if not dry_run:
                    _remove([item.path for item in left if not item.kept], root)
    except OSError as error:
        raise files.explain(error, root, "removing what nobody needs") from error
    return found


def _scratch(root: Path) -> Iterator[Leftover]:
    for folder in sorted(p for p in (root / PENDING).glob("*") if p.is_dir()):
        with files.lock(folder.with_name(f"{folder.name}.lock"), timeout_s=0) as free:
            if free:
                yield Leftover(folder, _size(folder), "scratch of a writer that was killed")


def _scene(root: Path, scene: Path) -> Iterator[Leftover]:
    """What of a scene can go. The caller keeps writers out."""
    records: list[CommitRecord] = []
    for unit in record_units(root):
        if unit.scene == scene.name:
            try:
                record = read_record(root, unit)
            except StoreDamage:
                # Its data may be sound: that is for `verify --repair` to say, not for us to take.
                why = f"unit {unit} has a damaged record; run `occflow verify --repair` first"
                yield Leftover(scene, 0, why, kept=True)
                return
            if record is not None:
                records.append(record)
    init = next((record for record in records if is_init(record.unit)), None)
    named: set[Path] = set()
    for record in records:
        if init is not None and record.init != init.init:
            path = commit_path(root, record.unit)
            yield Leftover(path, path.stat().st_size, "its block belongs to an earlier init unit of the scene")
            continue
        # Blocks whose init unit was taken back are visible again once the same table is committed: they stay.
        named.update(root / entry.key for entry in record.shards)
        named.update(root / key for key in record.metadata)
    for path in sorted(p for p in scene.rglob("*") if p.is_file() and p not in named):
        old = path.relative_to(scene).parts[0] == "generations"
        yield Leftover(path, path.stat().st_size, "of a replaced generation" if old else "no commit record names it")


def _remove(paths: list[Path], root: Path) -> None:
    """Records first: a reader never sees one whose data is gone."""
    commits = root / "commits"
    records = [path for path in paths if path.parent == commits]
    for path in records:
        files.remove_file(path)
    if records:
        files.sync_directory(commits)
    for path in paths:
        files.remove_file(path)
        files.prune_empty(path.parent, root / "scenes")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
