"""The extraction as a Prefect flow: one task per unit of work (scene, cue, block), on threads or on Dask.

Import inside `prefect_home.private_prefect()` for the temporary server; Prefect reads its settings when imported.
"""

import errno
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker
from threading import Event
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from pipelines.config import CuesConfig, RunnerConfig
from pipelines.extract import begin_report, extract_unit, finish_report
from pipelines.plan import Work, plan
from pipelines.schedule import ExtractReport, Progress, following, run_units, stop_on_signals, watch
from storage.commit import CommitRecord

TRANSIENT = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.EAGAIN, errno.ENETUNREACH}
    | {errno.EHOSTUNREACH, errno.EINTR, errno.EBUSY}
)
"""I/O errors that may pass by themselves; a damaged file, a full disk or a refused permission does not."""


def is_transient(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is an I/O error that may pass."""
    while error is not None:
        if isinstance(error, TimeoutError | ConnectionError):
            return True
        if isinstance(error, OSError) and error.errno in TRANSIENT:
            return True
        error = error.__cause__
    return False


def _retry(task: Any, task_run: Any, state: Any) -> bool:
    try:
        state.result()
    except Exception as error:
        return is_transient(error)
    return False


# Prefect's result cache stays off: a hit over deleted outputs would skip real work. The store knows what is done.
@task(name="unit", persist_result=False, cache_policy=NO_CACHE, retry_condition_fn=_retry, log_prints=False)
def unit_task(config: CuesConfig, work: Work) -> CommitRecord:
    """One unit of work: `pipelines.extract.extract_unit`."""
    return extract_unit(config, work.unit, work.truth)


@flow(name="cues", persist_result=False, validate_parameters=True)
def cues_flow(config: CuesConfig, scenes: list[str] | None = None, cues: list[str] | None = None) -> ExtractReport:
    """Extract every open unit of a log; the parameters are those of `pipelines.extract.extract_log`.

    Raises:
        DataError: the first raw file or scene that cannot be used, unless on_error is skip.
        StoreError, ConfigError: as they occur.
    """
    started = time.perf_counter()
    followed = watch()
    work = plan(config, scenes, cues)
    report = begin_report(config, work)
    retries, wait = config.runner.retries, config.runner.retry_wait_s
    # Prefect's own SIGTERM handler, in force here, raises wherever the flow stands.
    with stop_on_signals(followed.stop) if followed.stop is not None else nullcontext():
        run_units(
            work,
            lambda item: unit_task.with_options(
                task_run_name=item.name, retries=retries, retry_delay_seconds=wait, retry_condition_fn=_retry
            ).submit(config, item),
            report,
            width=2 * config.runner.workers,
            fail_fast=config.on_error == "fail",
            progress=followed.progress,
            stop=followed.stop,
        )
    finish_report(config, work, report)
    report.seconds = time.perf_counter() - started
    create_table_artifact(key="cues", table=summary_rows(report), description=f"{config.store}")
    return report


@contextmanager
def task_runner(config: RunnerConfig) -> Iterator[TaskRunner[Any]]:
    """Threads of this process, a local Dask cluster of processes, or the Dask cluster at `scheduler`."""
    if config.kind == "threads":
        yield ThreadPoolTaskRunner(max_workers=config.workers)
        return
    from prefect_dask import DaskTaskRunner

    if config.scheduler is not None:
        yield DaskTaskRunner(address=config.scheduler)
        return
    from distributed import LocalCluster

    # Signals of the terminal or the batch system reach a whole process group; workers must not die of them while
    # this process finishes what is in the making. A blocked signal stays blocked in what this thread starts.
    # (multiprocessing unblocks these two when it starts its resource tracker, so that comes first.)
    resource_tracker.ensure_running()
    ours = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ours)
    try:
        cluster = LocalCluster(n_workers=config.workers, threads_per_worker=1, dashboard_address=None)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
    with cluster:
        yield DaskTaskRunner(address=cluster.scheduler_address)


def run_flow(
    config: CuesConfig,
    scenes: Sequence[str] | None = None,
    cues: Sequence[str] | None = None,
    progress: Progress | None = None,
    stop: Event | None = None,
) -> ExtractReport:
    """Run the flow here and now, on the runner that the configuration names; arguments and errors as `extract_log`."""
    with task_runner(config.runner) as runner, following(progress, stop):
        here = cues_flow.with_options(task_runner=runner)
        return here(config, None if scenes is None else list(scenes), None if cues is None else list(cues))


def summary_rows(report: ExtractReport) -> list[dict[str, Any]]:
    """A small table of what a run did, one row per cue, then totals."""
    made: Counter[str] = Counter(name.split("--")[0] for name in report.quality)
    failed: Counter[str] = Counter(name.split("--")[0] for name in report.failed)
    rows: list[dict[str, Any]] = [
        {"cue": cue, "committed": made[cue], "failed": failed[cue]} for cue in sorted(made | failed)
    ]
    rows.append({"cue": "all", "committed": report.committed, "failed": len(report.failed), "current": report.current})
    return rows
