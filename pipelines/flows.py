"""The extraction as a Prefect flow: a task per unit of work (scene, cue, block), or per batch of very short ones.

Import inside `prefect_home.private_prefect()` for the temporary server; Prefect reads its settings when imported.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task
from prefect.utilities.annotations import quote

from pipelines.batches import Batch, Outcome
from pipelines.config import CuesConfig
from pipelines.extract import begin_report, finish_report, going_on, new_run
from pipelines.inspection import leave_inspection
from pipelines.places import AHEAD, Place, place_for
from pipelines.plan import Work, plan
from pipelines.schedule import BatchFuture, ExtractReport, Progress, following, run_units, stop_on_signals, watch
from pipelines.transient import is_transient

SHORTEST_TASK_S = 0.5
"""Shorter units are batched until a task lasts so long (0 for one task per unit)."""
TASK_CPU_S = 0.035
"""CPU seconds that a task costs the flow's process and the Prefect server together, measured (docs/cluster.md)."""
TELL_S = 5.0
"""Seconds between two updates of the progress artifact."""
FAILURES_SHOWN = 200
"""Rows of the artifact of failures."""


class UnitsFailed(Exception):
    """Ends the task of a batch in which units could not be made, so that Prefect shows it as failed, and why."""

    def __init__(self, message: str, outcomes: list[Outcome]) -> None:
        super().__init__(message, outcomes)
        self.outcomes = outcomes

    def __str__(self) -> str:
        return str(self.args[0])


def _retry(task: Any, task_run: Any, state: Any) -> bool:
    try:
        state.result()
    except Exception as error:
        return is_transient(error)
    return False


def tasks_of(config: CuesConfig, place: Place, run: str) -> "Task[Any, list[Outcome]]":
    """The task that makes a batch: `units` are the names for people, `batch` is for `Place.make`.

    A repetition finds the units that the first attempt made.
    """

    # Prefect's result cache stays off: a hit over deleted outputs would skip real work. The store knows what is done.
    @task(
        name="units",
        task_run_name="{units}",
        persist_result=False,
        cache_policy=NO_CACHE,
        log_prints=False,
        retries=config.runner.retries,
        retry_delay_seconds=config.runner.retry_wait_s,
        retry_condition_fn=_retry,
    )
    def make(units: str, batch: Batch) -> list[Outcome]:
        outcomes = place.make(config, batch, run)
        failed = [f"{item.name}: {o.error}" for item, o in zip(batch, outcomes, strict=False) if o.error is not None]
        if failed:
            raise UnitsFailed("\n".join(failed), outcomes)
        return outcomes

    return make


@dataclass
class _Answer:
    """A future whose task may end in UnitsFailed; to the caller that is an answer as well."""

    future: BatchFuture

    def add_done_callback(self, fn: Any) -> None:
        """See BatchFuture."""
        self.future.add_done_callback(lambda _: fn(self))

    def result(self) -> list[Outcome]:
        """See BatchFuture."""
        try:
            return self.future.result()
        except UnitsFailed as failed:
            return failed.outcomes


@flow(name="cues", persist_result=False, validate_parameters=True)
def cues_flow(
    config: CuesConfig, scenes: list[str] | None = None, cues: list[str] | None = None
) -> ExtractReport | State[None]:
    """Extract every open unit of a log; the parameters are those of `pipelines.extract.extract_log`.

    Leaves the artifacts `cues-progress` (percent), `cues` (units per cue), `cues-failed` (units and reasons) and
    `inspection` (the labels' quality, with the page beside the store). A run
    that a schedule started, while another makes units of the same plan, leaves them to that and ends as "Skipped".

    Raises:
        DataError: the first raw file or scene that cannot be used, unless on_error is skip.
        StoreError, ConfigError: as they occur.
        TerminationSignal: SIGTERM under a Prefect worker; units in the making were finished and committed before.
    """
    started = time.perf_counter()
    followed = watch()
    work = plan(config, scenes, cues)
    if _is_scheduled() and (other := going_on(config, work)) is not None:
        return Completed(name="Skipped", message=f"{other} is at units of this plan already")
    report = begin_report(config, work)
    stop, terminated = followed.stop or Event(), None
    if work.open:
        with (
            # A process that is followed stops by its own handlers; under a worker Prefect's has to stay, or a
            # cancelled run would count as crashed.
            nullcontext() if followed.stop is None else stop_on_signals(stop),
            place_for(config.runner, work) as place,
            _tasks_on(place) as runner,
            _told(len(work.open), followed.progress) as told,
        ):
            make = tasks_of(config, place, new_run())
            scheduled = partial(
                run_units,
                work,
                lambda batch: _Answer(runner.submit(make, parameters={"units": _name(batch), "batch": quote(batch)})),
                report,
                width=place.width,
                fail_fast=config.on_error == "fail",
                batch_s=batch_seconds(place),
                progress=told,
                stop=stop,
            )
            terminated = _until_terminated(scheduled, stop)
    finish_report(config, work, report)
    report.seconds = time.perf_counter() - started
    _leave_tables(config, report)
    if work.open and terminated is None and not stop.is_set() and config.inspect:
        report.notes = [*report.notes, leave_inspection(config.store, config.inspect)]
    if terminated is not None:
        raise terminated
    return report


