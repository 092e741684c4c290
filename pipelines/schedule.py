"""Runs the open units of a plan on anything that hands out futures, each unit after what it needs."""

import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Event
from types import FrameType
from typing import Any, Literal, Protocol

from pipelines.datasets.records import DataError
from pipelines.plan import Plan, Work
from storage.commit import CommitRecord

_POLL_S = 0.2
"""How often the wait for a finished unit looks whether to stop."""

Progress = Callable[[Work, Literal["started", "committed", "failed"]], None]


class UnitFuture(Protocol):
    """What is asked of a future: concurrent.futures', Prefect's on threads and Prefect's on Dask all offer it."""

    def add_done_callback(self, fn: Callable[[Any], None]) -> object:
        """Call `fn` once, from any thread, when the unit has ended."""
        ...

    def result(self) -> CommitRecord:
        """The record, or the unit's exception."""
        ...


@dataclass
class ExtractReport:
    """What an extraction did. `failed` and the two `skipped_` map a unit, scene or file to the reason."""

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

    def add(self, name: str, record: CommitRecord) -> None:
        """Count a unit that was committed and keep what it says about itself."""
        self.committed += 1
        self.bytes += record.bytes
        self.quality[name] = dict(record.provenance.quality)
        self.notes += [f"{name}: {note}" for note in record.provenance.notes]


def run_units(
    work: Plan,
    submit: Callable[[Work], UnitFuture],
    report: ExtractReport,
    *,
    width: int,
    fail_fast: bool,
    progress: Progress | None = None,
    stop: Event | None = None,
) -> None:
    """Submit the open units of a plan as soon as what they need is committed, and count what comes of them.

    Args:
        work: units, upstream before downstream.
        submit: starts one unit.
        report: what is counted into; units that could not be made are in `failed`.
        width: how many units may be in the making at once.
        fail_fast: raise the first DataError rather than record it and go on; any other error is always raised.
        progress: told of every unit.
        stop: when set, nothing more is submitted, and this returns when the units in the making have ended.
    """
    tell = progress or (lambda item, state: None)
    waiting = {item.name: item for item in work.open}
    running: set[str] = set()
    ended: queue.SimpleQueue[tuple[Work, UnitFuture]] = queue.SimpleQueue()
    while waiting or running:
        if stop is not None and stop.is_set():
            report.interrupted = report.interrupted or bool(waiting)
            waiting.clear()
        for item in _ready(waiting, running, width):
            running.add(item.name)
            tell(item, "started")
            submit(waiting.pop(item.name)).add_done_callback(lambda future, item=item: ended.put((item, future)))
        try:
            item, future = ended.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        running.discard(item.name)
        try:
            report.add(item.name, future.result())
            tell(item, "committed")
        except DataError as error:
            tell(item, "failed")
            if fail_fast:
                raise
            report.failed[item.name] = str(error)
            _drop_orphans(waiting, report, tell)


def _ready(waiting: dict[str, Work], running: set[str], width: int) -> list[Work]:
    unfinished = waiting.keys() | running
    ready = [item for item in waiting.values() if unfinished.isdisjoint(item.needs)]
    return ready[: max(0, width - len(running))]


def _drop_orphans(waiting: dict[str, Work], report: ExtractReport, tell: Progress) -> None:
    for name, item in list(waiting.items()):
        lost = [need for need in item.needs if need in report.failed]
        if lost:
            report.failed[name] = f"not made: {lost[0]}, which it is made from, failed"
            del waiting[name]
            tell(item, "failed")


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
