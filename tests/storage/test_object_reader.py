"""Reading a store in a bucket: few requests, side by side, the same values as from a disk; also in spawned workers."""

import multiprocessing
import pickle
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from storage import shards
from storage.errors import CueMissing, StoreDamage
from storage.reader import SceneReader, StoreReader
from storage.store import CueStore, UnitId
from tests.storage.s3_server import FaultProxy, random_faults

QUICK = ("masks", "flow_next", "lidar")


@pytest.fixture
def filled(bucket: str, tiny: SimpleNamespace) -> CueStore:
    """A store in a bucket with some cues of two blocks of scene `a`, seed 0."""
    store = CueStore.create(f"{bucket}/store.zarr", tiny.attributes())
    store.commit_init("a", tiny.table(), "init-1")
    for cue in QUICK:
        for block in range(2):
            tiny.commit(store, cue, block)
    return store


def everything(scene: SceneReader, t: int) -> dict[str, np.ndarray]:
    """All that a sample reads of a keyframe."""
    found = {f"masks{c}": scene.masks(t, c) for c in range(2)}
    found |= {f"table{c}": scene.mask_table(t, c) for c in range(2)}
    found |= {f"flow{c}": scene.flow("next", t, c).flow for c in range(2)}
    found |= {f"confidence{c}": scene.flow("next", t, c).confidence for c in range(2)}
    return {**found, "points": scene.lidar(t).points, "origin": scene.lidar(t).origin}


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name], err_msg=name)


def test_random_samples_are_those_of_a_disk(filled: CueStore, full_store: CueStore) -> None:
    here, there = StoreReader(full_store.path).scene("a"), StoreReader(filled.path).scene("a")
    assert there.length == 5
    np.testing.assert_array_equal(here.table.global_from_ego, there.table.global_from_ego)
    for t in (3, 0, 2, 3, 1):
        same(everything(there, t), everything(here, t))
    assert not there.has("masks", 4)
    with pytest.raises(CueMissing, match=r"masks--a--00002 is not committed.*occflow cues"):
        there.masks(4, 0)


@pytest.mark.parametrize("whole", [0, 64 << 10], ids=["ranges", "whole shards"])
@pytest.mark.parametrize("row", [0, 8 << 20], ids=["chunks", "rows"])
def test_however_shards_are_read(
    filled: CueStore, full_store: CueStore, monkeypatch: pytest.MonkeyPatch, whole: int, row: int
) -> None:
    monkeypatch.setattr(shards, "WHOLE_SHARD", whole)
    monkeypatch.setattr(shards, "ROW", row)
    here, there = StoreReader(full_store.path).scene("a"), StoreReader(filled.path).scene("a")
    for t in range(4):
        same(everything(there, t), everything(here, t))


def test_a_sample_costs_few_requests(filled: CueStore, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "WHOLE_SHARD", 0)
    scene = StoreReader(filled.path).scene("a")
    everything(scene, 0)
    arrays = 2 + 4 + 4  # of masks, flow, LiDAR
    proxy.seen.clear()
    everything(scene, 0)
    assert proxy.seen == [], "read before, and still there"
    everything(scene, 1)
    assert len(proxy.seen) == arrays, "one range of every array for both cameras, no index again"
    assert all(method == "GET" and "/scenes/a/" in path for method, path, _ in proxy.seen)


def test_small_shards_come_whole(filled: CueStore, proxy: FaultProxy) -> None:
    scene = StoreReader(filled.path).scene("a")
    everything(scene, 0)
    proxy.seen.clear()
    everything(scene, 1)
    assert proxy.seen == []


def test_requests_are_under_way_side_by_side(filled: CueStore, proxy: FaultProxy) -> None:
    scene = StoreReader(filled.path).scene("a")
    scene.has("masks", 0)
    most = []
    busy = threading.Semaphore(0)
    forward = proxy._forward

    def counted(*args: object) -> object:
        busy.release()
        most.append(busy._value)
        threading.Event().wait(0.3)
        try:
            return forward(*args)  # type: ignore[arg-type]
        finally:
            busy.acquire()

    proxy._forward = counted  # type: ignore[method-assign, assignment]
    scene.prefetch([(cue, 0) for cue in QUICK])
    assert max(most) >= 4, most
    proxy.seen.clear()
    everything(scene, 0)
    assert proxy.seen == [], "all of it was fetched before"


def test_rows_are_kept_within_bounds() -> None:
    class Shard:
        key = "k"
        asked = 0

        def request(self, offset: int, length: int) -> bytes:
            self.asked += 1
            return bytes(length)

    shard, rows = Shard(), shards.RowCache(100)
    for row in range(10):
        rows.get(shard, row, 0, 40)  # type: ignore[arg-type]
    assert rows._size <= 100
    assert len(rows._rows) == 2
    rows.get(shard, 9, 0, 40)  # type: ignore[arg-type]
    assert shard.asked == 10
    rows.get(shard, 0, 0, 40)  # type: ignore[arg-type]
    assert shard.asked == 11


def test_a_row_that_failed_is_asked_for_again() -> None:
    class Shard:
        key = "k"

        def __init__(self) -> None:
            self.failures = [OSError("once")]

        def request(self, offset: int, length: int) -> bytes:
            if self.failures:
                raise self.failures.pop()
            return bytes(length)

    shard, rows = Shard(), shards.RowCache()
    with pytest.raises(OSError, match="once"):
        rows.get(shard, 0, 0, 4)  # type: ignore[arg-type]
    assert rows.get(shard, 0, 0, 4) == bytes(4)  # type: ignore[arg-type]


def test_reading_through_trouble(filled: CueStore, full_store: CueStore, proxy: FaultProxy) -> None:
    proxy.plan = random_faults(5, 0.25)
    here, there = StoreReader(full_store.path).scene("a"), StoreReader(filled.path).scene("a")
    for t in range(4):
        same(everything(there, t), everything(here, t))
    assert len(proxy.faults()) > 3


def test_threads_share_a_reader(filled: CueStore, full_store: CueStore) -> None:
    here = StoreReader(full_store.path).scene("a")
    want = {t: everything(here, t) for t in range(4)}
    reader, wrong = StoreReader(filled.path), []

    def read(start: int) -> None:
        scene = reader.scene("a")
        for k in range(8):
            t = (start + k) % 4
            try:
                same(everything(scene, t), want[t])
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert wrong == []


def test_a_changed_byte_is_damage(filled: CueStore) -> None:
    from storage.backend import backend

    record = filled.record(UnitId("masks", "a"))
    assert record is not None
    key, place = record.shard("masks/instance").key, backend(filled.path)
    data = bytearray(place.get(key))
    data[10] ^= 1
    place.replace({key: bytes(data)})
    with pytest.raises(StoreDamage, match=r"masks/instance.*verify --repair"):
        StoreReader(filled.path).scene("a").masks(0, 0)


def read_in_worker(pickled: bytes) -> np.ndarray:
    """Read one mask through a reader that was opened elsewhere."""
    reader: StoreReader = pickle.loads(pickled)
    return reader.scene("a").masks(1, 0)


def test_spawned_workers_read(filled: CueStore, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    reader = StoreReader(filled.path)
    reader.scene("a").masks(0, 0)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(read_in_worker, (pickle.dumps(reader),))
    np.testing.assert_array_equal(found, tiny.arrays("masks", 2)["masks/instance"][1, 0])
