"""Copies into, out of and between buckets, and pruning inside one: the same commits, whatever dies when."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from storage import claims
from storage.backend import ObjectBackend
from storage.commit import CommitRecord
from storage.errors import StoreError
from storage.location import as_location
from storage.prune import prune
from storage.reader import StoreReader
from storage.relocation import relocated, same_commit
from storage.store import CueStore, UnitId
from storage.transfer import TransferReport, transfer
from storage.transfer_plan import plan_transfer
from storage.verify import verify
from tests.storage.s3_server import FaultProxy, random_faults

CUES = ("masks", "lidar")
UNITS = 1 + 3 * len(CUES)
Place = str | Path


@pytest.fixture
def source(full_store: CueStore, memory: Path) -> CueStore:
    """Two cues of the full store: every request to the mock server takes its time."""
    copy(full_store.path, memory / "source.zarr", cues=CUES)
    return CueStore.open(memory / "source.zarr")


def copy(source: Place, destination: Place, **options: object) -> TransferReport:
    return transfer(source, destination, plan_transfer(source, destination, **options), workers=3)  # type: ignore[arg-type]


def records(store: Place) -> dict[UnitId, CommitRecord]:
    return {record.unit: record for record in CueStore.open(store).records()}


def every_file(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def place_of(store: str) -> ObjectBackend:
    return ObjectBackend(as_location(store))  # type: ignore[arg-type]


def assert_copied(source: Place, target: Place) -> None:
    """The same commits, whole, and every chunk of them decodes to the same."""
    ours, theirs = records(source), records(target)
    assert ours.keys() == theirs.keys()
    assert all(same_commit(record, theirs[unit]) for unit, record in ours.items())
    assert verify(target) == []
    here, there = CueStore.open(source), CueStore.open(target)
    for unit in ours:
        mine, yours = here.read_block(unit), there.read_block(unit)
        for name, array in mine.items():
            np.testing.assert_array_equal(array, yours[name], err_msg=f"{unit} {name}")


def test_there_and_back_to_the_byte(source: CueStore, bucket: str, memory: Path) -> None:
    there, back = f"{bucket}/a/one.zarr", memory / "back.zarr"
    (source.path / "inputs").mkdir()  # type: ignore[operator]
    (source.path / "inputs/a.json").write_bytes(b"{}")  # type: ignore[union-attr]
    report = copy(source.path, there)
    assert len(report.copied) == UNITS
    assert_copied(source.path, there)
    assert not list(place_of(there).list("commits/.pending")), "claims stay behind"
    again = plan_transfer(source.path, there)
    assert (again.copy, len(again.present)) == ((), UNITS)
    assert transfer(source.path, there, again).copied == ()
    copy(there, back)
    assert every_file(back) == every_file(source.path)  # type: ignore[arg-type]


def test_a_part_then_the_rest(source: CueStore, bucket: str, tiny: SimpleNamespace) -> None:
    target = f"{bucket}/part.zarr"
    report = copy(source.path, target, cues=["masks"])
    assert {unit.cue for unit in report.copied} == {"init", "masks"}
    assert verify(target) == []
    assert not StoreReader(target).scene("a").has("lidar", 0)
    tiny.commit(source, "masks", 1, seed=4)
    with pytest.raises(StoreError, match=r"other commits of 1 .*masks--a--00001"):
        plan_transfer(source.path, target)
    assert len(copy(source.path, target, overwrite=True).copied) == UNITS - 3
    assert_copied(source.path, target)


@pytest.mark.slow
def test_through_trouble(source: CueStore, bucket: str, proxy: FaultProxy) -> None:
    proxy.plan = random_faults(3, 0.05)
    copy(source.path, f"{bucket}/store.zarr")
    assert len(proxy.faults()) > 3
    proxy.plan = lambda method, path, number: None
    assert_copied(source.path, f"{bucket}/store.zarr")


def test_damage_is_left_behind(source: CueStore, bucket: str, tiny: SimpleNamespace, memory: Path) -> None:
    tiny.flip_bit(source.path / "scenes/a/masks/instance/c.1.0.0.0", 77)
    report = copy(source.path, f"{bucket}/store.zarr")
    assert set(report.damaged) == {UnitId("masks", "a", 1)}
    assert verify(f"{bucket}/store.zarr") == []
    keys = set(place_of(f"{bucket}/store.zarr").list("scenes/a/masks"))
    assert not any("c.1." in key for key in keys), "what was copied of it is gone again"
    place_of(f"{bucket}/store.zarr").delete(["scenes/a/lidar/points/c.0.0.0"])
    back = copy(f"{bucket}/store.zarr", memory / "back.zarr")
    assert set(back.damaged) == {UnitId("lidar", "a", 0)}
    assert "verify --repair" in back.damaged[UnitId("lidar", "a", 0)]


def test_what_is_replaced_stays_until_its_copy_is_whole(source: CueStore, bucket: str, tiny: SimpleNamespace) -> None:
    target = f"{bucket}/store.zarr"
    copy(source.path, target)
    for seed, block in ((4, 1), (5, 2)):
        tiny.commit(source, "masks", block, seed=seed)
    record = source.record(UnitId("masks", "a", 1))
    assert record is not None
    tiny.flip_bit(source.path / record.shards[0].key, 77)  # type: ignore[arg-type]
    before = CueStore.open(target).read_block(UnitId("masks", "a", 1))
    report = copy(source.path, target, overwrite=True)
    assert (report.copied, set(report.damaged)) == ((UnitId("masks", "a", 2),), {UnitId("masks", "a", 1)})
    assert verify(target) == []
    after = CueStore.open(target).read_block(UnitId("masks", "a", 1))
    assert all((after[name] == array).all() for name, array in before.items())
    source.commit_init("a", tiny.table(frames=6, seed=2), "init-2")
    tiny.commit(source, "lidar", 0, seed=5)
    copy(source.path, target, overwrite=True)
    assert_copied(source.path, target)


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        ("disk", "s3://not-there/x.zarr", "no bucket 'not-there'"),
        ("BUCKET/s.zarr", "BUCKET/s.zarr", "is, holds or lies in"),
        ("BUCKET/s.zarr", "BUCKET/s.zarr/inside.zarr", "is, holds or lies in"),
        ("BUCKET/none.zarr", "BUCKET/x.zarr", "no cue store here"),
        ("disk", "s3://X", "no bucket name"),
    ],
)
def test_what_cannot_be_asked_for(
    source: CueStore, bucket: str, tiny: SimpleNamespace, here: str, there: str, words: str
) -> None:
    CueStore.create(f"{bucket}/s.zarr", tiny.attributes())
    places = [source.path if text == "disk" else text.replace("BUCKET", bucket) for text in (here, there)]
    with pytest.raises(StoreError, match=words):
        plan_transfer(*places)


@pytest.mark.slow
def test_from_bucket_to_bucket(source: CueStore, bucket: str) -> None:
    """Under names of which one begins with the other."""
    copy(source.path, f"{bucket}/s.zarr")
    assert len(copy(f"{bucket}/s.zarr", f"{bucket}/s.zarr2").copied) == UNITS
    assert_copied(source.path, f"{bucket}/s.zarr2")


def test_the_same_commit_under_another_generation(source: CueStore, memory: Path, tiny: SimpleNamespace) -> None:
    """What `relocated` says of files is what a store writes by itself in that generation."""
    other = CueStore.create(memory / "other.zarr", source.attributes)
    other.commit_init("a", tiny.table(seed=9), "init-0")
    other.commit_init("a", tiny.table(), "init-1")
    tiny.commit(other, "lidar", 1)
    for unit in (UnitId("init", "a"), UnitId("lidar", "a", 1)):
        first, second = source.record(unit), other.record(unit)
        assert first is not None
        assert second is not None
        assert (first.generation, second.generation) == (0, 1)
        moved = relocated(first, 1)
        assert moved.shards == second.shards
        assert moved.metadata == second.metadata
        assert relocated(moved, 0) == first
        assert same_commit(first, moved)
        assert not same_commit(first, second), "another commit: made at another time, or from another table"


COPIER = """
import sys
from storage.transfer import transfer
from storage.transfer_plan import plan_transfer
source, target = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
transfer(source, target, plan_transfer(source, target), workers=2)
"""


def killed_copy(source: Place, target: str, proxy: FaultProxy, after: int) -> int:
    """Copy in a process that is killed before its request number `after` that changes the bucket; its exit status."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", COPIER, str(source), target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    changes = 0

    def plan(method: str, path: str, number: int) -> str | None:
        nonlocal changes
        changes += method in ("PUT", "POST", "DELETE")
        if changes > after:
            process.kill()
            return "before"
        return None

    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    proxy.plan = plan
    process.communicate(b"\n", timeout=120)
    proxy.plan = lambda method, path, number: None
    return process.returncode


