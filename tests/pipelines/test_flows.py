"""Running units in order, on any kind of future; what is retried; the settings a Prefect run starts from."""

import errno
import os
import signal
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from threading import Event

import pytest

from pipelines import prefect_home
from pipelines.datasets.records import DataError
from pipelines.plan import Plan, Work
from pipelines.schedule import ExtractReport, run_units, stop_on_signals
from storage.commit import CommitRecord, Provenance
from storage.errors import StoreError
from storage.layout import UnitId


def unit(cue: str, *needs: str, state: str = "missing") -> Work:
    return Work(UnitId(cue, "s"), needs=tuple(f"{need}--s--00000" for need in needs), state=state)  # type: ignore[arg-type]


CHAIN = Plan((unit("init"), unit("images", "init"), unit("flow", "init"), unit("masks", "init", "flow")), {})


class Pool:
    """Futures that end when told to, and the order in which they were handed out."""

    def __init__(self, fails: dict[str, Exception] | None = None) -> None:
        self.fails = fails or {}
        self.submitted: list[str] = []
        self.open_at_once = 0
        self.most_open = 0

    def __call__(self, item: Work) -> "Future[CommitRecord]":
        future: Future[CommitRecord] = Future()
        self.submitted.append(item.unit.cue)
        self.open_at_once += 1
        self.most_open = max(self.most_open, self.open_at_once)
        threading.Timer(0.02, self.end, [item, future]).start()
        return future

    def end(self, item: Work, future: "Future[CommitRecord]") -> None:
        self.open_at_once -= 1
        error = self.fails.get(item.unit.cue)
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(CommitRecord(item.unit, 0, (0, 1), "", (), {}, Provenance("f", quality={"n": 1})))


def test_units_run_after_what_they_need() -> None:
    pool, report = Pool(), ExtractReport()
    run_units(CHAIN, pool, report, width=4, fail_fast=True)
    assert pool.submitted == ["init", "images", "flow", "masks"]
    assert (report.committed, report.failed, report.quality["masks--s--00000"]) == (4, {}, {"n": 1})


def test_no_more_units_at_once_than_asked_for() -> None:
    plan = Plan(tuple(unit(f"c{i}") for i in range(6)), {})
    pool = Pool()
    run_units(plan, pool, ExtractReport(), width=2, fail_fast=True)
    assert pool.most_open == 2


def test_current_units_are_not_run_and_satisfy_needs() -> None:
    pool = Pool()
    plan = Plan((unit("init", state="current"), unit("flow", "init", state="stale")), {})
    run_units(plan, pool, ExtractReport(), width=4, fail_fast=True)
    assert pool.submitted == ["flow"]


def test_a_failed_unit_takes_along_what_is_made_from_it() -> None:
    report = ExtractReport()
    run_units(CHAIN, Pool({"flow": DataError("bad file")}), report, width=4, fail_fast=False)
    assert report.committed == 2
    assert report.failed["flow--s--00000"] == "bad file"
    assert "flow--s--00000" in report.failed["masks--s--00000"]


def test_fail_fast_and_errors_of_the_store_always_raise() -> None:
    with pytest.raises(DataError, match="bad file"):
        run_units(CHAIN, Pool({"flow": DataError("bad file")}), ExtractReport(), width=1, fail_fast=True)
    with pytest.raises(StoreError, match="disk full"):
        run_units(CHAIN, Pool({"init": StoreError("disk full")}), ExtractReport(), width=1, fail_fast=False)


def test_stop_lets_running_units_end() -> None:
    stop, pool, report = Event(), Pool(), ExtractReport()
    told: list[tuple[str, str]] = []

    def follow(item: Work, state: str) -> None:
        told.append((item.unit.cue, state))
        if state == "started" and item.unit.cue == "images":
            stop.set()

    run_units(CHAIN, pool, report, width=1, fail_fast=True, progress=follow, stop=stop)
    assert report.interrupted
    assert told == [("init", "started"), ("init", "committed"), ("images", "started"), ("images", "committed")]


def test_a_stop_after_the_last_unit_is_no_interruption() -> None:
    stop, report = Event(), ExtractReport()
    plan = Plan((unit("init"),), {})
    run_units(plan, Pool(), report, width=1, fail_fast=True, progress=lambda w, s: stop.set(), stop=stop)
    assert not report.interrupted


def test_signals_set_the_event_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(1)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_tried_again() -> None:
    from pipelines.flows import is_transient

    def caused(error: Exception) -> StoreError:
        wrapped = StoreError("writing failed")
        wrapped.__cause__ = error
        return wrapped

    assert is_transient(ConnectionResetError())
    assert is_transient(caused(OSError(errno.ESTALE, "stale handle")))
    assert not is_transient(caused(OSError(errno.ENOSPC, "full")))
    assert not is_transient(DataError("truncated"))
    assert not is_transient(FileNotFoundError("gone"))


def test_the_private_home_is_kept_and_a_second_run_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with prefect_home._home() as first:
        assert first == tmp_path / "occflow" / "prefect"
        with prefect_home._home() as second:
            assert second != first
            assert second.is_dir()
        assert not second.exists()
    assert first.is_dir()


def test_a_server_that_does_not_come_up_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setattr(prefect_home, "_SERVE", "raise SystemExit('port taken')")
    before = dict(os.environ)
    with (
        pytest.raises(prefect_home.PrefectError, match=r"(?s)port taken.*--runner plain"),
        prefect_home.private_prefect(),
    ):
        pass
    assert dict(os.environ) == before


def test_a_stop_while_the_server_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(prefect_home, "_SERVE", "import time; time.sleep(60)")
    stop = Event()
    stop.set()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), prefect_home.private_prefect(stop):
        pass
    assert time.monotonic() - started < 20
