"""Motion of returns from flow and depth: by hand, against the exact world, on wrong and missing cues, and in a run."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from model.fields import Fields
from storage.schema import FLOW_SCALE
from train.batch import Batch, collate
from train.config import TrainConfig
from train.data import KeyframeDataset
from train.lifted_flow import Ending, Lifted, _land, depth_at, in_patches, lift_flow
from train.loop import train
from train.supervise_lidar import supervise_lifted_flow, supervise_still

Make = Callable[..., TrainConfig]
FORWARD = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
K = np.array([[88.0, 0, 88], [0, 88, 32], [0, 0, 1]])
SHAPE = (64, 176)


def lift(
    points: list[list[float]],
    flow: tuple[float, float],
    ending: Ending | None = None,
    interval: float = 1.0,
    **changes: Any,
) -> Lifted:
    """By a camera at the origin that looks along x and does not move; everything is thing 1, the cue the same."""
    scene: dict[str, Any] = {
        "instances": np.ones(SHAPE, np.uint16),
        "flow": np.broadcast_to((np.array(flow) * FLOW_SCALE).astype(np.int16)[:, None, None], (2, *SHAPE)),
        "known": np.ones(SHAPE, dtype=bool),
    }
    scene |= changes
    return lift_flow(
        np.array(points), FORWARD, K, scene["instances"], scene["flow"], scene["known"],
        np.linalg.inv(FORWARD), K, interval, ending,
    )  # fmt: skip


def test_across_the_view_by_hand() -> None:
    """At 8 m a metre to the left (+y) is 11 px to the left; in half an interval two metres per interval are a metre."""
    found = lift([[8.0, 0.0, 0.0]], (-11.0, 0.0))
    assert found.motion[0, 1] == pytest.approx(1.0, abs=0.03)
    assert abs(found.motion[0, 0]) < 0.2
    assert lift([[8.0, 0.0, 0.0]], (-11.0, 0.0), interval=0.5).motion[0, 1] == pytest.approx(2.0, abs=0.1)
    # An error of a metre across shows as 11 px, one along the view hardly: near the middle of the image.
    assert found.information[0, 1, 1] == pytest.approx(121.0, abs=6.0)
    assert found.information[0, 0, 0] < 3.0


def test_along_the_view_depth_tells() -> None:
    """A car ahead, 1 m below the camera, drives away by 2 m: its pixels hardly move, the depth where they end does."""
    rise = 88 * (1 / 10 - 1 / 12)
    seen = np.array([88.0, 32 + 88 / 12])
    alone = lift([[10.0, 0.0, -1.0]], (0.0, -rise))
    told = lift([[10.0, 0.0, -1.0]], (0.0, -rise), Ending(seen[None] + [0.5, 0.3], np.array([12.0])))
    assert told.motion[0] == pytest.approx([2.0, 0.0], abs=0.1)
    assert told.information[0, 0, 0] > 3 * alone.information[0, 0, 0]
    elsewhere = lift([[10.0, 0.0, -1.0]], (0.0, -rise), Ending(seen[None] + [9.0, 0.0], np.array([12.0])))
    assert elsewhere.motion == pytest.approx(alone.motion)


def test_who_takes_part() -> None:
    points = [[8.0, 0, 0], [-8.0, 0, 0], [8.0, 50.0, 0]]
    assert len(lift(points, (0.0, 0.0)).points) == 1
    assert len(lift(points, (0.0, 0.0), instances=np.zeros(SHAPE, np.uint16)).points) == 0
    assert len(lift(points, (0.0, 0.0), known=np.zeros(SHAPE, dtype=bool)).points) == 0
    assert len(lift(points, (0.0, 0.0), interval=0.0).points) == 0
    # 400 px in one interval at 8 m would be 36 m: no thing does that.
    assert len(lift([[8.0, 0, 0]], (-400.0, 0.0)).points) == 0
    # It goes up by more than any motion on the ground explains.
    assert len(lift([[8.0, 0, 0]], (0.0, -30.0)).points) == 0


def test_slope_is_the_derivative() -> None:
    rng = np.random.default_rng(0)
    points, motion = rng.uniform(4, 9, (20, 3)), rng.normal(size=(20, 2))
    turned = np.linalg.inv(FORWARD) @ np.array([[0.9, -0.1, 0, 1], [0.1, 0.9, 0, 0], [0, 0, 1, 0.2], [0, 0, 0, 1.0]])
    skewed = K + np.array([[0, 3.0, 0], [0, 0, 0], [0, 0, 0]])
    here, slope = _land(points, motion, turned, skewed, 0.7)
    for axis in range(2):
        step = np.zeros(2)
        step[axis] = 1e-6
        there, _ = _land(points, motion + step, turned, skewed, 0.7)
        assert (there - here) / 1e-6 == pytest.approx(slope[..., axis], rel=1e-3, abs=1e-3)
    behind, flat = _land(np.array([[-5.0, 0, 0]]), np.zeros((1, 2)), np.linalg.inv(FORWARD), K, 1.0)
    assert not flat.any()
    assert behind[0, 0] > 1e5


def test_depth_where_a_flow_ends() -> None:
    ending = Ending(np.array([[10.0, 10], [11, 10], [10, 11], [50, 50]]), np.array([5.0, 6.0, 30.0, 7.0]))
    assert depth_at(np.array([[10.2, 10.2], [50.0, 50.5]]), ending, 2.0).tolist() == [6.0, 7.0]
    assert np.isnan(depth_at(np.array([[30.0, 30.0]]), ending, 2.0)).all()
    assert np.isnan(depth_at(np.array([[30.0, 30.0]]), None, 2.0)).all()


def test_depths_of_a_dense_scan_against_all_with_all_and_in_little_memory() -> None:
    """Many goals of one column, some outside the image, some far from any return."""
    rng = np.random.default_rng(0)
    ending = Ending(rng.uniform((0, 100), (600, 250), (3000, 2)), rng.uniform(3, 60, 3000))
    goal = np.concatenate([rng.uniform((-50, 0), (1200, 350), (2000, 2)), np.full((600, 2), (300.0, 170.0))])
    tracemalloc.start()
    found = depth_at(goal, ending, 14.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    close = ((goal[:, None] - ending.pixels) ** 2).sum(axis=-1) < 14.0**2
    slow = [np.median(ending.depth[mine]) if mine.any() else np.nan for mine in close]
    np.testing.assert_array_equal(found, slow)
    assert 500 < np.isnan(found).sum() < 2000
    assert peak < 2**25


def test_one_wrong_return_of_a_patch_does_not_move_it() -> None:
    points = np.array([[0.1, 0.1, 0.1], [0.2, 0.1, 0.1], [1.4, 0.1, 0.1], [1.6, 0.1, 0.1], [9.0, 0.1, 0.1]])
    motion = np.array([[1.0, 0], [1.1, 0], [0.9, 0], [-20.0, 0], [3.0, 0]])
    spots = in_patches(Lifted(points, motion, np.tile(100 * np.eye(2), (5, 1, 1))), spot_m=1.0)
    assert len(spots.points) == 3
    assert spots.motion[:2] == pytest.approx(np.array([[1.0, 0], [1.0, 0]]), abs=0.15)
    assert spots.motion[2] == pytest.approx([3.0, 0.0], abs=0.05)


def test_a_patch_joins_what_two_cameras_show() -> None:
    """One knows motion along x, the other along y."""
    points, motion = np.array([[0.1, 0.1, 0.1]] * 2), np.array([[2.0, 0.0], [0.0, -1.0]])
    information = np.array([np.diag([400.0, 0.0]), np.diag([0.0, 400.0])])
    assert in_patches(Lifted(points, motion, information), 1.0).motion[0] == pytest.approx([2.0, -1.0], abs=0.02)


def batch_at(config: TrainConfig, t: int) -> Batch:
    return collate([KeyframeDataset(config, 2, [("a", t)], 0)[0, 0]])


def test_the_worlds_box_moves_as_it_does(world: Any, tiny_config: Make) -> None:
    config = tiny_config(loss={"lifted_flow": 1.0})
    batch = batch_at(config, 1)
    assert batch.moving_valid is not None
    assert batch.moving_points is not None
    assert batch.moving_motion is not None
    there = batch.moving_valid[0]
    assert 3 < int(there.sum()) < 100
    # The box moves in the world, and spots in the ego frame.
    true = world.ego(0.5)[:2, :2].T @ np.array(world.box_velocity) * 0.5
    assert batch.moving_motion[0][there].median(dim=0).values.numpy() == pytest.approx(true, abs=0.15)
    losses = {}
    for factor in (-1.0, 0.0, 1.0, 2.0):
        grid = config.model.grid.build()
        flow = torch.tensor(true * factor).float().expand(1, *grid.shape, 2)
        loss, count = supervise_lifted_flow(Fields(torch.zeros(1, *grid.shape), flow, grid), batch)
        assert count == there.sum()
        losses[factor] = loss.item()
    assert losses[1.0] < 0.3
    assert losses[1.0] < 0.5 * min(loss for factor, loss in losses.items() if factor != 1.0)


def test_a_loss_of_the_second_stage_where_its_cues_are(tiny_config: Make) -> None:
    config = tiny_config(loss={"lifted_flow": 1.0})
    assert KeyframeDataset(config, 1, [("a", 1)], 0)[0, 0].moving_points is None
    assert batch_at(tiny_config(), 1).moving_points is None
    # The last keyframe has no next one: no cue, no spot.
    last = batch_at(config, 4)
    assert last.moving_valid is not None
    assert not last.moving_valid.any()
    assert train(config).finished


def test_what_stands_still_lies_on_no_movable_thing(world: Any, tiny_config: Make) -> None:
    config = tiny_config(loss={"lifted_still": 0.5})
    batch = batch_at(config, 1)
    assert batch.still_points is not None
    assert batch.still_valid is not None
    points = batch.still_points[batch.still_valid].double().numpy()
    grid = config.model.grid.build()
    assert grid.contains(points).all()
    cells = np.floor(points / min(grid.voxel_size))
    assert len(np.unique(cells, axis=0)) == len(points) > 20
    # The box's returns are not among them; what no camera sees (behind the car) is on no mask either, and is not there.
    low, high = world.box(0.5)
    in_world = points @ world.ego(0.5)[:3, :3].T + world.ego(0.5)[:3, 3]
    assert not ((in_world > low - 0.02) & (in_world < high + 0.02)).all(axis=1).any()
    assert batch.return_points is not None
    assert batch.return_valid is not None
    assert points[:, 0].min() > -1 > batch.return_points[batch.return_valid][:, 0].min()


def test_spots_above_the_ground_come_first_where_that_is_asked_for(tiny_config: Make) -> None:
    raised = {}
    for share in (0.0, 0.5, 1.0):
        config = tiny_config(loss={"lifted_still": 0.5}, rays={"still": 16, "still_raised": share})
        batch = batch_at(config, 1)
        assert batch.still_points is not None
        assert batch.still_valid is not None
        assert batch.still_valid.all()
        raised[share] = int((batch.still_points[..., 2] > 0.4).sum())
    assert raised[0.0] < raised[1.0] == 16
    assert raised[0.5] >= 8


def test_still_spots_cost_the_length_of_their_flow(tiny_config: Make) -> None:
    config = tiny_config(loss={"lifted_still": 0.5})
    batch, grid = batch_at(config, 1), config.model.grid.build()
    for flow, cost in (((0.0, 0.0), 0.001), ((3.0, 4.0), 5.0)):
        fields = Fields(torch.zeros(1, *grid.shape), torch.tensor(flow).expand(1, *grid.shape, 2), grid)
        assert supervise_still(fields, batch).item() == pytest.approx(cost)
    batch.still_valid = torch.zeros_like(batch.still_valid)  # type: ignore[arg-type]
    flow_of_one = torch.ones(1, *grid.shape, 2, requires_grad=True)
    nothing = supervise_still(Fields(torch.zeros(1, *grid.shape), flow_of_one, grid), batch)
    nothing.backward()
    assert nothing.item() == 0
    assert flow_of_one.grad is not None
    assert not flow_of_one.grad.any()


def test_still_spots_belong_to_the_second_stage_and_to_lidar(tiny_config: Make) -> None:
    config = tiny_config(loss={"lifted_still": 0.5})
    assert KeyframeDataset(config, 1, [("a", 1)], 0)[0, 0].still_points is None
    assert batch_at(tiny_config(), 1).still_points is None
    without = {"loss": {"lifted_still": 0.5}, "ablation": {"lidar": False}}
    # Triangulated points lie on what stands still by themselves.
    batch = batch_at(tiny_config(**without, rays={"triangulated": 100}), 1)
    assert batch.still_valid is not None
    assert batch.still_valid.sum() > 20
