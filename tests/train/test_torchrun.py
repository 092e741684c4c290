"""Two processes under torchrun: disjoint samples, an orderly end on SIGTERM, and the same losses as without one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from train.checkpoint import load_state
from train.config import TrainConfig, dump_config

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
FRAMES = 10
"""Two scenes of five keyframes."""
LENGTHS: dict[str, Any] = {
    "stage1": {"epochs": 1.3, "max_steps": None, "warmup_steps": 2},
    "stage2": {"epochs": 1.0, "max_steps": None, "warmup_steps": 2},
}
"""With two processes 7 and 5 steps: the fifth step of a stage ends its first epoch."""


def torchrun(config: TrainConfig, record: Path, processes: int, *options: str, stop_at: str = ":") -> tuple[int, str]:
    """Exit code and output of `occflow train` under torchrun."""
    path = config.out.with_suffix(".yaml")
    path.write_text(dump_config(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    script = [str(Path(__file__).with_name("recorded_occflow.py")), "train", str(path), *options]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RECORD": str(record), "STOP_AT": stop_at}
    ended = subprocess.run(
        [*command, *script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def entries(record: Path, rank: int, kind: str, stage: int) -> list[dict[str, Any]]:
    """What a process wrote down, in order."""
    lines = map(json.loads, Path(str(record).format(rank=rank)).read_text().splitlines())
    return [line for line in lines if line["kind"] == kind and line["stage"] == stage]


@pytest.fixture
def make_run(tiny_config: Callable[..., TrainConfig], tmp_path: Path) -> Callable[[str], tuple[TrainConfig, Path]]:
    """A configuration and a record by name."""

    def make(name: str) -> tuple[TrainConfig, Path]:
        return tiny_config(out=tmp_path / name, **LENGTHS), tmp_path / f"{name}-{{rank}}.jsonl"

    return make


def test_two_processes_share_an_epoch_and_go_on_after_sigterm(
    make_run: Callable[[str], tuple[TrainConfig, Path]],
) -> None:
    """Bit for bit, by each process's losses and by the weights; interrupted in the middle of stage 1's first epoch."""
    whole, whole_record = make_run("whole")
    code, told = torchrun(whole, whole_record, 2)
    assert code == 0, told
    assert told.count("next: occflow eval") == 1, "one process speaks for all"

    cut, cut_record = make_run("cut")
    code, told = torchrun(cut, cut_record, 2, stop_at="1:2")
    assert code != 0
    assert "stopped early; next: the same command with --resume" in told, told
    state = load_state(cut.out / "stage1")
    assert (state.step, state.epoch, state.position, state.finished) == (3, 0, 6, False)
    assert sum(map(len, state.frames.values())) == FRAMES
    samples = {(s["draw"], s["frame"]) for rank in (0, 1) for s in entries(cut_record, rank, "sample", 1)}
    assert {draw for draw, _ in samples} >= set(range(6))

    code, told = torchrun(cut, cut_record, 2, "--resume")
    assert code == 0, told
    for stage, steps in ((1, 7), (2, 5)):
        shares = []
        for rank in (0, 1):
            losses = entries(whole_record, rank, "step", stage)
            assert [entry["step"] for entry in losses] == list(range(steps))
            assert entries(cut_record, rank, "step", stage) == losses
            shares.append([(s["draw"], s["frame"]) for s in entries(whole_record, rank, "sample", stage)])
            again = {(s["draw"], s["frame"]) for s in entries(cut_record, rank, "sample", stage)}
            assert again == set(shares[rank])
        assert not set(shares[0]) & set(shares[1])
        epoch = [frame for draw, frame in sorted(shares[0] + shares[1]) if draw < FRAMES]
        assert sorted(epoch) == list(range(FRAMES))
    one, other = load_file(whole.out / "stage2" / "model.safetensors"), load_file(cut.out / "stage2/model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_steps_in_which_nothing_moves_need_no_gradient_of_the_flow(
    tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """A scene's last keyframe has no flow cue, and here no other loss asks for the flow."""
    still = {"loss": {"dreg": 0.0, "smooth_flow": 0.0}, "ablation": {"two_stage": False}}
    config = tiny_config(out=tmp_path / "still", **still, stage2={"epochs": 1.0, "max_steps": None, "warmup_steps": 2})
    record = tmp_path / "still-{rank}.jsonl"
    code, told = torchrun(config, record, 2)
    assert code == 0, told
    assert [len(entries(record, rank, "step", 2)) for rank in (0, 1)] == [5, 5]


def test_an_epoch_begun_by_one_process_is_ended_by_two(make_run: Callable[[str], tuple[TrainConfig, Path]]) -> None:
    config, record = make_run("moved")
    code, told = torchrun(config, record, 1, stop_at="1:2")
    assert "stopped early" in told, told
    state = load_state(config.out / "stage1")
    assert (state.step, state.epoch, state.position) == (3, 0, 3)
    code, told = torchrun(config, record, 2, "--resume")
    assert code == 0, told
    drawn = {s["draw"]: s["frame"] for rank in (0, 1) for s in entries(record, rank, "sample", 1)}
    assert sorted(drawn) == list(range(13)), "1.3 epochs: three draws by one process, ten by two"
    assert sorted(drawn[d] for d in range(FRAMES)) == list(range(FRAMES))


def test_the_first_process_measures_for_all(tiny_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """Measuring, drawing and averaging are the first one's work; the others wait and nobody hangs."""
    config = tiny_config(
        out=tmp_path / "watched",
        data={"validate_on": ["b"]},
        optimiser={"lr": 2e-3, "ema": 0.9},
        run={"validate_every": 1, "validate_keyframes": 1, "picture_every": 1},
    )
    code, told = torchrun(config, tmp_path / "watched-{rank}.jsonl", 2)
    assert code == 0, told
    for stage in ("stage1", "stage2"):
        state = load_state(config.out / stage)
        assert state.best is not None
        assert (config.out / f"{stage}-best" / "model.safetensors").is_file()
        assert (config.out / stage / "ema" / "model.safetensors").is_file()
