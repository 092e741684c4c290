"""What a store holds and what it lacks, as rows of scene, cue and state."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from storage.attributes import read_attributes
from storage.errors import StoreError
from storage.index import UnitSummary, read_summaries
from storage.journal import RunLog, read_runs
from storage.layout import INIT, UnitId, blocks, cue_specs
from storage.location import Location, as_location
from storage.progress import TRUTH, RunProgress, latest_failures, run_progress
from storage.schema import DERIVED
from storage.truth import other_keyframes, truth_path


@dataclass(frozen=True)
class StatusRow:
    """One scene and cue.

    Attributes:
        scene, cue: which.
        state: `complete`, `partial`, `missing` (nothing of it is committed) or `damaged` (a record cannot be read).
        committed, blocks: blocks that are committed, and that there are.
        frames: keyframes that are committed.
        bytes: of the committed data files.
        why: what failed, what is missing or unreadable, then the notes that the extractor left; "" when there is
            nothing to say.
        failed: blocks whose last attempt failed.
        planned: some of its blocks a run set out to make.
        apart: truth whose keyframes are not those of the cues beside it.
    """

    scene: str
    cue: str
    state: str
    committed: int
    blocks: int
    frames: int
    bytes: int
    why: str
    failed: int = 0
    planned: bool = False
    apart: bool = False

    @property
    def wanting(self) -> bool:
        """Whether something of it is to be made, or made again: a cue that no run was asked for is not."""
        if self.state == "missing":
            return self.planned or self.failed > 0
        return self.state != "complete" or self.apart


@dataclass(frozen=True)
class StoreStatus:
    """All that `occflow status` says: rows of the cue store and of its truth store, and how the run gets on."""

    rows: list[StatusRow]
    truth: list[StatusRow]
    run: RunProgress | None


def store_status(path: str | Path) -> StoreStatus:
    """The status of a cue store and of the truth store beside it. Raises as `status`."""
    root, beside = as_location(path), truth_path(path)
    runs = read_runs(root)
    found = _Known(root, runs)
    other = _Known(beside, runs) if beside.exists() else None
    progress = run_progress(runs, found.units, other.units if other is not None else None)
    return StoreStatus(found.rows(), _told_apart(found, other) if other is not None else [], progress)


def _told_apart(cues: "_Known", truth: "_Known") -> list[StatusRow]:
    """Rows of the truth store; where a scene's keyframes are not those of the cues, this comes first in `why`."""
    rows = truth.rows()
    scenes = {row.scene for row in rows if row.committed}
    apart = other_keyframes(cues.root, truth.root, sorted(scenes & {unit.scene for unit in cues.units}))
    return [
        replace(row, apart=True, why="; ".join(filter(None, (apart[row.scene], row.why))))
        if row.committed and row.scene in apart
        else row
        for row in rows
    ]


def status(path: str | Path) -> list[StatusRow]:
    """Rows of every scene with an init unit, one for each cue that this kind of store may hold, by scene.

    Reads commit records only (by way of the index that `storage.index` keeps), no data.

    Raises:
        StoreError, SchemaVersionError, StoreDamage: as opening the store.
    """
    root = as_location(path)
    return _Known(root, read_runs(root)).rows()