KILLED = [85]
MANY = [*range(1, 60, 8), *range(61, 100, 3)]


@pytest.fixture(params=[pytest.param(KILLED, id="some"), pytest.param(MANY, id="many", marks=pytest.mark.slow)])
def moments(request: pytest.FixtureRequest) -> list[int]:
    return request.param


def test_killed_copies_lose_nothing_and_show_nothing_partial(
    source: CueStore, bucket: str, proxy: FaultProxy, moments: list[int]
) -> None:
    expected = records(source.path)
    seen = set()
    for after in moments:
        target = f"{bucket}/{after}.zarr"
        assert killed_copy(source.path, target, proxy, after) == -9
        there = place_of(target).exists("zarr.json") and place_of(target).exists("commits/store.json")
        found = records(target) if there else {}
        assert all(same_commit(record, expected[unit]) for unit, record in found.items())
        if there:
            assert verify(target) == [], "what a dead copier left looks like a writer at work"
        seen.add(len(found))
        rest = copy(source.path, target)
        assert len(rest.copied) + len(rest.present) == UNITS
        assert len(rest.present) == len(found), "a copy goes on where the last one stopped"
        assert_copied(source.path, target)
    assert seen != {0}, "the kill came before any unit was copied"
    assert moments == KILLED or len(seen) > UNITS // 2


