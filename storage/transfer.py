"""Moves committed units to another store, byte for byte: data first, checked on the way, the record last.

A copied unit is as durable and as visible as one that was extracted there, and a copy that was killed goes on where it
stopped: it passes over the units that the destination holds already. Either store may lie on a disk or in a bucket.
There a killed copy has taken the generation it was at: the next one copies into another, and the record says so.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from storage import files
from storage.backend import Batch, backend
from storage.commit import CommitRecord, is_init, read_record
from storage.errors import StoreDamage, StoreError
from storage.layout import INIT, UnitId, group_metadata
from storage.location import Location, ObjectPath, as_location
from storage.relocation import moved_keys, relocated
from storage.store import CueStore
from storage.transfer_plan import TransferPlan
from storage.work import Turn, decodable, scene_lock

PIECE = 2**20
"""Bytes held in memory of a file that is being copied."""
INPUTS = "inputs/{scene}.json"
"""What pipelines keep of a scene's raw files, beside the units: opaque here, but it spares a copy to hash them anew."""
_ATTEMPTS = 3
"""How often a unit is tried whose source is rebuilt while it is copied."""
T = TypeVar("T")


@dataclass(frozen=True)
class TransferReport:
    """What a copy did: units copied now and present before, data bytes copied, units that could not be, and why."""

    copied: tuple[UnitId, ...]
    present: tuple[UnitId, ...]
    bytes: int
    damaged: dict[UnitId, str]


def transfer(
    source: str | Path | ObjectPath,
    destination: str | Path | ObjectPath,
    plan: TransferPlan,
    *,
    workers: int = 1,
    progress: Callable[[CommitRecord], None] | None = None,
) -> TransferReport:
    """Carry out a plan. Every file is compared with its SHA-256 as it is copied; the record is published last.

    A unit that is damaged in the source is not copied, and does not keep the others from being copied. The source is
    only read; where one of its units is rebuilt meanwhile, the new one is copied. What a copy replaces at the
    destination stays until its own copy is whole there; where blocks go with their scene's table, the whole scene is
    looked for damage in the source first, and left as it is if there is any.

    Args:
        workers: units copied at a time.
        progress: told of every unit once it is committed at the destination, from any thread.

    Raises:
        StoreError: too little space, a destination that refuses; what was copied before stays, and the same call
            goes on from there.
    """
    here = CueStore.open(source)
    check_space(plan, destination)
    target = CueStore.create(destination, here.attributes)
    target.sweep_temporaries()
    copied: list[CommitRecord] = []
    damaged = dict(plan.damaged) | _kept_scenes(here, target, plan)

    def one(record: CommitRecord) -> None:
        try:
            copied.append(_latest(here, record, partial(_copy_record, here.path, target, plan)))
        except StoreDamage as error:
            damaged[record.unit] = str(error)
            return
        if progress is not None:
            progress(copied[-1])

    inits = [record for record in plan.copy if is_init(record.unit)]
    blocks = [record for record in plan.copy if not is_init(record.unit)]
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="copy") as pool:
        for part in (inits, blocks):  # a block is only visible, and only written, under its scene's init unit
            wanted = [record for record in part if UnitId(INIT, record.unit.scene) not in damaged]
            try:
                for _ in pool.map(one, wanted):
                    pass
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    _copy_inputs(here.path, target.path, {record.unit.scene for record in copied})
    units = tuple(sorted(record.unit for record in copied))
    return TransferReport(units, plan.present, sum(record.bytes for record in copied), damaged)


def check_space(plan: TransferPlan, destination: str | Path | ObjectPath) -> None:
    """Raise a StoreError naming both figures when the destination's disk is too small for a plan; a bucket never is."""
    folder = as_location(destination)
    if isinstance(folder, ObjectPath):
        return
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    # Files take whole blocks of the disk.
    needed = plan.bytes + 4096 * sum(len(record.shards) + len(record.metadata) for record in plan.copy)
    if needed > free:
        raise StoreError(
            f"{destination}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free on its disk. Free some, "
            "or copy fewer scenes (--scenes) or cues (--cues)."
        )


def _kept_scenes(here: CueStore, target: CueStore, plan: TransferPlan) -> dict[UnitId, str]:
    """Damage in the source, in scenes whose blocks at the destination would go with their table; and the init units
    of these scenes, which are therefore not copied."""
    found: dict[UnitId, str] = {}
    for scene in sorted({unit.scene for unit in plan.losing}):
        bad = {unit: why for unit, why in plan.damaged.items() if unit.scene == scene}
        for record in plan.copy:
            if record.unit.scene == scene:
                try:
                    _latest(here, record, partial(_read_through, here.path))
                except StoreDamage as error:
                    bad[record.unit] = str(error)
        if bad:
            kept = f"{target.path}: keeps scene {scene!r} as it is, for its blocks would go with its table, and "
            why = f"{kept}{here.path} has {len(bad)} damaged units of it (first: {min(bad)}). Repair these first."
            found |= {UnitId(INIT, scene): why} | bad
    return found


