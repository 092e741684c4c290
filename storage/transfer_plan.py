"""Which units a copy between two stores would move, and what would be in its way; from commit records alone."""

import fnmatch
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from storage.backend import backend
from storage.commit import CommitRecord, is_init, read_records, record_units
from storage.errors import StoreDamage, StoreError
from storage.layout import INIT, UnitId
from storage.location import Location, ObjectPath, as_location
from storage.relocation import same_commit
from storage.store import CueStore


@dataclass(frozen=True)
class TransferPlan:
    """What a copy is to do.

    Attributes:
        copy: records of the units that are to be copied, init units first.
        present: units that the destination holds already, with the same record and whole files.
        replace: units of the destination of which another commit, or a damaged one, is there.
        losing: blocks of the destination that go when their scene's table is copied, for they belong to another.
        notes: what of the selection stays behind, and what it was made from.
        damaged: units whose record cannot be read, and why.
    """

    copy: tuple[CommitRecord, ...]
    present: tuple[UnitId, ...]
    replace: frozenset[UnitId] = frozenset()
    losing: tuple[UnitId, ...] = ()
    notes: tuple[str, ...] = ()
    damaged: dict[UnitId, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of the data files to be copied."""
        return sum(record.bytes for record in self.copy)


def plan_transfer(
    source: str | Path | ObjectPath,
    destination: str | Path | ObjectPath,
    scenes: Sequence[str] | None = None,
    cues: Sequence[str] | None = None,
    *,
    upstream: bool = False,
    overwrite: bool = False,
) -> TransferPlan:
    """Plan a copy; reads commit records, writes nothing.

    Args:
        scenes: names or shell patterns; None for all.
        cues: only these, and the init unit of each scene, without which no block is visible; None for all.
        upstream: also the cues that the chosen ones were made from.
        overwrite: where the destination holds another commit of a unit, replace that one; else refuse.

    Raises:
        StoreError: no store at `source`; a scene or cue that it has not; the destination is no store, has other
            attributes, or holds other commits (unless `overwrite`).
    """
    here = CueStore.open(source)
    target = _destination(here, as_location(destination))
    wanted = _chosen_cues(here, cues)
    records, damaged, notes = _committed(here, _chosen_scenes(here, scenes))
    if upstream:
        wanted = _with_upstream(records, wanted)
    chosen = {unit: record for unit, record in records.items() if is_init(unit) or unit.cue in wanted}
    damaged = {unit: why for unit, why in damaged.items() if is_init(unit) or unit.cue in wanted}
    states = dict.fromkeys(chosen, "absent") if target is None else _states(target.path, chosen)
    others = {unit for unit, state in states.items() if state == "other"}
    losing = () if target is None else _losing(target.path, chosen, states)
    if (others or losing) and not overwrite:
        count, first = len(others.union(losing)), min(others or losing)
        raise StoreError(
            f"{destination}: holds other commits of {count} of these units, or damaged ones (first: {first}). Copy "
            "with --overwrite to replace them, or give another destination."
        )
    present = {unit for unit, state in states.items() if state == "present"}
    return TransferPlan(
        copy=tuple(record for unit, record in chosen.items() if unit not in present),
        present=tuple(sorted(present)),
        replace=frozenset({*others, *losing, *(UnitId(INIT, unit.scene) for unit in losing)}),
        losing=losing,
        notes=(*notes, *_upstream_notes(records, chosen), *_losing_notes(losing, chosen)),
        damaged=damaged,
    )


def _destination(here: CueStore, path: Location) -> CueStore | None:
    """The store that is at the destination, if there is one and it can take these units."""
    if _overlap(here.path, path):
        raise StoreError(f"{path}: is, holds or lies in the store that is to be copied. Give another destination.")
    place = backend(path)
    if not place.exists("zarr.json"):
        place.children("")  # a bucket that is not there, or may not be read, is told now rather than by the first write
        return None
    found = CueStore.open(path)
    if found.attributes != here.attributes:
        raise StoreError(
            f"{path}: a store with other attributes (data set, kind, cameras, sizes or provenance) than {here.path}, "
            "so its units do not fit. Give another destination."
        )
    return found


def _overlap(one: Location, other: Location) -> bool:
    """Whether two locations are one, or one is inside the other."""
    if isinstance(one, ObjectPath) or isinstance(other, ObjectPath):
        shorter, longer = sorted((f"{one}/", f"{other}/"), key=len)
        return longer.startswith(shorter)
    ours, theirs = one.resolve(), other.resolve()
    return ours == theirs or ours in theirs.parents or theirs in ours.parents


def _chosen_scenes(here: CueStore, patterns: Sequence[str] | None) -> set[str]:
    found = here.scenes()
    if patterns is None:
        return set(found)
    chosen = set()
    for pattern in patterns:
        matches = fnmatch.filter(found, pattern)
        if not matches:
            raise StoreError(f"{here.path}: no scene {pattern!r}; it has {', '.join(found[:5]) or 'none'}, …")
        chosen.update(matches)
    return chosen


def _chosen_cues(here: CueStore, cues: Sequence[str] | None) -> set[str]:
    known = here.cues()
    for cue in cues or ():
        if cue not in known:
            raise StoreError(f"{here.path}: cue {cue!r} is not one of this store's: {', '.join(known)}.")
    return set(known if cues is None else cues)


def _committed(here: CueStore, scenes: set[str]) -> tuple[dict[UnitId, CommitRecord], dict[UnitId, str], list[str]]:
    """Visible records of these scenes; units whose record is damaged; a note of those that are not visible."""
    records: dict[UnitId, CommitRecord] = {}
    damaged: dict[UnitId, str] = {}
    inits: dict[str, CommitRecord] = {}
    hidden = 0
    units = [unit for unit in record_units(here.path) if unit.scene in scenes]
    units.sort(key=lambda unit: not is_init(unit))
    for unit, record in zip(units, read_records(here.path, units), strict=True):
        if isinstance(record, StoreDamage):
            damaged[unit] = str(record)
            continue
        if record is None:
            continue
        if is_init(unit):
            inits[unit.scene] = record
        elif unit.scene not in inits or inits[unit.scene].init != record.init:
            hidden += 1
            continue
        records[unit] = record
    notes = [f"{hidden} blocks belong to no readable init unit of their scene and stay behind"] if hidden else []
    return records, damaged, notes


def _with_upstream(records: dict[UnitId, CommitRecord], cues: set[str]) -> set[str]:
    needs: dict[str, set[str]] = {}
    for unit, record in records.items():
        needs.setdefault(unit.cue, set()).update(record.provenance.upstream)
    wanted: set[str] = set()
    new = set(cues)
    while new:
        wanted |= new
        new = set().union(*(needs.get(cue, set()) for cue in new)) - wanted
    return wanted


def _upstream_notes(records: dict[UnitId, CommitRecord], chosen: dict[UnitId, CommitRecord]) -> list[str]:
    """What the chosen units were made from and does not come along, or is not what it was then."""
    behind: Counter[tuple[str, str]] = Counter()
    changed: Counter[tuple[str, str]] = Counter()
    for unit, record in chosen.items():
        for cue, fingerprint in record.provenance.upstream.items():
            made_from = replace(unit, cue=cue)
            if made_from not in chosen:
                behind[unit.cue, cue] += 1
            if made_from in records and records[made_from].fingerprint != fingerprint:
                changed[unit.cue, cue] += 1
    return [
        *(f"{n} units of {cue} were made from {need}, which stays behind" for (cue, need), n in behind.items()),
        *(
            f"{n} units of {cue} were made from an earlier {need}: the next `occflow cues` makes them anew"
            for (cue, need), n in changed.items()
        ),
    ]


def _states(root: Location, records: dict[UnitId, CommitRecord]) -> dict[UnitId, str]:
    """Whether a store holds each unit: "present", "absent", or "other" (another commit of it, or damaged)."""
    states: dict[UnitId, str] = {}
    sizes: dict[str, dict[str, int]] = {}
    for (unit, record), found in zip(records.items(), read_records(root, records), strict=True):
        if isinstance(found, CommitRecord) and same_commit(record, found):
            if unit.scene not in sizes:
                sizes[unit.scene] = backend(root).sizes(f"scenes/{unit.scene}")
            whole = all(sizes[unit.scene].get(entry.key) == entry.size for entry in found.shards)
            states[unit] = "present" if whole else "other"
        else:
            states[unit] = "absent" if found is None else "other"
    return states


def _losing(root: Location, chosen: dict[UnitId, CommitRecord], states: dict[UnitId, str]) -> tuple[UnitId, ...]:
    """Blocks of the destination that do not belong to the table that is to be copied in their scene."""
    inits = {unit.scene: chosen[unit].init for unit, state in states.items() if is_init(unit) and state != "present"}
    if not inits:
        return ()
    blocks = [unit for unit in record_units(root) if unit.scene in inits and not is_init(unit)]
    found = zip(blocks, read_records(root, blocks), strict=True)
    return tuple(unit for unit, r in found if isinstance(r, CommitRecord) and r.init != inits[unit.scene])


def _losing_notes(losing: tuple[UnitId, ...], chosen: dict[UnitId, CommitRecord]) -> list[str]:
    gone = [unit for unit in losing if unit not in chosen]
    if not gone:
        return []
    return [
        f"{len(gone)} blocks of the destination go with their scene's table, and no copy replaces them: {gone[0]}, …"
    ]
