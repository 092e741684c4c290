"""Masks of what moves: a moving board is found and a standing one is not, with LiDAR and without."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from pipelines.config import load_config
from pipelines.cues.base import BlockContext, CueBlock
from pipelines.cues.flow_chain import ChainedDis, ChainedDisFlowCue
from pipelines.cues.lidar import LidarCue
from pipelines.cues.masks_motion import EpipolarMotionMasks, LidarMotionMasks
from pipelines.cues.motion_residual import MotionRule
from pipelines.cues.road_bounds import RoadRule
from pipelines.registry import build_extractor
from pipelines.workbench import Workbench
from storage.schema import MASK_TABLE_FIELDS, UNKNOWN_CLASS

HIGH_ABOVE = RoadRule(ground_z=-4.0)
"""The flat world has no road in its images: its wall goes down to 3.3 m below the car."""
COLUMN = {name: k for k, name in enumerate(MASK_TABLE_FIELDS)}
BOTH = ("flow_next", "flow_prev")
FlatWorlds = Callable[..., Any]


def with_upstream(context: BlockContext, lidar: bool = True) -> BlockContext:
    """The context with lidar (or not) and both flows extracted before."""
    # A road beside and behind the car, where the camera does not see it.
    y, x = np.mgrid[-15:16, -15:3].reshape(2, -1) * 1.0
    road = np.stack([x, y, 0 * x, 0 * x], axis=1).astype(np.float32)
    grounded = replace(context, load_lidar=lambda sweep: np.concatenate([context.load_lidar(sweep), road]))
    made: dict[str, Any] = {"lidar": LidarCue().extract(grounded).arrays} if lidar else {}
    for slot in ("next", "prev"):
        made[f"flow_{slot}"] = ChainedDisFlowCue(slot=slot).extract(context).arrays
    return replace(context, upstream=made.__getitem__)


@pytest.fixture(scope="module")
def moving_board() -> Callable[[FlatWorlds], BlockContext]:
    """A wall 12 m ahead and, 6 m ahead, a board that moves with the car at 0.6 m a keyframe; made once."""
    kept: list[BlockContext] = []

    def make(flat_world: FlatWorlds) -> BlockContext:
        if not kept:
            world = flat_world(keyframes=3, sweeps=5, board_depth=6.0, board_step=0.1, ego_step=0.1)
            kept.append(with_upstream(world.context()))
        return kept[0]

    return make


def figures(block: CueBlock) -> dict[str, float | None]:
    return {name: found["value"] for name, found in block.quality["against_truth"].items()}


def check_ids(block: CueBlock) -> None:
    """Ids are unique in the block, every pixel's id has a row, and boxes hold their pixels."""
    instance, table = block.arrays["masks/instance"], block.arrays["masks/table"]
    rows = table[table[..., 0] > 0]
    assert len(np.unique(rows[:, 0])) == len(rows)
    assert set(np.unique(instance)) - {0} <= set(rows[:, 0])
    for i, c in np.ndindex(table.shape[:2]):
        for row in table[i, c][table[i, c, :, 0] > 0]:
            v, u = np.nonzero(instance[i, c] == row[0])
            assert (u.min(), v.min(), u.max() + 1, v.max() + 1) == tuple(row[COLUMN["x0"] : COLUMN["y1"] + 1])
            assert row[COLUMN["class"]] == UNKNOWN_CLASS
            assert 0 < row[COLUMN["score"]] <= 1


def test_a_moving_board_is_found_and_followed(flat_world: FlatWorlds, moving_board: Any) -> None:
    block = LidarMotionMasks(flows=BOTH).extract(moving_board(flat_world))
    found = figures(block)
    assert found["iou"] > 0.75
    assert found["instance_recall"] == 1.0
    check_ids(block)
    table = block.arrays["masks/table"][:, 0]
    boxes = [max(rows, key=lambda r: (r[5] - r[3]) * (r[6] - r[4])) for rows in table]
    assert len({row[COLUMN["linked"]] for row in boxes}) == 1, "one track"
    assert len({row[COLUMN["id"]] for row in boxes}) == 3, "but three ids"
    assert block.quality["masked_residual_px"]["value"] > 5 * block.quality["static_residual_px"]["value"]


@pytest.mark.parametrize("flows", [("flow_prev",), ()])
def test_a_board_is_followed_without_flow_next_too(flat_world: FlatWorlds, flows: tuple[str, ...]) -> None:
    # The board keeps beside the car: between two images it moves 3 render px less than if it stood still.
    world = flat_world(keyframes=4, sweeps=1, board_depth=6.0, board_step=0.3, ego_step=0.3)
    made = with_upstream(world.context())
    stored = {cue: made.upstream(cue) for cue in ("lidar", *flows)}
    block = LidarMotionMasks(flows=flows).extract(replace(made, upstream=stored.__getitem__))
    check_ids(block)
    table = block.arrays["masks/table"][:, 0]
    rows = [max(rows, key=lambda r: (r[5] - r[3]) * (r[6] - r[4])) for rows in table if rows[:, 0].any()]
    assert len(rows) >= 3
    assert len({row[COLUMN["id"]] for row in rows}) == len(rows)
    assert len({row[COLUMN["linked"]] for row in rows}) == 1, "one track"


