"""`occflow store copy | subset | prune`: moving parts of a store, and tidying one up; and the tables of `status`."""

import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from occflow_shell import CommandError, command, names, out, say, verb

app = typer.Typer(help="Copy stores or parts of them, and tidy them up.", no_args_is_help=True)
_LINES = 20
"""Files named by `prune`, and scenes by `status`, before the rest is counted only."""
_ROWS = 60
"""Rows of scene and cue that `status` shows one by one."""

_WHERE = "a path, or s3://bucket/….zarr"
SourceArgument = Annotated[str, typer.Argument(help=f"The store to copy from, {_WHERE}; it is only read.")]
DestinationArgument = Annotated[
    str, typer.Argument(help=f"The store to copy into, {_WHERE}; made where there is none.")
]
TruthOption = Annotated[bool, typer.Option("--truth", help="The truth store beside it as well.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace other commits of the same units.")]
WorkersOption = Annotated[int, typer.Option(min=1, help="Units copied at a time.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, write nothing.")]


@app.command()
@verb
def copy(
    source: SourceArgument,
    destination: DestinationArgument,
    truth: TruthOption = False,
    overwrite: OverwriteOption = False,
    workers: WorkersOption = 2,
    dry_run: DryRunOption = False,
) -> None:
    """Copy a whole store, commits and all; goes on where an earlier copy was stopped."""
    _transfer(source, destination, truth, workers, dry_run, overwrite=overwrite)


@app.command()
@verb
def subset(
    source: SourceArgument,
    destination: DestinationArgument,
    scenes: Annotated[str | None, typer.Option(help="Names or patterns, comma-separated; default all.")] = None,
    cues: Annotated[str | None, typer.Option(help="Cues, comma-separated; default all.")] = None,
    upstream: Annotated[bool, typer.Option("--upstream", help="Also the cues that these were made from.")] = False,
    truth: TruthOption = False,
    overwrite: OverwriteOption = False,
    workers: WorkersOption = 2,
    dry_run: DryRunOption = False,
) -> None:
    """Copy some scenes or cues of a store, with the init unit of each scene; may be repeated with other parts."""
    options: dict[str, Any] = {"cues": names(cues), "upstream": upstream, "overwrite": overwrite}
    _transfer(source, destination, truth, workers, dry_run, scenes=names(scenes), **options)


