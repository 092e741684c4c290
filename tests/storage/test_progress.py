"""What a run leaves word of, and what is made of it: failures, pace, time left."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import storage.journal
from storage.index import UnitSummary, read_summaries
from storage.journal import RUNS, RunJournal, RunLog, read_runs
from storage.layout import UnitId
from storage.progress import latest_failures, run_progress
from storage.status import status, store_status
from storage.store import CueStore
from storage.verify import verify

START = 1_000_000.0


def made(at: float, seconds: float = 0.0) -> UnitSummary:
    return UnitSummary((0, 1), "i", 10, seconds, (), START + at)


def names(cue: str, *blocks: int) -> list[str]:
    return [str(UnitId(cue, "a", block)) for block in blocks]


def test_a_run_that_goes_on_and_one_that_ended(memory: Path) -> None:
    with RunJournal(memory, ["lidar--a--00000", "truth/camera--a--00000"]) as journal:
        journal.failed("lidar--a--00000", "broken sweep")
        (log,) = read_runs(memory)
        assert log.running
        assert log.planned == {"lidar--a--00000", "truth/camera--a--00000"}
        assert log.failed["lidar--a--00000"][1] == "broken sweep"
    (log,) = read_runs(memory)
    assert (log.running, log.end) == (False, "done")
    with pytest.raises(OSError, match="disk full"), RunJournal(memory, []):
        raise OSError("disk full")
    assert read_runs(memory)[1].end == "OSError: disk full"
    stopped = RunJournal(memory, [])
    stopped.end("stopped")
    stopped.failed("late", "is not written")
    assert [log.end for log in read_runs(memory)] == ["done", "OSError: disk full", "stopped"]
    assert read_runs(memory)[2].failed == {}


def test_a_run_that_was_killed_is_not_taken_for_one_that_goes_on(memory: Path) -> None:
    code = f"""
import os, signal, pathlib
from storage.journal import RunJournal
journal = RunJournal(pathlib.Path({str(memory)!r}), ["masks--a--00000"])
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = str(Path(storage.journal.__file__).parents[1])
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, check=False)
    assert killed.returncode == -signal.SIGKILL
    (log,) = read_runs(memory)
    assert (log.running, log.end, log.planned) == (False, "", {"masks--a--00000"})


