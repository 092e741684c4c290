"""Running units in order, on any kind of future; what is retried; the settings a Prefect run starts from."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Event

import pytest

from pipelines import prefect_home
from pipelines.batches import Batch, Outcome, ReadyUnits, WorkerLost
from pipelines.datasets.records import DataError
from pipelines.plan import Plan, Work
from pipelines.schedule import ExtractReport, run_units, stop_on_signals
from storage.commit import CommitRecord, Provenance
from storage.errors import StoreError
from storage.layout import UnitId


def unit(cue: str, *needs: str, state: str = "missing") -> Work:
    return Work(UnitId(cue, "s"), needs=tuple(f"{need}--s--00000" for need in needs), state=state)  # type: ignore[arg-type]


CHAIN = Plan((unit("init"), unit("images", "init"), unit("flow", "init"), unit("masks", "init", "flow")), {})


def places(count: int) -> Callable[[bool], int]:
    return lambda gpu: count


def record(item: Work) -> CommitRecord:
    return CommitRecord(item.unit, 0, (0, 1), "", (), {}, Provenance("f", quality={"n": 1}))


class Pool:
    """Futures that end when told to, and the order in which they were handed out."""

    def __init__(self, fails: dict[str, Exception] | None = None, seconds: float = 0.0) -> None:
        self.fails = fails or {}
        self.seconds = seconds
        self.sizes: list[int] = []
        self.submitted: list[str] = []
        self.open_at_once = 0
        self.most_open = 0

    def __call__(self, batch: Batch) -> "Future[list[Outcome]]":
        future: Future[list[Outcome]] = Future()
        self.submitted += [item.unit.cue for item in batch]
        self.sizes.append(len(batch))
        self.open_at_once += 1
        self.most_open = max(self.most_open, self.open_at_once)
        threading.Timer(0.02, self.end, [batch, future]).start()
        return future

    def end(self, batch: Batch, future: "Future[list[Outcome]]") -> None:
        self.open_at_once -= 1
        outcomes = []
        for item in batch:
            error = self.fails.get(item.unit.cue)
            if error is not None and not isinstance(error, DataError):
                future.set_exception(error)
                return
            outcomes.append(Outcome(self.seconds, None if error else record(item), error))
        future.set_result(outcomes)


def test_units_run_after_what_they_need() -> None:
    pool, report = Pool(), ExtractReport()
    run_units(CHAIN, pool, report, width=places(4), fail_fast=True)
    assert pool.submitted == ["init", "images", "flow", "masks"]
    assert (report.committed, report.failed, report.quality["masks--s--00000"]) == (4, {}, {"n": 1})


def test_no_more_units_at_once_than_asked_for() -> None:
    plan = Plan(tuple(unit(f"c{i}") for i in range(6)), {})
    pool = Pool()
    run_units(plan, pool, ExtractReport(), width=places(2), fail_fast=True)
    assert pool.most_open == 2


def test_current_units_are_not_run_and_satisfy_needs() -> None:
    pool = Pool()
    plan = Plan((unit("init", state="current"), unit("flow", "init", state="stale")), {})
    run_units(plan, pool, ExtractReport(), width=places(4), fail_fast=True)
    assert pool.submitted == ["flow"]


def test_a_failed_unit_takes_along_what_is_made_from_it() -> None:
    report = ExtractReport()
    run_units(CHAIN, Pool({"flow": DataError("bad file")}), report, width=places(4), fail_fast=False)
    assert report.committed == 2
    assert report.failed["flow--s--00000"] == "bad file"
    assert "flow--s--00000" in report.failed["masks--s--00000"]


def test_fail_fast_and_errors_of_the_store_always_raise() -> None:
    with pytest.raises(DataError, match="bad file"):
        run_units(CHAIN, Pool({"flow": DataError("bad file")}), ExtractReport(), width=places(1), fail_fast=True)
    with pytest.raises(StoreError, match="disk full"):
        run_units(CHAIN, Pool({"init": StoreError("disk full")}), ExtractReport(), width=places(1), fail_fast=False)


def test_scenes_are_worked_off_one_after_another() -> None:
    made = [Work(UnitId("init", s)) for s in "ab"] + [
        Work(UnitId("images", s, b), needs=(f"init--{s}--00000",)) for s in "ab" for b in (0, 1)
    ]
    order = [made[0], *made[2:4], made[1], *made[4:6]]
    seen: list[str] = []
    run_units(
        Plan(tuple(order), {}),
        Pool(),
        ExtractReport(),
        width=places(1),
        fail_fast=True,
        progress=lambda item, state: seen.append(item.name) if state == "started" else None,
    )
    assert seen[0] == "init--a--00000"
    assert seen.index("images--a--00001") < seen.index("images--b--00000")
    assert len(seen) == 6


def test_short_units_share_a_task_and_long_ones_do_not() -> None:
    units = Plan(tuple(Work(UnitId("images", "s", b)) for b in range(100)), {})
    for seconds, most in ((0.001, 64), (0.1, 6), (3.0, 1)):
        pool, report = Pool(seconds=seconds), ExtractReport()
        run_units(units, pool, report, width=places(1), fail_fast=True, batch_s=0.5)
        assert report.committed == 100
        assert pool.sizes[0] == 1, "the first shows how long one takes"
        assert most - 1 <= max(pool.sizes) <= most


def test_no_place_takes_the_share_of_another() -> None:
    ready = ReadyUnits([Work(UnitId("images", "s", b)) for b in range(10)], batch_s=0.5)
    ready.learn(Work(UnitId("images", "s")), 0.0)
    assert len(ready.take(False, 4)) == 3
    assert ready.take(True, 4) == ()


def test_what_was_beside_a_unit_that_kills_is_made_and_the_unit_is_named() -> None:
    units = [Work(UnitId("images", "s", b)) for b in range(12)]
    killer = units[7].name

    class Deadly(Pool):
        """Whatever is in the making beside the killer dies with it."""

        def __init__(self) -> None:
            super().__init__()
            self.now: dict[int, Batch] = {}

        def __call__(self, batch: Batch) -> "Future[list[Outcome]]":
            self.now[id(batch)] = batch
            return super().__call__(batch)

        def end(self, batch: Batch, future: "Future[list[Outcome]]") -> None:
            deadly = any(item.name == killer for other in list(self.now.values()) for item in other)
            self.now.pop(id(batch))
            if deadly:
                future.set_exception(WorkerLost(f"{batch[0].name}: died"))
            else:
                super().end(batch, future)

    pool, report = Deadly(), ExtractReport()
    run_units(Plan(tuple(units), {}), pool, report, width=places(2), fail_fast=False, batch_s=0.5)
    assert max(pool.sizes) > 1
    assert report.committed == 11
    assert report.failed == {killer: f"{killer}: died"}
    with pytest.raises(WorkerLost, match="died"):
        run_units(Plan(tuple(units), {}), Deadly(), ExtractReport(), width=places(1), fail_fast=True, batch_s=0.5)


def test_units_for_gpus_have_places_of_their_own() -> None:
    cpu = [Work(UnitId("images", "s", b)) for b in range(4)]
    gpu = [Work(UnitId("masks", "s", b), gpu=True) for b in range(4)]
    seen: list[tuple[str, str]] = []
    pool = Pool()
    run_units(
        Plan((*cpu, *gpu), {}),
        pool,
        ExtractReport(),
        width=lambda gpu: 1 if gpu else 2,
        fail_fast=True,
        progress=lambda item, state: seen.append((item.unit.cue, state)),
    )
    assert [cue for cue, state in seen[:3]] == ["images", "images", "masks"]
    assert pool.most_open == 3


def test_the_cost_per_unit_does_not_grow_with_their_number() -> None:
    def seconds(count: int) -> float:
        needs = ("init--s--00000",)
        units = [Work(UnitId("init", "s")), *(Work(UnitId("images", "s", b), needs=needs) for b in range(count))]
        ready = ReadyUnits(units, 0.0)
        started = time.process_time()
        while ready:
            for item in ready.take(False, 8):
                ready.done(item)
        return time.process_time() - started

    seconds(1000)
    assert seconds(40_000) < 40 * seconds(2_000)  # a scan of all that wait would take 400 times as long


def test_stop_lets_running_units_end() -> None:
    stop, pool, report = Event(), Pool(), ExtractReport()
    told: list[tuple[str, str]] = []

    def follow(item: Work, state: str) -> None:
        told.append((item.unit.cue, state))
        if state == "started" and item.unit.cue == "images":
            stop.set()

    run_units(CHAIN, pool, report, width=places(1), fail_fast=True, progress=follow, stop=stop)
    assert report.interrupted
    assert told == [("init", "started"), ("init", "committed"), ("images", "started"), ("images", "committed")]


def test_a_stop_after_the_last_unit_is_no_interruption() -> None:
    stop, report = Event(), ExtractReport()
    plan = Plan((unit("init"),), {})
    run_units(plan, Pool(), report, width=places(1), fail_fast=True, progress=lambda w, s: stop.set(), stop=stop)
    assert not report.interrupted


def test_signals_set_the_event_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(1)
    assert signal.getsignal(signal.SIGINT) is before


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
