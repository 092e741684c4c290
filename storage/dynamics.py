"""How much of each keyframe moves: a file of scores beside a store, made from its cues and valid as long as they are.

A score keeps the fingerprints of the cues that it was made from; after a rebuild of one of them it says nothing more.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from storage.errors import StoreError
from storage.exclusions import ABSENT, changed_since
from storage.location import ObjectPath, as_location
from storage.reader import StoreReader
from storage.whole_file import whole_file

SCHEMA = "occflow.dynamics"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class FrameMotion:
    """One keyframe's LiDAR points that cameras see, and those of them that move. fingerprints: of the cues it was made
    from, by name."""

    scene: str
    t: int
    token: str
    points: int
    moving: int
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """moving / points, the score; 0 where there is no point."""
        return self.moving / self.points if self.points else 0.0


@dataclass(frozen=True)
class CurrentMotion:
    """What a file says of a store as it is now: scores by (scene, keyframe), a line for each that no longer holds."""

    frames: Mapping[tuple[str, int], FrameMotion]
    stale: tuple[str, ...]


def dynamics_path(store: str | Path | ObjectPath) -> Path:
    """`<store>.dynamics.json` for `<store>.zarr` on a disk. Raises StoreError for one in a bucket."""
    path = as_location(store)
    if isinstance(path, ObjectPath):
        raise StoreError(f"{path}: scores are a file on a disk; say where, with --out and data.dynamic.scores")
    return path.with_name(f"{path.name.removesuffix('.zarr')}.dynamics.json")


def write_dynamics(path: str | Path, frames: Iterable[FrameMotion], store: str, rule: Mapping[str, Any]) -> Path:
    """Write scores, whole or not at all; `rule` says what was taken for moving. Returns the path.

    Frames of one block share their fingerprints, which are written once.
    """
    path = Path(path)
    groups = [
        {"scene": scene, "fingerprints": dict(marks), "frames": [[f.t, f.token, f.points, f.moving] for f in found]}
        for (scene, marks), found in groupby(frames, lambda f: (f.scene, tuple(sorted(f.fingerprints.items()))))
    ]
    head = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "store": store, "rule": dict(rule)}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps({**head, "groups": groups}, separators=(",", ":")), encoding="utf-8")
    return path


def read_dynamics(path: str | Path) -> list[FrameMotion]:
    """Scores of a file.

    Raises:
        StoreError: no such file, another schema version, or an entry that cannot be understood.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); make it with `occflow dynamics`.") from None
    except ValueError as error:
        raise StoreError(f"{path}: not JSON ({error}); make it anew with `occflow dynamics`.") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise StoreError(f"{path}: not a file of scores: its `schema` is not {SCHEMA!r}.")
    if content.get("schema_version") != SCHEMA_VERSION:
        version = content.get("schema_version")
        raise StoreError(f"{path}: schema_version {version!r}, this program reads {SCHEMA_VERSION}.")
    try:
        return [
            FrameMotion(str(group["scene"]), int(t), str(token), int(points), int(moving), dict(group["fingerprints"]))
            for group in content["groups"]
            for t, token, points, moving in group["frames"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: an entry cannot be understood ({error!r}); make it anew.") from None


def current_motion(reader: StoreReader, frames: Iterable[FrameMotion]) -> CurrentMotion:
    """The scores that hold for the store as it is now. A keyframe is found by its token, wherever it is now."""
    held: dict[tuple[str, int], FrameMotion] = {}
    stale: list[str] = []
    there = set(reader.scenes())
    for frame in frames:
        tokens = reader.scene(frame.scene).table.tokens if frame.scene in there else ()
        if frame.token not in tokens:
            stale.append(f"{frame.scene}:{frame.t}: the store has no such keyframe")
            continue
        t = frame.t if frame.t < len(tokens) and tokens[frame.t] == frame.token else tokens.index(frame.token)
        marks = frame.fingerprints
        if marks:  # earlier versions did not name masks that were missing; a score without them is another
            marks = {"masks": ABSENT, **marks}
        changed = changed_since(reader.scene(frame.scene), t, marks)
        if changed:
            stale.append(f"{frame.scene}:{t}: made or made anew since: {', '.join(changed)}")
        else:
            held[frame.scene, t] = frame
    return CurrentMotion(held, tuple(stale))