def test_lines_cut_off_and_old_journals(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        RunJournal(memory, [f"masks--a--{number:05d}"]).end("done")
    path = sorted((memory / RUNS).iterdir())[0]
    path.write_bytes(path.read_bytes() + b'{"at": 3, "kind": "fai')
    assert len(read_runs(memory)) == 4
    (memory / RUNS / "0-1.jsonl").write_bytes(b'{"at"')
    assert len(read_runs(memory)) == 4
    monkeypatch.setattr(storage.journal, "KEPT", 2)
    running = RunJournal(memory, ["lidar--a--00000"])
    RunJournal(memory, []).end("done")
    RunJournal(memory, []).end("done")
    assert [log.running for log in read_runs(memory)] == [True, False, False]
    running.end("done")


def test_runs_that_start_together_all_have_their_journal(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of an array forget the same old journals at the same moment."""
    monkeypatch.setattr(storage.journal, "KEPT", 2)
    for _ in range(3):
        RunJournal(memory, ["masks--a--00000"]).end("done")
    held = storage.journal._is_held

    def another_was_first(path: Path) -> bool:
        found = held(path)
        path.unlink()
        return found

    monkeypatch.setattr(storage.journal, "_is_held", another_was_first)
    journal = RunJournal(memory, ["lidar--a--00000"])
    monkeypatch.setattr(storage.journal, "_is_held", held)
    assert [run.planned for run in read_runs(memory) if run.running] == [{"lidar--a--00000"}]
    journal.end("done")


def test_a_journal_that_cannot_be_written_stops_nothing(memory: Path) -> None:
    (memory / "commits").write_bytes(b"a file where the folder would be")
    with RunJournal(memory, ["masks--a--00000"]) as journal:
        journal.failed("masks--a--00000", "why")
    assert read_runs(memory) == []


def test_time_left_by_hand() -> None:
    """Ten minutes in: 6 lidar units of 10 s and 2 masks units of 120 s, so 0.5 s of work per second. 1 of each kind
    failed or not, 3 masks are open: 360 s of work, 720 s."""
    planned = [*names("lidar", *range(7)), *names("masks", *range(5))]
    units = {UnitId("lidar", "a", b): made(60 * b, 10.0) for b in range(6)}
    units |= {UnitId("masks", "a", b): made(300 + b, 120.0) for b in range(2)}
    units[UnitId("flow_next", "a", 0)] = made(-5000, 7.0)
    run = RunLog(START, frozenset(planned), {names("lidar", 6)[0]: (START + 50, "broken")}, running=True, where="here")
    progress = run_progress([run], units, now=START + 600)
    assert progress is not None
    assert (progress.planned, progress.committed, progress.failed, progress.open) == (12, 8, 1, 3)
    assert progress.per_minute == pytest.approx(0.8)
    assert progress.seconds_left == pytest.approx(720)


def test_the_pace_is_that_of_late() -> None:
    units = {UnitId("lidar", "a", b): made(b, 1.0) for b in range(100)}
    units |= {UnitId("lidar", "a", 100 + b): made(3000 + 60 * b, 1.0) for b in range(10)}
    run = RunLog(START, frozenset(names("lidar", *range(120))), running=True)
    progress = run_progress([run], units, now=START + 3600)
    assert progress is not None
    assert progress.per_minute == pytest.approx(1.0)
    assert progress.seconds_left == pytest.approx(600)


def test_units_that_do_not_tell_their_time_count_alike_and_no_pace_is_no_telling() -> None:
    run = RunLog(START, frozenset(names("lidar", 0, 1, 2, 3)), running=True)
    units = {UnitId("lidar", "a", 0): made(30)}
    progress = run_progress([run], units, now=START + 60)
    assert progress is not None
    assert progress.seconds_left == pytest.approx(180)
    before = run_progress([run], {UnitId("lidar", "a", 0): made(-1)}, now=START + 60)
    assert before is not None
    assert (before.committed, before.seconds_left) == (0, None)
    assert run_progress([], units) is None


def test_several_runs_at_once_and_the_last_one() -> None:
    one = RunLog(START, frozenset(names("lidar", 0, 1)), running=True)
    two = RunLog(START + 10, frozenset(names("masks", 0, 1)), running=True)
    over = RunLog(START + 20, frozenset(names("lidar", 5)), end="done")
    truth = {UnitId("camera", "a", 0): made(1)}
    progress = run_progress([one, two, over], {UnitId("masks", "a", 0): made(20)}, truth, now=START + 60)
    assert progress is not None
    assert (progress.runs, progress.started, progress.planned, progress.committed) == (2, START, 4, 1)
    last = run_progress([over], {}, now=START + 60)
    assert last is not None
    assert (last.runs, last.end, last.open) == (0, "done", 1)


def test_a_failure_is_told_until_the_unit_is_committed() -> None:
    lidar, camera = UnitId("lidar", "a", 0), UnitId("camera", "a", 0)
    first = RunLog(START, frozenset(), {str(lidar): (START + 1, "torn"), f"truth/{camera}": (START + 2, "no depth")})
    second = RunLog(START + 100, frozenset(), {str(lidar): (START + 101, "torn again")})
    assert latest_failures([first], {}) == {lidar: "torn"}
    assert latest_failures([first, second], {}) == {lidar: "torn again"}
    assert latest_failures([first], {lidar: made(50)}) == {}
    assert latest_failures([first, second], {lidar: made(50)}) == {lidar: "torn again"}
    assert latest_failures([first], {lidar: made(0)}, truth=True) == {camera: "no depth"}


def test_status_says_what_failed_and_what_is_under_way(store: CueStore, tiny: SimpleNamespace) -> None:
    tiny.commit(store, "lidar", 0)
    with RunJournal(store.path, [*names("lidar", 1, 2), *names("masks", 0, 1, 2), "init--b--00000"]) as journal:
        journal.failed(names("lidar", 1)[0], "sweep 12 is truncated")
        journal.failed("init--b--00000", "no calibration")
        tiny.commit(store, "masks", 0)
        found = store_status(store.path)
        rows = {(row.scene, row.cue): row for row in found.rows}
        lidar = rows["a", "lidar"]
        assert (lidar.state, lidar.failed) == ("partial", 1)
        assert lidar.why == (
            "failed (1): sweep 12 is truncated; 2 of 3 blocks not committed (1-2); "
            "to be made by the run that goes on (2)"
        )
        assert rows["a", "masks"].why.endswith("to be made by the run that goes on (1-2)")
        assert rows["a", "images"].why == "no run was asked for it"
        assert rows["b", "init"].why == "failed: no calibration"
        assert found.run is not None
        assert (found.run.runs, found.run.planned, found.run.committed, found.run.failed) == (1, 6, 1, 2)
    after = {(row.scene, row.cue): row for row in status(store.path)}
    assert after["a", "masks"].why == "2 of 3 blocks not committed (1-2); was made, and taken back since (1-2)"
    tiny.commit(store, "lidar", 1)
    assert {(row.scene, row.cue): row for row in status(store.path)}["a", "lidar"].failed == 0
    assert verify(store.path) == []
    assert len(read_summaries(store.path).units) == 4


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("stopped", "the run that was to make it ended: stopped"),
        ("DataError: a.jpg: empty file", "the run that was to make it ended: DataError: a.jpg: empty file"),
        ("", "the run that was to make it was killed"),
    ],
)
def test_status_says_why_the_last_run_left_units_out(
    store: CueStore, tiny: SimpleNamespace, end: str, why: str
) -> None:
    tiny.commit(store, "lidar", 0)
    journal = RunJournal(store.path, [*names("lidar", 0, 1, 2), *names("masks", 0, 1, 2), "init--b--00000"])
    rows = {(row.scene, row.cue): row for row in status(store.path)}
    assert rows["b", "init"].why == "to be made by the run that goes on"
    if end:
        journal.end(end)
    else:
        assert journal._file is not None
        os.close(journal._file)
    rows = {(row.scene, row.cue): row for row in status(store.path)}
    assert rows["a", "lidar"].why == f"2 of 3 blocks not committed (1-2); {why} (1-2)"
    assert rows["a", "masks"].why == f"{why} (0-2)"
    assert rows["b", "init"].why == why, "a scene of which nothing is there yet"
    assert {name for name, row in rows.items() if row.wanting} == {("a", "lidar"), ("a", "masks"), ("b", "init")}
