"""Damage of every kind in every kind of file is found, told, and taken back or restored; nothing else is touched."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import invariants
from storage.backend import LocalBackend
from storage.commit import CommitRecord, commit_key, encode_record
from storage.errors import CueMissing, SchemaVersionError, StoreDamage, StoreError
from storage.finding import Finding
from storage.layout import encode_json
from storage.reader import StoreReader
from storage.repair import repair
from storage.schema import CUES
from storage.store import CueStore, UnitId
from storage.verify import verify
from tests.integration.contents import content


def refill(store: CueStore, tiny: SimpleNamespace) -> None:
    """What `occflow cues` does: commit what is not current."""
    if not store.is_current(UnitId("init", "a"), "init-1"):
        store.commit_init("a", tiny.table(), "init-1")
    for cue in CUES:
        for block in range(len(store.blocks("a"))):
            if not store.is_current(UnitId(cue, "a", block), "fp-0"):
                tiny.commit(store, cue, block)


def every_kind_of_file(root: Path) -> list[str]:
    """Paths of a full store, below its root."""
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def test_a_whole_store_has_no_findings(full_store: CueStore) -> None:
    before = every_kind_of_file(full_store.path)
    assert verify(full_store.path) == []
    assert repair(full_store.path, []) == []
    assert every_kind_of_file(full_store.path) == before


def test_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no cue store here"):
        verify(tmp_path)


@pytest.fixture(scope="module")
def shared_full(built_stores: tuple[Path, Path]) -> Path:
    """A full store for tests that undo what they do."""
    return Path(shutil.copytree(built_stores[1], built_stores[1].with_name("shared.zarr")))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found(shared_full: Path, tiny: SimpleNamespace, data: st.DataObject) -> None:
    path = shared_full / data.draw(st.sampled_from(every_kind_of_file(shared_full)))
    bit = data.draw(st.integers(0, 8 * path.stat().st_size - 1))
    original = path.read_bytes()
    try:
        tiny.flip_bit(path, bit)
        found = verify(shared_full, decode=False)
        assert path in {finding.path for finding in found}
        assert all(str(finding.path) in str(finding) for finding in found)
    finally:
        path.write_bytes(original)


def test_every_file_is_covered(shared_full: Path, tiny: SimpleNamespace) -> None:
    # One flip in the middle of each file, all at once: nothing in the store may escape.
    copy = Path(shutil.copytree(shared_full, shared_full.with_name("flipped.zarr")))
    kept = ("zarr.json", "commits/store.json")
    names = [n for n in every_kind_of_file(copy) if n not in kept and not n.startswith("commits/")]
    for name in names:
        tiny.flip_bit(copy / name, 4 * (copy / name).stat().st_size)
    assert {copy / name for name in names} <= {finding.path for finding in verify(copy)}


DAMAGES: dict[str, tuple[str, Callable[[Path, SimpleNamespace], object], str]] = {
    "missing": ("scenes/a/masks/instance/c.1.0.0.0", lambda p, t: p.unlink(), "missing"),
    "truncated": ("scenes/a/masks/instance/c.1.0.0.0", lambda p, t: p.write_bytes(p.read_bytes()[:-9]), "size"),
    "emptied": ("scenes/a/masks/instance/c.1.0.0.0", lambda p, t: p.write_bytes(b""), "size"),
    "flipped": ("scenes/a/masks/table/c.1.0.0.0", lambda p, t: t.flip_bit(p, 99), "digest"),
    "record cut": ("commits/masks--a--00001.json", lambda p, t: p.write_bytes(p.read_bytes()[:100]), "record"),
    "record flipped": ("commits/masks--a--00001.json", lambda p, t: t.flip_bit(p, 5000), "record"),
    "record is JSON": ("commits/masks--a--00001.json", lambda p, t: p.write_bytes(b'{"record": []}'), "record"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_unit_is_taken_back_and_only_that(full_store: CueStore, tiny: SimpleNamespace, case: str) -> None:
    name, damage, kind = DAMAGES[case]
    expected = content(full_store)
    damage(full_store.path / name, tiny)
    found = verify(full_store.path)
    unit = UnitId("masks", "a", 1)
    assert [(f.kind, f.path, f.unit) for f in found if f.kind != "orphan"] == [(kind, full_store.path / name, unit)]
    assert repair(full_store.path, found) == [unit]
    assert verify(full_store.path) == []
    with pytest.raises(CueMissing):
        StoreReader(full_store.path).scene("a").masks(2, 0)
    remaining = content(full_store)
    assert expected.keys() - remaining.keys() == {f"{unit} masks/instance", f"{unit} masks/table"}
    refill(full_store, tiny)
    for name, array in content(full_store).items():
        np.testing.assert_array_equal(array, expected[name])
    assert verify(full_store.path) == []


@pytest.mark.parametrize(
    "name", ["scenes/a/frames/K/c.0.0.0.0", "scenes/a/frames/zarr.json", "commits/init--a--00000.json"]
)
def test_damaged_scene_table_leaves_the_blocks(full_store: CueStore, tiny: SimpleNamespace, name: str) -> None:
    expected = content(full_store)
    tiny.flip_bit(full_store.path / name, 1234)
    found = verify(full_store.path)
    assert full_store.path / name in {finding.path for finding in found}
    assert repair(full_store.path, found) == [UnitId("init", "a")]
    assert full_store.scenes() == []
    left = verify(full_store.path)
    assert {finding.kind for finding in left} == {"waiting"}
    assert repair(full_store.path, left) == []
    assert not full_store.is_current(UnitId("masks", "a"), "fp-0")
    full_store.commit_init("a", tiny.table(), "init-1")
    assert full_store.is_current(UnitId("masks", "a"), "fp-0")
    for key, array in content(full_store).items():
        np.testing.assert_array_equal(array, expected[key])
    assert verify(full_store.path) == []


@pytest.mark.parametrize("name", ["zarr.json", "scenes/a/masks/instance/zarr.json", "scenes/a/flow/zarr.json"])
@pytest.mark.parametrize("how", ["flip", "delete"])
def test_metadata_is_restored_in_place(full_store: CueStore, tiny: SimpleNamespace, name: str, how: str) -> None:
    path = full_store.path / name
    original = path.read_bytes()
    if how == "flip":
        tiny.flip_bit(path, 77)
    else:
        path.unlink()
    assert repair(full_store.path, verify(full_store.path)) == []
    assert path.read_bytes() == original
    assert verify(full_store.path) == []


def test_root_and_its_copy_both_lost(full_store: CueStore, tiny: SimpleNamespace) -> None:
    for name in ("zarr.json", "commits/store.json"):
        tiny.flip_bit(full_store.path / name, 900)
    found = verify(full_store.path)
    assert "root" in {finding.kind for finding in found}
    with pytest.raises(StoreDamage, match="so is its copy"):
        repair(full_store.path, found)
    assert (full_store.path / "commits" / "masks--a--00000.json").exists()


def test_a_lost_root_points_to_repair(full_store: CueStore) -> None:
    (full_store.path / "zarr.json").unlink()
    with pytest.raises(StoreDamage, match="verify --repair"):
        StoreReader(full_store.path)


def test_data_without_a_record_is_found_and_removed(full_store: CueStore) -> None:
    (full_store.path / "commits" / "lidar--a--00002.json").unlink()
    found = verify(full_store.path)
    assert {f.kind for f in found} == {"orphan"}
    assert {f.unit for f in found} == {UnitId("lidar", "a", 2)}
    assert len(found) == len(CUES["lidar"])
    assert repair(full_store.path, found) == []
    assert not any(finding.path.exists() for finding in found)
    assert verify(full_store.path) == []


def test_record_of_another_schema_is_named_and_left_alone(full_store: CueStore) -> None:
    record = full_store.record(UnitId("masks", "a"))
    assert record is not None
    path = full_store.path / "commits" / "masks--a--00000.json"
    path.write_bytes(encode_record(replace(record, schema_version=7)))
    found = verify(full_store.path)
    assert [f.kind for f in found if f.kind != "orphan"] == ["schema"]
    assert "version 7" in found[0].detail
    with pytest.raises(SchemaVersionError, match=r"masks--a--00000\.json.*version 7.*version 1"):
        full_store.record(UnitId("masks", "a"))


def with_version(path: Path, version: int) -> None:
    """Give a root zarr.json another schema version, its digest right."""
    root = json.loads(path.read_bytes())
    root["attributes"]["occflow"]["schema_version"] = version
    root["attributes"]["occflow_sha256"] = hashlib.sha256(encode_json(root["attributes"]["occflow"])).hexdigest()
    path.write_bytes(encode_json(root))


def test_store_of_another_schema_is_one_finding(full_store: CueStore) -> None:
    path = full_store.path / "zarr.json"
    for name in (path, full_store.path / "commits/store.json"):
        with_version(name, 2)
    found = verify(full_store.path)
    assert [(f.kind, f.path) for f in found] == [("schema", path)]
    with pytest.raises(SchemaVersionError):
        repair(full_store.path, found)


@pytest.mark.parametrize("name", ["zarr.json", "commits/masks--a--00000.json"])
def test_a_flipped_bit_in_the_version_is_damage_not_a_version(full_store: CueStore, name: str) -> None:
    path = full_store.path / name
    data = path.read_bytes()
    assert data.count(b'"schema_version": 1') == 1
    path.write_bytes(data.replace(b'"schema_version": 1', b'"schema_version": 3'))
    found = [finding for finding in verify(full_store.path) if finding.kind != "orphan"]
    assert [(f.kind, f.path) for f in found] == [("root" if name == "zarr.json" else "record", path)]
    repair(full_store.path, found)
    assert not path.exists() or path.read_bytes() == data


def test_foreign_files_are_told(full_store: CueStore) -> None:
    note, stray = full_store.path / "scenes/a/note.txt", full_store.path / "commits/odd.json"
    note.write_text("mine")
    stray.write_text("{}")
    assert {(f.kind, f.path) for f in verify(full_store.path)} == {("orphan", note), ("record", stray)}


def test_values_that_decode_but_contradict_are_found(full_store: CueStore, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = UnitId("flow_next", "a")
    arrays = full_store.read_block(unit)
    arrays["flow/next/target_frame"][0, 0] = 99
    with monkeypatch.context() as patch:
        patch.setattr("storage.writer.broken_rules", lambda arrays, frames: [])
        full_store.commit_block(unit, arrays, replace(record_of(full_store, unit).provenance, fingerprint="bad"))
    found = verify(full_store.path)
    assert [(f.kind, f.unit) for f in found] == [("value", unit)]
    assert "spans" in found[0].detail
    assert verify(full_store.path, decode=False) == []
    assert repair(full_store.path, found) == [unit]
    assert invariants.broken_rules({}, 5) == []


def record_of(store: CueStore, unit: UnitId) -> CommitRecord:
    record = store.record(unit)
    assert record is not None
    return record


def test_a_finding_reads_as_a_line(tmp_path: Path) -> None:
    assert str(Finding("size", tmp_path / "x", "3 bytes")) == f"size: {tmp_path}/x: 3 bytes"


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_repair_and_refill_bring_back_everything(shared_full: Path, tiny: SimpleNamespace, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(every_kind_of_file(shared_full)), min_size=1, max_size=4, unique=True))
    if {"zarr.json", "commits/store.json"} <= set(names):
        names.remove("zarr.json")
    expected = content(shared_full)
    with tempfile.TemporaryDirectory(dir=shared_full.parent) as folder:
        path = Path(shutil.copytree(shared_full, Path(folder) / "store.zarr"))
        for name in names:
            damage(path / name, data, tiny)
        repair(path, verify(path))
        store = CueStore.open(path)
        refill(store, tiny)
        assert verify(path) == []
        found = content(store)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def damage(path: Path, data: st.DataObject, tiny: SimpleNamespace) -> None:
    """Flip a bit, cut, or delete."""
    how = data.draw(st.sampled_from(["flip", "cut", "delete"]))
    size = path.stat().st_size
    if how == "flip":
        tiny.flip_bit(path, data.draw(st.integers(0, 8 * size - 1)))
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: data.draw(st.integers(0, size - 1))])
    else:
        path.unlink()


@pytest.mark.parametrize("file", ["shard", "metadata", "record", "root"])
def test_what_may_not_be_read_is_no_damage(full_store: CueStore, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """Nothing is known of it: no unit may be taken back, nor its data for nobody's, because this user may not look."""
    store, unit = full_store, UnitId("images", "a", 0)
    record = store.record(unit)
    assert record is not None
    shard, metadata = record.shards[0].key, next(iter(record.metadata))
    closed = {"shard": shard, "metadata": metadata, "record": commit_key(unit), "root": "zarr.json"}[file]

    def refusing(original: Callable[..., object]) -> Callable[..., object]:
        def refuse(self: LocalBackend, key: str, *rest: object) -> object:
            if key == closed:
                raise PermissionError(13, "Permission denied")
            return original(self, key, *rest)

        return refuse

    for name in ("get", "digest"):
        monkeypatch.setattr(LocalBackend, name, refusing(getattr(LocalBackend, name)))
    if file == "record":
        with pytest.raises(StoreError, match=r"images.*\.json: this user may not read it; give access"):
            verify(store.path)
    else:
        findings = verify(store.path)
        kind = "root" if file == "root" else "denied"
        assert {(finding.kind, finding.path) for finding in findings} == {(kind, store.path / closed)}
        if file != "root":
            assert unit in {finding.unit for finding in findings}
            assert repair(store.path, findings) == []
    monkeypatch.undo()
    assert verify(store.path) == []
