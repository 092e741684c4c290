"""Depth per image cell: its loss by hand and against a slow version, and the part of a stage that trains it alone."""

import math
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from model.pixel_depth import DepthBins, PixelDepth
from train.batch import collate
from train.config import ConfigError, TrainConfig
from train.data import KeyframeDataset
from train.loop import train
from train.losses.pixel_depth import pixel_depth_loss
from train.stage import Stage
from train.supervise_lidar import supervise_pixel_depth

Make = Callable[..., TrainConfig]
BINS = DepthBins(0.0, math.log(40.0), 8)
LIFT = {"depth_lift": {"bins": 8, "context": 2, "width": 8}}


def test_even_logits_cost_the_logarithm_of_their_number() -> None:
    predicted = PixelDepth(torch.zeros(2, 8, 3, 4), BINS)
    place, depth = torch.rand(2, 5, 2) * 2 - 1, torch.rand(2, 5) * 50
    loss = pixel_depth_loss(predicted, place, depth, torch.ones(2, 5, dtype=torch.bool))
    assert loss.item() == pytest.approx(math.log(8), rel=1e-5)


def test_against_a_slow_version() -> None:
    torch.manual_seed(0)
    predicted = PixelDepth(torch.randn(2, 8, 3, 4, dtype=torch.float64), BINS)
    place, depth = torch.rand(2, 40, 2).double() * 2 - 1, torch.rand(2, 40).double() * 50
    valid = torch.rand(2, 40) < 0.7
    total, count = 0.0, 0
    for view in range(2):
        for place_, depth_, valid_ in zip(place[view], depth[view], valid[view], strict=True):
            if not valid_:
                continue
            column, row = int((place_[0] + 1) / 2 * 4), int((place_[1] + 1) / 2 * 3)
            likelihood = predicted.logits[view, :, row, column].log_softmax(dim=0)
            along = min(max(math.log(max(depth_.item(), 0.5)) / math.log(40) * 7, 0.0), 7.0)
            first = min(int(along), 6)
            total -= (1 - (along - first)) * likelihood[first].item() + (along - first) * likelihood[first + 1].item()
            count += 1
    assert pixel_depth_loss(predicted, place, depth, valid).item() == pytest.approx(total / count, rel=1e-9)


def test_gradient_and_hostile_returns() -> None:
    logits = torch.randn(1, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    place = torch.tensor([[[-0.5, -0.5], [0.5, 0.5], [float("nan"), 0.0]]]).double()
    depth = torch.tensor([[3.0, 17.0, float("nan")]]).double()
    valid = torch.tensor([[True, True, False]])
    assert torch.autograd.gradcheck(lambda x: pixel_depth_loss(PixelDepth(x, BINS), place, depth, valid), (logits,))
    nothing = pixel_depth_loss(PixelDepth(logits, BINS), place, depth, torch.zeros_like(valid))
    nothing.backward()
    assert nothing.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_returns_find_their_cells(tiny_config: Make) -> None:
    """Cells that are sure of the depth of the returns in them cost little; at twice the depth they cost much; other
    keyframes' returns do not count."""
    config = tiny_config(model=LIFT)
    batch = collate([KeyframeDataset(config, 1, [("a", 1)], 0)[0, 0]])
    assert batch.return_points is not None
    bins = DepthBins(0.0, math.log(60.0), 24)
    batch.return_points = batch.ref_from_cam[:, :1, :3, 3] + 9.0 * batch.ref_from_cam[:, :1, :3, 2]
    batch.return_valid, batch.return_own = (torch.ones(1, 1, dtype=torch.bool) for _ in range(2))
    losses = {}
    for depth in (9.0, 18.0):
        sure = -10 * (torch.arange(24) - bins.position(torch.tensor(depth).log())).abs()
        predicted = PixelDepth(sure[None, :, None, None].expand(2, -1, 4, 8), bins)
        losses[depth] = supervise_pixel_depth(predicted, batch).item()
    assert losses[9.0] < 6
    assert losses[18.0] > losses[9.0] + 20
    batch.return_own = torch.zeros(1, 1, dtype=torch.bool)
    assert supervise_pixel_depth(predicted, batch).item() == 0


def test_a_stage_begins_with_its_images(tiny_config: Make) -> None:
    """Half of four steps: the first two change the image side alone, and the log says which steps they were."""
    config = tiny_config(model=LIFT, loss={"pixel_depth": 1.0}, stage1={"image_share": 0.5, "max_steps": 4})
    result = train(config)
    assert result.finished
    short = config.model_copy(
        update={
            "out": config.out.with_name("short"),
            "stage1": config.stage1.model_copy(update={"max_steps": 4, "image_share": 0.99}),
        }
    )
    train(short)
    before, after = (load_file(short.out / name / "model.safetensors") for name in ("untrained", "stage1"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} == {"backbone", "pyramid", "depth_lift"}
    assert not any(name.startswith("depth_lift.project") for name in changed)
    full = load_file(config.out / "stage1" / "model.safetensors")
    assert any(not torch.equal(before[name], full[name]) for name in before if name.startswith("tpv"))


def test_the_first_part_ends_where_it_should(tiny_config: Make) -> None:
    config = tiny_config(model=LIFT, loss={"pixel_depth": 1.0}, stage1={"image_share": 0.5, "max_steps": 10})
    stage = Stage(config, 1, total_steps=10)
    stage.step = 4
    assert stage.images_only
    stage.step = 5
    assert not stage.images_only


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss": {"pixel_depth": 1.0}}, "model.depth_lift.bins"),
        ({"model": LIFT, "stage1": {"image_share": 0.5}}, "loss.pixel_depth"),
    ],
)
def test_what_cannot_be_trained_is_refused(tiny_config: Make, changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        tiny_config(**changes)


def test_camera_only_has_no_such_part(tiny_config: Make) -> None:
    changes = {"model": LIFT, "loss": {"pixel_depth": 1.0}, "ablation": {"lidar": False}}
    config = tiny_config(**changes, stage1={"image_share": 0.9, "max_steps": 10})
    assert not Stage(config, 1, total_steps=10).images_only
