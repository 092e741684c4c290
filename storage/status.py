"""What a store holds and what it lacks, as rows of scene, cue and state."""

from dataclasses import dataclass
from pathlib import Path

from storage.chunks import read_attributes
from storage.commit import CommitRecord, read_record, record_units
from storage.errors import StoreDamage
from storage.layout import INIT, UnitId, blocks, cue_specs


@dataclass(frozen=True)
class StatusRow:
    """One scene and cue.

    Attributes:
        scene, cue: which.
        state: `complete`, `partial`, `missing` (nothing of it is committed) or `damaged` (a record cannot be read).
        committed, blocks: blocks that are committed, and that there are.
        frames: keyframes that are committed.
        bytes: of the committed data files.
        why: what is missing or unreadable, then the notes that the extractor left; "" when there is nothing to say.
    """

    scene: str
    cue: str
    state: str
    committed: int
    blocks: int
    frames: int
    bytes: int
    why: str


def status(path: str | Path) -> list[StatusRow]:
    """Rows of every scene with an init unit, one for each cue that this kind of store may hold, by scene.

    Reads commit records only, no data.

    Raises:
        StoreError, SchemaVersionError, StoreDamage: as opening the store.
    """
    root = Path(path)
    attributes = read_attributes(root)
    present = set(record_units(root))
    rows = []
    for scene in sorted({unit.scene for unit in present}):
        init, problem = _read(root, UnitId(INIT, scene), present)
        if init is None:
            state = "damaged" if problem else "missing"
            why = problem or "the scene's init unit is not committed, so its blocks are not visible"
            rows.append(StatusRow(scene, INIT, state, 0, 1, 0, 0, why))
            continue
        spans = blocks(init.frames[1], attributes.block_keyframes)
        for cue in cue_specs(attributes.kind):
            units = [UnitId(cue, scene, block) for block in range(len(spans))]
            rows.append(_row(root, units, init, present))
    return rows


def _read(root: Path, unit: UnitId, present: set[UnitId]) -> tuple[CommitRecord | None, str]:
    """The record if there is a readable one, and what is wrong with it."""
    if unit not in present:
        return None, ""
    try:
        return read_record(root, unit), ""
    except StoreDamage as error:
        return None, str(error)


def _row(root: Path, units: list[UnitId], init: CommitRecord, present: set[UnitId]) -> StatusRow:
    found: list[CommitRecord] = []
    absent: list[int] = []
    reasons: dict[str, None] = {}
    damaged = False
    for unit in units:
        record, problem = _read(root, unit, present)
        if record is not None and record.init == init.init:
            found.append(record)
            reasons |= dict.fromkeys(record.provenance.notes)
            continue
        absent.append(unit.block)
        if problem:
            damaged = True
            reasons[problem] = None
        elif record is not None:
            reasons[f"block {unit.block} belongs to an earlier init of the scene"] = None
    missing = [f"{len(absent)} of {len(units)} blocks not committed ({_spans(absent)})"] if absent and found else []
    if damaged:
        state = "damaged"
    elif not found:
        state = "missing"
    else:
        state = "partial" if absent else "complete"
    frames = sum(record.frames[1] - record.frames[0] for record in found)
    size = sum(record.bytes for record in found)
    why = "; ".join([*missing, *reasons])
    return StatusRow(units[0].scene, units[0].cue, state, len(found), len(units), frames, size, why)


def _spans(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as "0-2, 5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
