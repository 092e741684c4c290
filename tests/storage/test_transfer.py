"""Copies between stores: the same bytes, never a partial unit, resumable after a kill at any moment."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import storage.transfer
from storage.commit import commit_path, encode_record
from storage.errors import StoreError
from storage.reader import StoreReader
from storage.schema import CUES
from storage.store import CueStore, Provenance, UnitId
from storage.transfer import TransferReport, transfer
from storage.transfer_plan import plan_transfer
from storage.truth import TruthReader
from storage.verify import verify

UNITS = 1 + 3 * len(CUES)


def copy(source: CueStore, destination: Path, **options: object) -> TransferReport:
    return transfer(source.path, destination, plan_transfer(source.path, destination, **options))  # type: ignore[arg-type]


def every_file(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def two_scenes(full_store: CueStore, tiny: SimpleNamespace) -> CueStore:
    """Scenes `a` (whole) and `b` (one block of the masks, one of flow made from them)."""
    full_store.commit_init("b", tiny.table(seed=1), "init-b")
    tiny.commit(full_store, "masks", 0, scene="b", seed=1)
    made_from = Provenance("fp-2", upstream={"masks": "fp-1"}, notes=["three frames are dark"])
    full_store.commit_block(UnitId("flow_aux", "b"), tiny.arrays("flow_aux", 2, 2), made_from)
    return full_store


def test_a_copy_is_the_same_to_the_byte(full_store: CueStore, memory: Path) -> None:
    target = memory / "copy.zarr"
    report = copy(full_store, target)
    assert len(report.copied) == UNITS
    assert report.bytes == sum(record.bytes for record in full_store.records())
    assert every_file(target) == every_file(full_store.path)
    assert verify(target) == []


def test_several_workers_copy_the_same(two_scenes: CueStore, memory: Path) -> None:
    target = memory / "copy.zarr"
    told = []
    plan = plan_transfer(two_scenes.path, target)
    transfer(two_scenes.path, target, plan, workers=3, progress=lambda record: told.append(record.unit))
    assert every_file(target) == every_file(two_scenes.path)
    assert len(told) == len(set(told)) == UNITS + 3


def test_a_second_copy_moves_nothing(two_scenes: CueStore, memory: Path) -> None:
    target = memory / "copy.zarr"
    copy(two_scenes, target)
    stamps = {path: path.stat().st_mtime_ns for path in target.rglob("*") if path.is_file()}
    plan = plan_transfer(two_scenes.path, target)
    assert (plan.copy, len(plan.present), plan.bytes) == ((), UNITS + 3, 0)
    assert transfer(two_scenes.path, target, plan).copied == ()
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*") if path.is_file()} == stamps


def test_a_part_by_scene_and_cue(two_scenes: CueStore, memory: Path) -> None:
    target = memory / "part.zarr"
    report = copy(two_scenes, target, scenes=["a"], cues=["masks", "lidar"])
    assert {str(unit).split("--")[0] for unit in report.copied} == {"init", "masks", "lidar"}
    assert verify(target) == []
    reader = StoreReader(target)
    assert reader.scenes() == ["a"]
    assert reader.scene("a").has("masks", 4)
    assert not reader.scene("a").has("images", 0)
    copy(two_scenes, target, scenes=["b*"])
    assert verify(target) == []
    assert StoreReader(target).scene("b").record("flow_aux", 0).provenance.notes == ["three frames are dark"]


def test_what_was_made_from_what(two_scenes: CueStore, memory: Path, tiny: SimpleNamespace) -> None:
    target = memory / "part.zarr"
    plan = plan_transfer(two_scenes.path, target, ["b"], ["flow_aux"])
    assert [record.unit.cue for record in plan.copy] == ["init", "flow_aux"]
    assert plan.notes == ("1 units of flow_aux were made from masks, which stays behind",)
    whole = plan_transfer(two_scenes.path, target, ["b"], ["flow_aux"], upstream=True)
    assert [record.unit.cue for record in whole.copy] == ["init", "flow_aux", "masks"]
    assert whole.notes == ()
    tiny.commit(two_scenes, "masks", 0, scene="b", seed=7)
    (note,) = plan_transfer(two_scenes.path, target, ["b"], ["flow_aux"], upstream=True).notes
    assert "made from an earlier masks" in note
    copy(two_scenes, target, scenes=["b"], cues=["flow_aux"])
    record = CueStore.open(target).record(UnitId("flow_aux", "b"))
    assert record is not None
    assert record.provenance.upstream == {"masks": "fp-1"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scenes": ["c"]}, "no scene 'c'; it has a, b"),
        ({"cues": ["mask"]}, "cue 'mask' is not one of"),
        ({"destination": "two.zarr/inside.zarr"}, "lies in the store"),
        ({"destination": "full.zarr"}, "is, holds or lies in"),
        ({"source": "none.zarr"}, "no cue store here"),
    ],
)
def test_what_cannot_be_asked_for(two_scenes: CueStore, memory: Path, options: dict, words: str) -> None:
    source = memory / options.pop("source", two_scenes.path.name)
    name = options.pop("destination", "copy.zarr").replace("two.zarr", two_scenes.path.name)
    with pytest.raises(StoreError, match=words):
        plan_transfer(source, memory / name, **options)
    assert not (memory / "copy.zarr").exists()


def test_a_store_of_other_attributes_is_refused(full_store: CueStore, memory: Path, tiny: SimpleNamespace) -> None:
    other = CueStore.create(memory / "other.zarr", tiny.attributes(dataset="another"))
    with pytest.raises(StoreError, match="other attributes"):
        plan_transfer(full_store.path, other.path)


def test_other_commits_are_replaced_only_when_asked(full_store: CueStore, memory: Path, tiny: SimpleNamespace) -> None:
    target = memory / "copy.zarr"
    copy(full_store, target)
    tiny.commit(full_store, "masks", 1, seed=4)
    with pytest.raises(StoreError, match=r"other commits of 1 .*masks--a--00001"):
        plan_transfer(full_store.path, target)
    assert copy(full_store, target, overwrite=True).copied == (UnitId("masks", "a", 1),)
    assert every_file(target) == every_file(full_store.path)
    full_store.commit_init("a", tiny.table(frames=6, seed=2), "init-2")
    tiny.commit(full_store, "lidar", 0, seed=5)
    report = copy(full_store, target, overwrite=True)
    assert report.copied == (UnitId("init", "a"), UnitId("lidar", "a"))
    assert verify(target) == []
    assert StoreReader(target).scene("a").length == 6
    assert [str(record.unit) for record in CueStore.open(target).records()] == ["init--a--00000", "lidar--a--00000"]


def test_a_copy_that_lost_a_file_is_made_whole(full_store: CueStore, memory: Path) -> None:
    target = memory / "copy.zarr"
    copy(full_store, target)
    (target / "scenes/a/masks/instance/c.1.0.0.0").unlink()
    assert copy(full_store, target, overwrite=True).copied == (UnitId("masks", "a", 1),)
    assert verify(target) == []


@pytest.mark.parametrize("harm", ["flip", "delete", "truncate", "record", "metadata"])
def test_damage_in_the_source_is_not_copied(
    full_store: CueStore, memory: Path, tiny: SimpleNamespace, harm: str
) -> None:
    unit = UnitId("masks", "a", 1)
    shard = full_store.path / "scenes/a/masks/instance/c.1.0.0.0"
    if harm == "flip":
        tiny.flip_bit(shard, 77)
    elif harm == "delete":
        shard.unlink()
    elif harm == "truncate":
        os.truncate(shard, shard.stat().st_size - 1)
    elif harm == "record":
        commit_path(full_store.path, unit).write_bytes(b"{")
    else:
        # Named by the init unit and by the blocks of this cue: with it, the scene cannot be opened.
        tiny.flip_bit(full_store.path / "scenes/a/frames/zarr.json", 99)
        unit = UnitId("init", "a")
    target = memory / "copy.zarr"
    report = copy(full_store, target)
    assert set(report.damaged) == {unit}
    assert "verify --repair" in report.damaged[unit]
    assert verify(target) == []
    assert len(report.copied) == (0 if harm == "metadata" else UNITS - 1)
    assert CueStore.open(target).record(unit) is None


def test_a_source_that_is_rebuilt_meanwhile(
    full_store: CueStore, memory: Path, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan's record is of a generation that is gone by the time its data is read: the new one is copied."""
    target = memory / "copy.zarr"
    plan = plan_transfer(full_store.path, target)
    tiny.commit(full_store, "masks", 1, seed=6)
    report = transfer(full_store.path, target, plan)
    assert report.damaged == {}
    assert every_file(target) == every_file(full_store.path)


