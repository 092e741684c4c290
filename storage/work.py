"""Units being written: who holds which lock, where scratch files lie, and what to clean when a writer died."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from storage import files
from storage.backend import Batch, ObjectBackend, backend
from storage.claims import bucket_turn, sweep_bucket
from storage.collect import collect_scene, collect_unit
from storage.commit import CommitRecord, commit_path, is_init, publish, read_record
from storage.errors import StoreDamage, StoreError
from storage.layout import INIT, PENDING, UnitId
from storage.location import Location
from storage.schema import ArraySpec

Specs = Mapping[str, tuple[ArraySpec, ...]]


class Turn(Protocol):
    """A writer's work on one unit. `found` is the unit's record as it was at the start, None also where damaged."""

    found: CommitRecord | None
    batch: Batch

    def reserve(self, first: int) -> int:
        """A generation, `first` or later, that nobody else writes."""
        ...

    def publish(self, record: CommitRecord) -> CommitRecord:
        """Make the unit visible and remove what its record replaces. Returns the record that is there now."""
        ...


class LocalTurn:
    """A turn under the unit's lock, so that the unit stays as it was found."""

    def __init__(self, root: Path, unit: UnitId, specs: Specs, scratch: Path) -> None:
        self.found = decodable(root, unit)
        self.batch = files.Batch(root, scratch)
        self._root, self._unit, self._specs, self._scratch = root, unit, specs, scratch

    def reserve(self, first: int) -> int:
        """As Turn: the lock has reserved them all."""
        return first

    def publish(self, record: CommitRecord) -> CommitRecord:
        """As Turn. Raises StoreError, OSError."""
        present = is_init(self._unit) or commit_path(self._root, self._unit).exists()
        if not publish(self._root, record, self._scratch, replace=present):
            raise StoreError(
                f"{commit_path(self._root, self._unit)}: another writer committed this unit in spite of its lock. Run "
                "one writer, and check that this file system's locks work."
            )
        if is_init(self._unit):
            collect_scene(self._root, self._unit.scene)
        else:
            collect_unit(self._root, self._unit, self._specs[self._unit.cue], record)
        return record


@contextlib.contextmanager
def turn(root: Location, unit: UnitId, specs: Specs) -> Iterator[Turn]:
    """A writer's turn at a unit, by lock on a disk and by claim in a bucket; without `publish` nothing stays.

    Raises StoreError; in a bucket StartOver, when the unit was changed by another writer meanwhile.
    """
    place = backend(root)
    if isinstance(place, ObjectBackend):
        with bucket_turn(place, unit, specs) as mine:
            yield mine
    else:
        with writing(place.root, unit, specs) as scratch:
            yield LocalTurn(place.root, unit, specs, scratch)


def scene_lock(root: Location, scene: str) -> contextlib.AbstractContextManager[bool]:
    """Keeps a scene's init unit as it is while its blocks are written; in a bucket `Turn.publish` looks again."""
    place = backend(root)
    if isinstance(place, ObjectBackend):
        return contextlib.nullcontext(True)
    return unit_lock(place.root, UnitId(INIT, scene), shared=True)


def unit_lock(
    root: Path, unit: UnitId, *, shared: bool = False, timeout_s: float = files.LOCK_TIMEOUT_S
) -> contextlib.AbstractContextManager[bool]:
    """The lock of a unit, as `files.lock`. Writers of a scene's blocks share its init unit's, before their own."""
    return files.lock(root / PENDING / f"{unit}.lock", shared=shared, timeout_s=timeout_s)


@contextlib.contextmanager
def writing(root: Path, unit: UnitId, specs: Specs) -> Iterator[Path]:
    """The unit's lock, and an empty scratch folder that tells a later sweep that the unit was in the making.

    On any error what was written is removed; an OSError becomes a StoreError that names the remedy.
    """
    folder = root / PENDING / str(unit)
    try:
        with unit_lock(root, unit):
            if folder.exists():
                sweep_unit(root, unit, specs)
            with files.scratch_folder(folder) as scratch:
                try:
                    yield scratch
                except BaseException:
                    sweep_unit(root, unit, specs)
                    raise
    except OSError as error:
        raise files.explain(error, root, f"writing unit {unit}") from error


def decodable(root: Location, unit: UnitId) -> CommitRecord | None:
    """The unit's record, None also when it is damaged: a writer may then replace it."""
    try:
        return read_record(root, unit)
    except StoreDamage:
        return None


def sweep_unit(root: Path, unit: UnitId, specs: Specs) -> None:
    """Remove what of the unit no record names. The caller holds its lock (an init unit: not shared)."""
    if unit.cue == INIT:
        collect_scene(root, unit.scene)
    elif unit.cue in specs:
        collect_unit(root, unit, specs[unit.cue], decodable(root, unit))


def sweep(root: Location, specs: Specs) -> int:
    """Clean every unit whose writer died; returns how many. Writers at work hold their locks and are left alone."""
    place = backend(root)
    if isinstance(place, ObjectBackend):
        return sweep_bucket(place, specs)
    root = place.root
    pending = root / PENDING
    swept = 0
    try:
        for folder in sorted(p for p in pending.glob("*") if p.is_dir()):
            swept += _sweep_folder(root, folder, specs)
        for left in pending.glob("*.lock"):
            with files.lock(left, timeout_s=0):
                pass
    except OSError as error:
        raise files.explain(error, pending, "removing what killed writers left") from error
    return swept


def _sweep_folder(root: Path, folder: Path, specs: Specs) -> bool:
    """Clean the unit that a scratch folder stands for; False when a writer is at work on it."""
    try:
        unit = UnitId.parse(folder.name)
    except StoreError:
        unit = None
    with contextlib.ExitStack() as held:
        if (
            unit is not None
            and unit.cue != INIT
            and not held.enter_context(unit_lock(root, UnitId(INIT, unit.scene), shared=True, timeout_s=0))
        ):
            return False
        if not held.enter_context(files.lock(folder.with_name(f"{folder.name}.lock"), timeout_s=0)):
            return False
        if unit is not None:
            sweep_unit(root, unit, specs)
        files.remove_tree(folder)
    return True
