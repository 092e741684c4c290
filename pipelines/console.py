"""An extraction on a terminal: which runner, a progress line, and what was done in the end."""

import math
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipelines.config import CuesConfig
from pipelines.estimate import Estimate, check_space, estimate, free_space, projection
from pipelines.extract import extract_log
from pipelines.plan import Plan, Work, plan
from pipelines.prefect_home import private_prefect
from pipelines.schedule import ExtractReport, stop_on_signals

_LINES = 12
"""Notes or failures printed before the rest is counted only."""


def extract_shown(
    config: CuesConfig,
    scenes: Sequence[str] | None,
    cues: Sequence[str] | None,
    console: Console,
    prefect: bool = True,
) -> ExtractReport:
    """Extract with progress on `console`: as a Prefect flow, or on plain threads; neither starts if nothing is open.

    SIGINT and SIGTERM end it in order.

    Raises:
        ConfigError: workers that do not offer what the cues ask for; others as `extract_log`.
        PrefectError: the temporary server did not start.
    """
    work = plan(config, scenes, cues)
    where = f"Prefect on {config.runner.kind}" if prefect else "threads"
    if work.open:
        console.print(f"{len(work.open)} units to make, {work.count('current')} current; {where}", markup=False)
    with stop_on_signals() as stop, UnitProgress(console, work) as told:
        if not work.open or not prefect:
            return extract_log(config, scenes, cues, told, stop)
        with private_prefect(stop):
            from pipelines.flows import run_flow

            return run_flow(config, scenes, cues, told, stop)


class UnitProgress:
    """A progress bar that is itself the callback told of units."""

    def __init__(self, console: Console, work: Plan) -> None:
        self.running: Counter[str] = Counter()
        self.bar = Progress(
            TextColumn("cues"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal or not work.open,
        )
        self.task = self.bar.add_task("starting", total=len(work.open))

    def __call__(self, work: Work, state: str) -> None:
        """Count a unit's beginning or end."""
        self.running[work.unit.cue] += 1 if state == "started" else -1
        now = ", ".join(cue for cue, count in self.running.items() if count > 0)
        self.bar.update(self.task, advance=state != "started", description=now)

    def __enter__(self) -> "UnitProgress":
        self.bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()


def show_report(report: ExtractReport, config: CuesConfig, console: Console) -> None:
    """Counts, what was skipped or impossible, and where it was written."""
    for title, items in (
        ("left out (scene)", list(report.skipped_scenes.values())),
        ("left out (file)", list(report.skipped_files.values())),
        ("failed", [f"{name}: {reason}" for name, reason in report.failed.items()]),
        ("note", _short(report.notes)),
    ):
        for line in items[:_LINES]:
            console.print(f"{title}: {line}", markup=False, soft_wrap=True)
        if len(items) > _LINES:
            console.print(f"{title}: and {len(items) - _LINES} more: occflow status {config.store}", markup=False)
    state = "stopped: " if report.interrupted else ""
    console.print(
        f"{state}{report.committed} units committed ({report.bytes / 1e6:.1f} MB), {report.current} were current, "
        f"{len(report.failed)} failed, {len(report.skipped_files)} files and {len(report.skipped_scenes)} scenes left "
        f"out, {report.seconds:.1f} s -> {config.store}",
        markup=False,
        soft_wrap=True,
    )


def _short(notes: Sequence[str]) -> list[str]:
    """Notes, those that differ only in their unit's name counted together."""
    texts: Counter[str] = Counter()
    for note in notes:
        unit, colon, text = note.partition(": ")
        texts[f"{unit.split('--')[0]}: {text}" if colon and "--" in unit else note] += 1
    return [text if count == 1 else f"{text} (in {count} units)" for text, count in texts.items()]


def show_dry_run(
    config: CuesConfig, scenes: Sequence[str] | None, cues: Sequence[str] | None, console: Console
) -> None:
    """A table of what an extraction would take. Raises StoreError when the disk is too small for it."""
    work = plan(config, scenes, cues)
    rows = estimate(config, work)
    console.print(f"{len(work.open)} units to make, {work.count('current')} current", markup=False)
    table = Table("cue", "units", "keyframes", "size", "time", "of a", "rates")
    for row in rows:
        time = f"{row.seconds / 3600:.1f} h" if row.seconds >= 3600 else f"{row.seconds:.0f} s"
        table.add_row(
            row.cue, str(row.units), str(row.keyframes), f"{row.bytes / 1e6:,.1f} MB", time, _device(row), row.source
        )
    if rows:
        console.print(table)
    hours = {device: sum(row.seconds for row in rows if _device(row) == device) / 3600 for device in ("core", "GPU")}
    size = sum(row.bytes for row in rows)
    free = free_space(config.store)
    console.print(
        f"about {hours['core']:.2f} core hours, {hours['GPU']:.2f} GPU hours, {size / 1e9:.2f} GB; "
        + (f"{free / 1e9:.1f} GB are free" if math.isfinite(free) else "a bucket has no end"),
        soft_wrap=True,
    )
    _show_projection(config, console)
    check_space(config, rows)


def _show_projection(config: CuesConfig, console: Console) -> None:
    """What the whole data set would take, in each profile."""
    found = projection(config)
    if found is None:
        return
    whole, profiles = found
    cameras = "1 camera" if whole.cameras == 1 else f"{whole.cameras} cameras"
    extent = f"{whole.keyframes:,} keyframes, {cameras}"
    console.print(f"all of {whole.name} ({extent}), GB by profile:", soft_wrap=True)
    table = Table("cue", *profiles)
    for cue in config.cues:
        table.add_row(cue, *(f"{sizes[cue] / 1e9:,.1f}" for sizes in profiles.values()))
    table.add_row("all", *(f"{sum(sizes.values()) / 1e9:,.1f}" for sizes in profiles.values()))
    console.print(table)


def _device(row: Estimate) -> str:
    return "GPU" if row.gpu else "core"