class _Known:
    """What is known of one store."""

    def __init__(self, root: Location, runs: Sequence[RunLog]) -> None:
        self.root = root
        self.attributes = read_attributes(root)  # first, for it says where there is no store
        summaries = read_summaries(root)
        self.cues = tuple(cue_specs(self.attributes.kind))
        truth = self.attributes.kind == "truth"
        self.units: Mapping[UnitId, UnitSummary] = summaries.units
        self.damaged = summaries.damaged
        self.failures = latest_failures(runs, self.units, truth)
        prefix = TRUTH if truth else ""
        self._name = lambda unit: f"{prefix}{unit}"
        self._planned = {name: run for run in runs for name in run.planned}
        """By unit name, the latest run that set out to make it."""
        self._to_open = {
            unit.scene
            for run in ([run for run in runs if run.running] or runs[-1:])
            for unit in _units(run.planned, truth)
            if unit.cue == INIT
        }
        """Scenes of the runs that go on, or of the last one: they are listed before anything of them is there."""

    def rows(self) -> list[StatusRow]:
        """All rows."""
        rows = []
        scenes = {unit.scene for unit in (*self.units, *self.damaged, *self.failures)} | self._to_open
        for scene in sorted(scenes):
            opened = UnitId(INIT, scene)
            init = self.units.get(opened)
            if init is None:
                rows.append(self._unopened(opened))
                continue
            count = len(blocks(init.frames[1], self.attributes.block_keyframes))
            for cue in self.cues:
                units = [UnitId(cue, scene, block) for block in range(count)]
                # Made of other cues and only where there is need: without it nothing is missing.
                if cue not in DERIVED or any(unit in self.units or unit in self.damaged for unit in units):
                    rows.append(self._row(units, init))
        return rows

    def _unopened(self, unit: UnitId) -> StatusRow:
        damage, failure = self.damaged.get(unit, ""), self.failures.get(unit, "")
        why = damage or (f"failed: {failure}" if failure else "")
        if not why and any(known.scene == unit.scene for known in self.units):
            why = "the scene's init unit is not committed, so its blocks are not visible"
        state = "damaged" if damage else "missing"
        return StatusRow(
            unit.scene, INIT, state, 0, 1, 0, 0, why or self._unmade(unit), int(bool(failure)), planned=True
        )

    def _unmade(self, unit: UnitId) -> str:
        """Why a unit that a run set out to make is not there, where the run does not say that it failed."""
        run = self._planned[self._name(unit)]
        if run.running:
            return "to be made by the run that goes on"
        if run.end == "done":
            return "was made, and taken back since"
        return f"the run that was to make it {f'ended: {run.end}' if run.end else 'was killed'}"

    def _row(self, units: list[UnitId], init: UnitSummary) -> StatusRow:
        found = {u: self.units[u] for u in units if u in self.units and self.units[u].init == init.init}
        damaged = [unit for unit in units if unit in self.damaged]
        failed = {unit: self.failures[unit] for unit in units if unit in self.failures}
        absent = [unit.block for unit in units if unit not in found]
        if damaged:
            state = "damaged"
        elif not found:
            state = "missing"
        else:
            state = "partial" if absent else "complete"
        frames = sum(summary.frames[1] - summary.frames[0] for summary in found.values())
        size = sum(summary.bytes for summary in found.values())
        why = self._why(units, found, failed, absent)
        planned = any(self._name(unit) in self._planned for unit in units)
        name = (units[0].scene, units[0].cue, state)
        return StatusRow(*name, len(found), len(units), frames, size, "; ".join(why), len(failed), planned)

    def _why(
        self, units: list[UnitId], found: Mapping[UnitId, UnitSummary], failed: Mapping[UnitId, str], absent: list[int]
    ) -> list[str]:
        """One line each: what failed, how much is missing, what is wrong with single blocks, what extractors noted."""
        by_reason: dict[str, list[int]] = {}
        for unit, reason in failed.items():
            by_reason.setdefault(reason, []).append(unit.block)
        lines = [f"failed ({_spans(numbers)}): {reason}" for reason, numbers in by_reason.items()]
        known = {unit for unit in units if unit in self.units or unit in self.damaged or unit in failed}
        if not known and not any(self._name(unit) in self._planned for unit in units):
            lines.append("no run was asked for it")
        if absent and found:
            lines.append(f"{len(absent)} of {len(units)} blocks not committed ({_spans(absent)})")
        unmade: dict[str, list[int]] = {}
        for unit in units:
            run = self._planned.get(self._name(unit))
            if run is not None and unit not in found and unit not in failed and (run.running or unit not in known):
                unmade.setdefault(self._unmade(unit), []).append(unit.block)
        lines += [f"{reason} ({_spans(numbers)})" for reason, numbers in unmade.items()]
        for unit in units:
            if unit in self.damaged:
                lines.append(self.damaged[unit])
            elif unit in self.units and unit not in found:
                lines.append(f"block {unit.block} belongs to an earlier init of the scene")
        return [*lines, *dict.fromkeys(note for summary in found.values() for note in summary.notes)]


def _units(names: Iterable[str], truth: bool) -> Iterator[UnitId]:
    """The units of one store among the names of a journal."""
    for name in names:
        if name.startswith(TRUTH) == truth:
            with contextlib.suppress(StoreError):
                yield UnitId.parse(name.removeprefix(TRUTH))


def _spans(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as "0-2, 5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
