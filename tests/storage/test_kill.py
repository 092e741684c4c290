"""Writers that are killed: nothing committed is lost, nothing partial is visible, and a resumed store is whole."""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from storage.reader import StoreReader
from storage.schema import CUES
from storage.store import CueStore, UnitId
from storage.verify import verify
from tests.integration.contents import content
from tests.storage.killable import Worker

HARMLESS = {"orphan", "temporary"}
LARGE = {"network_size": (96, 160), "render_size": (96, 160)}


@pytest.fixture
def opened(memory: Path, tiny: SimpleNamespace) -> CueStore:
    """A store with one scene, in memory."""
    made = CueStore.create(memory / "store.zarr", tiny.attributes())
    made.commit_init("a", tiny.table(), "init-1")
    return made


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def random_kills(worker: Worker, memory: Path, tiny: SimpleNamespace, kills: int, seed: int) -> None:
    """Kill a filling writer at random moments until so many kills have hit; check after each, then finish."""
    draw = random.Random(seed)
    whole, path = memory / "whole.zarr", memory / "killed.zarr"
    table = tiny.table(max_image_bytes=20_000, max_sweep_bytes=5_000, max_lidar_points=5_000)
    for target in (whole, path):
        CueStore.create(target, tiny.attributes(**LARGE)).commit_init("a", table, "init-1")
    begun = time.monotonic()
    assert worker.run(whole, "fill_large") == 0
    duration = time.monotonic() - begun
    expected = content(whole)
    committed: set[str] = set()
    hits = 0
    while hits < kills:
        pid = worker.start(path, "fill_large")
        time.sleep(draw.uniform(0, 1.5 * duration / kills))
        os.kill(pid, signal.SIGKILL)
        status, told = worker.finish()
        hits += status == -signal.SIGKILL
        committed |= set(told)
        found = content(path)
        assert committed <= {name.split()[0] for name in found}
        assert_same(found, {name: array for name, array in expected.items() if name in found})
        assert {finding.kind for finding in verify(path)} <= HARMLESS
        if len(committed) == 3 * len(CUES):
            # All is written before enough kills have hit: take a unit back, so that there is work to be killed at.
            CueStore.open(path).discard(UnitId("flow_next", "a", 1))
            committed.discard(str(UnitId("flow_next", "a", 1)))
    assert worker.run(path, "fill_large") == 0
    assert_same(content(path), expected)
    assert verify(path) == []
    assert not list((path / "commits" / ".pending").iterdir())


def test_killed_at_random_moments(worker: Worker, memory: Path, tiny: SimpleNamespace) -> None:
    random_kills(worker, memory, tiny, kills=15, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_at_many_random_moments(worker: Worker, memory: Path, tiny: SimpleNamespace, seed: int) -> None:
    random_kills(worker, memory, tiny, kills=80, seed=10 + seed)


def states_after_kills(worker: Worker, store: CueStore, job: str, step: int) -> Iterator[Path]:
    """Copies of the store after the job was killed before its 1st, (1 + step)th, … change of the disk; last, whole."""
    for number in range(0, 2000, step):
        copy = store.path.with_name(f"copy-{number}.zarr")
        shutil.copytree(store.path, copy, copy_function=os.link)
        status = worker.run(copy, job, number)
        assert status in (0, -signal.SIGKILL)
        yield copy
        shutil.rmtree(copy)
        if status == 0:
            return
    pytest.fail("the job never ended")


@pytest.mark.parametrize(
    "step", [3, pytest.param(1, marks=pytest.mark.slow)], ids=["every third change", "every change"]
)
@pytest.mark.parametrize("before", [None, 1], ids=["first commit", "rebuild"])
def test_killed_during_a_commit(
    worker: Worker, opened: CueStore, tiny: SimpleNamespace, before: int | None, step: int
) -> None:
    old = tiny.commit(opened, "masks", 0, seed=before) if before is not None else None
    neighbour = tiny.commit(opened, "masks", 1, seed=5)
    new = tiny.arrays("masks", 2, 2)
    seen = set()
    for number, copy in enumerate(states_after_kills(worker, opened, "commit_masks", step)):
        after = CueStore.open(copy)
        record = after.record(UnitId("masks", "a"))
        seen.add(record.fingerprint if record else None)
        assert seen <= {f"fp-{before}" if old else None, "fp-2"}, "neither the old unit nor the new"
        if record is not None:
            want = new if record.fingerprint == "fp-2" else old
            assert want is not None
            for name, array in after.read_block(record.unit).items():
                np.testing.assert_array_equal(array, want[name])
        np.testing.assert_array_equal(
            StoreReader(copy).scene("a").masks(3, 1), neighbour["masks/instance"][1, 1], err_msg="a neighbour changed"
        )
        assert {finding.kind for finding in verify(copy)} <= HARMLESS
        if number % 2:
            after.sweep_temporaries()
            assert verify(copy) == []
        after.commit_block(UnitId("masks", "a"), new, tiny.provenance("fp-2"))
        after.sweep_temporaries()
        assert verify(copy) == []
        for name, array in after.read_block(UnitId("masks", "a")).items():
            np.testing.assert_array_equal(array, new[name])
    assert len(seen) == 2


@pytest.mark.parametrize("step", [37, pytest.param(1, marks=pytest.mark.slow)], ids=["some changes", "every change"])
def test_killed_while_a_scene_is_reopened(worker: Worker, opened: CueStore, tiny: SimpleNamespace, step: int) -> None:
    old = tiny.commit(opened, "masks", 0, seed=1)
    for copy in states_after_kills(worker, opened, "reopen_scene", step):
        after = CueStore.open(copy)
        init = after.record(UnitId("init", "a"))
        assert init is not None
        scene = StoreReader(copy).scene("a")
        if init.fingerprint == "init-1":
            np.testing.assert_array_equal(scene.masks(0, 0), old["masks/instance"][0, 0])
        else:
            assert scene.length == 6
            assert not scene.has("masks", 0)
        after.sweep_temporaries()
        assert verify(copy) == []
        after.commit_init("a", tiny.table(frames=6, seed=2), "init-2")
        tiny.commit(after, "masks", 0, seed=2)
        assert verify(copy) == []


def test_killed_while_a_unit_is_taken_back(worker: Worker, opened: CueStore, tiny: SimpleNamespace) -> None:
    old = tiny.commit(opened, "masks", 0, seed=1)
    for copy in states_after_kills(worker, opened, "discard_masks", 1):
        scene = StoreReader(copy).scene("a")
        if scene.has("masks", 0):
            np.testing.assert_array_equal(scene.masks(0, 0), old["masks/instance"][0, 0])
        CueStore.open(copy).sweep_temporaries()
        assert verify(copy) == []
