"""The host does not wait inside a step: run on the meta device, where asking for a number or a count is an error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import model.fused
from model.network import OccFlow
from train.batch import Batch, collate
from train.census import Census
from train.config import TrainConfig
from train.data import KeyframeDataset
from train.losses.total import read_back
from train.module import StageModule

Make = Callable[..., TrainConfig]


def batch_of(config: TrainConfig, stage: int) -> Batch:
    return collate([KeyframeDataset(config, stage, [("a", 1)], 2**24)[0, 0]])


@pytest.fixture
def kernel_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused attention's shapes and dependencies in place of its kernel, which runs on no meta device."""

    def apply(values: Tensor, offsets: Tensor, logits: Tensor, *rest: Any) -> Tensor:
        total = values.sum() + offsets.sum() + logits.sum()
        return total.expand(len(values), offsets.shape[-1], values.shape[-1]).float()

    monkeypatch.setattr(model.fused._Fused, "apply", apply)
    for module in ("model.tpv", "model.fusion"):
        monkeypatch.setattr(f"{module}.use_fused", lambda kernel, like: True)


@pytest.mark.usefixtures("kernel_everywhere")
@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_asks_a_gpu_for_nothing(tiny_config: Make, stage: int) -> None:
    """Forward and backward. What is logged stays on the device until the step is over; random numbers drawn on the host
    go there without waiting."""
    config = tiny_config()
    meta = batch_of(config, stage).to("meta")
    module = StageModule(config, stage, OccFlow(config.model).to("meta"), total_steps=10)
    for _ in range(2):  # constants are made at the first step
        with Census() as census:
            module.training_step(meta, 0).backward()
    unread = [value for value in module._unread.values() if isinstance(value, Tensor)]
    assert len(unread) >= (16 if stage == 1 else 22)
    # Stride and corner of the ray grid: numbers that are drawn on the host and stay there.
    assert {name.rpartition(":")[0] for name in census.waits} == {"_local_scalar_dense train/rays.py"}
    assert sum(census.waits.values()) == 3
    assert not census.copies


def test_working_on_all_rays_is_working_on_those_that_count(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way that a GPU takes, on a CPU: the same loss, numbers and gradients to float32's rounding."""
    config = tiny_config()
    batch = batch_of(config, 2)
    assert batch.movable is not None
    batch.movable[:] = True
    numbers, gradients = [], []
    for few in (True, False):
        monkeypatch.setattr("train.supervise.counting_is_free", lambda mask, few=few: few)
        torch.manual_seed(0)
        module = StageModule(config, 2, OccFlow(config.model), total_steps=10)
        module.training_step(batch, 0).backward()
        numbers.append(module.numbers)
        gradients.append({name: p.grad for name, p in module.network.named_parameters() if p.grad is not None})
    assert numbers[0]["rays/dynamic"] > 10
    assert numbers[0]["rays/flow_static"] > 10
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-5, abs=1e-7)
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-4 * scale + 1e-9, rtol=1e-3)


def test_what_was_counted_is_read_in_one_go(tiny_config: Make) -> None:
    config = tiny_config()
    module = StageModule(config, 2, OccFlow(config.model), total_steps=10)
    total = module.training_step(batch_of(config, 2), 0)
    unread = dict(module._unread)
    with Census() as census:
        numbers = module.numbers
    assert census.operations["stack"] + census.operations["cat"] == 1
    assert not census.waits
    assert numbers["loss/total"] == total.item() == module.totals[-1]
    assert numbers == {name: float(value) for name, value in unread.items()}
    assert 0 < numbers["rays/usable"] <= 2 * config.rays.grid[0] * config.rays.grid[1]
    assert module.numbers is numbers
    assert module.totals == [numbers["loss/total"]]


def test_reading_back_keeps_order_and_plain_numbers() -> None:
    read = read_back({"b": torch.tensor(2), "a": 1.5, "c": torch.tensor(0.1, dtype=torch.float64)})
    assert list(read.items()) == [("b", 2.0), ("a", 1.5), ("c", 0.1)]
    assert read_back({"a": 1.0}) == {"a": 1.0}


def test_the_census_sees_what_waits() -> None:
    x = torch.arange(6.0)
    with Census() as census:
        (x * 2 + 1).view(2, 3)
        x[x > 3], x[:2], x[torch.tensor([0])]
        x.sum().item()
        x.nonzero()
    assert census.operations["mul"] == census.operations["add"] == 1
    assert "view" not in census.operations
    assert sorted(name.split()[0] for name in census.waits) == ["_local_scalar_dense", "index", "nonzero"]
    assert all("test_step_waits.py:" in name for name in census.waits)
    with Census() as census:
        x.to("meta")
        x.to("meta", non_blocking=True)
    assert sum(census.copies.values()) == 1
