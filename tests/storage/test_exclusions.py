"""Marks: they outlive a rebuild that changes nothing, and say so when they no longer hold."""

import json
from pathlib import Path

import pytest

from storage.commit import Provenance
from storage.errors import StoreError
from storage.exclusions import (
    ExcludedFrame,
    excluded_by,
    excluded_frames,
    fingerprints,
    merged,
    parse_exclusions,
    read_exclusions,
    without,
    write_exclusions,
)
from storage.layout import UnitId
from storage.reader import StoreReader
from storage.store import CueStore


def marks_of(reader: StoreReader, t: int = 1) -> ExcludedFrame:
    scene = reader.scene("a")
    return ExcludedFrame("a", t, scene.table.tokens[t], "reviewer", "blurred", fingerprints(scene, t))


def rebuild(store: CueStore, cue: str, fingerprint: str) -> None:
    """Commit the same content again."""
    unit = UnitId(cue, "a", 0)
    arrays = store.read_block(unit)
    store.discard(unit)
    store.commit_block(unit, arrays, Provenance(fingerprint))


def test_a_mark_goes_through_a_file_and_holds(full_store: CueStore, tmp_path: Path) -> None:
    reader = StoreReader(full_store.path)
    mark = marks_of(reader)
    path = write_exclusions(tmp_path / "new" / "marks.json", [mark], "s")
    assert read_exclusions(path) == [mark]
    found = excluded_by(reader, [path])
    assert found.frames == {("a", 1)}
    assert found.stale == ()


def test_it_survives_a_rebuild_with_the_same_fingerprint_only(full_store: CueStore) -> None:
    mark = marks_of(StoreReader(full_store.path))
    cue = next(name for name in mark.fingerprints if name != "init")
    rebuild(full_store, cue, mark.fingerprints[cue])
    assert excluded_frames(StoreReader(full_store.path), [mark]).frames == {("a", 1)}
    rebuild(full_store, cue, "another")
    found = excluded_frames(StoreReader(full_store.path), [mark])
    assert found.frames == frozenset()
    assert cue in found.stale[0]


def test_marks_are_taken_back_by_author_and_keyframe() -> None:
    moved = ExcludedFrame("a", 3, "token-2")
    own, check, other = ExcludedFrame("a", 1), ExcludedFrame("a", 1, by="check:frozen"), ExcludedFrame("b", 1)
    every = [own, check, other, moved]
    assert without(every, [ExcludedFrame("a", 1, "token-1")]) == [check, other, moved]
    assert without(every, [ExcludedFrame("a", 2, "token-2")]) == [own, check, other], "a token says which, not t"
    assert without(every, [ExcludedFrame("a", 3, "token-3")]) == every
    assert without(every, [ExcludedFrame("a", 1, by="check:frozen")]) == [own, other, moved]


def test_only_the_cues_of_a_mark_count(full_store: CueStore) -> None:
    reader = StoreReader(full_store.path)
    mark = ExcludedFrame("a", 1, fingerprints=fingerprints(reader.scene("a"), 1, ["images"]))
    assert set(mark.fingerprints) == {"images"}
    rebuild(full_store, "lidar", "another")
    assert excluded_frames(StoreReader(full_store.path), [mark]).frames == {("a", 1)}


def test_a_cue_that_comes_ends_a_mark_made_without_it(full_store: CueStore) -> None:
    unit = UnitId("lidar", "a", 0)
    arrays = full_store.read_block(unit)
    full_store.discard(unit)
    reader = StoreReader(full_store.path)
    marks = [marks_of(reader), ExcludedFrame("a", 1, fingerprints=fingerprints(reader.scene("a"), 1, ["lidar"]))]
    assert marks[1].fingerprints == {"lidar": ""}
    assert excluded_frames(reader, marks[:1]).frames == {("a", 1)}
    assert excluded_frames(reader, marks[1:]).frames == {("a", 1)}
    full_store.commit_block(unit, arrays, Provenance("f"))
    found = excluded_frames(StoreReader(full_store.path), marks)
    assert found.frames == frozenset()
    assert found.stale == ("a:1: made or made anew since it was marked: lidar",) * 2


def test_marks_of_earlier_versions(full_store: CueStore) -> None:
    # They had no word of cues that were missing: a reviewer's mark holds all the same, that of the check of what is
    # missing says nothing.
    reader = StoreReader(full_store.path)
    table = fingerprints(reader.scene("a"), 1, ["init"])
    assert set(table) == {"init"}
    for by in ("reviewer", "check:pose_jump", "check:coverage_of_another_kind"):
        assert excluded_frames(reader, [ExcludedFrame("a", 1, by=by, fingerprints=table)]).frames == {("a", 1)}
    several = [(f"check:{names}", table) for names in ("coverage,frozen", "camera_offset,coverage")]
    for by, known in (("check:coverage", table), ("check:coverage", {}), *several):
        found = excluded_frames(reader, [ExcludedFrame("a", 1, by=by, fingerprints=known)])
        assert (found.frames, len(found.stale)) == (frozenset(), 1)
        assert "which cues were missing" in found.stale[0]


def test_tokens_find_the_keyframe_and_unknown_ones_are_told(full_store: CueStore) -> None:
    reader = StoreReader(full_store.path)
    tokens = reader.scene("a").table.tokens
    marks = [
        ExcludedFrame("a", 0, tokens[2]),
        ExcludedFrame("a", 0, "gone"),
        ExcludedFrame("b", 0),
        ExcludedFrame("a", 99),
    ]
    found = excluded_frames(reader, marks)
    assert found.frames == {("a", 2)}
    assert len(found.stale) == 3


def test_the_last_mark_of_an_author_counts() -> None:
    first, second = ExcludedFrame("a", 1, reason="x"), ExcludedFrame("a", 1, reason="y")
    other = ExcludedFrame("a", 1, by="check:flow_valid")
    assert merged([first], [second, other]) == [other, second]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a list of exclusions"),
        ({"schema": "x"}, "not a list of exclusions"),
        ({"schema_version": 2}, "schema_version 2"),
        ({"frames": {}}, "expected a list"),
        ({"frames": [{"scene": "a"}]}, r"frames\[0\].*scene and t"),
        ({"frames": [{"scene": "a", "t": "1"}]}, r"frames\[0\]\.t = '1': expected int"),
        ({"frames": [{"scene": "a", "t": True}]}, "expected int"),
        ({"frames": [{"scene": "a", "t": 1, "path": "/etc"}]}, "expected one of"),
    ],
)
def test_other_files_are_refused(content: object, message: str) -> None:
    whole = {"schema": "occflow.exclusions", "schema_version": 1, "frames": []}
    text = json.dumps(whole | content) if isinstance(content, dict) else str(content)
    with pytest.raises(StoreError, match=message):
        parse_exclusions(text, "marks.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.json: cannot be read"):
        read_exclusions(tmp_path / "none.json")
