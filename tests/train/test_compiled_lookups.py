"""A training step is the same whether its look-ups are compiled or grid_sample's."""

from collections.abc import Callable

import pytest
import torch

import model.fields
from model.network import OccFlow
from train.batch import collate
from train.config import TrainConfig
from train.data import KeyframeDataset
from train.module import StageModule

Make = Callable[..., TrainConfig]


@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_is_the_same_with_compiled_look_ups(
    tiny_config: Make, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, numbers and gradients, to float32's rounding."""
    config = tiny_config()
    batch = collate([KeyframeDataset(config, stage, [("a", 1)], 2**24)[0, 0]])
    taken, numbers, gradients = [], [], []
    original = model.fields.use_compiled
    for allowed in (True, False):

        def chosen(*tensors: torch.Tensor, allowed: bool = allowed) -> bool:
            taken.append(allowed and original(*tensors))
            return taken[-1]

        monkeypatch.setattr(model.fields, "use_compiled", chosen)
        torch.manual_seed(0)
        module = StageModule(config, stage, OccFlow(config.model), total_steps=10)
        module.training_step(batch, 0).backward()
        numbers.append(module.numbers)
        gradients.append({name: p.grad for name, p in module.network.named_parameters() if p.grad is not None})
    half = len(taken) // 2
    assert half >= 2
    assert taken == [True] * half + [False] * half
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-5, abs=1e-7)
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[1].items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradients[0][name], expected, atol=1e-4 * scale + 1e-9, rtol=1e-3)
