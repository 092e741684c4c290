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

from storage.layout import UnitId
from storage.verify import verify
from tests.integration.contents import Files, chunks, visible
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
        partial = len(visible(self.store)) < len(self.expected)
        self.partial += partial
        self.duration *= 1.05 if partial else 0.8  # a machine that others use is not equally quick all the time
        pending = self.store / "commits" / ".pending"
        self.scratch += pending.exists() and any(path.is_dir() for path in pending.iterdir())
        if (self.store / "commits" / "store.json").exists():
            assert {finding.kind for finding in verify(self.store)} <= HARMLESS

    def finish(self) -> None:
        """Nobody kills any more: the store is the uninterrupted one's, file by file and chunk by chunk."""
        pending = self.store / "commits" / ".pending"
        assert self.runs.wait(self.start(self.store)) == 0, self.runs.log.read_text()
        assert visible(self.store) == self.expected
        assert verify(self.store) == [], "a run that ended leaves nothing of those that were killed"
        assert chunks(self.store) == self.content
        assert not list(pending.iterdir())
        shutil.rmtree(self.store)
        self.stores += 1


def test_killed_runs_of_several_processes(runs: Runs, long_config_file: Path) -> None:
    killing = Killing(runs, long_config_file, long_config_file.parent / "stores", SEED)
    while killing.kills < KILLS:
        killing.round()
        if len(visible(killing.store)) == len(killing.expected) or killing.kills >= KILLS:
            killing.finish()
        print(killing, flush=True)
    assert killing.partial > 0, "no kill came before all was made: the moments are wrong"
    assert not list(long_config_file.parent.glob("*.zarr")), "the runs wrote where nobody looked"
