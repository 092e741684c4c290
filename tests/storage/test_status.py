"""Status rows: what is there, what is not, and why."""

from dataclasses import replace
from types import SimpleNamespace

from storage.schema import CUES
from storage.status import StatusRow, status
from storage.store import CueStore, Provenance, UnitId


def rows_of(store: CueStore) -> dict[tuple[str, str], StatusRow]:
    return {(row.scene, row.cue): row for row in status(store.path)}


def test_full_store_is_complete(full_store: CueStore) -> None:
    rows = rows_of(full_store)
    assert rows.keys() == {("a", cue) for cue in CUES}
    for row in rows.values():
        assert (row.state, row.committed, row.blocks, row.frames, row.why) == ("complete", 3, 3, 5, "")
    size = sum(p.stat().st_size for p in (full_store.path / "scenes/a/masks").rglob("c.*"))
    assert rows["a", "masks"].bytes == size


def test_partial_and_missing_tell_which_blocks_and_why(store: CueStore, tiny: SimpleNamespace) -> None:
    given = Provenance("fp", notes=["keyframe 1, CAM_BACK: truncated JPEG, skipped"])
    store.commit_block(UnitId("masks", "a", 0), tiny.arrays("masks", 2), given)
    rows = rows_of(store)
    row = rows["a", "masks"]
    assert (row.state, row.committed, row.blocks, row.frames) == ("partial", 1, 3, 2)
    assert row.why == "2 of 3 blocks not committed (1-2); keyframe 1, CAM_BACK: truncated JPEG, skipped"
    assert rows["a", "lidar"] == StatusRow("a", "lidar", "missing", 0, 3, 0, 0, "no run was asked for it")


def test_spans_of_missing_blocks(store: CueStore, tiny: SimpleNamespace) -> None:
    store.commit_init("long", tiny.table(frames=13), "fp")
    for block in (0, 3, 4):
        tiny.commit(store, "lidar", block, scene="long")
    assert rows_of(store)["long", "lidar"].why == "4 of 7 blocks not committed (1-2, 5-6)"


def test_damaged_records_are_told(full_store: CueStore) -> None:
    path = full_store.path / "commits/masks--a--00001.json"
    path.write_bytes(b"{")
    row = rows_of(full_store)["a", "masks"]
    assert (row.state, row.committed) == ("damaged", 2)
    assert str(path) in row.why
    assert "verify --repair" in row.why


def test_scene_without_init(full_store: CueStore) -> None:
    (full_store.path / "commits/init--a--00000.json").unlink()
    (row,) = status(full_store.path)
    assert (row.scene, row.cue, row.state) == ("a", "init", "missing")
    assert "init unit is not committed" in row.why


def test_blocks_of_an_earlier_init_are_told(full_store: CueStore) -> None:
    record = full_store.record(UnitId("masks", "a", 2))
    assert record is not None
    from storage.commit import encode_record

    stale = encode_record(replace(record, init="0" * 64))
    (full_store.path / "commits/masks--a--00002.json").write_bytes(stale)
    row = rows_of(full_store)["a", "masks"]
    assert (row.state, row.committed) == ("partial", 2)
    assert "block 2 belongs to an earlier init" in row.why
