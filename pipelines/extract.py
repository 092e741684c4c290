"""One unit of work in, one committed unit out: plain functions with no orchestrator; flows.py runs them as tasks."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from threading import Event

from pipelines.block import extract_block, jpeg_bounds
from pipelines.config import CuesConfig
from pipelines.plan import Plan, fingerprint, plan
from pipelines.scene_table import scene_table
from pipelines.schedule import ExtractReport, Progress, run_units
from pipelines.workbench import workbench
from storage.commit import CommitRecord, Provenance
from storage.errors import CueMissing
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
        StoreError: from the store, CueMissing for an upstream unit that is not there.
    """
    if unit.cue == INIT:
        return init_scene(config, unit.scene, truth)
    bench = workbench(config)
    store = bench.truth_store if truth else bench.store
    mark = fingerprint(bench, unit, bench.scene_digest(unit.scene), truth)
    if store.is_current(unit, mark):
        return _committed(store, unit)
    started = time.perf_counter()
    extractor = bench.extractor_for(unit, truth)
    block, skipped = extract_block(bench, unit, extractor, bench.upstream(unit, extractor.needs))
    provenance = Provenance(
        fingerprint=mark,
        config_digest=extractor.config_digest(),
        input_digest=bench.scene_digest(unit.scene),
        weights_digest=getattr(extractor, "weights_digest", ""),
        upstream={
            need: _committed(store, UnitId(need, unit.scene, unit.block)).fingerprint for need in extractor.needs
        },
        licence=extractor.licence(),
        code_version=code_version(),
        seconds=time.perf_counter() - started,
        quality=block.quality | ({"skipped_files": len(skipped)} if skipped else {}),
        notes=[*block.notes, *skipped],
    )
    return store.commit_block(unit, block.arrays, provenance)


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
    with ThreadPoolExecutor(config.runner.workers, thread_name_prefix="cues") as pool:
        try:
            run_units(
                work,
                lambda item: pool.submit(extract_unit, config, item.unit, item.truth),
                report,
                width=config.runner.workers + 1,
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


def begin_report(config: CuesConfig, work: Plan) -> ExtractReport:
    """A report of what is current already; if anything is to be done, what killed writers left is removed first."""
    bench = workbench(config)
    if work.open:
        for store in (bench.open_store(False), bench.open_store(True)):
            if store is not None:
                store.sweep_temporaries()
    return ExtractReport(current=work.count("current"), skipped_scenes=dict(work.skipped))


def finish_report(config: CuesConfig, work: Plan, report: ExtractReport) -> None:
    """Add the raw files that were left out, and what the reader noticed."""
    bench = workbench(config)
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
