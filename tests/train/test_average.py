"""The moving average of the weights: by hand, without influence on what it averages, and exact over interruptions."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from model.checkpoint import CheckpointError
from train.average import WeightAverage
from train.checkpoint import load_model
from train.config import TrainConfig
from train.loop import train as run
from train.module import StageModule

Make = Callable[..., TrainConfig]
SHORT: dict[str, Any] = {stage: {"max_steps": 2, "warmup_steps": 0} for stage in ("stage1", "stage2")}
EMA: dict[str, Any] = {"lr": 2e-3, "backbone_rate": 1.0, "ema": 0.9}


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.register_buffer("count", torch.tensor(0))


def test_by_hand() -> None:
    """d = 2/11 after the first step and 3/12 after the second; capped at 0.2 it is 2/11, then 0.2."""
    network = Counter()
    average = WeightAverage(network, 0.2)
    average.begin(None)
    for step, value in ((1, 3.0), (2, 5.0)):
        with torch.no_grad():
            network.weight.fill_(value)
            network.count.fill_(step)
        average.update(step)
    first = 2 / 11 * 1 + 9 / 11 * 3
    assert average.average["weight"].item() == pytest.approx(0.2 * first + 0.8 * 5)
    assert average.average["count"].item() == 2
    with average.applied():
        assert network.weight.item() == pytest.approx(0.2 * first + 0.8 * 5)
    assert network.weight.item() == 5


def averages(out: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(out / stage / "ema" / "model.safetensors")


def test_it_changes_nothing_and_is_a_checkpoint(tiny_config: Make, tmp_path: Path) -> None:
    plain = run(tiny_config(**SHORT, out=tmp_path / "plain"))
    whole = run(tiny_config(**SHORT, out=tmp_path / "whole", optimiser=EMA))
    assert [stage.losses for stage in whole.stages] == [stage.losses for stage in plain.stages]
    kept, own = averages(whole.out, "stage2"), load_file(whole.checkpoint / "model.safetensors")
    assert any(not torch.equal(kept[name], own[name]) for name in kept)
    network, loaded = load_model(whole.checkpoint / "ema")
    assert loaded.optimiser.ema == 0.9
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_it_survives_interruption(tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tiny_config(out=tmp_path / "whole", optimiser=EMA))
    config = tiny_config(out=tmp_path / "cut", optimiser=EMA)
    original = StageModule.training_step

    def step_and_kill(self: StageModule, batch: Any, index: int) -> torch.Tensor:
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(StageModule, "training_step", step_and_kill)
        assert not run(config).finished
        assert not run(config, resume=True).finished
    rest = run(config, resume=True)
    for stage in ("stage1", "stage2"):
        kept, again = averages(whole.out, stage), averages(rest.out, stage)
        assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_a_checkpoint_without_an_average_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"ema: no such folder, and this run averages weights"):
        WeightAverage(Counter(), 0.9).begin(tmp_path)
