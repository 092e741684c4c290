"""Copies that replace what the destination holds: until a unit's own copy is whole there, the old one stays."""

import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import storage.transfer
from storage.errors import StoreError
from storage.relocation import same_commit
from storage.schema import CUES
from storage.store import CueStore, UnitId
from storage.transfer import TransferReport, transfer
from storage.transfer_plan import plan_transfer
from storage.verify import verify
from tests.storage.killable import Worker

INIT = UnitId("init", "a")
MASKS = UnitId("masks", "a", 1)
SHARD = "scenes/a/masks/instance/c.1.0.0.0"


def overwrite(source: Path, destination: Path, **options: object) -> TransferReport:
    plan = plan_transfer(source, destination, overwrite=True, **options)  # type: ignore[arg-type]
    return transfer(source, destination, plan)


def content(store: Path) -> dict[UnitId, dict[str, np.ndarray]]:
    """Every array of every unit that readers see."""
    opened = CueStore.open(store)
    return {record.unit: opened.read_block(record.unit) for record in opened.records()}


def assert_equal(one: dict[UnitId, dict[str, np.ndarray]], other: dict[UnitId, dict[str, np.ndarray]]) -> None:
    assert one.keys() == other.keys()
    for unit, arrays in one.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, other[unit][name], err_msg=f"{unit} {name}")


def assert_same_commits(one: Path, other: Path) -> None:
    ours, theirs = ({r.unit: r for r in CueStore.open(store).records()} for store in (one, other))
    assert ours.keys() == theirs.keys()
    assert all(same_commit(record, theirs[unit]) for unit, record in ours.items())


@pytest.fixture
def target(full_store: CueStore, memory: Path, tiny: SimpleNamespace) -> Path:
    """A sound store of the same scene whose blocks of masks and LiDAR are other commits."""
    path = shutil.copytree(full_store.path, memory / "copy.zarr")
    for block in range(3):
        for cue in ("masks", "lidar"):
            tiny.commit(CueStore.open(path), cue, block, seed=9)
    return path


def test_damage_in_the_source_costs_the_destination_nothing(
    full_store: CueStore, target: Path, tiny: SimpleNamespace
) -> None:
    before = content(target)
    tiny.flip_bit(full_store.path / SHARD, 77)
    report = overwrite(full_store.path, target)
    assert set(report.damaged) == {MASKS}
    assert len(report.copied) == 5, "the others of masks and LiDAR"
    assert verify(target) == []
    after = content(target)
    assert after.keys() == before.keys()
    for name, array in before[MASKS].items():
        np.testing.assert_array_equal(after[MASKS][name], array)


def test_a_damaged_table_in_the_source_costs_the_destination_nothing(
    full_store: CueStore, target: Path, tiny: SimpleNamespace
) -> None:
    """The scene was opened again with the same table in the source: another commit of its init unit."""
    full_store.commit_init("a", tiny.table(), "init-2")
    tiny.flip_bit(full_store.path / "scenes/a/frames/K/c.0.0.0.0", 99)
    tiny.flip_bit(target / "scenes/a/frames/K/c.0.0.0.0", 99)  # or the record alone would be renewed, which is right
    before = {record.unit for record in CueStore.open(target).records()}
    report = overwrite(full_store.path, target)
    assert INIT in report.damaged
    assert report.copied == ()
    assert {record.unit for record in CueStore.open(target).records()} == before


@pytest.mark.parametrize("harm", ["table", "block", "record"])
def test_a_scene_with_damage_does_not_take_the_place_of_another_table(
    full_store: CueStore, target: Path, tiny: SimpleNamespace, harm: str
) -> None:
    full_store.commit_init("a", tiny.table(frames=6, seed=2), "init-2")
    for cue in ("masks", "lidar"):
        tiny.commit(full_store, cue, 1)
    record = full_store.record(INIT if harm == "table" else MASKS)
    assert record is not None
    tiny.flip_bit(full_store.path / (f"commits/{MASKS}.json" if harm == "record" else record.shards[0].key), 77)
    before = content(target)
    report = overwrite(full_store.path, target)
    assert set(report.damaged) == {INIT, record.unit}
    assert report.copied == ()
    if harm != "table":
        assert "keeps scene 'a' as it is" in report.damaged[INIT]
        assert str(MASKS) in report.damaged[INIT]
    assert verify(target) == []
    assert_equal(content(target), before)


def test_what_goes_with_a_table_is_told(full_store: CueStore, target: Path, tiny: SimpleNamespace) -> None:
    full_store.commit_init("a", tiny.table(frames=6, seed=2), "init-2")
    tiny.commit(full_store, "masks", 1)
    with pytest.raises(StoreError, match="with --overwrite"):
        plan_transfer(full_store.path, target)
    plan = plan_transfer(full_store.path, target, overwrite=True)
    assert plan.notes[-1].startswith(f"{3 * len(CUES) - 1} blocks of the destination go with their scene's table")
    transfer(full_store.path, target, plan)
    assert verify(target) == []
    assert_same_commits(target, full_store.path)


def test_the_same_table_again_keeps_its_blocks(full_store: CueStore, target: Path, tiny: SimpleNamespace) -> None:
    """Also blocks that the copy does not touch."""
    full_store.commit_init("a", tiny.table(), "init-2")
    before = content(target)
    assert overwrite(full_store.path, target, cues=["images"]).copied == (INIT,)
    assert verify(target) == []
    assert_equal(content(target), before)
    assert CueStore.open(target).is_current(INIT, "init-2")


def test_a_damaged_table_at_the_destination_is_replaced(
    full_store: CueStore, target: Path, tiny: SimpleNamespace
) -> None:
    full_store.commit_init("a", tiny.table(), "init-2")
    before = content(target)
    tiny.flip_bit(target / "scenes/a/frames/K/c.0.0.0.0", 99)
    overwrite(full_store.path, target, cues=["images"])
    assert verify(target) == []
    assert_equal(content(target), before)
    tiny.commit(CueStore.open(target), "masks", 1, seed=3)
    assert verify(target) == []


def test_stopped_in_between(full_store: CueStore, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = storage.transfer._copy_files, 0
    before = {record.unit for record in CueStore.open(target).records()}

    def stops(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        whole(*arguments)  # type: ignore[arg-type]
        if calls == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage.transfer, "_copy_files", stops)
        with pytest.raises(KeyboardInterrupt):
            overwrite(full_store.path, target)
    assert verify(target) == []
    assert {record.unit for record in CueStore.open(target).records()} == before
    assert 0 < len(overwrite(full_store.path, target).copied) <= 4
    assert_same_commits(target, full_store.path)
    assert verify(target) == []


@pytest.mark.parametrize("step", [23, pytest.param(3, marks=pytest.mark.slow)], ids=["some changes", "many changes"])
def test_killed_at_any_moment_no_unit_is_missing(
    full_store: CueStore, target: Path, memory: Path, worker: Worker, step: int
) -> None:
    units = {record.unit for record in CueStore.open(target).records()}
    for number in range(0, 5000, step):
        copied = shutil.copytree(target, memory / "killed.zarr")
        status = worker.run(copied, "overwrite_full", number)
        assert status in (0, -signal.SIGKILL)
        assert {finding.kind for finding in verify(copied)} <= {"orphan", "temporary"}
        assert {record.unit for record in CueStore.open(copied).records()} == units
        assert worker.run(copied, "overwrite_full") == 0
        assert verify(copied) == []
        assert_same_commits(copied, full_store.path)
        assert not os.listdir(copied / "commits/.pending")
        shutil.rmtree(copied)
        if status == 0:
            break
    assert number > 60, "six units, each of several files"
