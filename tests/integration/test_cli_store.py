"""`occflow store copy | subset | prune` and `occflow status` as they are typed."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import occflow_store
from storage.journal import RunJournal
from storage.layout import UnitId
from storage.progress import RunProgress
from storage.status import StatusRow, StoreStatus
from storage.truth import truth_path
from storage.verify import verify

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def filled(occflow: Run, config_file: Path) -> Path:
    """A store of two scenes."""
    assert occflow("cues", config_file, "--runner", "plain").returncode == 0
    return config_file.with_name("store.zarr")


def test_copy_subset_prune_status(occflow: Run, filled: Path, config_file: Path) -> None:
    part = filled.with_name("part.zarr")
    dry = occflow("store", "subset", filled, part, "--scenes", "01", "--cues", "images,lidar", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "9 units (" in dry.stdout
    assert not part.exists()
    done = occflow("store", "subset", filled, part, "--scenes", "01", "--cues", "images,lidar")
    assert done.returncode == 0, done.stderr
    assert "9 units copied" in done.stdout
    assert f"next: occflow verify {part}" in done.stdout
    assert verify(part) == []

    rest = occflow("store", "copy", filled, part)
    assert "25 units copied" in rest.stdout
    assert "9 there" in rest.stdout
    assert verify(part) == []
    again = occflow("cues", config_file, "--runner", "plain", "--store", part)
    assert "0 units committed (0.0 MB), 34 were current" in again.stdout, "a copy is as good as the store itself"

    (part / "scenes/01/images/c.9.0.0").write_bytes(b"stray")
    dry = occflow("store", "prune", part, "--dry-run")
    assert "c.9.0.0: no commit record names it (5 bytes)" in dry.stdout
    assert "1 files, 0.0 MB would be removed" in dry.stdout
    assert f"next: occflow store prune {part}\n" in dry.stdout
    assert "1 files, 0.0 MB removed" in occflow("store", "prune", part).stdout
    assert verify(part) == []

    with RunJournal(part, [str(UnitId("masks", "01"))]) as journal:
        journal.failed(str(UnitId("masks", "01")), "the network is not here")
        shown = occflow("status", part)
    assert "1 run goes on since" in shown.stdout
    assert "failed (0): the network is not here" in shown.stdout


def test_damage_is_told_and_the_rest_is_copied(occflow: Run, filled: Path) -> None:
    shard = next((filled / "scenes/00/lidar/points").glob("c.1*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    target = filled.with_name("copy.zarr")
    result = occflow("store", "copy", filled, target)
    assert result.returncode == 1
    assert "not copied: lidar--00--00001" in result.stdout
    assert "33 units copied" in result.stdout
    assert f"next: occflow verify --repair {filled}" in result.stdout
    assert verify(target) == []
    assert not truth_path(target).exists()
    refused = occflow("store", "copy", filled, target, "--truth")
    assert refused.returncode == 2
    assert str(truth_path(filled)) in refused.stderr
    assert "units copied" not in refused.stdout, "told before anything is copied"


def test_truth_that_cannot_be_copied_is_told_before_the_cues_are(occflow: Run, filled: Path) -> None:
    """Any store will do for the truth's: here it lacks the scene that is asked for."""
    assert occflow("store", "subset", filled, truth_path(filled), "--scenes", "00").returncode == 0
    target = filled.with_name("part.zarr")
    refused = occflow("store", "subset", filled, target, "--scenes", "01", "--truth")
    assert refused.returncode == 1
    assert f"{truth_path(filled)}: no scene '01'" in refused.stderr
    assert not target.exists()
    assert occflow("store", "subset", filled, target, "--scenes", "00", "--truth").returncode == 0
    assert (verify(target), verify(truth_path(target))) == ([], [])


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[[StoreStatus, bool], str]:
    """What `status` prints."""

    def show(found: StoreStatus, every: bool = False) -> str:
        console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
        monkeypatch.setattr(occflow_store, "out", console)
        monkeypatch.setattr(occflow_store, "say", console.print)
        occflow_store.show_status(found, every, "my stores/s.zarr")
        console.file.close()
        return console.export_text()

    return show


def test_a_long_path_is_shown_whole(shown: Callable[..., str]) -> None:
    path = "/data/" + "x" * 200 + "/CAM_FRONT.jpg"
    row = StatusRow("a", "init", "missing", 0, 1, 0, 0, f"failed: {path}: empty file", failed=1, planned=True)
    assert path in "".join(shown(StoreStatus([row], [], None)).split())


def test_a_large_store_is_summed_up(shown: Callable[..., str]) -> None:
    """Of 100 scenes: the sums by cue, and only those scenes by name that are not as the others are."""
    rows = [StatusRow(f"s{n:03d}", "lidar", "complete", 2, 2, 80, 10**6, "") for n in range(100)]
    rows += [StatusRow(f"s{n:03d}", "masks", "missing", 0, 2, 0, 0, "") for n in range(100)]
    rows[7] = StatusRow("s007", "lidar", "partial", 1, 2, 40, 10**6, "failed (1): torn sweep", failed=1)
    text = shown(StoreStatus(rows, [], None))
    lidar = next(line for line in text.splitlines() if line.split()[:1] == ["lidar"])
    assert lidar.split() == ["lidar", "99", "1", "0", "0", "199/200", "1", "100.0", "MB"]
    assert "torn sweep" in text
    assert "s008" not in text
    assert shown(StoreStatus(rows, [], None), True).count("s0") == 200
    rows = [replace(row, state="partial") for row in rows]
    assert "and 80 more; all of them: occflow status 'my stores/s.zarr' --all" in shown(
        StoreStatus(rows[:100], [], None)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"runs": 1},
            "1 run goes on since .* \\(here\\): 30 of 100 units committed, 5 failed, 12.0 per minute, about 1 h 2 min",
        ),
        ({"runs": 3, "seconds_left": None}, "3 runs go on .* no telling how long"),
        ({"runs": 0, "end": "stopped"}, "last run, .* ended: stopped; .* 65 not made"),
        ({"runs": 0}, "it was killed"),
    ],
)
def test_the_run_in_a_line(shown: Callable[..., str], changes: dict, words: str) -> None:
    values = {"runs": 1, "started": 1e9, "planned": 100, "committed": 30, "failed": 5, "per_minute": 12.0}
    values |= {"seconds_left": 3725.0, "end": "", "where": "here", **changes}
    import re

    assert re.search(words, shown(StoreStatus([], [], RunProgress(**values))))  # type: ignore[arg-type]
