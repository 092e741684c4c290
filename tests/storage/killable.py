"""A writer in a process of its own that can be killed: the other end of kill_worker.py."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


class Worker:
    """The forking writer of kill_worker.py."""

    def __init__(self) -> None:
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, str(Path(__file__).with_name("kill_worker.py"))]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def start(self, store: Path, job: str, kill_at: int | None = None, **arguments: object) -> int:
        """Begin a job; the process id of the writer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        command = {"store": str(store), "job": job, "kill_at": kill_at, "arguments": arguments}
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        self.told: list[str] = []
        while not (line := self.process.stdout.readline()).startswith("pid "):
            self.told.append(line.strip())
        return int(line.split()[1])

    def finish(self) -> tuple[int, list[str]]:
        """Exit status, and the units it told to have committed."""
        assert self.process.stdout is not None
        while not (line := self.process.stdout.readline()).startswith("exit "):
            assert line, "the worker died"
            self.told.append(line.strip())
        return int(line.split()[1]), [line.removeprefix("done ") for line in self.told]

    def run(self, store: Path, job: str, kill_at: int | None = None, **arguments: object) -> int:
        """A job from start to end; its exit status."""
        self.start(store, job, kill_at, **arguments)
        return self.finish()[0]

    def close(self) -> None:
        """End the worker."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    started = Worker()
    yield started
    started.close()
