"""The command line as a user meets it: what it says, where it writes, how it fails, how it is interrupted."""

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config import load_config as load_cues
from pipelines.config import preset_names
from pipelines.registry import build_extractor
from storage.reader import StoreReader
from storage.verify import verify
from train.config import load_config as load_training
from train.config import presets as train_presets
from train.selection import needed_cues

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]
UNITS = 2 * (1 + 4 * 4)


def commits(store: Path) -> set[str]:
    return {path.stem for path in (store / "commits").glob("*--*.json")}


def test_cues_status_verify(occflow: Run, config_file: Path, tmp_path: Path) -> None:
    store = config_file.with_name("store.zarr")
    dry = occflow("cues", config_file, "--runner", "plain", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "flow_next" in dry.stdout
    assert "GPU hours" in dry.stdout
    assert not store.exists()

    first = occflow("cues", config_file, "--runner", "plain")
    assert first.returncode == 0, first.stderr
    assert f"{UNITS} units committed" in first.stdout
    assert str(store) in first.stdout
    assert "next: occflow status" in first.stdout

    again = occflow("cues", config_file)
    assert not (tmp_path / "cache" / "occflow" / "prefect").exists(), "nothing to do must not start Prefect"
    assert f"0 units committed (0.0 MB), {UNITS} were current" in again.stdout
    assert f"0 units to make, {UNITS} current" in occflow("cues", config_file, "--dry-run").stdout

    status = occflow("status", store)
    assert status.returncode == 0
    assert len(re.findall(r"\bcomplete\b", status.stdout)) == 8
    assert status.stdout.count("missing") == 6

    assert occflow("verify", store).returncode == 0
    shard = next((store / "scenes" / "00" / "images").glob("c.*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    damaged = occflow("verify", store)
    assert damaged.returncode == 1
    assert str(shard) in damaged.stdout
    assert "next: occflow verify --repair" in damaged.stdout
    repaired = occflow("verify", store, "--repair")
    assert repaired.returncode == 0
    assert "next: the occflow cues command that made it" in repaired.stdout
    lacking = occflow("status", store).stdout
    assert "1 cues incomplete" in lacking
    assert "next: the occflow cues command that made it goes on" in lacking
    assert "1 units committed" in occflow("cues", config_file, "--runner", "plain").stdout
    assert occflow("verify", store).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["cues", "nonsense"], 2, ["nonsense", "presets are"]),
        (["cues", "CONFIG", "--set", "jpg_quality=3"], 2, ["'jpg_quality'", "did you mean 'jpeg_quality'"]),
        (["cues", "CONFIG", "--set", "jpeg_quality"], 2, ["key=value"]),
        (["cues", "CONFIG", "--scenes", "02"], 2, ["scene '02'"]),
        (["cues", "CONFIG", "--cues", "flow_nxt"], 2, ["did you mean 'flow_next'"]),
        (["cues", "CONFIG", "--root", "/nowhere"], 1, ["/nowhere", "no such folder"]),
        (["cues", "CONFIG", "--store", "CONFIG/x.zarr"], 2, ["is a file", "give another path"]),
        (["cues", "CONFIG", "--set", "runner.workers=-1"], 2, ["runner.workers = -1"]),
        (["cues", "CONFIG", "--set", "store=store.txt"], 2, ["store.txt.zarr"]),
        (["deploy", "CONFIG", "--set", "store=store.txt"], 2, ["store.txt.zarr"]),
        (["status", "CONFIG"], 1, ["no cue store here"]),
        (["status", "/nowhere.zarr"], 1, ["/nowhere.zarr"]),
        (["verify", "/nowhere.zarr"], 1, ["/nowhere.zarr"]),
        (["train", "nonsense"], 2, ["nonsense"]),
    ],
)
def test_errors_are_one_paragraph(
    occflow: Run, config_file: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    result = occflow(*(a.replace("CONFIG", str(config_file)) for a in arguments))
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(("command", "presets"), [("cues", preset_names()), ("train", train_presets())])
def test_help_names_every_preset(occflow: Run, command: str, presets: list[str]) -> None:
    shown = " ".join(occflow(command, "--help").stdout.replace("│", " ").split())
    assert f"preset: {', '.join(presets)}." in shown


@pytest.mark.parametrize("name", sorted({*preset_names()} & {*train_presets()}))
def test_cues_of_a_preset_are_what_training_by_the_preset_of_that_name_takes(name: str) -> None:
    """`occflow cues NAME` ends with `occflow train NAME` as the next command."""
    made, training = load_cues(name), load_training(name)
    needed = {*needed_cues(training, 1), *needed_cues(training, 2)}
    assert needed <= {*made.cues}
    if not training.ablation.lidar and not training.data.lidar_masks:
        from_lidar = {cue for cue in needed if "lidar" in (cue, *build_extractor(made, cue).needs)}
        assert not from_lidar, "camera-only training refuses them"


def test_debug_shows_the_traceback(occflow: Run) -> None:
    assert "Traceback" in occflow("--debug", "cues", "nonsense").stderr


def test_a_folder_with_somebody_elses_modules(occflow: Run, config_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    for name in ("eval", "storage", "docker"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise RuntimeError('not ours')")
    for name in ("train", "model", "geometry", "pipelines", "occflow"):
        (folder / f"{name}.py").write_text("raise RuntimeError('not ours')")
    result = occflow("cues", config_file, "--scenes", "00", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "17 units committed" in result.stdout
    assert result.stderr == "", "Prefect has to be quiet"
    assert "not ours" not in occflow("train", "nonsense", cwd=folder).stderr


def wait_for_commits(process: "subprocess.Popen[str]", store: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(commits(store)) < count:
        assert process.poll() is None, "ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_goes_on(
    occflow: Run, occflow_process: Start, config_file: Path, sent: signal.Signals
) -> None:
    store = config_file.with_name("store.zarr")
    process = occflow_process("cues", config_file, "--runner", "plain", "--workers", "1")
    wait_for_commits(process, store, 5)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    done = commits(store)
    assert len(done) < UNITS
    if sent is signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 130, err
        assert "stopped" in out
        assert "Traceback" not in err
    damage = [finding for finding in verify(store) if finding.kind not in ("orphan", "temporary")]
    assert damage == []
    assert StoreReader(store).scene("00").length == 4
    rest = occflow("cues", config_file, "--runner", "plain")
    assert rest.returncode == 0, rest.stderr
    assert f"{len(done)} were current" in rest.stdout
    assert len(commits(store)) == UNITS
    assert verify(store) == []