@app.command()
@verb
def prune(
    store: Annotated[str, typer.Argument(help=f"A cue store, {_WHERE}.")],
    truth: TruthOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Remove what nobody can read: leftovers of killed writers, replaced generations, blocks that went stale."""
    from storage.prune import prune as prune_store
    from storage.truth import truth_path

    if truth:
        _require_truth(store)
    for path in [store, *([truth_path(store)] if truth else [])]:
        found = prune_store(path, dry_run=dry_run)
        gone = [item for item in found if not item.kept]
        for item in gone[:_LINES]:
            say(f"{item.path}: {item.why} ({item.bytes:,} bytes)")
        if len(gone) > _LINES:
            say(f"and {len(gone) - _LINES} more")
        for item in found:
            if item.kept:
                say(f"left alone: {item.path}: {item.why}")
        done = "would be removed" if dry_run else "removed"
        say(f"{path}: {len(gone)} files, {sum(item.bytes for item in gone) / 1e6:.1f} MB {done}")
    words = ("store", "prune", store, *(["--truth"] if truth else [])) if dry_run else ("verify", store)
    say(f"next: {command('occflow', *words)}")


def _require_truth(store: str) -> None:
    from storage.truth import truth_path

    if not truth_path(store).exists():
        raise CommandError(f"--truth: there is no truth store beside {store} ({truth_path(store)}); leave it out")


def _transfer(source: str, destination: str, truth: bool, workers: int, dry_run: bool, **options: Any) -> None:
    """Cues first, then truth; exits with 1 where something is damaged in the source."""
    from storage.transfer import check_space, transfer
    from storage.transfer_plan import plan_transfer
    from storage.truth import truth_path

    pairs: list[tuple[Any, Any, dict[str, Any]]] = [(source, destination, options)]
    if truth:
        _require_truth(source)
        every_cue = options | {"cues": None, "upstream": False}
        pairs.append((truth_path(source), truth_path(destination), every_cue))
    # What cannot be done is told before the first copy, which may take hours.
    plans = [(here, there, plan_transfer(here, there, **selection)) for here, there, selection in pairs]
    for _, there, plan in plans:
        for note in plan.notes:
            say(f"note: {note}")
        check_space(plan, there)
    damaged: dict[Any, str] = {}
    for here, there, plan in plans:
        if dry_run:
            damaged |= plan.damaged
            say(f"{len(plan.copy)} units ({plan.bytes / 1e6:.1f} MB) to copy, {len(plan.present)} there: {there}")
            continue
        with _Bar(plan.bytes) as bar:
            report = transfer(here, there, plan, workers=workers, progress=bar)
        damaged |= report.damaged
        say(f"{len(report.copied)} units copied ({report.bytes / 1e6:.1f} MB), {len(report.present)} there -> {there}")
    for unit, why in damaged.items():
        say(f"not copied: {unit}: {why}")
    if dry_run:
        say("next: the same command without --dry-run")
    else:
        words = ("verify", "--repair", source) if damaged else ("verify", destination)
        say(f"next: {command('occflow', *words)}")
    raise typer.Exit(1 if damaged else 0)


class _Bar:
    """A progress bar over bytes that is itself the callback told of units."""

    def __init__(self, total: int) -> None:
        columns = (TextColumn("copy"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=out, transient=True, disable=not out.is_terminal)
        self.task = self.bar.add_task("copy", total=total)

    def __call__(self, record: Any) -> None:
        """Count a unit that was copied."""
        self.bar.update(self.task, advance=record.bytes)

    def __enter__(self) -> "_Bar":
        self.bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()


def show_status(found: Any, every: bool, store: str) -> None:
    """The StoreStatus of `store`: the run, then every scene and cue, or sums by cue and the scenes to look at."""
    if found.run is not None:
        say(_run_line(found.run))
    labelled = [*(("", row) for row in found.rows), *(("truth ", row) for row in found.truth)]
    if every or len(labelled) <= _ROWS:
        _show_rows(labelled)
        return
    table = Table("cue", "scenes complete", "partial", "missing", "damaged", "blocks", "failed", "size", box=None)
    by_cue: dict[str, list[Any]] = {}
    for label, row in labelled:
        by_cue.setdefault(label + row.cue, []).append(row)
    for cue, rows in by_cue.items():
        states = [str(sum(row.state == state for row in rows)) for state in _STATES]
        blocks = f"{sum(row.committed for row in rows)}/{sum(row.blocks for row in rows)}"
        size = f"{sum(row.bytes for row in rows) / 1e6:,.1f} MB"
        table.add_row(cue, *states, blocks, str(sum(row.failed for row in rows)), size)
    out.print(table)
    # A cue that no scene has was never asked for.
    asked = {cue for cue, rows in by_cue.items() if any(row.committed for row in rows)}
    wanting = [
        (n, row)
        for n, row in labelled
        if row.failed or row.wanting or (row.state != "complete" and n + row.cue in asked)
    ]
    wanting.sort(key=lambda item: (item[1].state != "damaged", not item[1].failed))
    if wanting:
        _show_rows(wanting[:_LINES])
    if len(wanting) > _LINES:
        say(f"and {len(wanting) - _LINES} more; all of them: {command('occflow', 'status', store, '--all')}")


_STATES = ("complete", "partial", "missing", "damaged")


def _show_rows(labelled: Sequence[tuple[str, Any]]) -> None:
    table = Table("scene", "cue", "state", "blocks", "keyframes", "size", box=None)
    table.add_column("why", overflow="fold")  # a path's end is what tells which file
    for label, row in labelled:
        size, blocks = f"{row.bytes / 1e6:.1f} MB", f"{row.committed}/{row.blocks}"
        table.add_row(row.scene, label + row.cue, row.state, blocks, str(row.frames), size, row.why)
    out.print(table)


def _run_line(run: Any) -> str:
    """How a storage.progress.RunProgress gets on, or how it ended."""
    counts = f"{run.committed} of {run.planned} units committed, {run.failed} failed"
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started))
    if run.runs:
        several = "1 run goes on" if run.runs == 1 else f"{run.runs} runs go on"
        left = "no telling how long" if run.seconds_left is None else f"about {_duration(run.seconds_left)} left"
        return f"{several} since {since} ({run.where}): {counts}, {run.per_minute:.1f} per minute, {left}"
    ended = "ended without a word: it was killed" if not run.end else f"ended: {run.end}"
    return f"last run, since {since} ({run.where}), {ended}; {counts}, {run.open} not made"


def _duration(seconds: float) -> str:
    """1 h 20 min, 12 min, 40 s."""
    if seconds >= 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
