"""Finds and removes what no reader can see: leftovers of killed writers, replaced generations, blocks that went stale.

Nothing committed is touched. Scenes with a writer at work, or with a damaged record, are left alone and told.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from storage import files
from storage.backend import LocalBackend, ObjectBackend, backend
from storage.claims import live_claims
from storage.commit import CommitRecord, commit_key, is_init, read_records, record_units
from storage.errors import StoreDamage
from storage.layout import INIT, PENDING, UnitId
from storage.location import Location, ObjectPath
from storage.store import CueStore
from storage.work import unit_lock


@dataclass(frozen=True)
class Leftover:
    """A file or folder that can go: where, its size in bytes, and why nobody needs it; `kept`: it stays all the same.

    A kept one stands for a whole scene that cannot be looked at now; `why` says what to do first.
    """

    path: Location
    bytes: int
    why: str
    kept: bool = False


def prune(path: str | Path | ObjectPath, *, dry_run: bool = False) -> list[Leftover]:
    """Remove what no commit record names, and records that readers do not see.

    In a bucket, what a killed writer left stays until its claim is a day old: until then its scene counts as one with
    a writer at work.

    Args:
        dry_run: only say what would go.

    Returns:
        What went (or would go), and with `kept` the scenes that were passed over.

    Raises:
        StoreError: there is no store at this path, or the disk or server refuses.
        SchemaVersionError: a record of another schema version, which names files in a way that is not known here.
    """
    store = CueStore.open(path)
    place = backend(store.path)
    if isinstance(place, ObjectBackend):
        return _prune_bucket(store, place, dry_run)
    root = place.root
    found = list(_scratch(root))
    try:
        if not dry_run:
            store.sweep_temporaries()
        for scene in place.children("scenes")[0]:
            # Whoever holds this lock alone keeps every writer of the scene out.
            with unit_lock(root, UnitId(INIT, scene), timeout_s=0) as free:
                if not free:
                    found.append(_at_work(place, scene))
                    continue
                left = list(_scene(place, scene, place.sizes(f"scenes/{scene}")))
                found += left
                if not dry_run:
                    _remove([item.path for item in left if isinstance(item.path, Path) and not item.kept], root)
    except OSError as error:
        raise files.explain(error, root, "removing what nobody needs") from error
    return found


def _prune_bucket(store: CueStore, place: ObjectBackend, dry_run: bool) -> list[Leftover]:
    """Nobody can be kept out of a bucket: what is listed first and nobody is at work on, or named, after it, can go."""
    if not dry_run:
        store.sweep_temporaries()
    found: list[Leftover] = []
    for scene in place.children("scenes")[0]:
        sizes = place.sizes(f"scenes/{scene}")
        if any(unit.scene == scene for unit, _ in live_claims(place)):
            found.append(_at_work(place, scene))
            continue
        left = list(_scene(place, scene, sizes))
        found += left
        if not dry_run:
            keys = [str(item.path).removeprefix(f"{place.root}/") for item in left if not item.kept]
            place.delete(key for key in keys if key.startswith("commits/"))
            place.delete(key for key in keys if not key.startswith("commits/"))
    return found


def _at_work(place: LocalBackend | ObjectBackend, scene: str) -> Leftover:
    why = "a writer is at work in this scene; prune again later"
    return Leftover(place.root / "scenes" / scene, 0, why, kept=True)


def _scratch(root: Path) -> Iterator[Leftover]:
    for folder in sorted(p for p in (root / PENDING).glob("*") if p.is_dir()):
        with files.lock(folder.with_name(f"{folder.name}.lock"), timeout_s=0) as free:
            if free:
                yield Leftover(folder, _size(folder), "scratch of a writer that was killed")


def _scene(place: LocalBackend | ObjectBackend, scene: str, sizes: dict[str, int]) -> Iterator[Leftover]:
    """What of a scene can go, of its files (bytes by key). The caller keeps writers out, or knows of none."""
    root: Location = place.root
    units = [unit for unit in record_units(root) if unit.scene == scene]
    records: list[CommitRecord] = []
    for unit, record in zip(units, read_records(root, units), strict=True):
        if isinstance(record, StoreDamage):
            # Its data may be sound: that is for `verify --repair` to say, not for us to take.
            why = f"unit {unit} has a damaged record; run `occflow verify --repair` first"
            yield Leftover(root / "scenes" / scene, 0, why, kept=True)
            return
        if record is not None:
            records.append(record)
    init = next((record for record in records if is_init(record.unit)), None)
    named: set[str] = set()
    for record in records:
        if init is not None and record.init != init.init:
            key = commit_key(record.unit)
            yield Leftover(root / key, len(place.get(key)), "its block belongs to an earlier init unit of the scene")
            continue
        # Blocks whose init unit was taken back are visible again once the same table is committed: they stay.
        named.update(entry.key for entry in record.shards)
        named.update(record.metadata)
    for key in sorted(set(sizes) - named):
        old = key.startswith(f"scenes/{scene}/generations/")
        yield Leftover(root / key, sizes[key], "of a replaced generation" if old else "no commit record names it")


def _remove(paths: Iterable[Path], root: Path) -> None:
    """Records first: a reader never sees one whose data is gone."""
    commits, paths = root / "commits", list(paths)
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
