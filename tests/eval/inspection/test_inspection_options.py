"""`occflow inspect` passes over no option, and its terminal says what it does not list."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from occflow import app
from occflow_inspect import _show


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--camera", "CAM_FRONT"], "--camera: this says what to draw of --scene and --frame"),
        (["--port", "0"], "--port: this is for --serve"),
        (
            ["--scene", "s", "--frame", "3", "--serve", "--against", "o", "--exclude", "f", "--rrd", "d"],
            "--against, --rrd, --exclude, --serve: --scene and --frame draw one image",
        ),
        (["--scene", "s", "--frame", "3", "--all", "--sample", "4"], "--sample, --all: --scene and --frame draw"),
    ],
)
def test_no_option_is_passed_over(tmp_path: Path, options: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "s.zarr"), *options])
    assert done.exit_code == 2
    assert words in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_done_is_told_before_the_inspection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.inspection.report.make_report", lambda *given: pytest.fail("inspected all the same"))
    marks = tmp_path / "marks.json"
    marks.write_text("{bad")
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "s.zarr"), "--exclude", str(marks)])
    assert done.exit_code == 1, done.output
    assert "marks.json" in done.output
    for option, end in (("--out", ""), ("--out", "/page"), ("--rrd", ""), ("--exclude", "/new.json")):
        done = CliRunner().invoke(app, ["inspect", str(tmp_path / "s.zarr"), option, f"{marks}{end}"])
        assert done.exit_code == 2, done.output
        assert f"{option}: {marks} is no folder" in " ".join(done.output.split())
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "s.zarr"), "--against", str(tmp_path / "other.zarr")])
    assert done.exit_code == 1, done.output
    assert "other.zarr: no cue store here" in done.output
    assert [place.name for place in tmp_path.iterdir()] == ["marks.json"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(app, ["inspect", str(tmp_path / "s.zarr"), "--serve", "--port", port])
    assert done.exit_code == 2
    assert f"--port {port}: cannot listen there" in " ".join(done.output.split())


def test_the_terminal_says_how_many_more_could_not_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    found = {"checks": [], "unreadable": ["a:0: damaged"], "unreadable_count": 61, "verdict": "fail", "seconds": 1}
    _show(found | {"sample": {"keyframes": 61, "of": 61}})
    assert "60 more keyframes could not be read" in capsys.readouterr().out


def test_the_terminal_shows_the_share_that_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    check = {"name": "x", "title": "X", "state": "pass", "unit": "px", "low": False, "count": 9, "bad": 0}
    check |= {"value": 1.0, "limit": 2.0, "share_allowed": 0.025, "meaning": ""}
    found = {"checks": [check], "unreadable": [], "unreadable_count": 0, "verdict": "pass", "seconds": 1}
    _show(found | {"sample": {"keyframes": 9, "of": 9}})
    assert "2.5%" in capsys.readouterr().out
