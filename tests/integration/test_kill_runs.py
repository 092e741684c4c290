"""`kill -9` at random moments of extractions that several processes make together.

`OCCFLOW_KILLS=200 pytest -m slow -s tests/integration/test_kill_runs.py` is the run that docs/store.md tells of.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from storage.layout import UnitId
from storage.prune import prune
from storage.store import CueStore
from storage.verify import verify
from tests.integration.servers import ROOT

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("OCCFLOW_KILLS", "30"))
SEED = int(os.environ.get("OCCFLOW_KILLS_SEED", "1"))
PROCESSES = 2
HARMLESS = {"orphan", "temporary"}


class Runs:
    """The forking server of kill_server.py; `log` holds what its children said."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "said.log"
        command = [sys.executable, str(Path(__file__).with_name("kill_server.py"))]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "OCCFLOW"))}
        private = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        pipe, where = subprocess.PIPE, {"cwd": folder, "env": inherited | private}
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, **where)  # type: ignore[call-overload]

    def _ask(self, **command: object) -> int:
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the server of runs died\n{self.log.read_text() if self.log.exists() else ''}"
        return int(answer)

    def start(self, *arguments: object) -> int:
        """Begin `occflow ARGUMENTS`; its process id."""
        return self._ask(start=[str(argument) for argument in arguments], log=str(self.log))

    def wait(self, process: int) -> int:
        """Exit status of a run, once it has ended."""
        return self._ask(wait=process)

    def close(self) -> None:
        """End the server."""
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    started = Runs(tmp_path)
    yield started
    started.close()


@pytest.fixture
def config(config_file: Path) -> Path:
    """The miniature log's configuration with a cue that is made from another one, and scenes four times as long."""
    for folder in (config_file.parent / "log" / "sequences").iterdir():
        for part in ("image_2", "velodyne"):
            files = sorted((folder / part).iterdir())
            for copy in range(1, 4):
                for t, path in enumerate(files, copy * len(files)):
                    shutil.copy(path, path.with_name(f"{t:06d}{path.suffix}"))
        length = 4 * len(files)
        (folder / "poses.txt").write_text("".join(f"1 0 0 0 0 1 0 0 0 0 1 {t}\n" for t in range(length)))
        (folder / "times.txt").write_text("".join(f"{0.1 * t:.6f}\n" for t in range(length)))
    values = yaml.safe_load(config_file.read_text())
    values["cues"]["masks"] = {"backend": "motion_lidar", "flows": ["flow_next"]}
    config_file.write_text(yaml.safe_dump(values))
    return config_file


Files = dict[str, tuple[int, str]]


def visible(store: Path) -> dict[UnitId, Files]:
    """Every unit that is committed now: size and SHA-256 of its files, by key, as its record has them."""
    found = {record.unit: record for record in CueStore.open(store).records()} if (store / "zarr.json").exists() else {}
    return {unit: {shard.key: (shard.size, shard.sha256) for shard in r.shards} for unit, r in found.items()}


def chunks(store: Path) -> dict[str, bytes]:
    """All that readers get, by unit and array; each chunk is read, checked and decoded."""
    opened = CueStore.open(store)
    return {
        f"{record.unit} {name}": array.tobytes()
        for record in opened.records()
        for name, array in opened.read_block(record.unit).items()
    }


class Killing:
    """A store that is filled by runs which are killed, beside what it has to become."""

    def __init__(self, runs: Runs, config: Path, folder: Path, seed: int) -> None:
        self.runs, self.config, self.whole, self.store = runs, config, folder / "whole.zarr", folder / "killed.zarr"
        self.draw = random.Random(seed)
        begun = time.monotonic()
        assert runs.wait(self.start(self.whole)) == 0, runs.log.read_text()
        self.duration = time.monotonic() - begun
        self.expected, self.content = visible(self.whole), chunks(self.whole)
        self.kills = self.rounds = self.partial = self.scratch = self.stores = 0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills in {self.rounds} rounds ({self.partial} left units to make, {self.scratch} left "
            f"scratch); {self.stores} stores of {len(self.expected)} units finished and compared"
        )

    def start(self, store: Path) -> int:
        """A run that fills a store with all that it lacks."""
        return self.runs.start("cues", self.config, "--runner", "plain", "--workers", "2", "--store", store)

    def round(self) -> None:
        """Processes side by side on one store, each killed at a moment of its own, the store looked at after each."""
        going = [self.start(self.store) for _ in range(PROCESSES)]
        # Later than one alone would be done, now and then: what is killed while it ends is part of it.
        moments = sorted(self.draw.uniform(0, 0.6 * self.duration) for _ in going)
        begun = time.monotonic()
        before: dict[UnitId, Files] = {}
        for victim, moment in zip(self.draw.sample(going, len(going)), moments, strict=True):
            time.sleep(max(0.0, begun + moment - time.monotonic()))
            before = visible(self.store)
            os.kill(victim, signal.SIGKILL)
            status = self.runs.wait(victim)
            assert status in (0, -signal.SIGKILL), self.runs.log.read_text()
            self.kills += status == -signal.SIGKILL
            after = visible(self.store)
            assert before.items() <= after.items(), "a unit that was committed is lost, or another one"
            assert after.items() <= self.expected.items(), "a unit that is visible is not what it should be"
        self.rounds += 1
        self.partial += len(visible(self.store)) < len(self.expected)
        pending = self.store / "commits" / ".pending"
        self.scratch += pending.exists() and any(path.is_dir() for path in pending.iterdir())
        if (self.store / "commits" / "store.json").exists():
            assert {finding.kind for finding in verify(self.store)} <= HARMLESS

    def finish(self) -> None:
        """Nobody kills any more: the store is the uninterrupted one's, file by file and chunk by chunk."""
        pending = self.store / "commits" / ".pending"
        assert self.runs.wait(self.start(self.store)) == 0, self.runs.log.read_text()
        assert visible(self.store) == self.expected
        # A run with nothing to make writes nothing, and so leaves the scratch of a run that was killed at its very end.
        assert {finding.kind for finding in verify(self.store)} <= {"temporary"}
        assert prune(self.store) or not list(pending.iterdir())
        assert verify(self.store) == []
        assert chunks(self.store) == self.content
        assert not list(pending.iterdir())
        shutil.rmtree(self.store)
        self.stores += 1


def test_killed_runs_of_several_processes(runs: Runs, config: Path) -> None:
    killing = Killing(runs, config, config.parent / "stores", SEED)
    while killing.kills < KILLS:
        killing.round()
        if len(visible(killing.store)) == len(killing.expected) or killing.kills >= KILLS:
            killing.finish()
        print(killing, flush=True)
    assert killing.partial > 0, "no kill came before all was made: the moments are wrong"
    assert not list(config.parent.glob("*.zarr")), "the runs wrote where nobody looked"