def test_no_flow_is_made_that_could_link_nothing(flat_world: FlatWorlds) -> None:
    def never(self: Any, film: Any) -> Any:
        raise AssertionError("a chained flow was made")

    world = flat_world(keyframes=3, sweeps=5, board_depth=6.0, board_step=0.0, ego_step=0.1)
    context = with_upstream(world.context())
    masks = LidarMotionMasks(flows=(), motion=MotionRule(least_px=1.0))
    with mock.patch.object(ChainedDis, "__call__", never):
        block = masks.extract(context)
    assert not block.arrays["masks/instance"].any()


def test_a_standing_board_is_not_found(flat_world: FlatWorlds) -> None:
    world = flat_world(keyframes=3, sweeps=5, board_depth=6.0, board_step=0.0, ego_step=0.1)
    block = LidarMotionMasks(flows=BOTH).extract(with_upstream(world.context()))
    assert (block.arrays["masks/instance"] > 0).mean() < 0.01
    check_ids(block)


def test_without_lidar_motion_across_the_epipolar_line_is_found(flat_world: FlatWorlds) -> None:
    # The board moves against what ego-motion does to anything in front of the camera: beyond infinity.
    world = flat_world(keyframes=3, sweeps=5, board_depth=6.0, board_step=0.2, ego_step=0.1)
    block = EpipolarMotionMasks(flows=BOTH, road=HIGH_ABOVE).extract(with_upstream(world.context(), lidar=False))
    assert figures(block)["iou"] > 0.6
    assert figures(block)["instance_recall"] == 1.0
    check_ids(block)


def test_without_lidar_a_still_world_is_still(flat_world: FlatWorlds) -> None:
    world = flat_world(keyframes=2, sweeps=5, board_depth=6.0, board_step=0.0, ego_step=0.1)
    block = EpipolarMotionMasks(flows=BOTH, road=HIGH_ABOVE).extract(with_upstream(world.context(), lidar=False))
    assert (block.arrays["masks/instance"] > 0).mean() < 0.02


def test_camera_only_masks_have_no_lidar_upstream() -> None:
    config = load_config("demo_camera_only")
    bench = Workbench(config)
    assert "lidar" not in config.cues
    assert all("lidar" not in extractor.needs for extractor in bench.extractors.values())
    assert bench.extractors["masks"].needs == BOTH
    assert "lidar" in LidarMotionMasks().needs


def test_the_demo_makes_every_cue_its_training_needs() -> None:
    from train.config import load_config as load_training
    from train.selection import needed_cues

    training = load_training("demo", [])
    assert set(needed_cues(training, 2)) <= set(load_config("demo").cues)


def test_hostile_blocks(flat_world: FlatWorlds) -> None:
    alone = with_upstream(flat_world(keyframes=1, sweeps=0).context())
    block = LidarMotionMasks(flows=BOTH).extract(alone)
    assert (block.arrays["masks/instance"] == 0).all()
    assert block.notes == ["no flow at all (1 camera-frames)"]

    missing = with_upstream(flat_world(keyframes=3, sweeps=1, missing={2}).context())
    for cue in (LidarMotionMasks(flows=BOTH), EpipolarMotionMasks(flows=BOTH)):
        block = cue.extract(missing)
        assert (block.arrays["masks/instance"][1] == 0).all()
        assert "the camera has no image: no masks (1 camera-frames)" in block.notes

    world = flat_world(keyframes=2, sweeps=1, board_depth=6.0, board_step=0.1)
    empty = with_upstream(world.context(load_lidar=lambda sweep: np.zeros((0, 4), np.float32)))
    assert (LidarMotionMasks(flows=BOTH).extract(empty).arrays["masks/instance"] == 0).all()
    blank = with_upstream(world.context(load_image=lambda image: np.full((96, 160, 3), 80, np.uint8)))
    for cue in (LidarMotionMasks(), EpipolarMotionMasks()):
        check_ids(cue.extract(blank))


def test_the_last_keyframe_without_a_cue_gets_a_flow_of_its_own(flat_world: FlatWorlds, moving_board: Any) -> None:
    block = LidarMotionMasks(flows=("flow_next",)).extract(moving_board(flat_world))
    assert block.notes == ["no flow cue has a target: own DIS flow to the image beside (1 camera-frames)"]


def test_digests_follow_the_parameters() -> None:
    digests = {
        LidarMotionMasks().config_digest(),
        LidarMotionMasks(flows=BOTH).config_digest(),
        LidarMotionMasks(motion=MotionRule(least_px=0.01)).config_digest(),
        EpipolarMotionMasks().config_digest(),
    }
    assert len(digests) == 4
    config = load_config("demo")
    assert build_extractor(config, "masks").config_digest() == LidarMotionMasks(flows=BOTH).config_digest()
