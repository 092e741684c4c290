"""Creating stores, opening scenes, committing blocks, resuming, rebuilding."""

import pickle
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from storage import store as store_module
from storage.chunks import ChunkReader
from storage.errors import CueMissing, SchemaVersionError, StoreDamage, StoreError, StoreRebuilt
from storage.layout import INIT, encode_json
from storage.reader import StoreReader
from storage.schema import CUES, SceneTable
from storage.store import CueStore, Provenance, UnitId
from storage.tables import MASK_BITS


def files_below(path: Path) -> set[str]:
    return {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}


def rewrite_version(store: CueStore, version: int) -> None:
    """Give the root another schema version, as a program of that version would have written it."""
    import hashlib
    import json

    root = json.loads((store.path / "zarr.json").read_bytes())
    root["attributes"]["occflow"]["schema_version"] = version
    digest = hashlib.sha256(encode_json(root["attributes"]["occflow"])).hexdigest()
    root["attributes"]["occflow_sha256"] = digest
    (store.path / "zarr.json").write_bytes(encode_json(root))


def test_create_is_idempotent_and_names_what_differs(tmp_path: Path, tiny: SimpleNamespace) -> None:
    path = tmp_path / "deep" / "store.zarr"
    made = CueStore.create(path, tiny.attributes())
    assert CueStore.create(path, tiny.attributes()).attributes == made.attributes == tiny.attributes()
    with pytest.raises(StoreError, match=r"block_keyframes: 2 there, 3 asked for"):
        CueStore.create(path, tiny.attributes(block_keyframes=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"render_size": (3, 6)}, "whole factor"),
        ({"render_size": (4, 12)}, "whole factor"),
        ({"block_keyframes": 0}, "block_keyframes is 0"),
        ({"cameras": ()}, "cameras"),
        ({"cameras": tuple(f"C{n}" for n in range(MASK_BITS + 1))}, "cameras"),
        ({"cameras": ("A", "A")}, "cameras"),
        ({"kind": "labels"}, "kind 'labels'"),
        ({"schema_version": 99}, "schema_version 99"),
    ],
)
def test_create_refuses_attributes_that_cannot_work(
    tmp_path: Path, tiny: SimpleNamespace, change: dict[str, object], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        CueStore.create(tmp_path / "store.zarr", tiny.attributes(**change))
    assert not (tmp_path / "store.zarr").exists()


def test_create_leaves_foreign_folders_alone(tmp_path: Path, tiny: SimpleNamespace) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="not empty and not a store"):
        CueStore.create(tmp_path, tiny.attributes())
    assert files_below(tmp_path) == {"notes.txt"}


