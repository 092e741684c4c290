"""A run that cannot go on says which loss, keyframe and parameter; a mere overflow does not stop it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import train.module
from train.config import TrainConfig
from train.data import KeyframeDataset
from train.loop import train as run
from train.module import StageModule
from train.watch import TrainingDiverged, Watch

Make = Callable[..., TrainConfig]
SOUND = {"loss/photometric": 0.5, "loss/total": 0.5, "rays/flow_gamma": float("nan")}


def parameters(*gradients: float) -> list[tuple[str, nn.Parameter]]:
    named = []
    for number, gradient in enumerate(gradients):
        parameter = nn.Parameter(torch.zeros(2))
        parameter.grad = torch.tensor([0.0, gradient])
        named.append((f"head.{number}", parameter))
    return named


def test_an_overflow_is_forgiven_and_many_in_a_row_are_not() -> None:
    watch, broken = Watch(3), parameters(1.0, torch.inf, torch.nan)
    for _ in range(5):
        watch.bad_step("stage 1, step 4", SOUND, [("a", 2)], broken)
        watch.bad_step("stage 1, step 5", SOUND, [("a", 3)], broken)
        watch.good_step()
    watch.bad_step("stage 1, step 6", SOUND, [("a", 2)], broken)
    watch.bad_step("stage 1, step 7", SOUND, [("a", 2)], broken)
    with pytest.raises(TrainingDiverged) as caught:
        watch.bad_step("stage 1, step 8", SOUND, [("a", 4)], broken)
    for words in ("stage 1, step 8", "3 steps in a row", "every loss was", "keyframes a:4;", "head.1, head.2."):
        assert words in str(caught.value)
    assert "head.0" not in str(caught.value)


def test_a_loss_that_is_no_number_ends_the_run_at_once() -> None:
    numbers = {**SOUND, "loss/flow": float("inf"), "loss/total": float("nan")}
    keyframes = [("a", t) for t in range(5)]
    with pytest.raises(TrainingDiverged) as caught:
        Watch(20).bad_step("stage 2, step 0", numbers, keyframes, parameters(torch.nan))
    assert "loss not finite: total = nan, flow = inf; keyframes a:0, a:1, a:2 and 2 more" in str(caught.value)
    assert "photometric" not in str(caught.value)


def test_a_run_names_what_it_stumbled_over(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hessian loss turns NaN in the third step; the keyframe named is the one that the loader read for it."""
    drawn: list[tuple[str, int]] = []
    original_item, original_loss, calls = KeyframeDataset.__getitem__, train.module.hessian, [0]

    def listed(self: KeyframeDataset, key: tuple[int, int]) -> Any:
        drawn.append(self.frames[int(key[1])])
        return original_item(self, key)

    def poisoned(*arguments: Any) -> torch.Tensor:
        calls[0] += 1
        return original_loss(*arguments) * (torch.nan if calls[0] == 3 else 1.0)

    monkeypatch.setattr(KeyframeDataset, "__getitem__", listed)
    monkeypatch.setattr(train.module, "hessian", poisoned)
    config = tiny_config(stage1={"max_steps": 4, "warmup_steps": 0})
    with pytest.raises(TrainingDiverged) as caught:
        run(config)
    scene, t = drawn[2]
    for words in ("stage 1, step 2", "hessian = nan", "total = nan", f"keyframes {scene}:{t};", "backbone."):
        assert words in str(caught.value)


def test_a_step_knows_its_keyframes_across_epochs(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten keyframes in batches of three: the fourth step ends one epoch and begins the next."""
    drawn: list[tuple[str, int]] = []
    named: list[tuple[str, int]] = []
    original_item, original_step = KeyframeDataset.__getitem__, StageModule.training_step

    def listed(self: KeyframeDataset, key: tuple[int, int]) -> Any:
        drawn.append(self.frames[int(key[1])])
        return original_item(self, key)

    def asked(self: StageModule, batch: Any, index: int) -> Any:
        named.extend(self.keyframes(self.step))
        return original_step(self, batch, index)

    monkeypatch.setattr(KeyframeDataset, "__getitem__", listed)
    monkeypatch.setattr(StageModule, "training_step", asked)
    run(tiny_config(stage1={"max_steps": 5, "warmup_steps": 0}, stage2={"max_steps": 1}, run={"batch": 3}))
    assert named == drawn
    assert len(named) == 18
