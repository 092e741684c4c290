"""The cue store in a bucket: the same cycle as on a disk, through trouble, interrupted, with two writers at once."""

import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from storage import claims
from storage.backend import ObjectBackend
from storage.claims import UnconditionalPuts
from storage.commit import commit_key
from storage.errors import CueMissing, StoreDamage, StoreError, StoreRebuilt
from storage.location import ObjectPath
from storage.object_errors import ObjectStoreError
from storage.reader import StoreReader
from storage.repair import repair
from storage.schema import CUES
from storage.status import status
from storage.store import CueStore, Provenance, UnitId
from storage.transfer import transfer
from storage.transfer_plan import plan_transfer
from storage.truth import TruthReader, truth_path
from storage.verify import verify
from tests.storage.s3_server import FaultProxy, random_faults

MASKS = UnitId("masks", "a")


@pytest.fixture
def remote(bucket: str, tiny: SimpleNamespace) -> CueStore:
    """A store in a bucket, scene `a` opened with five keyframes (blocks of 2, 2, 1), no block committed."""
    store = CueStore.create(f"{bucket}/some/store.zarr", tiny.attributes())
    store.commit_init("a", tiny.table(), "init-1")
    return store


def place_of(store: CueStore) -> ObjectBackend:
    assert isinstance(store.path, ObjectPath)
    return ObjectBackend(store.path)


def data_keys(store: CueStore) -> set[str]:
    return {key for key in place_of(store).list("scenes") if not key.endswith("zarr.json")}


def named_keys(store: CueStore) -> set[str]:
    return {shard.key for record in store.records() for shard in record.shards}


def same_content(left: CueStore, right: CueStore) -> None:
    """Every unit of both, chunk by chunk: the encoded shards by their digests, and the decoded arrays."""
    ours, theirs = ({record.unit: record for record in store.records()} for store in (left, right))
    assert ours.keys() == theirs.keys()
    for unit, record in ours.items():
        other = theirs[unit]
        assert [(s.layout.name, s.size, s.sha256) for s in record.shards] == [
            (s.layout.name, s.size, s.sha256) for s in other.shards
        ]
        if unit.cue != "init":
            mine, yours = left.read_block(unit), right.read_block(unit)
            for name, array in mine.items():
                np.testing.assert_array_equal(array, yours[name])


def test_every_cue_comes_back_as_from_a_disk(remote: CueStore, full_store: CueStore, tiny: SimpleNamespace) -> None:
    for cue in CUES:
        for block in range(3):
            tiny.commit(remote, cue, block)
    same_content(remote, full_store)
    assert verify(remote.path) == []
    assert data_keys(remote) == {
        path.relative_to(full_store.path).as_posix() for path in full_store.path.rglob("c.*") if path.is_file()
    }, "without contention a bucket holds what a disk does, under the same names"
    assert not list(place_of(remote).list("commits/.pending")), "claims stay behind"
    rows = {(row.scene, row.cue): row.state for row in status(remote.path)}
    assert rows == {("a", cue): "complete" for cue in CUES}


def test_a_truth_store_beside_it(bucket: str, tiny: SimpleNamespace) -> None:
    path = truth_path(f"{bucket}/some/store.zarr")
    assert str(path) == f"{bucket}/some/store.truth.zarr"
    assert not path.exists()
    grid = {"lower": [0, 0, 0], "upper": [3, 4, 2], "shape": [3, 4, 2]}
    store = CueStore.create(path, tiny.attributes(kind="truth", occupancy_grid=grid))
    assert path.exists()
    store.commit_init("a", tiny.table(), "init-1")
    arrays = tiny.commit(store, "occupancy", 0)
    arrays["occupancy/valid"][:] = 1
    store.commit_block(UnitId("occupancy", "a"), arrays, Provenance("fp-2"))
    found = TruthReader(path).scene("a").occupancy(1)
    assert found is not None
    np.testing.assert_array_equal(found[0], arrays["occupancy/semantics"][1])
    with pytest.raises(StoreError, match=r"holds 'truth'"):
        StoreReader(str(path))


