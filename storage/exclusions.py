"""Keyframes that are not to be used: a file of marks that outlive a rebuild of the cues they were made on.

A mark names a keyframe by scene and token and keeps the fingerprints of the cues that were looked at, those that were
not there among them. It holds as long as those are the same; after a rebuild with other inputs, settings or weights,
and once a cue that was missing has come, it says nothing any more, and is reported.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import StoreError
from storage.reader import SceneReader, StoreReader
from storage.schema import CUES
from storage.whole_file import whole_file

SCHEMA = "occflow.exclusions"
SCHEMA_VERSION = 1
TABLE = "init"
"""Key of the scene table's digest among fingerprints."""
ABSENT = ""
"""Fingerprint of a cue that is not committed: its coming is a change."""
_BY_CHECKS = "check:"
"""How the author of marks by checks begins; see `author_of`."""
_COVERAGE = "coverage"
"""The check that marks keyframes which lack cues."""


@dataclass(frozen=True)
class ExcludedFrame:
    """One mark. token: of the keyframe, "" when only its index is known. by: `reviewer`, or `author_of` its checks.
    fingerprints: of the cues it was made on, by name; none: it always holds."""

    scene: str
    t: int
    token: str = ""
    by: str = "reviewer"
    reason: str = ""
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    @property
    def checks(self) -> tuple[str, ...]:
        """Names of the checks that made the mark; none of a reviewer's."""
        return tuple(self.by.removeprefix(_BY_CHECKS).split(",")) if self.by.startswith(_BY_CHECKS) else ()


def author_of(checks: Iterable[str]) -> str:
    """`by` of a mark that checks made, such as `check:camera_offset,coverage`; the order of names means nothing."""
    return _BY_CHECKS + ",".join(sorted(checks))


@dataclass(frozen=True)
class Excluded:
    """What a file means for a store as it is now: keyframes it excludes, and a line for each mark that no longer
    holds."""

    frames: frozenset[tuple[str, int]]
    stale: tuple[str, ...]


def fingerprints(scene: SceneReader, t: int, cues: Iterable[str] | None = None) -> dict[str, str]:
    """Fingerprints of a keyframe's cues (default all), `ABSENT` of those that are not committed, and the digest of its
    scene's table."""
    found: dict[str, str] = {}
    wanted = set(CUES) if cues is None else set(cues)
    for cue in CUES:
        if scene.has(cue, t):
            record = scene.record(cue, t)
            if cue in wanted:
                found[cue] = record.fingerprint
            if cues is None or TABLE in wanted:
                found[TABLE] = record.init
        elif cue in wanted:
            found[cue] = ABSENT
    return found


