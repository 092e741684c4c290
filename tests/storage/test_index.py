"""The index answers as the records do, whatever happened to either."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import storage.files
import storage.index
from storage.commit import CommitRecord, read_record
from storage.index import INDEX, Summaries, read_summaries
from storage.layout import UnitId
from storage.schema import CUES
from storage.status import status
from storage.store import CueStore
from storage.verify import verify

UNITS = 1 + 3 * len(CUES)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[UnitId]:
    """Units whose record was read, and an index that is written whatever it is worth."""
    seen: list[UnitId] = []

    def counted(root: Path, unit: UnitId) -> CommitRecord | None:
        seen.append(unit)
        return read_record(root, unit)

    monkeypatch.setattr(storage.index, "read_record", counted)
    monkeypatch.setattr(storage.index, "_WORTH_WRITING", 1)
    return seen


def without_index(root: Path) -> Summaries:
    """The truth: every record read anew, from a copy with the same times."""
    copy = shutil.copytree(root, root.with_name("copy.zarr"))
    (copy / INDEX).unlink(missing_ok=True)
    found = read_summaries(copy)
    shutil.rmtree(copy)
    return found


def assert_right(root: Path) -> None:
    found, expected = read_summaries(root), without_index(root)
    assert found.units == expected.units
    assert found.damaged.keys() == expected.damaged.keys()


def test_the_second_look_reads_no_record(full_store: CueStore, reads: list[UnitId]) -> None:
    first = read_summaries(full_store.path)
    assert len(reads) == len(first.units) == UNITS
    reads.clear()
    assert read_summaries(full_store.path) == first
    assert reads == []
    assert verify(full_store.path) == []
    record = full_store.record(UnitId("masks", "a", 1))
    assert record is not None
    summary = first.units[record.unit]
    assert (summary.frames, summary.init, summary.bytes) == (record.frames, record.init, record.bytes)


def test_only_what_changed_is_read_again(full_store: CueStore, reads: list[UnitId], tiny: SimpleNamespace) -> None:
    read_summaries(full_store.path)
    tiny.commit(full_store, "masks", 1, seed=3)
    full_store.discard(UnitId("lidar", "a", 0))
    reads.clear()
    found = read_summaries(full_store.path)
    assert reads == [UnitId("masks", "a", 1)]
    assert UnitId("lidar", "a", 0) not in found.units
    assert_right(full_store.path)


def test_a_record_changed_in_place_is_noticed(full_store: CueStore, reads: list[UnitId], tiny: SimpleNamespace) -> None:
    """Also where length and modification time are put back as they were."""
    read_summaries(full_store.path)
    path = full_store.path / "commits/masks--a--00001.json"
    state = path.stat()
    tiny.flip_bit(path, 400)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert list(read_summaries(full_store.path).damaged) == [UnitId("masks", "a", 1)]
    assert {row.cue: row.state for row in status(full_store.path)}["masks"] == "damaged"


def test_an_index_that_is_damaged_counts_for_nothing(full_store: CueStore, tiny: SimpleNamespace) -> None:
    expected = without_index(full_store.path)
    index = full_store.path / INDEX
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage.index, "_WORTH_WRITING", 1)
        for bit in (3, 300, 4000, 9999):
            read_summaries(full_store.path)
            tiny.flip_bit(index, bit)
            assert read_summaries(full_store.path).units == expected.units
        for content in (b"", b"1 00\n{}", b"\xff\xfe", index.read_bytes()[:-9]):
            index.write_bytes(content)
            assert read_summaries(full_store.path).units == expected.units


def test_another_stores_index_counts_for_nothing(full_store: CueStore, store: CueStore, reads: list[UnitId]) -> None:
    read_summaries(full_store.path)
    shutil.copy(full_store.path / INDEX, store.path / INDEX)
    assert list(read_summaries(store.path).units) == [UnitId("init", "a")]
    assert_right(store.path)


def test_a_store_that_cannot_be_written_to(full_store: CueStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(storage.index, "_WORTH_WRITING", 1)
    monkeypatch.setattr(storage.files, "put", refuse)
    assert len(read_summaries(full_store.path).units) == UNITS
    assert not (full_store.path / INDEX).exists()
    assert not list((full_store.path / "commits/.pending").iterdir())


def test_a_few_new_records_are_not_worth_a_new_index(full_store: CueStore) -> None:
    read_summaries(full_store.path)
    assert not (full_store.path / INDEX).exists()
