"""One unit of work in, one committed unit out: plain functions with no orchestrator; flows.py runs them as tasks."""

import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event

from pipelines.batches import Batch, Outcome
from pipelines.block import extract_block, jpeg_bounds
from pipelines.config import CuesConfig
from pipelines.cues.scene_links import link_scene
from pipelines.datasets.records import DataError
from pipelines.models import in_turn
from pipelines.plan import Plan, fingerprint, made_from, plan, upstream_marks
from pipelines.scene_table import scene_table
from pipelines.schedule import ExtractReport, Progress, run_units
from pipelines.transient import retried
from pipelines.workbench import workbench
from storage.commit import CommitRecord, Provenance
from storage.errors import CueMissing, StoreError
from storage.journal import RunJournal, read_runs
from storage.layout import INIT, UnitId
from storage.store import CueStore


def init_scene(config: CuesConfig, scene: str, truth: bool = False) -> CommitRecord:
    """Check every raw file of a scene and commit its table, which fixes T, L, S, N and P; does nothing when current.

    Raises:
        DataError: a file that cannot be used, unless on_error is skip.
        StoreError: from the store.
    """
    bench, unit = workbench(config), UnitId(INIT, scene)
    # The store comes first: the facts of the raw files are kept inside it.
    store = bench.truth_store if truth else bench.store
    records = bench.scene(scene)
    mark = fingerprint(bench, unit, bench.scene_digest(scene), truth)
    if not store.is_current(unit, mark):
        image_bytes, sweep_bytes = jpeg_bounds(bench, records)
        points = bench.inputs(scene).max_points
        store.commit_init(
            scene, scene_table(records, bench.cameras, bench.sizes, image_bytes, sweep_bytes, points), mark
        )
    return _committed(store, unit)


def extract_unit(config: CuesConfig, unit: UnitId, truth: bool = False) -> CommitRecord:
    """Make one unit and commit it, unless the store holds it already; its upstream units must be current.

    Raises:
        DataError: raw data that cannot be used, unless on_error is skip.
        StoreError: from the store, CueMissing for an upstream unit that is not there; or one of them is another run's.
    """
    if unit.cue == INIT:
        return init_scene(config, unit.scene, truth)
    bench = workbench(config)
    store = bench.truth_store if truth else bench.store
    inputs = bench.scene_digest(unit.scene)
    marks = upstream_marks(bench, unit, inputs, truth)
    mark = fingerprint(bench, unit, inputs, truth, marks)
    mismade = False
    if store.is_current(unit, mark):
        found = _committed(store, unit)
        if made_from(found, marks):
            return found
        mismade = True
    _check_upstream(store, unit, marks)
    started = time.perf_counter()
    with in_turn(bench.extractor_for(unit, truth)) as extractor:
        block, skipped = extract_block(bench, unit, extractor, bench.upstream(unit, extractor.needs))
    provenance = Provenance(
        fingerprint=mark,
        config_digest=extractor.config_digest(),
        input_digest=inputs,
        weights_digest=getattr(extractor, "weights_digest", ""),
        upstream=marks,
        licence=extractor.licence(),
        code_version=code_version(),
        seconds=time.perf_counter() - started,
        quality=block.quality | ({"skipped_files": len(skipped)} if skipped else {}),
        notes=[*block.notes, *skipped],
    )
    # Once more: what was read may have been another run's by then.
    _check_upstream(store, unit, marks)
    if mismade:  # which the store would keep, its fingerprint being the same
        store.discard(unit)
    return store.commit_block(unit, block.arrays, provenance)


def _check_upstream(store: CueStore, unit: UnitId, marks: Mapping[str, str]) -> None:
    """Raise StoreError unless the committed units that `unit` is made from have these fingerprints, by cue name."""
    for need, mark in marks.items():
        found = _committed(store, UnitId(need, unit.scene, unit.block))
        if found.fingerprint != mark:
            raise StoreError(
                f"{store.path}: unit {unit} is made from {found.unit} with fingerprint {mark[:12]}, but committed is "
                f"one with {found.fingerprint[:12]}: a run with other settings, or on other raw files, has written it "
                "meanwhile. Let that run end, then run the same command again; other settings belong in another store."
            )


def extract_units(config: CuesConfig, batch: Batch, run: str) -> list[Outcome]:
    """Units one after another, as `extract_unit`; a DataError becomes its unit's outcome.

    Under on_error fail the first of them ends the batch, and the list is shorter than the batch. `run` names the
    extraction: in a process that has served an earlier one, what is known of the disk is looked up anew.

    Raises:
        StoreError: from the store, as any other exception; the units before it stay committed.
    """
    workbench(config, run=run)
    outcomes: list[Outcome] = []
    for item in batch:
        started = time.perf_counter()
        record, error = None, None
        try:
            # Not with whole batches alone: a DataError is its unit's outcome and gets no further.
            attempt = partial(extract_unit, config, item.unit, item.truth)
            record = retried(attempt, item.name, config.runner, DataError)
        except DataError as fault:
            error = fault
        outcomes.append(Outcome(time.perf_counter() - started, record, error))
        if error is not None and config.on_error == "fail":
            break
    return outcomes


