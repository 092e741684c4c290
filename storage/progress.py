"""How a run gets on: what it has made, how fast, how long the rest will take; from its journal and the records."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storage.errors import StoreError
from storage.index import UnitSummary
from storage.journal import RunLog
from storage.layout import UnitId

WINDOW_S = 600.0
"""The speed is that of the last so many seconds."""
_TICK_S = 1.0
"""Files are stamped by another clock than runs: by a coarse one, or a file server's."""
TRUTH = "truth/"
"""What stands before the name of a unit of the truth store."""


@dataclass(frozen=True)
class RunProgress:
    """The runs that go on, taken together, or else the last one.

    Attributes:
        runs: how many go on; 0 when none does.
        started: of the first of them, seconds since the epoch.
        planned, committed, failed: units that they set out to make, and what came of them.
        per_minute: units committed per minute of late.
        seconds_left: for what is open, at the pace of late; None when there is no telling.
        end: how the last run ended; "" where it goes on, or was killed.
        where: host and process of the last run.
    """

    runs: int
    started: float
    planned: int
    committed: int
    failed: int
    per_minute: float
    seconds_left: float | None
    end: str
    where: str

    @property
    def open(self) -> int:
        """Units that are still to be made."""
        return self.planned - self.committed - self.failed


def run_progress(
    runs: Sequence[RunLog],
    cues: Mapping[UnitId, UnitSummary],
    truth: Mapping[UnitId, UnitSummary] | None = None,
    now: float | None = None,
) -> RunProgress | None:
    """How the runs that go on get on, or how the last one ended; None where there never was any.

    The time left: seconds of work that is open (by cue: the mean of its units that are committed), divided by how many
    such seconds were done per second of late. That holds where the cues that are left are slower than those before.
    """
    if not runs:
        return None
    now = time.time() if now is None else now
    chosen = [run for run in runs if run.running] or [runs[-1]]
    started = min(run.started for run in chosen)
    planned = frozenset().union(*(run.planned for run in chosen))
    failed = {name for run in chosen for name in run.failed}
    summaries = {str(unit): summary for unit, summary in cues.items()}
    summaries |= {f"{TRUTH}{unit}": summary for unit, summary in (truth or {}).items()}
    made = {name: s for name, s in summaries.items() if name in planned and s.committed_at > started - _TICK_S}
    failed -= made.keys()
    until = now if chosen[-1].running else max((s.committed_at for s in made.values()), default=now)
    since = max(started, until - WINDOW_S)
    late = [summary for summary in made.values() if summary.committed_at > since - _TICK_S]
    span = max(until - since, 1e-3)
    waiting = [name for name in planned if name not in made and name not in failed]
    left = _work(waiting, summaries) if waiting else 0.0
    pace = sum(summary.seconds for summary in late) / span
    if left is None or pace <= 0:  # no unit tells how long it took: count them alike
        left, pace = float(len(waiting)), len(late) / span
    return RunProgress(
        runs=sum(run.running for run in chosen),
        started=started,
        planned=len(planned),
        committed=len(made),
        failed=len(failed),
        per_minute=60 * len(late) / span,
        seconds_left=left / pace if pace > 0 else None,
        end=chosen[-1].end,
        where=chosen[-1].where,
    )


def _work(names: Sequence[str], summaries: Mapping[str, UnitSummary]) -> float | None:
    """Seconds that these units will take; None when no unit of any cue says how long it took."""
    seconds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for name, summary in summaries.items():
        if summary.seconds > 0:
            seconds[_cue(name)] += summary.seconds  # type: ignore[assignment]
            counts[_cue(name)] += 1
    if not counts:
        return None
    overall = sum(seconds.values()) / counts.total()
    return sum(seconds[cue] / counts[cue] if counts[cue] else overall for cue in map(_cue, names))


def _cue(name: str) -> str:
    return name.split("--", 1)[0]


def latest_failures(
    runs: Sequence[RunLog], units: Mapping[UnitId, UnitSummary], truth: bool = False
) -> dict[UnitId, str]:
    """Units of one store that failed and were not committed since, and why."""
    found: dict[UnitId, str] = {}
    for run in runs:
        for name, (at, why) in run.failed.items():
            if name.startswith(TRUTH) != truth:
                continue
            try:
                unit = UnitId.parse(name.removeprefix(TRUTH))
            except StoreError:
                continue
            found.pop(unit, None)
            if unit not in units or units[unit].committed_at < at - _TICK_S:
                found[unit] = why
    return found
