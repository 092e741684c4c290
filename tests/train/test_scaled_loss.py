"""`run.precision: 16-mixed` scales its losses up: gradients are looked at and clipped as they are, and an overflow is
forgiven. Lightning's own plugin, its scaler on the CPU, float32 arithmetic: the scaler's part alone is seen."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

import train.loop
from train.checkpoint import load_state
from train.config import TrainConfig
from train.module import StageModule

Make = Callable[..., TrainConfig]
SHORT = {"stage1": {"max_steps": 4, "warmup_steps": 0}, "stage2": {"max_steps": 1, "warmup_steps": 0}}


class Scaled(MixedPrecision):
    """Scales the loss, rounds nothing."""

    def __init__(self, scale: float) -> None:
        # One overflow is enough to bring the highest of scales down to one that is none.
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=2.0**-80)  # type: ignore[attr-defined]
        super().__init__("16-mixed", "cpu", scaler=scaler)

    def autocast_context_manager(self) -> Any:
        return nullcontext()

    forward_context = autocast_context_manager


@pytest.fixture
def norms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Gradient norms as they are logged, step by step."""
    seen: list[float] = []
    original = StageModule.on_before_optimizer_step

    def watched(self: StageModule, optimizer: Any) -> None:
        original(self, optimizer)
        seen.append(self.numbers["optimiser/gradient_norm"])

    monkeypatch.setattr(StageModule, "on_before_optimizer_step", watched)
    return seen


def scaled_by(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    original = train.loop.trainer_options

    def options(config: TrainConfig) -> dict[str, Any]:
        found = original(config)
        del found["precision"]
        return found | {"plugins": [Scaled(scale)]}

    monkeypatch.setattr(train.loop, "trainer_options", options)


def test_gradients_are_seen_without_the_scale(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norms: list[float]
) -> None:
    train.loop.train(tiny_config(**SHORT, out=tmp_path / "plain"))
    plain = norms.copy()
    norms.clear()
    scaled_by(65536.0, monkeypatch)
    train.loop.train(tiny_config(**SHORT, out=tmp_path / "scaled", run={"precision": "16-mixed"}))
    assert norms == pytest.approx(plain, rel=1e-3)


def test_an_overflow_is_forgiven_and_the_scale_is_kept(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch, norms: list[float]
) -> None:
    scaled_by(2.0**126, monkeypatch)
    config = tiny_config(**SHORT, run={"precision": "16-mixed", "checkpoint_seconds": 1e-6})
    kept: list[float] = []
    original = train.loop.Keeper.save

    def watched(self: Any, trainer: Any, module: StageModule, *, finished: bool) -> None:
        original(self, trainer, module, finished=finished)
        if not finished and module.stage == 1:
            kept.append(load_state(self.folder).precision["scale"])

    monkeypatch.setattr(train.loop.Keeper, "save", watched)
    assert train.loop.train(config).finished
    assert not math.isfinite(norms[0])
    assert kept[0] == 2.0**46, "lowered by the overflow, and in the checkpoint that a resumed run goes on from"
    assert all(map(math.isfinite, norms[1:4]))