def test_too_small_a_disk(full_store: CueStore, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=100_000)
    monkeypatch.setattr(storage.transfer.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(StoreError, match=r"GB are needed, 0.0 GB are free"):
        copy(full_store, memory / "copy.zarr")
    assert not (memory / "copy.zarr").exists()


def test_truth_goes_as_well(memory: Path, tiny: SimpleNamespace) -> None:
    grid = {"lower": [-1.0, -1.0, -1.0], "upper": [1.0, 1.0, 1.0], "shape": [3, 4, 2]}
    truth = CueStore.create(memory / "s.truth.zarr", tiny.attributes(kind="truth", occupancy_grid=grid))
    truth.commit_init("a", tiny.table(), "init-1")
    tiny.commit(truth, "occupancy", 0)
    copy(truth, memory / "t.truth.zarr", scenes=["a"])
    assert verify(memory / "t.truth.zarr") == []
    assert TruthReader(memory / "t.truth.zarr").scene("a").has("occupancy", 1)


def test_records_of_an_earlier_init_stay_behind(full_store: CueStore, memory: Path) -> None:
    record = full_store.record(UnitId("masks", "a", 2))
    assert record is not None
    commit_path(full_store.path, record.unit).write_bytes(encode_record(replace(record, init="0" * 64)))
    plan = plan_transfer(full_store.path, memory / "copy.zarr")
    assert record.unit not in {copied.unit for copied in plan.copy}
    assert plan.notes == ("1 blocks belong to no readable init unit of their scene and stay behind",)


@pytest.fixture(scope="module")
def killer() -> Iterator[subprocess.Popen[str]]:
    """The forking worker of kill_worker.py."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(Path(__file__).with_name("kill_worker.py"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    yield process
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait(timeout=30)
    process.stdout.close()


def run_job(process: subprocess.Popen[str], store: Path, kill_at: int | None) -> int:
    """Exit status of `copy_full`, killed before its `kill_at`-th change of the disk."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"store": str(store), "job": "copy_full", "kill_at": kill_at}) + "\n")
    process.stdin.flush()
    while not (line := process.stdout.readline()).startswith("exit "):
        assert line, "the worker died"
    return int(line.split()[1])


@pytest.mark.parametrize(
    "step", [61, pytest.param(7, marks=pytest.mark.slow)], ids=["some changes", "every seventh change"]
)
def test_killed_at_any_moment(full_store: CueStore, killer: subprocess.Popen[str], step: int) -> None:
    """After each kill: every unit that is visible is whole. After the next run: the source, to the byte."""
    expected = every_file(full_store.path)
    shards = sum(len(record.shards) for record in full_store.records())
    seen = set()
    for number in range(0, 5000, step):
        target = full_store.path.with_name("copy.zarr")
        status = run_job(killer, target, number)
        assert status in (0, -signal.SIGKILL)
        if (target / "zarr.json").exists() and (target / "commits/store.json").exists():
            assert {finding.kind for finding in verify(target)} <= {"orphan", "temporary"}
            seen.add(len(list(CueStore.open(target).records())))
        if status != 0:
            assert run_job(killer, target, None) == 0
        assert every_file(target) == expected
        assert not list((target / "commits/.pending").iterdir())
        shutil.rmtree(target)
        if status == 0:
            break
    else:
        pytest.fail("the copy never ended")
    assert number > 3 * shards, "every file takes an open, a write, a sync and a move"
    assert len(seen) > (UNITS // 2 if step == 7 else 5), "kills hit between many units"
