"""Files that are whole but not the right ones, records without data, and every bit of a record: all of it is found."""

import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from storage.commit import commit_path, parse_record
from storage.errors import StoreDamage
from storage.repair import repair
from storage.schema import CUES
from storage.store import CommitRecord, CueStore, UnitId
from storage.verify import verify

FLIPS = int(os.environ.get("OCCFLOW_FLIPS", "1000"))
MASKS = [UnitId("masks", "a", block) for block in range(3)]


def record_of(store: CueStore, unit: UnitId) -> CommitRecord:
    record = store.record(unit)
    assert record is not None
    return record


def shard(store: CueStore, unit: UnitId, array: str = "masks/instance") -> Path:
    return Path(str(store.path)) / record_of(store, unit).shard(array).key


def assert_taken_back(store: CueStore, units: list[UnitId]) -> None:
    """`repair` takes back these units and no other, and afterwards nothing is wrong."""
    before = {record.unit for record in store.records()}
    assert repair(store.path, verify(store.path)) == units
    assert {record.unit for record in store.records()} == before - set(units)
    assert verify(store.path) == []


def test_shards_of_two_units_swapped(full_store: CueStore, tiny: SimpleNamespace) -> None:
    tiny.commit(full_store, "masks", 1, seed=1)
    one, other = shard(full_store, MASKS[0]), shard(full_store, MASKS[1])
    spare = one.with_name("spare")
    for source, target in ((one, spare), (other, one), (spare, other)):
        os.replace(source, target)
    found = verify(full_store.path)
    assert {(f.path, f.unit) for f in found} == {(one, MASKS[0]), (other, MASKS[1])}
    assert {f.kind for f in found} <= {"size", "digest"}
    assert_taken_back(full_store, MASKS[:2])


def test_a_shard_of_an_earlier_commit(full_store: CueStore, tiny: SimpleNamespace) -> None:
    stale = shard(full_store, MASKS[1]).read_bytes()
    tiny.commit(full_store, "masks", 1, seed=1)
    path = shard(full_store, MASKS[1])
    assert "generations" in path.parts
    assert path.read_bytes() != stale
    path.write_bytes(stale)
    found = verify(full_store.path)
    assert [(f.path, f.unit) for f in found] == [(path, MASKS[1])]
    assert_taken_back(full_store, [MASKS[1]])


def test_a_record_in_the_place_of_another(full_store: CueStore) -> None:
    one, other = (commit_path(Path(str(full_store.path)), unit) for unit in MASKS[:2])
    shutil.copy(one, other)
    found = [finding for finding in verify(full_store.path) if finding.kind != "orphan"]
    assert [(f.kind, f.path, f.unit) for f in found] == [("record", other, MASKS[1])]
    repair(full_store.path, found)
    repair(full_store.path, verify(full_store.path))
    assert full_store.record(MASKS[1]) is None
    assert full_store.record(MASKS[0]) is not None
    assert verify(full_store.path) == []


def test_a_record_of_an_earlier_commit(full_store: CueStore, tiny: SimpleNamespace) -> None:
    path = commit_path(Path(str(full_store.path)), MASKS[2])
    stale = path.read_bytes()
    tiny.commit(full_store, "masks", 2, seed=1)
    path.write_bytes(stale)
    kinds = {finding.kind for finding in verify(full_store.path) if finding.unit == MASKS[2]}
    assert kinds == {"missing", "orphan"}, "what it names is gone, what is there it does not name"
    assert_taken_back(full_store, [MASKS[2]])


def test_a_record_without_any_data(full_store: CueStore) -> None:
    record = record_of(full_store, MASKS[0])
    for entry in record.shards:
        (Path(str(full_store.path)) / entry.key).unlink()
    found = verify(full_store.path)
    assert [f.kind for f in found] == ["missing"] * len(CUES["masks"])
    assert_taken_back(full_store, [MASKS[0]])


def test_every_bit_of_a_record(full_store: CueStore) -> None:
    content = commit_path(Path(str(full_store.path)), MASKS[0]).read_bytes()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreDamage):
            parse_record(full_store.path, MASKS[0], bytes(changed))


@pytest.mark.slow
def test_many_flipped_bits(full_store: CueStore, tiny: SimpleNamespace) -> None:
    """Half of them in files drawn evenly, so that small ones are met; half in bytes drawn evenly, so that data is."""
    root, draw = Path(str(full_store.path)), random.Random(6)
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    sizes = np.array([path.stat().st_size for path in paths])
    met = set()
    for number in range(FLIPS):
        path = draw.choice(paths) if number % 2 else draw.choices(paths, sizes.tolist())[0]
        original = path.read_bytes()
        bit = draw.randrange(8 * len(original))
        tiny.flip_bit(path, bit)
        assert path in {finding.path for finding in verify(root, decode=False)}, (path, bit)
        path.write_bytes(original)
        met.add(path)
    assert verify(root) == []
    print(f"{FLIPS} flips in {len(met)} of {len(paths)} files, {sizes.sum()} bytes; all found")
