"""Instances on a step's rays: who takes part, missing cameras and cues, from the store to the loss of a step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from model.network import OccFlow
from train.batch import Batch, collate
from train.cast import CameraCast
from train.census import Census
from train.config import TrainConfig
from train.data import KeyframeDataset
from train.module import StageModule
from train.rays import RayGrid
from train.selection import needed_cues
from train.supervise_instances import supervise_instances

Make = Callable[..., TrainConfig]
GRID = RayGrid(top=0, left=0, stride=1, rows=2, columns=4)


def batch_of(config: TrainConfig, t: int = 1, stage: int = 2) -> Batch:
    return collate([KeyframeDataset(config, stage, [("a", t)], 2**24)[0, 0]])


def two_cars(batch: Batch) -> CameraCast:
    """Eight rays of each of two cameras, half their light at 10 m and half past everything; camera 0 sees thing 1 on
    rays 0-3 and thing 2 on rays 4-6, camera 1 thing 1 on rays 0-1. Things turn, or move apart where `flow` says."""
    instances = torch.zeros(1, 2, *batch.images.shape[-2:], dtype=torch.uint8)
    instances[0, 0, 0, :4], instances[0, 0, 1, :3], instances[0, 1, 0, :2] = 1, 2, 1
    batch.instances = instances
    y = torch.linspace(-2, 2, 8)
    points = torch.stack([torch.full_like(y, 10.0), y, torch.ones_like(y)], dim=-1)[None, :, None]
    far = points * torch.tensor([4.0, 4.0, 1.0])
    return CameraCast(
        grid=GRID, size=(16, 32), pixels=GRID.pixels(), colours=torch.zeros(2, 3, 2, 4),
        met=torch.ones(2, 8, dtype=torch.bool), usable=torch.ones(2, 8, dtype=torch.bool),
        weights=torch.full((2, 8, 2), 0.5, requires_grad=True),
        distances=torch.tensor([10.0, 40.0]).expand(2, 8, 2), points=torch.cat([points, far], dim=2).repeat(2, 1, 1, 1),
        flow=torch.zeros(2, 8, 2, 2, requires_grad=True), range=torch.full((2, 8), 25.0),
        depth=torch.full((2, 8), 25.0),
        surface=points.repeat(2, 1, 1, 1), sdf=torch.ones(2, 8, 1),
    )  # fmt: skip


def with_flow(cast: CameraCast, rays: dict[tuple[int, int], tuple[float, float]]) -> CameraCast:
    flow = torch.zeros(2, 8, 2, 2)
    for place, value in rays.items():
        flow[(*place, 0)] = torch.tensor(value)
    cast.flow = flow.requires_grad_()
    return cast


def test_one_ray_that_stands_while_its_thing_drives(tiny_config: Make) -> None:
    """Camera 1's two rays 4/7 m apart: one moves 0.5 m along the thing, the fit half of that; 7 rays fit exactly."""
    cast = with_flow(two_cars(batch := batch_of(tiny_config())), {(1, 0): (0.0, 0.5)})
    loss, rays = supervise_instances(cast, batch)
    assert rays == 9
    assert loss.item() == pytest.approx((2 * 0.25 + 7 * 1e-3) / 9, rel=1e-3)
    assert cast.flow is not None
    slope, to_weights = torch.autograd.grad(loss, [cast.flow, cast.weights], allow_unused=True)
    assert to_weights is None
    assert slope[1, 0, 0, 1] > 0 > slope[1, 1, 0, 1]
    assert slope[..., 1, :].abs().max() == 0  # the far sample lies on nothing
    assert slope[1, 2:].abs().max() == slope[0, 7].abs().max() == 0


def test_the_same_number_in_two_cameras_is_two_things(tiny_config: Make) -> None:
    cast = two_cars(batch := batch_of(tiny_config()))
    thing = {(0, k): (1.0, 0.0) for k in range(4)}
    assert supervise_instances(with_flow(cast, thing), batch)[0].item() == pytest.approx(1e-3, rel=1e-2)
    assert supervise_instances(with_flow(cast, {(0, 0): (1.0, 0.0)}), batch)[0].item() > 0.05


