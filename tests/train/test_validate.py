"""Losses on held-out keyframes: they change nothing, choose the best weights, and survive interruption."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.network import OccFlow
from train.checkpoint import load_model, load_state
from train.config import ConfigError, TrainConfig
from train.loop import run_stage
from train.loop import train as run
from train.module import StageModule
from train.validate import Validator

Make = Callable[..., TrainConfig]
LENGTHS: dict[str, Any] = {
    "stage1": {"max_steps": 5, "warmup_steps": 0},
    "stage2": {"max_steps": 2, "warmup_steps": 0},
}
RUN: dict[str, Any] = {"validate_every": 2, "validate_keyframes": 2}


def measured(out: Path, term: str) -> dict[int, float]:
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(f"stage1/validation/{term}")}


def test_measuring_changes_nothing_and_keeps_the_best(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = run(tiny_config(**LENGTHS, out=tmp_path / "without", data={"exclude": ["b"]}))
    calls: list[int] = []
    original = Validator.measure

    def scripted(self: Validator, trainer: Any, module: StageModule) -> dict[str, float]:
        """Real losses; in the first stage the second of its three measurements is made the lowest."""
        calls.append(module.step)
        found = original(self, trainer, module)
        return {**found, "total": {2: 2.0, 4: 1.0, 5: 3.0}[module.step]} if module.stage == 1 else found

    monkeypatch.setattr(Validator, "measure", scripted)
    config = tiny_config(**LENGTHS, out=tmp_path / "with", data={"validate_on": ["b"]}, run=RUN)
    result = run(config)
    assert [stage.losses for stage in result.stages] == [stage.losses for stage in without.stages]
    assert calls == [2, 4, 5, 2], "every two steps, and at a stage's end"
    assert list(measured(result.out, "total").items()) == [(2, 2.0), (4, 1.0), (5, 3.0)]
    assert set(measured(result.out, "lidar")) == {2, 4, 5}
    state = load_state(result.out / "stage1")
    assert (state.best, state.best_step) == (1.0, 4)
    best = load_state(result.out / "stage1-best")
    assert (best.stage, best.step) == (1, 4)
    kept, last = (load_file(result.out / name / "model.safetensors") for name in ("stage1-best", "stage1"))
    assert any(not torch.equal(kept[name], last[name]) for name in kept)
    assert load_model(result.out / "stage2-best")[1] == config


def test_another_measure_of_the_best_begins_anew(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was lowest by the old one says nothing of the new one."""
    found = iter([{"total": 5.0, "photometric": 0.1}, {"total": 4.0, "photometric": 0.3}])
    monkeypatch.setattr(Validator, "measure", lambda self, trainer, module: next(found))
    config = tiny_config(
        stage1={"max_steps": 4, "warmup_steps": 0},
        data={"validate_on": ["b"]},
        run=RUN | {"best_by": "photometric"},
        ablation={"two_stage": True},
    )
    original = StageModule.training_step

    def stopped(self: StageModule, batch: Any, index: int) -> torch.Tensor:
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(StageModule, "training_step", stopped)
        run(config)
    assert load_state(config.out / "stage1").best == 0.1
    other = config.model_copy(update={"run": config.run.model_copy(update={"best_by": "total"})})
    run_stage(other, 1, OccFlow(config.model), resume=True)
    state = load_state(config.out / "stage1")
    assert (state.best, state.best_step, state.best_by) == (4.0, 4, ("total", 2))


def test_the_same_weights_measure_the_same(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rays are the same every time, whatever the step, and the keyframes are those held out."""
    twice: list[dict[str, float]] = []
    original = Validator.measure

    def again(self: Validator, trainer: Any, module: StageModule) -> dict[str, float]:
        found = original(self, trainer, module)
        module.whole_steps += 1000 if module.stage == 2 else 0  # its cosine is fully annealed: only rays could differ
        module.step += 1000 if module.stage == 2 else 0
        if module.stage == 2:
            twice.extend([found, original(self, trainer, module)])
            module.step, module.whole_steps = module.step - 1000, module.whole_steps - 1000
        return found

    monkeypatch.setattr(Validator, "measure", again)
    short = {"stage1": {"max_steps": 1, "warmup_steps": 0}, "stage2": {"max_steps": 2, "warmup_steps": 0}}
    run(tiny_config(**short, data={"validate_on": ["b:1-3"]}, run=RUN))
    assert twice[0] == twice[1]
    assert {"photometric", "flow", "dreg", "lidar", "total"} <= set(twice[0])


@pytest.mark.slow
def test_the_best_survives_an_interruption_and_is_the_averages(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimiser: dict[str, Any] = {"lr": 2e-3, "backbone_rate": 1.0, "ema": 0.9}
    given: dict[str, Any] = {**LENGTHS, "data": {"validate_on": ["b"]}, "run": RUN, "optimiser": optimiser}
    whole = run(tiny_config(**given, out=tmp_path / "whole"))
    cut = tiny_config(**given, out=tmp_path / "cut")
    original = StageModule.training_step

    def step_and_kill(self: StageModule, batch: Any, index: int) -> torch.Tensor:
        if self.stage == 1 and self.step == 2 and self.network.training:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(StageModule, "training_step", step_and_kill)
        assert not run(cut).finished
    run(cut, resume=True)
    one, other = (load_state(out / "stage1") for out in (whole.out, cut.out))
    assert (one.best, one.best_step) == (other.best, other.best_step)
    assert one.best_step == 5, "with this seed the loss falls to the end, so that the best is the last average"
    kept, average = (load_file(whole.out / name / "model.safetensors") for name in ("stage1-best", "stage1/ema"))
    assert all(torch.equal(kept[name], average[name]) for name in kept)


def test_mistakes_are_told(tiny_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run.best_by = 'lidra': Input should be 'total', "):
        tiny_config(run={"best_by": "lidra"})
    with pytest.raises(ConfigError, match=r"validate_on = \['c'\]: no keyframe"):
        run(tiny_config(data={"validate_on": ["c"]}))
    with pytest.raises(ConfigError, match=r"data.validate_on = \['a', '\*'\] leaves no keyframe"):
        run(tiny_config(data={"exclude": ["a"], "validate_on": ["*"]}, out=tmp_path / "nothing"))


def test_the_best_is_chosen_by_the_term_that_is_asked_for(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """By flow, which the first stage does not have: it goes by the total."""
    scripted = {1: [(3.0, None), (2.0, None)], 2: [(1.0, 5.0), (0.5, 6.0)]}

    def measure(self: Validator, trainer: Any, module: StageModule) -> dict[str, float]:
        total, flow = scripted[module.stage].pop(0)
        return {"total": total} if flow is None else {"total": total, "flow": flow}

    monkeypatch.setattr(Validator, "measure", measure)
    lengths: dict[str, Any] = {stage: {"max_steps": 2, "warmup_steps": 0} for stage in ("stage1", "stage2")}
    config = tiny_config(**lengths, data={"validate_on": ["b"]}, run={"validate_every": 1, "best_by": "flow"})
    run(config)
    first, second = (load_state(config.out / name) for name in ("stage1", "stage2"))
    assert (first.best, first.best_step) == (2.0, 2)
    assert (second.best, second.best_step) == (5.0, 1)
