"""What extraction runs leave word of in a store: which units they set out to make, what failed and why, how they ended.

For people, for `status`, and for scheduled runs that stand back while another goes on: nothing that is read or written
depends on it, and a journal that cannot be written stops no run. The kernel lets go of a journal's lock when its run
dies, so a run that was killed is not taken for one that goes on.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from storage.asides import RUNS, seal, unseal
from storage.location import Location

KEPT = 50
"""Journals kept; the oldest go first, but none of a run that goes on."""
_LONGEST = 2000
"""Characters of an error that are kept."""


class RunJournal:
    """A run's journal, written by the one process that hands out its units; a context manager.

    Unit names are those of `UnitId`, with "truth/" before them for units of the truth store.
    """

    def __init__(self, root: Path, planned: Iterable[str]) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):
            folder = root / RUNS
            folder.mkdir(parents=True, exist_ok=True)
            _forget_old(folder)
            path = folder / f"{time.time_ns():020d}-{os.getpid()}.jsonl"
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._file, fcntl.LOCK_EX)  # who asks whether it is held holds it for a moment
        self._write(kind="run", planned=list(planned), host=socket.gethostname(), pid=os.getpid())

    def failed(self, name: str, why: str) -> None:
        """A unit that could not be made."""
        self._write(kind="failed", unit=name, why=why[:_LONGEST])

    def end(self, how: str) -> None:
        """The run's end, in a word or the error's; what comes after is not written."""
        if self._file is not None:
            self._write(kind="end", how=how[:_LONGEST])
            os.close(self._file)
            self._file = None

    def __enter__(self) -> "RunJournal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end("done" if error is None else f"{type(error).__name__}: {error}")

    def _write(self, **entry: Any) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.write(self._file, seal(json.dumps({"at": time.time(), **entry}).encode()))


@dataclass
class RunLog:
    """A run, as its journal tells.

    Attributes:
        started: seconds since the epoch.
        planned: names of the units it set out to make.
        failed: by unit name, when (seconds since the epoch) and why.
        end: how it ended; "" while it goes on, or where it was killed.
        running: it goes on.
        where: host and process id.
    """

    started: float
    planned: frozenset[str]
    failed: dict[str, tuple[float, str]] = field(default_factory=dict)
    end: str = ""
    running: bool = False
    where: str = ""


def read_runs(root: Location) -> list[RunLog]:
    """The runs that a store has word of, oldest first; none on object storage, where nothing can be appended to."""
    found: list[RunLog] = []
    if not isinstance(root, Path):
        return found
    for path in sorted((root / RUNS).glob("*.jsonl")):
        with contextlib.suppress(OSError):
            log = _read(path)
            if log is not None:
                found.append(log)
    return found


def _read(path: Path) -> RunLog | None:
    log: RunLog | None = None
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(unseal(line))
            if entry["kind"] == "run":
                log = RunLog(entry["at"], frozenset(entry["planned"]), where=f"{entry['host']}, process {entry['pid']}")
            elif log is not None and entry["kind"] == "failed":
                log.failed[entry["unit"]] = (entry["at"], entry["why"])
            elif log is not None and entry["kind"] == "end":
                log.end = entry["how"]
        except (ValueError, KeyError, TypeError):
            continue  # a line that a kill or a full disk cut off, or that changed since
    if log is not None and not log.end:
        log.running = _is_held(path)
    return log


def _is_held(path: Path) -> bool:
    """Whether the process that writes this journal is alive."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _forget_old(folder: Path) -> None:
    for path in sorted(folder.glob("*.jsonl"))[: -KEPT + 1]:
        with contextlib.suppress(FileNotFoundError):  # runs that start together forget the same ones
            if not _is_held(path):
                path.unlink()
