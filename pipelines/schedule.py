"""Runs the open units of a plan on anything that hands out futures, each unit after what it needs."""

import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Event
from types import FrameType
from typing import Any, Literal, Protocol

from pipelines.batches import Batch, Outcome, ReadyUnits, WorkerLost
from pipelines.plan import Plan, Work
from storage.commit import CommitRecord
from storage.journal import RunJournal

_POLL_S = 0.2
"""How often the wait for a finished batch looks whether to stop."""

Progress = Callable[[Work, Literal["started", "committed", "failed"]], None]


class BatchFuture(Protocol):
    """What is asked of a future: those of concurrent.futures, of Prefect on threads and of Dask all offer it."""

    def add_done_callback(self, fn: Callable[[Any], None]) -> object:
        """Call `fn` once, from any thread, when the batch has ended."""
        ...

    def result(self) -> list[Outcome]:
        """What came of the units that were tried, or any exception but a unit's DataError."""
        ...


@dataclass
class ExtractReport:
    """What an extraction did. `failed` and the two `skipped_` map a unit, scene or file to the reason.

    `journal`: where it leaves word of failures and of its end while it goes on, for `occflow status`.
    """

    committed: int = 0
    current: int = 0
    seconds: float = 0.0
    bytes: int = 0
    interrupted: bool = False
    failed: dict[str, str] = field(default_factory=dict)
    skipped_scenes: dict[str, str] = field(default_factory=dict)
    skipped_files: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    quality: dict[str, dict[str, Any]] = field(default_factory=dict)
    journal: RunJournal | None = None

    def fail(self, name: str, reason: str) -> None:
        """Record a unit that could not be made, and leave word of it."""
        self.failed[name] = reason
        if self.journal is not None:
            self.journal.failed(name, reason)

    def add(self, name: str, record: CommitRecord) -> None:
        """Count a unit that was committed and keep what it says about itself."""
        self.committed += 1
        self.bytes += record.bytes
        self.quality[name] = dict(record.provenance.quality)
        self.notes += [f"{name}: {note}" for note in record.provenance.notes]


def run_units(
    work: Plan,
    submit: Callable[[Batch], BatchFuture],
    report: ExtractReport,
    *,
    width: Callable[[bool], int],
    fail_fast: bool,
    batch_s: float = 0.0,
    progress: Progress | None = None,
    stop: Event | None = None,
) -> None:
    """Submit the open units of a plan as soon as what they need is committed, and count what comes of them.

    Args:
        work: units, upstream before downstream.
        submit: starts a batch of units, all of them for GPUs or none.
        report: what is counted into; units that could not be made are in `failed`.
        width: how many batches may be in the making at once, of units for GPUs (True) and of others (False).
        fail_fast: raise the first DataError or WorkerLost rather than record it and go on; any other error is always
            raised.
        batch_s: units that take less are submitted several at a time, so that a batch lasts about so long; 0 for
            one by one.
        progress: told of every unit.
        stop: when set, nothing more is submitted, and this returns when the batches in the making have ended.
    """
    tell = progress or (lambda item, state: None)
    ready = ReadyUnits(work.open, batch_s)
    running = {False: 0, True: 0}
    suspects: set[str] = set()
    ended: queue.SimpleQueue[tuple[Batch, BatchFuture]] = queue.SimpleQueue()
    with report.journal or nullcontext():
        while ready or any(running.values()):
            if stop is not None and stop.is_set():
                report.interrupted = report.interrupted or bool(ready)
                ready.clear()
            for batch in _next(ready, running, width):
                running[batch[0].gpu] += 1
                for item in batch:
                    tell(item, "started")
                submit(batch).add_done_callback(lambda future, batch=batch: ended.put((batch, future)))
            try:
                batch, future = ended.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            running[batch[0].gpu] -= 1
            try:
                outcomes = future.result()
            except WorkerLost as error:
                # Whoever was beside the unit that ends its processes is lost with it. Made again with nothing beside
                # it, a unit that is lost once more is that unit.
                if batch[0].name not in suspects:
                    suspects |= {item.name for item in batch}
                    ready.put_back(batch)
                    continue
                outcomes = [Outcome(0.0, error=error)]
            _count(batch, outcomes, ready, report, fail_fast, tell)
        if report.journal is not None and report.interrupted:
            report.journal.end("stopped")


def _next(ready: ReadyUnits, running: dict[bool, int], width: Callable[[bool], int]) -> Iterator[Batch]:
    """Batches to submit now; the caller counts each in `running`."""
    for gpu in running:
        while batch := ready.take(gpu, width(gpu) - running[gpu]):
            yield batch
    if not any(running.values()) and (batch := ready.take_suspect()):
        yield batch


def _count(
    batch: Batch, outcomes: list[Outcome], ready: ReadyUnits, report: ExtractReport, fail_fast: bool, tell: Progress
) -> None:
    """Add what came of a batch to the report, and make ready what waited for it."""

    def fail(item: Work, error: Exception) -> None:
        tell(item, "failed")
        report.fail(item.name, str(error))
        if fail_fast:
            raise error
        for orphan, need in ready.drop(item):
            report.fail(orphan.name, f"not made: {need}, which it is made from, failed")
            tell(orphan, "failed")

    for item, outcome in zip(batch, outcomes, strict=False):
        ready.learn(item, outcome.seconds)
        if outcome.record is not None:
            report.add(item.name, outcome.record)
            tell(item, "committed")
            ready.done(item)
        elif outcome.error is not None:
            fail(item, outcome.error)


@dataclass
class Watch:
    """What the caller of a run in this process follows it by; no flow parameter, since those have to be JSON."""

    progress: Progress | None = None
    stop: Event | None = None


_watch: ContextVar[Watch] = ContextVar("watch")


def watch() -> Watch:
    """The watch set by `following` around this call; an empty one outside."""
    return _watch.get(Watch())


@contextmanager
def following(progress: Progress | None, stop: Event | None) -> Iterator[None]:
    """Have the run inside this context tell `progress` and heed `stop`."""
    token = _watch.set(Watch(progress, stop))
    try:
        yield
    finally:
        _watch.reset(token)


@contextmanager
def stop_on_signals(stop: Event | None = None, grace_s: float = 20.0) -> Iterator[Event]:
    """An event (`stop` itself where given) that SIGINT or SIGTERM sets: units in the making are finished and committed.

    A second SIGINT, or `grace_s` seconds after a SIGTERM (batch systems kill soon after), ends the process at once;
    that is as safe as a kill -9: what is committed stays. Does nothing outside the main thread.
    """
    stop = stop or Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def leave(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()
        if number == signal.SIGTERM:
            timer = threading.Timer(grace_s, os._exit, [128 + number])
            timer.daemon = True
            timer.start()

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