def _is_scheduled() -> bool:
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and bool(context.flow_run.auto_scheduled)


def _until_terminated(work: Callable[[], None], stop: Event) -> TerminationSignal | None:
    """Do `work` in a thread; should Prefect raise SIGTERM's exception here meanwhile, set `stop` and go on waiting.

    Returns that exception when `work` has ended. A second one is raised at once.
    """
    terminated = None
    with ThreadPoolExecutor(1, thread_name_prefix="schedule") as pool:
        ended = pool.submit(copy_context().run, work)
        while True:
            try:
                ended.result()
                return terminated
            except TerminationSignal as signalled:
                stop.set()
                if terminated is not None:
                    raise
                terminated = signalled


def _tasks_on(place: Place) -> "ThreadPoolTaskRunner[Any]":
    return ThreadPoolTaskRunner(max_workers=place.threads)


def batch_seconds(place: Place) -> float:
    """How long a task should last: longer with many workers, so that Prefect is busy half its time at most."""
    at_once = (place.width(False) + place.width(True)) / AHEAD
    return max(SHORTEST_TASK_S, 2 * TASK_CPU_S * at_once) if SHORTEST_TASK_S else 0.0


def _name(batch: Batch) -> str:
    return batch[0].name if len(batch) == 1 else f"{batch[0].name} and {len(batch) - 1} more"


@contextmanager
def _told(total: int, progress: Progress | None) -> Iterator[Progress]:
    """A progress callback that keeps an artifact up to date besides telling `progress`."""
    artifact: Any = create_progress_artifact(progress=0.0, key="cues-progress", description=f"0 of {total} units")
    counts = {"committed": 0, "failed": 0}
    last = time.monotonic()

    def update() -> None:
        ended = sum(counts.values())
        described = f"{ended} of {total} units, {counts['failed']} of them failed"
        update_progress_artifact(artifact, progress=100.0 * ended / total, description=described)

    def tell(item: Work, state: Any) -> None:
        nonlocal last
        if progress is not None:
            progress(item, state)
        if state in counts:
            counts[state] += 1
            if time.monotonic() - last > TELL_S:
                update()
                last = time.monotonic()

    try:
        yield tell
    finally:
        update()


def _leave_tables(config: CuesConfig, report: ExtractReport) -> None:
    create_table_artifact(key="cues", table=summary_rows(report), description=f"{config.store}")
    if report.failed:
        rows = [{"unit": name, "reason": reason} for name, reason in list(report.failed.items())[:FAILURES_SHOWN]]
        create_table_artifact(key="cues-failed", table=rows, description=f"{len(report.failed)} units failed")


def run_flow(
    config: CuesConfig,
    scenes: Sequence[str] | None = None,
    cues: Sequence[str] | None = None,
    progress: Progress | None = None,
    stop: Event | None = None,
) -> ExtractReport:
    """Run the flow here and now, on the runner that the configuration names; arguments and errors as `extract_log`."""
    with following(progress, stop or Event()):
        done = cues_flow(config, None if scenes is None else list(scenes), None if cues is None else list(cues))
    assert isinstance(done, ExtractReport), "nothing schedules a run in this process"
    return done


def summary_rows(report: ExtractReport) -> list[dict[str, Any]]:
    """A small table of what a run did, one row per cue, then totals."""
    made: Counter[str] = Counter(name.split("--")[0] for name in report.quality)
    failed: Counter[str] = Counter(name.split("--")[0] for name in report.failed)
    rows: list[dict[str, Any]] = [
        {"cue": cue, "committed": made[cue], "failed": failed[cue]} for cue in sorted(made | failed)
    ]
    rows.append({"cue": "all", "committed": report.committed, "failed": len(report.failed), "current": report.current})
    return rows