def test_creating_and_opening(bucket: str, tiny: SimpleNamespace) -> None:
    where = f"{bucket}/store.zarr"
    with pytest.raises(StoreError, match=r"no cue store here.*occflow cues"):
        CueStore.open(where)
    made = CueStore.create(where, tiny.attributes())
    assert CueStore.create(Path(where), tiny.attributes()).path == made.path, "a path that lost a slash"
    with pytest.raises(StoreError, match=r"other attributes.*dataset"):
        CueStore.create(where, tiny.attributes(dataset="other"))
    with pytest.raises(StoreError, match="not empty and not a store"):
        CueStore.create(bucket, tiny.attributes())


def test_a_rebuild_moves_to_a_new_generation(remote: CueStore, tiny: SimpleNamespace) -> None:
    tiny.commit(remote, "masks", 0, seed=1)
    fresh, touched = StoreReader(remote.path).scene("a"), StoreReader(remote.path).scene("a")
    old = touched.masks(0, 0)
    assert fresh.has("masks", 0)
    new = tiny.commit(remote, "masks", 0, seed=2)
    record = remote.record(MASKS)
    assert record is not None
    assert record.generation == 1
    assert data_keys(remote) == named_keys(remote)
    with pytest.raises(StoreRebuilt, match="Open the store again"):
        fresh.masks(0, 0)
    np.testing.assert_array_equal(touched.masks(0, 0), old)  # what it holds stays what it was
    np.testing.assert_array_equal(StoreReader(remote.path).scene("a").masks(0, 0), new["masks/instance"][0, 0])
    assert verify(remote.path) == []


def test_another_table_reopens_the_scene(remote: CueStore, tiny: SimpleNamespace) -> None:
    tiny.commit(remote, "masks", 0)
    record = remote.commit_init("a", tiny.table(frames=6, seed=2), "init-2")
    assert record.generation > 0
    assert remote.record(MASKS) is None
    assert data_keys(remote) == named_keys(remote)
    again = tiny.commit(remote, "masks", 0, seed=3)
    np.testing.assert_array_equal(remote.read_block(MASKS)["masks/table"], again["masks/table"])
    assert verify(remote.path) == []


def test_same_table_under_another_fingerprint_keeps_the_blocks(remote: CueStore, tiny: SimpleNamespace) -> None:
    tiny.commit(remote, "masks", 0)
    remote.commit_init("a", tiny.table(), "init-2")
    assert remote.is_current(UnitId("init", "a"), "init-2")
    assert remote.is_current(MASKS, "fp-0")


