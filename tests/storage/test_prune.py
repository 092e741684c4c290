"""Only what no reader sees goes, and a dry run says the same and does nothing."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.errors import StoreError
from storage.prune import prune
from storage.reader import StoreReader
from storage.store import CueStore, UnitId
from storage.verify import verify
from storage.work import unit_lock
from tests.integration.contents import chunks


def every_file(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_clean_store_stays_as_it_is(full_store: CueStore) -> None:
    before = every_file(full_store.path)
    assert prune(full_store.path) == []
    assert every_file(full_store.path) == before


def test_leftovers_of_every_kind_go(full_store: CueStore, tiny: SimpleNamespace) -> None:
    root = full_store.path
    old = {path: path.read_bytes() for path in (root / "scenes/a/masks").rglob("c.1.*")}
    tiny.commit(full_store, "masks", 1, seed=3)
    for path, content in old.items():  # a generation that was replaced, but not collected
        path.write_bytes(content)
    scratch = root / "commits/.pending/lidar--a--00000"
    scratch.mkdir(parents=True)
    (scratch / "file-0000").write_bytes(b"half a shard")
    stray = root / "scenes/lost/masks/instance/c.0.0.0.0"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"of a scene that was never committed")
    assert {finding.kind for finding in verify(root)} == {"orphan", "temporary"}
    sound = chunks(root)

    before = every_file(root)
    told = prune(root, dry_run=True)
    assert every_file(root) == before
    assert {item.path for item in told} == {*old, scratch, stray}
    assert {item.path: item.bytes for item in told}[scratch] == len(b"half a shard")
    assert not any(item.kept for item in told)

    assert prune(root) == told
    assert verify(root) == []
    assert not (root / "scenes/lost").exists()
    assert chunks(root) == sound
    assert prune(root) == []


def test_blocks_of_an_earlier_init_go_with_their_records(full_store: CueStore, tiny: SimpleNamespace) -> None:
    kept = full_store.path.with_name("kept.zarr")
    shutil.copytree(full_store.path, kept)
    full_store.commit_init("a", tiny.table(frames=6, seed=2), "init-2")
    for path in (kept / "commits").glob("masks--a--*.json"):  # records that a killed clean-up left behind
        shutil.copy(path, full_store.path / "commits")
    shutil.copytree(kept / "scenes/a/masks", full_store.path / "scenes/a/masks", dirs_exist_ok=True)
    told = prune(full_store.path)
    assert sum("earlier init" in item.why for item in told) == 3
    assert verify(full_store.path) == []
    assert StoreReader(full_store.path).scene("a").length == 6


def test_blocks_whose_init_was_taken_back_stay(full_store: CueStore, tiny: SimpleNamespace) -> None:
    full_store.discard(UnitId("init", "a"))
    assert [item for item in prune(full_store.path) if "frames" not in item.path.parts] == []
    full_store.commit_init("a", tiny.table(), "init-1")
    assert StoreReader(full_store.path).scene("a").has("masks", 0)
    assert verify(full_store.path) == []


def test_scenes_that_cannot_be_judged_are_told_and_kept(full_store: CueStore, tiny: SimpleNamespace) -> None:
    full_store.commit_init("b", tiny.table(seed=1), "init-1")
    record = full_store.path / "commits/masks--a--00001.json"
    record.write_bytes(b"{")
    with unit_lock(full_store.path, UnitId("init", "b"), shared=True):
        told = {item.path.name: item for item in prune(full_store.path)}
    assert told.keys() == {"a", "b"}
    assert all(item.kept and item.bytes == 0 for item in told.values())
    assert "verify --repair" in told["a"].why
    assert "a writer is at work" in told["b"].why
    assert record.exists()
    assert (full_store.path / "scenes/a/masks/instance/c.1.0.0.0").exists()


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no cue store here"):
        prune(tmp_path / "none.zarr")