def parse_exclusions(text: str | bytes, where: str) -> list[ExcludedFrame]:
    """Marks from a file's content; `where` names it in errors.

    Raises:
        StoreError: not such a file, another schema version, or an entry that cannot be understood.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{where}: not JSON ({error}). Export the marks from the page of `occflow inspect`.") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise StoreError(f"{where}: not a list of exclusions: its `schema` is not {SCHEMA!r}.")
    if content.get("schema_version") != SCHEMA_VERSION:
        version = content.get("schema_version")
        raise StoreError(f"{where}: schema_version {version!r}, this program reads {SCHEMA_VERSION}.")
    frames = content.get("frames")
    if not isinstance(frames, list):
        raise StoreError(f"{where}: `frames` is {type(frames).__name__}, expected a list.")
    return [_frame(entry, f"{where}: frames[{k}]") for k, entry in enumerate(frames)]


def _frame(entry: Any, where: str) -> ExcludedFrame:
    kinds: dict[str, type] = {"scene": str, "t": int, "token": str, "by": str, "reason": str, "fingerprints": dict}
    if not isinstance(entry, dict) or not {"scene", "t"} <= set(entry):
        raise StoreError(f"{where} is {str(entry)[:80]!r}, expected an object with scene and t.")
    for key, value in entry.items():
        kind = kinds.get(key)
        if kind is None or not isinstance(value, kind) or isinstance(value, bool):
            expected = kind.__name__ if kind is not None else f"one of {', '.join(kinds)}"
            raise StoreError(f"{where}.{key} = {str(value)[:80]!r}: expected {expected}.")
    return ExcludedFrame(**entry)


def read_exclusions(path: str | Path) -> list[ExcludedFrame]:
    """Marks of a file. Raises StoreError."""
    try:
        return parse_exclusions(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); give a file of exclusions.") from None


def write_exclusions(path: str | Path, frames: Sequence[ExcludedFrame], store: str) -> Path:
    """Write marks, whole or not at all. Returns the path."""
    path = Path(path)
    content = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "store": store,
        "frames": [asdict(f) for f in frames],
    }
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def merged(*lists: Iterable[ExcludedFrame]) -> list[ExcludedFrame]:
    """Marks of several lists, the last of each keyframe and author, in order of scene and keyframe."""
    found = {(f.scene, f.t, f.by): f for frames in lists for f in frames}
    return [found[key] for key in sorted(found)]


def without(marks: Iterable[ExcludedFrame], withdrawn: Iterable[ExcludedFrame]) -> list[ExcludedFrame]:
    """Marks less those that are taken back: of the same author and scene, and of the same keyframe, by its token where
    both name one and by its index otherwise."""
    gone = list(withdrawn)
    return [mark for mark in marks if not any(_same(mark, other) for other in gone)]


def _same(mark: ExcludedFrame, other: ExcludedFrame) -> bool:
    if (mark.scene, mark.by) != (other.scene, other.by):
        return False
    return mark.token == other.token if mark.token and other.token else mark.t == other.t


def excluded_frames(reader: StoreReader, frames: Iterable[ExcludedFrame]) -> Excluded:
    """Which keyframes of the store marks exclude. A keyframe is found by its token, wherever it is now."""
    held: set[tuple[str, int]] = set()
    stale: list[str] = []
    there = set(reader.scenes())
    for frame in frames:
        if frame.scene not in there:
            stale.append(f"{frame.scene}:{frame.t}: the store has no such scene")
            continue
        scene = reader.scene(frame.scene)
        t = _place(scene, frame)
        if t is None:
            stale.append(f"{frame.scene}:{frame.t}: the scene has no such keyframe any more")
            continue
        if _untold(frame):
            stale.append(f"{frame.scene}:{t}: does not say which cues were missing: have it checked again")
            continue
        changed = changed_since(scene, t, frame.fingerprints)
        if changed:
            stale.append(f"{frame.scene}:{t}: made or made anew since it was marked: {', '.join(changed)}")
        else:
            held.add((frame.scene, t))
    return Excluded(frozenset(held), tuple(stale))


def changed_since(scene: SceneReader, t: int, marks: Mapping[str, str]) -> list[str]:
    """Cues of a keyframe whose fingerprints are no longer these."""
    now = fingerprints(scene, t, marks)
    return sorted(cue for cue, mark in marks.items() if now.get(cue) != mark)


def _untold(frame: ExcludedFrame) -> bool:
    """Whether a mark on a keyframe that lacks cues keeps no word of some: marks of earlier versions named the scene's
    table alone, and held although all that was missing had come."""
    return _COVERAGE in frame.checks and not frame.fingerprints.keys() >= CUES.keys()


def _place(scene: SceneReader, frame: ExcludedFrame) -> int | None:
    tokens = scene.table.tokens
    if frame.token:
        return tokens.index(frame.token) if frame.token in tokens else None
    return frame.t if 0 <= frame.t < scene.length else None


def excluded_by(reader: StoreReader, paths: Iterable[str | Path]) -> Excluded:
    """Which keyframes of the store several files exclude. Raises StoreError."""
    return excluded_frames(reader, [frame for path in paths for frame in read_exclusions(path)])
