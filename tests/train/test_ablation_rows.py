"""Every comparison of the ablation tables compares two trainings: what a row switches shows in a step of the second
stage, with all that the base preset adds to the paper left on."""

from pathlib import Path

import pytest
import torch

from eval.beyond import BEYOND
from eval.paper import COMPARISONS
from model.network import OccFlow
from train.ablations import row_config
from train.batch import collate
from train.config import TrainConfig
from train.data import KeyframeDataset
from train.module import StageModule

PAIRS = sorted({(c.row, c.reference) for c in (*COMPARISONS, *BEYOND) if c.row != "own_locality"})
"""All but the row that says in which order keyframes come, which no single step shows."""


TINY = (
    "model.grid={lower: [-25.6, -25.6, -1.6], upper: [25.6, 25.6, 6.4], voxel: 1.6}", "model.fpn_dim=16",
    "model.backbone={depths: [1, 1, 1, 1], dims: [8, 8, 16, 16]}", "model.tpv={factor: 1, dim: 16, ffn_dim: 16}",
    "model.refine={channels: 8, multipliers: [1, 2], blocks: [1, 1], strides: [1, 1]}", "model.heads.hidden=16",
    "model.render.samples=24", "rays.grid=[8,16]", "rays.strides=[1,2]", "rays.lidar=64", "loss.eikonal_samples=512",
)  # fmt: skip
"""Sizes alone: of what the base preset does nothing is left out."""


def gradients_of(config: TrainConfig) -> dict[str, float]:
    """Length of every parameter's gradient in one step of the second stage."""
    batch = collate([KeyframeDataset(config, 2, [("a", 1)], 2**24)[0, 0]])
    torch.manual_seed(0)
    network = OccFlow(config.model)
    StageModule(config, 2, network, total_steps=10).training_step(batch, 0).backward()
    return {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in network.named_parameters()}


@pytest.mark.parametrize(("row", "reference"), PAIRS)
def test_what_a_row_switches_shows(row: str, reference: str, tiny_store: Path, tmp_path: Path) -> None:
    first, second = (row_config(name, 0, tiny_store, tmp_path, ["a"], "ablation", TINY) for name in (row, reference))
    assert gradients_of(first) != gradients_of(second) or first.ablation.two_stage != second.ablation.two_stage
