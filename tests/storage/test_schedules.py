"""Any order of commits, rebuilds, killed writers, reopened scenes, repairs and sweeps: readers see exactly what a plain
dict would."""

import shutil
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from storage.errors import CueMissing, StoreRebuilt
from storage.reader import StoreReader
from storage.repair import repair
from storage.schema import CUES
from storage.store import CueStore, Provenance, UnitId
from storage.verify import verify
from tests.storage.killable import Worker

CUE = st.sampled_from(["masks", "lidar", "flow_aux"])
SCENE = st.sampled_from(["a", "b"])
CALLS = 60
"""Changes of the disk that a commit takes at most, about."""
PROBE = {"masks": "masks/instance", "lidar": "lidar/points", "flow_aux": "flow/aux/flow"}


class Schedule(RuleBasedStateMachine):
    """A store beside a model of it: scene -> length, and unit -> seed of its content."""

    tiny: SimpleNamespace
    memory: Path
    worker: Worker

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.memory))
        self.store = CueStore.create(self.folder / "store.zarr", self.tiny.attributes())
        self.lengths: dict[str, int] = {}
        self.seeds: dict[UnitId, int] = {}
        self.reader: StoreReader | None = None
        self.held: dict[UnitId, int] = {}
        self.litter = False
        self.open_scene("a", 3, "i0")
        self.commit("a", "masks", 0, 0)
        self.commit("a", "masks", 1, 1)
        self.open_reader()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(scene=SCENE, frames=st.integers(1, 5), fingerprint=st.sampled_from(["i1", "i2"]))
    def open_scene(self, scene: str, frames: int, fingerprint: str) -> None:
        self.store.commit_init(scene, self.tiny.table(frames=frames), f"{fingerprint}-{frames}")
        if self.lengths.get(scene) != frames:
            self.lengths[scene] = frames
            self.seeds = {unit: seed for unit, seed in self.seeds.items() if unit.scene != scene}

    @rule(scene=SCENE, cue=CUE, block=st.integers(0, 2), seed=st.integers(0, 2))
    def commit(self, scene: str, cue: str, block: int, seed: int) -> None:
        if block < -(-self.lengths.get(scene, 0) // 2):
            unit = UnitId(cue, scene, block)
            assert self.store.is_current(unit, f"fp-{seed}") == (self.seeds.get(unit) == seed)
            self.tiny.commit(self.store, cue, block, seed, scene)
            self.seeds[unit] = seed

    @rule(scene=SCENE, cue=CUE, block=st.integers(0, 2), seed=st.integers(0, 2), call=st.integers(0, CALLS))
    def kill_a_writer(self, scene: str, cue: str, block: int, seed: int, call: int) -> None:
        """It dies before one of its changes of the disk: either its unit is as it was, or it is the new one."""
        if block < -(-self.lengths.get(scene, 0) // 2):
            unit = UnitId(cue, scene, block)
            status = self.worker.run(self.store.path, "commit_one", call, unit=str(unit), seed=seed)
            assert status in (0, -signal.SIGKILL)
            record = self.store.record(unit)
            if record is not None and record.fingerprint == f"fp-{seed}":
                self.seeds[unit] = seed
            else:
                assert status == -signal.SIGKILL
                assert (record.fingerprint if record else None) == self.fingerprint(unit)
            self.litter = self.litter or status == -signal.SIGKILL

    def fingerprint(self, unit: UnitId) -> str | None:
        return f"fp-{self.seeds[unit]}" if unit in self.seeds else None

    @rule(scene=SCENE, cue=CUE, block=st.integers(0, 2))
    def discard(self, scene: str, cue: str, block: int) -> None:
        self.store.discard(UnitId(cue, scene, block))
        self.seeds.pop(UnitId(cue, scene, block), None)

    @rule(scene=SCENE)
    def lose_the_init_record_and_commit_it_again(self, scene: str) -> None:
        if scene in self.lengths:
            self.store.discard(UnitId("init", scene))
            assert not any(unit.scene == scene for unit in (record.unit for record in self.store.records()))
            self.store.commit_init(scene, self.tiny.table(frames=self.lengths[scene]), "again")

    @rule(data=st.data())
    def damage_and_repair(self, data: st.DataObject) -> None:
        if self.seeds:
            unit = data.draw(st.sampled_from(sorted(self.seeds)))
            record = self.store.record(unit)
            assert record is not None
            path = self.store.path / data.draw(st.sampled_from(record.shards)).key
            self.tiny.flip_bit(path, data.draw(st.integers(0, 10**6)))
            assert repair(self.store.path, verify(self.store.path)) == [unit]
            del self.seeds[unit]
            self.litter = False

    @rule()
    def sweep(self) -> None:
        self.store.sweep_temporaries()
        self.litter = False

    @rule()
    def open_reader(self) -> None:
        self.reader = StoreReader(self.store.path)
        self.held = {}
        for unit, seed in self.seeds.items():
            assert self.reader.scene(unit.scene).has(unit.cue, 2 * unit.block)
            self.held[unit] = seed

    @rule()
    def read_with_the_old_reader(self) -> None:
        """What it saw when it was opened, or the error to open it again; nothing else."""
        for unit, seed in self.held.items():
            assert self.reader is not None
            record = self.store.record(unit)
            try:
                found = self.read(self.reader, unit)
            except StoreRebuilt:
                assert record is None or self.seeds[unit] != seed or record.generation > 0
                continue
            np.testing.assert_array_equal(found, self.wanted(unit, seed)[: len(found)])

    def read(self, reader: StoreReader, unit: UnitId) -> np.ndarray:
        scene = reader.scene(unit.scene)
        t = 2 * unit.block
        if unit.cue == "masks":
            return scene.masks(t, 1)
        return scene.lidar(t).points if unit.cue == "lidar" else scene.flow("aux", t, 1).flow

    def wanted(self, unit: UnitId, seed: int) -> np.ndarray:
        frames = min(2, self.lengths[unit.scene] - 2 * unit.block)
        first = self.tiny.arrays(unit.cue, max(1, frames), seed)[PROBE[unit.cue]][0]
        return first if unit.cue == "lidar" else first[1]

    @invariant()
    def fresh_reader_sees_the_model(self) -> None:
        reader = StoreReader(self.store.path)
        assert reader.scenes() == sorted(self.lengths)
        for scene, length in self.lengths.items():
            assert self.store.blocks(scene) == [range(k, min(k + 2, length)) for k in range(0, length, 2)]
            for cue in PROBE:
                for block in range(-(-length // 2)):
                    unit = UnitId(cue, scene, block)
                    if unit not in self.seeds:
                        with pytest.raises(CueMissing):
                            self.read(reader, unit)
                        continue
                    found = self.read(reader, unit)
                    np.testing.assert_array_equal(found, self.wanted(unit, self.seeds[unit])[: len(found)])

    @invariant()
    def nothing_is_left_over(self) -> None:
        kinds = {finding.kind for finding in verify(self.store.path, decode=False)}
        assert kinds <= ({"orphan", "temporary"} if self.litter else set())


def run(memory: Path, tiny: SimpleNamespace, worker: Worker, examples: int, steps: int) -> None:
    machine = type("Machine", (Schedule,), {"tiny": tiny, "memory": memory, "worker": worker})
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    options = settings(deadline=None, max_examples=examples, stateful_step_count=steps, suppress_health_check=checks)
    run_state_machine_as_test(machine, settings=options)


def test_any_schedule(memory: Path, tiny: SimpleNamespace, worker: Worker) -> None:
    assert set(PROBE) <= set(CUES)
    run(memory, tiny, worker, examples=25, steps=12)


@pytest.mark.slow
def test_any_long_schedule(memory: Path, tiny: SimpleNamespace, worker: Worker) -> None:
    run(memory, tiny, worker, examples=100, steps=30)


def test_provenance_is_what_makes_a_rebuild(store: CueStore, tiny: SimpleNamespace) -> None:
    arrays = tiny.arrays("masks", 2)
    unit = UnitId("masks", "a")
    first = store.commit_block(unit, arrays, Provenance("fp", seconds=1.0))
    assert store.commit_block(unit, arrays, Provenance("fp", seconds=2.0)) == first
    assert store.commit_block(unit, arrays, Provenance("other")).generation == 1