def test_a_store_that_another_process_makes_meanwhile_is_opened(
    tmp_path: Path, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of an array start together: between two looks at the folder another one has made the store in it."""
    path, look = tmp_path / "store.zarr", store_module._may_become_store

    def another_comes_first(root: Path) -> bool:
        monkeypatch.setattr(store_module, "_may_become_store", look)
        CueStore.create(path, tiny.attributes())
        return look(root)

    monkeypatch.setattr(store_module, "_may_become_store", another_comes_first)
    assert CueStore.create(path, tiny.attributes()).attributes == tiny.attributes()


def test_open_without_a_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no cue store here.*occflow cues"):
        CueStore.open(tmp_path)
    with pytest.raises(StoreError, match="no cue store here"):
        StoreReader(tmp_path / "absent.zarr")


@pytest.mark.parametrize("version", [0, 2])
def test_another_schema_version_names_path_versions_and_remedy(
    store: CueStore, tiny: SimpleNamespace, version: int
) -> None:
    rewrite_version(store, version)
    for attempt in (CueStore.open, StoreReader, lambda path: CueStore.create(path, tiny.attributes())):
        with pytest.raises(SchemaVersionError, match=rf"{store.path}.*version {version};.*version 1\..*occflow cues"):
            attempt(store.path)


def test_scene_table_comes_back_exactly(store: CueStore, tiny: SimpleNamespace) -> None:
    want = tiny.table()
    scene = StoreReader(store.path).scene("a")
    for name, value in vars(want).items():
        got = getattr(scene.table, name)
        if isinstance(value, np.ndarray):
            assert got.dtype == value.dtype
            np.testing.assert_array_equal(got, value)
        else:
            assert got == value
    assert scene.length == 5
    assert store.blocks("a") == [range(2), range(2, 4), range(4, 5)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": ()}, "no keyframes"),
        ({"K": np.zeros((5, 2, 4, 4))}, r"'K'.*\(5, 2, 4, 4\).*expected float64 \(5, 2, 3, 3\)"),
        ({"global_from_ego": np.zeros((5, 4, 4), np.float32)}, "'global_from_ego'.*float32"),
        ({"sweep_valid": np.ones((5, 2), bool)}, "sweep_valid"),
        ({"max_lidar_points": -1}, "max_lidar_points is -1"),
    ],
)
def test_init_refuses_a_table_of_other_shapes(
    store: CueStore, tiny: SimpleNamespace, change: dict[str, object], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        store.commit_init("b", replace(tiny.table(), **change), "fp")
    assert store.scenes() == ["a"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", "zarr.json", ".hidden", "a b", "-a"])
def test_names_that_could_leave_the_store_are_refused(store: CueStore, tiny: SimpleNamespace, name: str) -> None:
    with pytest.raises(StoreError, match="cannot name a folder"):
        store.commit_init(name, tiny.table(), "fp")


@pytest.mark.parametrize("unit", [UnitId("masks", "a--b", 3), UnitId("flow_next", "x-", 0), UnitId("init", "_1.b", 12)])
def test_unit_names_round_trip(unit: UnitId) -> None:
    assert UnitId.parse(str(unit)) == unit


def test_every_cue_comes_back_exactly(full_store: CueStore, tiny: SimpleNamespace) -> None:
    for cue in CUES:
        for block, span in enumerate(full_store.blocks("a")):
            want = tiny.arrays(cue, len(span))
            got = full_store.read_block(UnitId(cue, "a", block))
            assert got.keys() == want.keys()
            for name, array in want.items():
                assert got[name].dtype == array.dtype
                np.testing.assert_array_equal(got[name], array, err_msg=name)
    assert len(list(full_store.records())) == 1 + 3 * len(CUES)
    assert not list((full_store.path / "commits" / ".pending").iterdir())


def test_block_needs_its_scene_opened(store: CueStore, tiny: SimpleNamespace) -> None:
    with pytest.raises(StoreError, match=r"scene 'b' has no init unit.*commit_init"):
        store.commit_block(UnitId("masks", "b"), tiny.arrays("masks", 2), Provenance("fp"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks/table": None}, r"missing \['masks/table'\]"),
        ({"extra": np.zeros(2)}, r"left over \['extra'\]"),
        ({"masks/instance": np.zeros((2, 2, 8, 12), np.int64)}, "int64 given, the schema says uint16"),
        ({"masks/instance": np.zeros((1, 2, 8, 12), np.uint16)}, r"shape \(1, 2, 8, 12\).*\(2, 2, 8, 12\)"),
        ({"masks/instance": np.zeros((2, 2, 8), np.uint16)}, "shape"),
        ({"masks/table": np.zeros((2, 2, 65, 8), np.float32)}, r"\(2, 2, 64, 8\) \(or less along axis 2\)"),
    ],
)
def test_block_refuses_arrays_that_do_not_fit(
    store: CueStore, tiny: SimpleNamespace, change: dict[str, np.ndarray | None], message: str
) -> None:
    before = files_below(store.path)
    arrays = {**tiny.arrays("masks", 2), **change}
    with pytest.raises(StoreError, match=message):
        store.commit_block(UnitId("masks", "a"), {k: v for k, v in arrays.items() if v is not None}, Provenance("fp"))
    assert files_below(store.path) == before


def test_unknown_cue_and_block_are_refused(store: CueStore, tiny: SimpleNamespace) -> None:
    with pytest.raises(StoreError, match=r"cue 'depth' is not one of this store's: images, sweeps"):
        store.commit_block(UnitId("depth", "a"), {}, Provenance("fp"))
    with pytest.raises(StoreError, match="blocks 0 to 2"):
        store.commit_block(UnitId("masks", "a", 3), tiny.arrays("masks", 2), Provenance("fp"))


@pytest.mark.parametrize(
    ("cue", "name", "value", "message"),
    [
        ("images", "images_length", 65, "images_length goes to 65, but images holds 64"),
        ("sweeps", "sweeps/images_length", 33, "goes to 33"),
        ("lidar", "lidar/count", 21, "lidar/count spans"),
        ("lidar", "lidar/count", -1, "lidar/count spans -1"),
        ("flow_next", "flow/next/target_frame", 5, "keyframes go from 0 to 4"),
        ("flow_aux", "flow/aux/target_frame", -2, "target_frame spans -2"),
    ],
)
def test_block_refuses_values_that_contradict_each_other(
    store: CueStore, tiny: SimpleNamespace, cue: str, name: str, value: int, message: str
) -> None:
    arrays = tiny.arrays(cue, 2)
    arrays[name].flat[1] = value
    with pytest.raises(StoreError, match=message):
        store.commit_block(UnitId(cue, "a"), arrays, Provenance("fp"))
    assert store.record(UnitId(cue, "a")) is None


def test_ragged_axes_may_be_short_even_empty(store: CueStore, tiny: SimpleNamespace) -> None:
    lidar = tiny.arrays("lidar", 2, sizes={"N": 3})
    lidar["lidar/count"][:] = [3, 0]
    store.commit_block(UnitId("lidar", "a"), lidar, Provenance("fp"))
    scene = StoreReader(store.path).scene("a")
    np.testing.assert_array_equal(scene.lidar(0).points, lidar["lidar/points"][0])
    assert scene.lidar(1).points.shape == (0, 4)

    none = tiny.arrays("lidar", 2, sizes={"N": 0})
    none["lidar/count"][:] = 0
    store.commit_block(UnitId("lidar", "a", 1), none, Provenance("fp"))
    assert scene.lidar(2).points.shape == (0, 4)
    stored = store.read_block(UnitId("lidar", "a", 1))["lidar/points"]
    np.testing.assert_array_equal(stored, np.zeros((2, 20, 4), np.float32))


def test_scene_without_sweeps_and_of_one_frame(store: CueStore, tiny: SimpleNamespace) -> None:
    table = tiny.table(frames=1, slots=0, max_image_bytes=0, max_sweep_bytes=0, max_lidar_points=0)
    store.commit_init("one", table, "fp")
    arrays = tiny.arrays("sweeps", 1, sizes={"P": 0, "S": 0})
    store.commit_block(UnitId("sweeps", "one"), arrays, Provenance("fp"))
    assert StoreReader(store.path).scene("one").table.sweep_K.shape == (1, 0, 2, 3, 3)
    assert store.read_block(UnitId("sweeps", "one"))["sweeps/images"].shape == (1, 0, 2, 1)


def test_resume_sees_the_fingerprint(store: CueStore, tiny: SimpleNamespace) -> None:
    unit = UnitId("masks", "a", 1)
    assert not store.is_current(unit, "fp-0")
    tiny.commit(store, "masks", 1)
    assert store.is_current(unit, "fp-0")
    assert not store.is_current(unit, "fp-1")
    assert not store.is_current(UnitId("masks", "a", 0), "fp-0")


def test_committing_again_with_the_same_fingerprint_changes_nothing(store: CueStore, tiny: SimpleNamespace) -> None:
    first = tiny.commit(store, "masks", 0)
    before = {name: (store.path / name).stat().st_mtime_ns for name in files_below(store.path)}
    other = tiny.arrays("masks", 2, seed=9)
    record = store.commit_block(UnitId("masks", "a"), other, Provenance("fp-0"))
    assert record == store.record(UnitId("masks", "a"))
    assert {name: (store.path / name).stat().st_mtime_ns for name in files_below(store.path)} == before
    np.testing.assert_array_equal(store.read_block(UnitId("masks", "a"))["masks/instance"], first["masks/instance"])


def test_rebuild_moves_to_a_new_generation_and_collects_the_old(store: CueStore, tiny: SimpleNamespace) -> None:
    neighbour = tiny.commit(store, "masks", 1, seed=5)
    tiny.commit(store, "masks", 0, seed=1)
    old = store.record(UnitId("masks", "a"))
    new = tiny.commit(store, "masks", 0, seed=2)
    record = store.record(UnitId("masks", "a"))
    assert old is not None
    assert record is not None
    assert (old.generation, record.generation) == (0, 1)
    assert not any((store.path / shard.key).exists() for shard in old.shards)
    assert all((store.path / shard.key).exists() for shard in record.shards)
    scene = StoreReader(store.path).scene("a")
    np.testing.assert_array_equal(scene.masks(1, 1), new["masks/instance"][1, 1])
    np.testing.assert_array_equal(scene.masks(2, 0), neighbour["masks/instance"][0, 0])


def test_reader_of_an_old_generation_is_told_to_reopen(store: CueStore, tiny: SimpleNamespace) -> None:
    tiny.commit(store, "masks", 0, seed=1)
    touched, fresh = StoreReader(store.path).scene("a"), StoreReader(store.path).scene("a")
    touched.masks(0, 0)
    assert fresh.has("masks", 0)
    new = tiny.commit(store, "masks", 0, seed=2)
    for scene in (touched, fresh):
        with pytest.raises(StoreRebuilt, match=r"masks--a--00000 was rebuilt.*Open the store again"):
            scene.masks(0, 0)
    np.testing.assert_array_equal(StoreReader(store.path).scene("a").masks(0, 0), new["masks/instance"][0, 0])


@pytest.mark.parametrize("touched", [False, True], ids=["record only", "data too"])
def test_reader_never_takes_new_data_at_an_old_path(store: CueStore, tiny: SimpleNamespace, touched: bool) -> None:
    # Raw images of equal size: neither the file's size nor any checksum could tell one commit's from the other's.
    tiny.commit(store, "images", 0, seed=1)
    old = store.record(UnitId("images", "a"))
    assert old is not None
    source = ChunkReader(store.path)
    held = source.require(UnitId("images", "a"))
    if touched:
        source.chunk(held, "images", 0, 0)
    store.discard(UnitId("images", "a"))
    tiny.commit(store, "images", 0, seed=2)
    new = store.record(UnitId("images", "a"))
    assert new is not None
    assert [(s.key, s.size) for s in old.shards[:1]] == [(s.key, s.size) for s in new.shards[:1]]
    with pytest.raises(StoreRebuilt, match="was rebuilt"):
        source.chunk(held, "images", 0, 0)


@pytest.mark.parametrize("what", ["table", "tokens"])
def test_reader_of_a_table_taken_back_is_told_to_reopen(store: CueStore, tiny: SimpleNamespace, what: str) -> None:
    source, unit = ChunkReader(store.path), UnitId(INIT, "a")
    old = source.require(unit)
    store.discard(unit)
    store.commit_init("a", tiny.table(seed=7), "fp-7")
    new = store.record(unit)
    assert new is not None
    assert new.generation == old.generation, "the tables must lie at one path"
    with pytest.raises(StoreRebuilt, match=r"init--a--00000 was rebuilt.*Open the store again"):
        getattr(source, what)("a")


def test_reader_goes_on_when_the_same_data_is_back(store: CueStore, tiny: SimpleNamespace) -> None:
    arrays = tiny.commit(store, "images", 0)
    source = ChunkReader(store.path)
    held = source.require(UnitId("images", "a"))
    source.chunk(held, "images", 0, 0)
    store.discard(UnitId("images", "a"))
    with pytest.raises(StoreRebuilt, match="no longer committed"):
        source.chunk(held, "images", 0, 0)
    tiny.commit(store, "images", 0)
    np.testing.assert_array_equal(source.chunk(held, "images", 1, 1), arrays["images"][1, 1])


def test_same_table_under_another_fingerprint_keeps_the_blocks(store: CueStore, tiny: SimpleNamespace) -> None:
    tiny.commit(store, "masks", 0)
    reader = StoreReader(store.path).scene("a")
    reader.masks(0, 0)
    record = store.commit_init("a", tiny.table(), "init-2")
    assert record.fingerprint == "init-2"
    assert store.is_current(UnitId("masks", "a"), "fp-0")
    reader.masks(1, 0)


def test_another_table_reopens_the_scene(store: CueStore, tiny: SimpleNamespace) -> None:
    tiny.commit(store, "masks", 0, seed=1)
    tiny.commit(store, "masks", 0, seed=2)
    reader = StoreReader(store.path).scene("a")
    reader.masks(0, 0)
    record = store.commit_init("a", tiny.table(frames=6), "init-2")
    assert record.generation == 2
    assert store.record(UnitId("masks", "a")) is None
    assert [unit.unit for unit in store.records()] == [UnitId("init", "a")]
    assert store.blocks("a")[-1] == range(4, 6)
    with pytest.raises(StoreRebuilt, match="no longer committed"):
        reader.masks(0, 0)
    with pytest.raises(CueMissing, match=r"masks--a--00000 is not committed.*--scenes a --cues masks"):
        StoreReader(store.path).scene("a").masks(0, 0)
    assert not any("/c." in name and "generations/2" not in name for name in files_below(store.path / "scenes"))


def test_two_writers_of_one_unit_take_turns(store: CueStore, tiny: SimpleNamespace) -> None:
    versions = {f"fp-{seed}": tiny.arrays("flow_next", 2, seed) for seed in range(6)}

    def write(fingerprint: str) -> None:
        store.commit_block(UnitId("flow_next", "a"), versions[fingerprint], Provenance(fingerprint))

    threads = [threading.Thread(target=write, args=(fingerprint,)) for fingerprint in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = store.record(UnitId("flow_next", "a"))
    assert record is not None
    assert record.generation == len(versions) - 1
    for name, array in store.read_block(UnitId("flow_next", "a")).items():
        np.testing.assert_array_equal(array, versions[record.fingerprint][name])


def test_provenance_survives_with_odd_values(store: CueStore, tiny: SimpleNamespace) -> None:
    given = Provenance(
        fingerprint="fp",
        upstream={"flow_next": "abc"},
        licence="CC-BY-NC-4.0",
        seconds=float("nan"),
        quality={"epe": np.float32(1.5), "bad": float("inf"), "hist": np.arange(3), "n": np.int64(7), "none": None},
        notes=["frame 4: no next keyframe", "Ünïcode ✓"],
    )
    store.commit_block(UnitId("masks", "a"), tiny.arrays("masks", 2), given)
    record = store.record(UnitId("masks", "a"))
    assert record is not None
    assert record.provenance.quality == {"epe": 1.5, "bad": None, "hist": [0, 1, 2], "n": 7, "none": None}
    assert record.provenance.notes == ["frame 4: no next keyframe", "Ünïcode ✓"]
    assert record.provenance.upstream == {"flow_next": "abc"}


def test_damaged_record_counts_as_not_current_and_is_replaced(store: CueStore, tiny: SimpleNamespace) -> None:
    tiny.commit(store, "masks", 0)
    path = store.path / "commits" / "masks--a--00000.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StoreDamage, match=r"masks--a--00000\.json.*cannot be decoded.*verify --repair"):
        store.record(UnitId("masks", "a"))
    assert not store.is_current(UnitId("masks", "a"), "fp-0")
    tiny.commit(store, "masks", 0)
    assert store.is_current(UnitId("masks", "a"), "fp-0")


def test_record_of_another_unit_is_not_taken_for_this_one(store: CueStore, tiny: SimpleNamespace) -> None:
    tiny.commit(store, "masks", 0)
    commits = store.path / "commits"
    (commits / "masks--a--00001.json").write_bytes((commits / "masks--a--00000.json").read_bytes())
    with pytest.raises(StoreDamage, match="record is of unit masks--a--00000"):
        store.record(UnitId("masks", "a", 1))


def test_store_pickles(store: CueStore, tiny: SimpleNamespace) -> None:
    copy: CueStore = pickle.loads(pickle.dumps(store))
    tiny.commit(copy, "masks", 2)
    assert store.is_current(UnitId("masks", "a", 2), "fp-0")
    assert isinstance(copy.table("a"), SceneTable)
