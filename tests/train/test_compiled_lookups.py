"""A training step is the same whether its look-ups are compiled or grid_sample's."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import model.fields
from model.network import OccFlow
from train.batch import collate
from train.config import TrainConfig, dump_config
from train.data import KeyframeDataset
from train.module import StageModule

Make = Callable[..., TrainConfig]
ROOT = Path(__file__).parents[2]


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


@pytest.mark.slow
def test_what_is_compiled_ahead_is_all_that_a_step_needs(tiny_config: Make, tmp_path: Path) -> None:
    """`python -m model` in an empty cache; after it a step of either stage adds nothing."""
    script = (
        "import sys\n"
        "from model.network import OccFlow\n"
        "from train.batch import collate\n"
        "from train.config import load_config\n"
        "from train.data import KeyframeDataset\n"
        "from train.module import StageModule\n"
        "config = load_config(sys.argv[1])\n"
        "for stage in (1, 2):\n"
        "    batch = collate([KeyframeDataset(config, stage, [('a', 1)], 2**24)[0, 0]])\n"
        "    StageModule(config, stage, OccFlow(config.model), total_steps=10).training_step(batch, 0).backward()\n"
    )
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path / "kept"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }

    def kept(*arguments: str) -> set[Path]:
        subprocess.run([sys.executable, *arguments], check=True, env=environment, cwd=ROOT)
        return {path for path in tmp_path.rglob("*") if path.suffix in (".nbc", ".nbi")}

    ahead = kept("-m", "model")
    assert len(ahead) > 4
    (tmp_path / "tiny.yaml").write_text(dump_config(tiny_config()))
    assert kept("-c", script, str(tmp_path / "tiny.yaml")) == ahead
