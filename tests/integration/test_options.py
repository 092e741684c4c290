"""Options that cannot be meant are refused at once, by name, with nothing made or read."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from occflow import app


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cues", "demo", "--scenes", ","], "',': names nothing"),
        (["store", "subset", "s.zarr", "t.zarr", "--scenes", ""], "'': names nothing"),
        (["inspect", "s.zarr", "--scenes", ""], "'': names nothing"),
        (["predict", "checkpoint", "s.zarr", "--scenes", " , "], "' , ': names nothing"),
        (["cues", "demo", "--set", "a=[1"], "--set a=[1: the value is no YAML (expected ',' or ']'"),
        (
            ["cues", "demo", "--runner", "plain", "--scheduler", "tcp://h:8786"],
            "--scheduler: this is for --runner dask",
        ),
        (["cues", "demo", "--runner", "threads", "--scheduler", "tcp://h:8786"], "and --runner threads is given"),
        (["deploy", "demo", "--timezone", "Europe/Berlin"], "--timezone: this is for --cron"),
        (["store", "copy", "s.zarr", "t.zarr", "--truth"], "--truth: there is no truth store beside s.zarr"),
        (["store", "prune", "s.zarr", "--truth"], "--truth: there is no truth store beside s.zarr"),
    ],
)
def test_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str) -> None:
    monkeypatch.chdir(tmp_path)
    if words[0] == "predict":
        monkeypatch.setattr("model.checkpoint.load_model", lambda folder: None)
        monkeypatch.setattr("eval.pictures.picture_sources", lambda *given: (None, None))
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2, done.output
    assert told in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("options", "told"), [([], ""), (["--truth"], " --truth")])
def test_the_next_command_is_one_that_a_shell_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], told: str
) -> None:
    """As printed: a path with a space is one word, and pruning does what was looked at."""
    monkeypatch.setattr("storage.prune.prune", lambda path, dry_run: [])
    store = tmp_path / "my logs" / "s.zarr"
    (store.parent / "s.truth.zarr").mkdir(parents=True)
    done = CliRunner().invoke(app, ["store", "prune", str(store), "--dry-run", *options])
    assert done.exit_code == 0, done.output
    assert f"next: occflow store prune '{store}'{told}\n" in done.output