def extract_scene(config: CuesConfig, scene: str, cues: Sequence[str] | None = None) -> list[CommitRecord]:
    """All units of one scene in turn: its table, then every cue after those it is made from, then truth."""
    return [extract_unit(config, work.unit, work.truth) for work in plan(config, [scene], cues, fresh=False).work]


def extract_log(
    config: CuesConfig,
    scenes: Sequence[str] | None = None,
    cues: Sequence[str] | None = None,
    progress: Progress | None = None,
    stop: Event | None = None,
) -> ExtractReport:
    """All open units of a log on this process's threads. What is committed stays, whatever ends the run.

    Args:
        config: what to extract, with `runner.workers` threads.
        scenes, cues: only these, as for `plan`.
        progress: called with a unit and "started", "committed" or "failed".
        stop: when set, no further unit starts and the report says `interrupted`.

    Raises:
        DataError: the first raw file or scene that cannot be used, unless on_error is skip.
        StoreError, ConfigError: as they occur.
    """
    started = time.perf_counter()
    work = plan(config, scenes, cues)
    report = begin_report(config, work)
    run = new_run()

    def make(batch: Batch) -> list[Outcome]:
        # What the earlier attempts made is current by then.
        return retried(partial(extract_units, config, batch, run), batch[0].name, config.runner)

    with ThreadPoolExecutor(config.runner.workers, thread_name_prefix="cues") as pool:
        try:
            run_units(
                work,
                lambda batch: pool.submit(make, batch),
                report,
                width=lambda gpu: 1 if gpu else config.runner.workers + 1,
                fail_fast=config.on_error == "fail",
                progress=progress,
                stop=stop,
            )
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    finish_report(config, work, report)
    report.seconds = time.perf_counter() - started
    return report


def new_run() -> str:
    """A name for one extraction, unlike any other's."""
    return uuid.uuid4().hex


def going_on(config: CuesConfig, work: Plan) -> str | None:
    """Host and process of another run that makes open units of this plan now; None where none does, or none can tell.

    Object storage cannot tell. Two runs on the same units are safe, but one of them labours in vain.
    """
    store = workbench(config).open_store(False)
    mine = {item.name for item in work.open}
    if store is None or not mine:
        return None
    return next((run.where for run in read_runs(store.path) if run.running and run.planned & mine), None)


def begin_report(config: CuesConfig, work: Plan) -> ExtractReport:
    """A report of what is current already; what killed writers left is removed first."""
    bench = workbench(config)
    for store in (bench.open_store(False), bench.open_store(True)):
        if store is not None:
            store.sweep_temporaries()
    report = ExtractReport(current=work.count("current"), skipped_scenes=dict(work.skipped))
    if work.open and isinstance(bench.store.path, Path):  # a journal is appended to, which object storage cannot
        report.journal = RunJournal(bench.store.path, [item.name for item in work.open])
    return report


def finish_report(config: CuesConfig, work: Plan, report: ExtractReport) -> None:
    """Join the ids of masks over blocks; add the raw files that were left out, and what the reader noticed."""
    bench = workbench(config)
    store = bench.open_store(False)
    if store is not None and {"masks", "flow_next"} <= set(config.cues):
        for scene in dict.fromkeys(item.unit.scene for item in work.work):
            # Within one block the masks' own ids go on.
            if store.record(UnitId(INIT, scene)) is not None and len(store.blocks(scene)) > 1:
                link_scene(store, scene)
    report.journal = None
    # Planning may have found nothing known of scenes whose files were looked at since.
    bench.known_inputs.cache_clear()
    for scene in dict.fromkeys(item.unit.scene for item in work.work):
        inputs = bench.known_inputs(scene)
        if inputs is not None:
            report.skipped_files |= {str(path): reason for path, reason in inputs.faults.items()}
    report.notes = [*bench.log.notes, *report.notes]


def code_version() -> str:
    """Version of this program as installed, or "source" for a tree that is not."""
    try:
        return version("occflow")
    except PackageNotFoundError:
        return "source"


def _committed(store: CueStore, unit: UnitId) -> CommitRecord:
    record = store.record(unit)
    if record is None:
        raise CueMissing(f"{store.path}: unit {unit} is not committed; run `occflow cues` with cue {unit.cue!r}")
    return record