def test_scores_and_light_weigh(tiny_config: Make) -> None:
    cast = with_flow(two_cars(batch := batch_of(tiny_config())), {(1, 0): (0.0, 0.5)})
    batch.mask_score = torch.ones(1, 2, 65)
    assert supervise_instances(cast, batch)[0].item() == pytest.approx((2 * 0.25 + 7 * 1e-3) / 9, rel=1e-3)
    batch.mask_score[0, 1, 1] = 0.5
    assert supervise_instances(cast, batch)[0].item() == pytest.approx((1 * 0.25 + 7 * 1e-3) / 8, rel=1e-3)
    batch.mask_score[0, 1, 1] = 0.0
    loss, rays = supervise_instances(cast, batch)
    assert (loss.item(), rays.item()) == (pytest.approx(1e-3, rel=1e-3), 7)
    batch.mask_score = None
    cast.weights = torch.cat([torch.full((2, 8, 1), 0.5), torch.full((2, 8, 1), 0.5)], dim=-1)
    cast.weights[1, :2, 0] = 0.25
    assert supervise_instances(cast, batch)[0].item() == pytest.approx((0.5 * 0.25 + 3.5 * 1e-3) / 4, rel=1e-3)


def test_missing_cameras_empty_masks_and_nan(tiny_config: Make) -> None:
    cast = with_flow(two_cars(batch := batch_of(tiny_config())), {(1, 0): (0.0, 0.5), (0, 7): (9.0, 9.0)})
    assert batch.instances is not None
    cast.usable[1] = False
    assert supervise_instances(cast, batch)[1] == 7
    assert cast.flow is not None
    with torch.no_grad():
        cast.flow[0, 0] = torch.nan
        cast.points[0, 1] = torch.nan
        cast.distances = cast.distances.clone()
        cast.distances[0, 4] = torch.inf
    loss, rays = supervise_instances(cast, batch)
    assert (loss.item(), rays.item()) == (pytest.approx(1e-3, rel=1e-2), 4)
    (slope,) = torch.autograd.grad(loss, cast.flow)
    assert torch.isfinite(slope).all()
    cast.weights = torch.zeros_like(cast.weights)
    assert [x.item() for x in supervise_instances(cast, batch)] == [0, 0]
    batch.instances[:] = 0
    assert [x.item() for x in supervise_instances(cast, batch)] == [0, 0]


def test_from_the_store(world: Any, tiny_config: Make) -> None:
    """Off, the batch carries nothing; on, the box of each image is thing 1, with the table's score where one weighs."""
    assert batch_of(tiny_config()).instances is None
    on = tiny_config(loss={"instance_flow": 1.0}, ablation={"dynamic_disentanglement": False})
    assert "masks" in needed_cues(on, 2)
    assert "masks" not in needed_cues(on, 1)
    batch = batch_of(on)
    assert batch.instances is not None
    assert batch.mask_score is None
    assert batch.movable is not None
    assert torch.equal(batch.instances, batch.movable.to(torch.uint8))
    assert batch.instances[0, 0].any()
    weighed = batch_of(tiny_config(loss={"instance_flow": 1.0}, data={"weigh_by_confidence": True}))
    assert weighed.mask_score is not None
    assert weighed.mask_score[0, 0, :3].tolist() == pytest.approx([1.0, 0.9, 0.0])
    assert batch_of(on, stage=1).instances is None


def test_it_asks_a_gpu_for_nothing(tiny_config: Make) -> None:
    """On the meta device, where asking for a number or a count is an error."""
    cast = two_cars(batch := batch_of(tiny_config(data={"weigh_by_confidence": True})))
    batch.mask_score = torch.ones(1, 2, 65)
    tensors = {name: value for name, value in vars(cast).items() if isinstance(value, torch.Tensor)}
    fields = {k: value.detach().to("meta").requires_grad_(value.requires_grad) for k, value in tensors.items()}
    meta = batch.to("meta")
    with Census() as census:
        supervise_instances(replace(cast, **fields), meta)[0].backward()
    assert census.operations["index_add"] > 3
    assert not census.waits
    assert not census.copies


def test_a_step_adds_the_term(tiny_config: Make) -> None:
    config = tiny_config(
        loss={"instance_flow": 0.5}, data={"weigh_by_confidence": True}, rays={"grid": [16, 32], "strides": [1, 1]}
    )
    torch.manual_seed(0)
    module = StageModule(config, 2, OccFlow(config.model), total_steps=10)
    batch = batch_of(config)
    module.training_step(batch, 0).backward()
    numbers = module.numbers
    assert numbers["rays/instance_flow_instances"] > 3
    assert numbers["loss/instance_flow"] > 0
    heads = [p.grad for p in module.network.flow_head.parameters() if p.grad is not None]
    assert heads
    assert all(torch.isfinite(grad).all() for grad in heads)