def test_prune_waits_for_the_dead_to_be_dead_for_sure(
    source: CueStore, bucket: str, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = f"{bucket}/store.zarr"
    copy(source.path, target)
    assert prune(target) == []
    store, place = CueStore.open(target), place_of(target)
    with monkeypatch.context() as patch:
        patch.setattr(claims.ObjectTurn, "publish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(claims.ObjectTurn, "end", lambda self: self.batch.land())
        with pytest.raises(KeyboardInterrupt):
            tiny.commit(store, "masks", 1, seed=5)
    left = set(place.list("scenes")) - {
        key for r in store.records() for key in (*[s.key for s in r.shards], *r.metadata)
    }
    assert len(left) == 4, "two shards and their metadata"
    (told,) = prune(target)
    assert told.kept
    assert "a writer is at work" in told.why
    assert left <= set(place.list("scenes"))

    monkeypatch.setattr(claims, "CLAIM_S", -1.0)
    dry = prune(target, dry_run=True)
    assert {str(item.path) for item in dry} == {f"{target}/{key}" for key in left}
    assert sum(item.bytes for item in dry) == sum(len(place.get(key)) for key in left)
    prune(target)
    assert not left & set(place.list("scenes"))
    assert prune(target) == []
    assert_copied(source.path, target)


def test_prune_takes_blocks_of_an_earlier_table(source: CueStore, bucket: str, tiny: SimpleNamespace) -> None:
    target = f"{bucket}/store.zarr"
    copy(source.path, target)
    place = place_of(target)
    old = {key: place.get(key) for key in [*place.list("commits"), *place.list("scenes/a/masks")] if "masks" in key}
    CueStore.open(target).commit_init("a", tiny.table(frames=6, seed=2), "init-2")
    place.replace(old)  # as if the clean-up had been killed
    assert sum("earlier init" in item.why for item in prune(target, dry_run=True)) == 3
    prune(target)
    assert not set(old) & {*place.list("commits"), *place.list("scenes")}
    assert verify(target) == []
    place.replace({"commits/lidar--a--00000.json": b"{"})
    (kept,) = prune(target)
    assert "verify --repair" in kept.why