@pytest.mark.parametrize("damage", ["missing", "cut", "bit", "record", "metadata", "root"])
def test_damage_is_found_and_repaired(remote: CueStore, tiny: SimpleNamespace, damage: str) -> None:
    arrays = tiny.commit(remote, "masks", 0)
    record, place = remote.record(MASKS), place_of(remote)
    assert record is not None
    shard = record.shard("masks/instance").key
    if damage == "missing":
        place.delete([shard])
    elif damage == "cut":
        place.put(shard, place.get(shard)[:-9])
    else:
        key = {"bit": shard, "record": commit_key(MASKS), "root": "zarr.json"}.get(damage)
        key = key or "scenes/a/masks/instance/zarr.json"
        data = bytearray(place.get(key))
        data[len(data) // 3] ^= 4
        place.put(key, bytes(data))
    findings = verify(remote.path)
    kinds = {"missing": "missing", "cut": "size", "bit": "digest"}
    assert kinds.get(damage, damage) in {finding.kind for finding in findings}
    if damage in kinds:
        scene = StoreReader(remote.path).scene("a")
        with pytest.raises(StoreDamage, match=str(remote.path)):
            [scene.masks(t, c) for t in range(2) for c in range(2)]
    repair(remote.path, findings)
    assert verify(remote.path) == []
    if remote.record(MASKS) is None:
        tiny.commit(remote, "masks", 0)
    np.testing.assert_array_equal(remote.read_block(MASKS)["masks/instance"], arrays["masks/instance"])
    assert verify(remote.path) == []


def test_a_unit_taken_back_is_made_again_elsewhere(remote: CueStore, tiny: SimpleNamespace) -> None:
    tiny.commit(remote, "images", 0, seed=1)
    first = remote.record(UnitId("images", "a"))
    remote.discard(UnitId("images", "a"))
    assert remote.record(UnitId("images", "a")) is None
    assert data_keys(remote) == named_keys(remote)
    arrays = tiny.commit(remote, "images", 0, seed=2)
    second = remote.record(UnitId("images", "a"))
    assert first is not None
    assert second is not None
    assert {s.key for s in first.shards}.isdisjoint(s.key for s in second.shards), "no key is ever written twice"
    np.testing.assert_array_equal(remote.read_block(UnitId("images", "a"))["images"], arrays["images"])


def fill(store: CueStore, tiny: SimpleNamespace) -> None:
    """What an extraction does: open the scene, then every unit that is not current."""
    store.sweep_temporaries()
    store.commit_init("a", tiny.table(), "init-1")
    for cue in CUES:
        for block, span in enumerate(store.blocks("a")):
            if not store.is_current(UnitId(cue, "a", block), "fp-0"):
                store.commit_block(UnitId(cue, "a", block), tiny.arrays(cue, len(span)), Provenance("fp-0"))


@pytest.mark.parametrize("seed", range(2))
def test_a_whole_cycle_through_trouble_loses_nothing(
    bucket: str, proxy: FaultProxy, full_store: CueStore, tiny: SimpleNamespace, seed: int
) -> None:
    proxy.plan = random_faults(seed, 0.15)
    store = CueStore.create(f"{bucket}/store.zarr", tiny.attributes())
    fill(store, tiny)
    committed = {record.unit: record for record in store.records()}
    assert verify(store.path) == []
    fill(store, tiny)
    assert {record.unit: record for record in store.records()} == committed, "a second run did something"
    scene = StoreReader(store.path).scene("a")
    np.testing.assert_array_equal(scene.masks(3, 1), tiny.arrays("masks", 2)["masks/instance"][1, 1])
    same_content(store, full_store)
    assert len(set(proxy.faults())) > 5, proxy.faults()
    proxy.plan = lambda method, path, number: None
    assert data_keys(store) == named_keys(store)


@pytest.mark.parametrize("fault", ["after", "before", "503"])
def test_a_record_whose_answer_was_lost_is_our_own(
    remote: CueStore, proxy: FaultProxy, tiny: SimpleNamespace, fault: str
) -> None:
    hit = []

    def plan(method: str, path: str, number: int) -> str | None:
        if method == "PUT" and "commits/masks--a--00000.json" in path and not hit:
            hit.append(path)
            return fault
        return None

    proxy.plan = plan
    arrays = tiny.commit(remote, "masks", 0)
    assert hit
    assert proxy.requests("PUT", "commits/masks--a--00000.json") == 2
    record = remote.record(MASKS)
    assert record is not None
    assert record.generation == 0
    np.testing.assert_array_equal(remote.read_block(MASKS)["masks/instance"], arrays["masks/instance"])
    assert verify(remote.path) == []


def test_a_claim_whose_answer_was_lost_is_our_own(remote: CueStore, proxy: FaultProxy, tiny: SimpleNamespace) -> None:
    hit = []

    def plan(method: str, path: str, number: int) -> str | None:
        if method == "PUT" and "/.pending/masks" in path and not hit:
            hit.append(path)
            return "after"
        return None

    proxy.plan = plan
    tiny.commit(remote, "masks", 0)
    record = remote.record(MASKS)
    assert hit
    assert record is not None
    assert record.generation == 0, "it took its own claim for another writer's"


def test_a_server_that_stays_in_trouble_is_told_and_resumed(
    remote: CueStore, proxy: FaultProxy, full_store: CueStore, tiny: SimpleNamespace
) -> None:
    tiny.commit(remote, "images", 0)
    proxy.plan = lambda method, path, number: "503" if method == "PUT" and "/masks/" in path else None
    with pytest.raises(ObjectStoreError, match=r"store\.zarr/.*masks.*PUT failed 10 times \(503.*throttles.*resumes"):
        tiny.commit(remote, "masks", 0)
    assert remote.record(MASKS) is None
    proxy.plan = lambda method, path, number: None
    assert verify(remote.path) == [], "a failed commit left something behind"
    fill(remote, tiny)
    same_content(remote, full_store)


@pytest.mark.parametrize("fingerprints", [["fp-1"] * 3, ["fp-1", "fp-2", "fp-3"]], ids=["same", "different"])
@pytest.mark.parametrize("committed", [False, True], ids=["new", "rebuild"])
def test_writers_of_one_unit_at_once(
    remote: CueStore, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, fingerprints: list[str], committed: bool
) -> None:
    if committed:
        tiny.commit(remote, "masks", 0, seed=9)
    gate = threading.Barrier(len(fingerprints))
    passed = threading.local()
    publish, turn = claims.ObjectTurn.publish, threading.Lock()

    def publish_together(self: claims.ObjectTurn, record: object) -> object:
        if not getattr(passed, "once", False):
            passed.once = True
            gate.wait(60)
        with turn:  # moto looks and then writes: it must not decide between two at the very same moment
            return publish(self, record)  # type: ignore[arg-type]

    def write(fingerprint: str) -> str:
        arrays = tiny.arrays("masks", 2, int(fingerprint[-1]))
        return remote.commit_block(MASKS, arrays, Provenance(fingerprint)).fingerprint

    monkeypatch.setattr(claims.ObjectTurn, "publish", publish_together)
    with ThreadPoolExecutor(len(fingerprints)) as pool:  # each has written before any publishes
        assert list(pool.map(write, fingerprints)) == fingerprints
    record = remote.record(MASKS)
    assert record is not None
    assert record.fingerprint in fingerprints
    want = tiny.arrays("masks", 2, int(record.fingerprint[-1]))
    for name, array in remote.read_block(MASKS).items():
        np.testing.assert_array_equal(array, want[name])
    assert data_keys(remote) == named_keys(remote), "a loser left data behind"
    assert verify(remote.path) == []


WORKER = """
import sys
import storage.objects
storage.objects.BACKOFF_S = 0.01
from tests.storage.conftest import make_arrays
from storage.store import CueStore, Provenance, UnitId
from storage.schema import CUES
store = CueStore.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for block, span in enumerate(store.blocks("a")):
    for cue in CUES:
        if not store.is_current(UnitId(cue, "a", block), "fp-0"):
            store.commit_block(UnitId(cue, "a", block), make_arrays(cue, len(span), 0), Provenance("fp-0"))
            print(cue, block, flush=True)
"""


def start(store: CueStore) -> subprocess.Popen:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONWARNINGS": "default"}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(store.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env=environment,
    )