def _latest(here: CueStore, record: CommitRecord, work: Callable[[CommitRecord], T]) -> T:
    """What `work` makes of a unit of the source; once more where the unit was rebuilt since its record was read.

    Raises StoreDamage for the source, and what else `work` raises.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return work(record)
        except StoreDamage:
            found = read_record(here.path, record.unit)
            if found is None or found == record:
                raise
            record = found
    return work(record)


def _copy_record(source: Location, target: CueStore, plan: TransferPlan, record: CommitRecord) -> CommitRecord:
    """One unit, committed at the destination. Raises StoreDamage for the source, StoreError for the destination."""
    replacing = record.unit in plan.replace

    def write(mine: Turn) -> CommitRecord:
        first = record.generation
        if mine.found is not None:
            there = relocated(record, mine.found.generation)
            if there == mine.found and not replacing:
                return mine.found
            if not replacing:
                raise StoreError(
                    f"{target.path}: unit {record.unit} was committed by somebody else during the copy. Run it again."
                )
            # The same data under another fingerprint, as when a scene is opened again: its blocks stay visible.
            same = (there.shards, there.metadata) == (mine.found.shards, mine.found.metadata)
            if same and _intact(target.path, mine.found):
                return mine.found if there == mine.found else mine.publish(there)
            first = max(first, mine.found.generation + 1)
        if replacing and is_init(record.unit):
            first = max(first, target.next_generation(record.unit.scene, record.init))
        generation = mine.reserve(first)
        _copy_files(source, record, generation, mine.batch)
        return mine.publish(relocated(record, generation))

    if is_init(record.unit):
        return target.in_turn(record.unit, write)
    with scene_lock(target.path, record.unit.scene):
        init = decodable(target.path, UnitId(INIT, record.unit.scene))
        if init is None or init.init != record.init:
            raise StoreError(
                f"{target.path}: unit {record.unit} does not fit the init unit that is there; the source, or the "
                "destination, was opened anew during the copy. Run the same command again."
            )
        return target.in_turn(record.unit, write)


def _read_through(source: Location, record: CommitRecord) -> None:
    """Raise StoreDamage unless every file of a unit is what was committed."""
    for key, sha256 in _digests(record).items():
        try:
            found = backend(source).digest(key)[1]
        except OSError as error:
            raise _unreadable(source / key, error) from error
        if found != sha256:
            raise _damage(source / key, "not what was committed")


def _intact(root: Location, record: CommitRecord) -> bool:
    with contextlib.suppress(StoreDamage):
        _read_through(root, record)
        return True
    return False


def _digests(record: CommitRecord) -> dict[str, str]:
    """SHA-256 of every file of a unit, by key."""
    return {**{entry.key: entry.sha256 for entry in record.shards}, **record.metadata}


def _copy_files(source: Location, record: CommitRecord, generation: int, batch: Batch) -> None:
    """All files of a unit, each compared with its digest. Raises StoreDamage for the source."""
    there, moved = relocated(record, generation), moved_keys(record, generation)
    for entry in record.shards:
        if batch.add(moved[entry.key], _pieces(source, entry.key)) != (entry.size, entry.sha256):
            raise _damage(source / entry.key, "not what was committed")
    contents = dict.fromkeys(there.metadata, group_metadata())
    for key, sha256 in record.metadata.items():
        content = b"".join(_pieces(source, key))
        if hashlib.sha256(content).hexdigest() != sha256:
            raise _damage(source / key, "not what was committed")
        if key in moved:
            contents[moved[key]] = content
    for key, content in contents.items():
        batch.add_fixed(key, content)
    batch.land()


def _copy_inputs(source: Location, target: Location, scenes: set[str]) -> None:
    """Leaves alone what the destination knows by itself."""
    for key in sorted(INPUTS.format(scene=scene) for scene in scenes):
        with contextlib.suppress(FileNotFoundError):
            content = backend(source).get(key)
            try:
                backend(target).create(key, content)
            except OSError as error:
                raise files.explain(error, target, "copying what is known of raw files") from error


def _pieces(root: Location, key: str) -> Iterator[bytes]:
    """A file's content, a piece at a time. An error here is the source's, not the destination's: StoreDamage."""
    try:
        if not isinstance(root, Path):
            yield backend(root).get(key)
            return
        with open(root / key, "rb") as file:
            while piece := file.read(PIECE):
                yield piece
    except OSError as error:
        raise _unreadable(root / key, error) from error


def _unreadable(path: Location, error: OSError) -> StoreDamage:
    return _damage(path, f"cannot be read ({error.strerror or error})")


def _damage(path: Location, what: str) -> StoreDamage:
    return StoreDamage(f"{path}: {what}. Run `occflow verify --repair` on this store, then `occflow cues` again.")
