"""Facts of raw files, the index and journals of runs: whatever bit of them changes is found, and misleads nobody."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from storage.asides import INPUTS, RUNS, damaged_asides, seal, unseal
from storage.index import INDEX, read_summaries
from storage.journal import RunJournal, read_runs
from storage.repair import repair
from storage.store import CueStore, UnitId
from storage.verify import verify

FACTS = b'{"a.png": {"size": 3, "mtime_ns": 5, "digest": "0f", "fault": null, "points": 113}}'


@pytest.fixture
def with_asides(full_store: CueStore, monkeypatch: pytest.MonkeyPatch) -> CueStore:
    """A full store with one of each beside its records and data."""
    root = Path(str(full_store.path))
    (root / INPUTS).mkdir()
    (root / INPUTS / "a.json").write_bytes(seal(FACTS))
    with RunJournal(root, ["masks--a--00000", "lidar--a--00000"]) as journal:
        journal.failed("lidar--a--00000", "x.bin: a tab\tand a newline\n in it")
    monkeypatch.setattr("storage.index._WORTH_WRITING", 1)
    read_summaries(root)
    assert verify(root) == []
    return full_store


def asides(root: Path) -> list[Path]:
    return [root / INPUTS / "a.json", root / INDEX, *(root / RUNS).iterdir()]


def test_every_bit_of_them(with_asides: CueStore) -> None:
    root = Path(str(with_asides.path))
    assert len(asides(root)) == 3
    tried = 0
    for path in asides(root):
        original = path.read_bytes()
        # All of the small ones; of the index every bit of its first and last lines, and one of each byte between.
        for bit in range(8 * len(original)):
            if 1000 < bit < 8 * len(original) - 1000 and bit % 8 != (bit // 8) % 8:
                continue
            changed = bytearray(original)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            assert [key for key, _ in damaged_asides(root)] == [path.relative_to(root).as_posix()], (path, bit)
            tried += 1
        path.write_bytes(original)
    assert tried > 5000
    assert list(damaged_asides(root)) == []


def test_verify_tells_and_repair_costs_no_unit(with_asides: CueStore, tiny: SimpleNamespace) -> None:
    root = Path(str(with_asides.path))
    for path in asides(root):
        tiny.flip_bit(path, 321)
    found = verify(root)
    assert {(f.kind, f.path) for f in found} == {("aside", path) for path in asides(root)}
    assert [run.failed for run in read_runs(root)] == []
    assert UnitId("masks", "a") in read_summaries(root).units
    assert repair(root, found) == []
    assert verify(root) == []
    assert not (root / INPUTS / "a.json").exists()


def test_what_was_written_before_there_were_checksums_and_what_a_kill_cut_off(full_store: CueStore) -> None:
    root = Path(str(full_store.path))
    (root / INPUTS).mkdir()
    (root / INPUTS / "a.json").write_bytes(FACTS)
    (root / RUNS).mkdir()
    line = json.dumps({"at": 1.0, "kind": "run", "planned": ["masks--a--00000"], "host": "h", "pid": 1}).encode()
    old, cut = root / RUNS / "1.jsonl", root / RUNS / "2.jsonl"
    old.write_bytes(line + b"\n")
    for length in (0, 5, len(line), len(line) + 3):
        cut.write_bytes(seal(line)[:length])
        assert verify(root) == []
    assert [run.planned for run in read_runs(root)] == [frozenset({"masks--a--00000"})]
    assert unseal(FACTS) == FACTS
    (root / INPUTS / "a.json").write_bytes(b"")
    assert [finding.kind for finding in verify(root)] == ["aside"]