def begin(worker: subprocess.Popen) -> None:
    assert worker.stdin is not None
    worker.stdin.write("\n")
    worker.stdin.flush()


def test_two_processes_fill_one_store(remote: CueStore, full_store: CueStore) -> None:
    workers = [start(remote) for _ in range(2)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        begin(worker)
    for worker in workers:
        worker.communicate(timeout=300)
        assert worker.returncode == 0
    same_content(remote, full_store)
    assert data_keys(remote) == named_keys(remote)
    assert verify(remote.path) == []


@pytest.mark.parametrize("units", [1, 6])
def test_a_killed_writer_costs_only_its_unit(
    remote: CueStore, full_store: CueStore, tiny: SimpleNamespace, proxy: FaultProxy, units: int
) -> None:
    killed = threading.Event()
    last = f"commits/{list(CUES)[units]}--a--00000.json"

    def plan(method: str, path: str, number: int) -> str | None:
        if method == "PUT" and last in path and not killed.is_set():
            killed.set()
            worker.kill()  # its shards are there, its record is not
            return "before"
        return None

    worker = start(remote)
    proxy.plan = plan
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    begin(worker)
    worker.communicate(timeout=300)
    assert killed.is_set()
    proxy.plan = lambda method, path, number: None
    assert len(list(remote.records())) == 1 + units, "init, and what it had told"
    assert verify(remote.path) == [], "a writer that may be alive is left alone"
    fill(remote, tiny)
    same_content(remote, full_store)
    assert data_keys(remote) == named_keys(remote), "the next writer of the unit removes what the dead one left"
    assert verify(remote.path) == []


def test_what_a_dead_opener_of_a_scene_left_goes_with_the_next(
    bucket: str, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CueStore.create(f"{bucket}/store.zarr", tiny.attributes())
    with monkeypatch.context() as patch:
        patch.setattr(claims.ObjectTurn, "publish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(claims.ObjectTurn, "end", lambda self: self.batch.land())
        with pytest.raises(KeyboardInterrupt):
            store.commit_init("a", tiny.table(), "init-1")
    assert data_keys(store)
    assert store.commit_init("a", tiny.table(), "init-1").generation == 1
    assert data_keys(store) == named_keys(store)
    assert verify(store.path) == []


def test_what_a_dead_writer_left_is_swept_in_time(
    remote: CueStore, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(claims.ObjectTurn, "publish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(claims.ObjectTurn, "end", lambda self: self.batch.land())
        with pytest.raises(KeyboardInterrupt):
            tiny.commit(remote, "masks", 0)
    left = data_keys(remote) - named_keys(remote)
    assert left
    assert remote.sweep_temporaries() == 0
    assert data_keys(remote) - named_keys(remote) == left
    monkeypatch.setattr(claims, "CLAIM_S", -1.0)
    assert {finding.kind for finding in verify(remote.path)} == {"orphan"}
    assert remote.sweep_temporaries() == 1
    assert data_keys(remote) == named_keys(remote)
    assert verify(remote.path) == []


def test_a_writer_taken_for_dead_does_not_publish(
    remote: CueStore, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = claims.ObjectTurn.publish
    calls = []

    def swept_first(self: claims.ObjectTurn, record: object) -> object:
        calls.append(record)
        if len(calls) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(claims, "CLAIM_S", -1.0)
                assert remote.sweep_temporaries() == 1
        return publish(self, record)  # type: ignore[arg-type]

    monkeypatch.setattr(claims.ObjectTurn, "publish", swept_first)
    tiny.commit(remote, "masks", 0)
    assert len(calls) == 2, "it started over"
    assert verify(remote.path) == []


def test_a_scene_opened_anew_under_a_writer(
    remote: CueStore, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = claims.ObjectTurn.publish

    def reopened(self: claims.ObjectTurn, record: object) -> object:
        monkeypatch.setattr(claims.ObjectTurn, "publish", publish)
        CueStore.open(remote.path).commit_init("a", tiny.table(frames=6, seed=2), "init-2")
        return publish(self, record)  # type: ignore[arg-type]

    monkeypatch.setattr(claims.ObjectTurn, "publish", reopened)
    with pytest.raises(StoreError, match=r"scene 'a' was opened anew.*masks--a--00000.*Run the same command again"):
        tiny.commit(remote, "masks", 0)
    with pytest.raises(CueMissing):
        StoreReader(remote.path).scene("a").masks(0, 0)
    assert verify(remote.path) == []


@pytest.mark.parametrize("how", ["ignores", "refuses"])
def test_a_server_without_conditional_puts_is_told(
    bucket: str, proxy: FaultProxy, full_store: CueStore, tiny: SimpleNamespace, how: str
) -> None:
    if how == "ignores":
        proxy.drop = {"if-none-match", "if-match"}
    else:
        proxy.canned["501"] = b"<Error><Code>NotImplemented</Code></Error>"
        proxy.plan = lambda method, path, number: "501" if method == "PUT" and "/.pending/probe" in path else None
    with pytest.warns(UnconditionalPuts, match=r"not honour conditional puts.*not atomic.*one process at a time"):
        store = CueStore.create(f"{bucket}/store.zarr", tiny.attributes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill(store, tiny)  # told once
    same_content(store, full_store)
    assert data_keys(store) == named_keys(store)
    assert verify(store.path) == []


def test_a_large_shard_goes_up_in_parts(
    remote: CueStore, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy
) -> None:
    monkeypatch.setattr("storage.objects.WHOLE", 24 << 20)
    remote.commit_init("big", tiny.table(frames=2, max_image_bytes=8 << 20), "fp")
    arrays = tiny.arrays("images", 2, sizes={"L": 8 << 20})
    remote.commit_block(UnitId("images", "big"), arrays, Provenance("fp"))
    assert proxy.requests("POST", "uploads") >= 1
    got = remote.read_block(UnitId("images", "big"))["images"]
    np.testing.assert_array_equal(got, arrays["images"])


def test_a_copy_from_a_bucket_to_a_disk(
    remote: CueStore, tiny: SimpleNamespace, proxy: FaultProxy, tmp_path: Path
) -> None:
    tiny.commit(remote, "masks", 0, seed=1)
    tiny.commit(remote, "masks", 0, seed=2)  # a later generation
    tiny.commit(remote, "lidar", 2)
    proxy.plan = random_faults(3, 0.1)
    here = tmp_path / "copy.zarr"
    report = transfer(remote.path, here, plan_transfer(remote.path, here), workers=2)
    assert len(report.copied) == 3
    assert report.damaged == {}
    copied = CueStore.open(here)
    assert list(copied.records()) == list(remote.records())
    same_content(copied, remote)
    assert verify(here) == []
