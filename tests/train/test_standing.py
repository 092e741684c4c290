"""Depth of movable things from the ground that they stand on, by hand and in a small exact world."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geometry.transforms import from_rotation_translation, transform_points
from storage.reader import StoreReader
from train.batch import Batch, collate
from train.config import ConfigError, TrainConfig
from train.data import KeyframeDataset
from train.returns import passes_near
from train.selection import needed_cues, training_frames
from train.standing import FARTHEST_M, depth_per_pixel, standing_things
from train.things import THING_M

Make = Callable[..., TrainConfig]
K = np.array([[100.0, 0, 50.0], [0, 100.0, 40.0], [0, 0, 1.0]])
# Looks along x, 1.5 m above the road: row edge v sees the road at 150 / (v - 40) metres.
EGO_FROM_CAM = from_rotation_translation(
    np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]), np.array([0.0, 0.0, 1.5])
)


def masks(**boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Things a, b, … as rows first:last, columns first:last of an image of 80 x 100."""
    found = np.zeros((80, 100), np.uint16)
    for number, (top, bottom, left, right) in enumerate(boxes.values()):
        found[top:bottom, left:right] = number + 1
    return found


def depths(instances: np.ndarray, ground_z: float = 0.0) -> dict[tuple[int, int], float]:
    """Depth by (row, column)."""
    found = standing_things(instances, EGO_FROM_CAM, K, ground_z)
    return {(int(v), int(u)): float(d) for (u, v), d in zip(found.pixels, found.depth, strict=True)}


def test_a_thing_is_where_the_road_is_that_its_mask_ends_on() -> None:
    found = depths(masks(a=(30, 55, 20, 30)))
    assert len(found) == 25 * 10
    assert list(found.values()) == pytest.approx([10.0] * 250)
    assert depths(masks(a=(30, 55, 20, 30)), ground_z=-0.75)[30, 20] == pytest.approx(15.0)
    place = standing_things(masks(a=(54, 55, 50, 51)), EGO_FROM_CAM, K, 0.0).points(EGO_FROM_CAM, K)
    assert place == pytest.approx(np.array([[10.0, -0.05, 0.05]])), "half a pixel above the road, half one to the right"


def test_a_foot_that_is_cut_off_tells_nothing() -> None:
    assert not depths(masks(a=(30, 80, 20, 30))), "by the edge of the image"
    assert not depths(masks(a=(20, 40, 20, 30))), "above the horizon"
    assert not depths(masks())
    higher = FARTHEST_M + 1
    row = 40 + int(150 / higher)
    assert not depths(masks(a=(30, row, 20, 30))), "on ground too far away"
    before = masks(a=(30, 50, 20, 30), b=(45, 55, 15, 25))
    before[45:55, 15:25] = 2
    found = depths(before)
    assert found[30, 21] == pytest.approx(15.0), "what another thing hides has its depth from the columns beside"
    assert found[50, 16] == pytest.approx(10.0)


def test_feet_are_those_that_end_on_nothing_else() -> None:
    """A column that another mask goes on below has its depth from the next one, in both directions and to the edge."""
    found = masks(a=(30, 55, 0, 10))
    found[55:60, :9] = 2  # nine of ten columns end on another thing, the last one on the road
    assert depths(found)[30, 0] == pytest.approx(150 / 15)
    found[55, 9] = 2
    assert (30, 0) not in depths(found), "no column of it shows a foot"
    assert depths(found)[58, 4] == pytest.approx(150 / 20)


def test_a_thing_is_as_far_as_its_nearest_quarter() -> None:
    """Feet on a slant: what is farther than a thing is long beyond the nearest quarter of its feet is cut there."""
    slant = np.zeros((80, 100), np.uint16)
    for column in range(40):
        slant[41 : 60 - column // 3, column] = 1
    found = standing_things(slant, EGO_FROM_CAM, K, 0.0)
    feet = 150 / (20 - np.arange(40) // 3)
    near = np.quantile(feet, 0.25)
    assert found.depth.max() == pytest.approx(near + THING_M)
    assert found.depth.min() == pytest.approx(feet[0])


def test_a_thing_stands_on_its_wheels() -> None:
    """Under the body between them one sees the road behind; a far corner stays within what a thing is long."""
    car = masks(a=(40, 53, 30, 44))
    car[53:55, 30:33] = car[53:55, 41:44] = 1
    found = depths(car)
    assert found[45, 36] == pytest.approx(10.0)
    wall = masks(a=(40, 55, 10, 50))
    wall[45:, 40:50] = 0
    found = depths(wall)
    assert found[42, 48] == pytest.approx(10.0 + THING_M)


def test_wide_images_give_every_so_many_pixels() -> None:
    instances = np.zeros((8, 400), np.uint16)
    instances[2:6, 100:110] = 1
    camera = np.array([[100.0, 0, 200.0], [0, 100.0, -20.0], [0, 0, 1.0]])
    assert len(standing_things(instances, EGO_FROM_CAM, camera, 0.0).depth) == 2 * 5


def test_a_pixel_is_worth_more_metres_farther_away() -> None:
    spread = depth_per_pixel(EGO_FROM_CAM, K, 0.0)
    assert spread == pytest.approx(1 / 150)
    near, far = (depths(masks(a=(30, bottom, 20, 30)))[30, 20] for bottom in (50, 49))
    assert far - near == pytest.approx(spread * near * far)


def test_a_camera_under_the_ground_sees_none() -> None:
    assert not depths(masks(a=(30, 55, 20, 30)), ground_z=2.0)
    assert np.isfinite(depth_per_pixel(EGO_FROM_CAM, K, 2.0))


@pytest.mark.parametrize(
    "needs", [{"rays": {"standing": 8}}, {"rays": {"triangulated": 8}, "loss": {"lifted_flow": 1.0}}]
)
def test_a_ground_that_is_not_below_the_cameras_is_refused(tiny_config: Make, tiny_store: Path, needs: dict) -> None:
    """The world's cameras are 1.5 m high. Runs that place nothing by the ground need not know where it is."""
    reader = StoreReader(tiny_store)
    for ground, refused in ((1.4, False), (1.6, True)):
        model = {"depth_lift": {"ground_z": ground}}
        config = tiny_config(**needs, ablation={"lidar": False}, model=model)
        told = r"ground_z = 1\.6: camera CAM_FRONT of scene 'a' is at z = 1\.5 m .* -1\.73"
        with pytest.raises(ConfigError, match=told) if refused else nullcontext():
            training_frames(config, 2, reader)
        assert training_frames(tiny_config(ablation={"lidar": False}, model=model), 2, reader)


def batch_at(config: TrainConfig, t: int) -> Batch:
    return collate([KeyframeDataset(config, 2, [("a", t)], 0)[0, 0]])


def test_the_worlds_box_moves_as_it_does_without_lidar(world: Any, tiny_config: Make) -> None:
    """In images of 16 x 32 pixels, of which the box is three wide."""
    changes = {"loss": {"lifted_flow": 1.0}, "ablation": {"lidar": False}}
    batch = batch_at(tiny_config(**changes, rays={"triangulated": 100}), 1)
    assert batch.moving_valid is not None
    assert batch.moving_points is not None
    assert batch.moving_motion is not None
    there = batch.moving_valid[0]
    assert 2 < int(there.sum()) < 100
    true = world.ego(0.5)[:2, :2].T @ np.array(world.box_velocity) * 0.5
    assert batch.moving_motion[0][there].median(dim=0).values.numpy() == pytest.approx(true, abs=0.35)
    low, high = world.box(0.5)
    points = batch.moving_points[0][there].double().numpy()
    in_world = points @ world.ego(0.5)[:3, :3].T + world.ego(0.5)[:3, 3]
    assert np.abs(np.median(in_world, axis=0) - (low + high) / 2).max() < 1.5


@pytest.mark.parametrize("reach", [0, 2])
def test_standing_things_are_returns_of_a_camera_only_run(world: Any, tiny_config: Make, reach: int) -> None:
    """On the box, from the cameras, the keyframe's own; and what neighbours saw through where it is now is left out."""
    rays = {"triangulated": 4000, "lidar_reach": reach, "lidar_own": 0.5}
    drawn = {}
    for standing in (0, 64):
        config = tiny_config(rays={**rays, "standing": standing}, ablation={"lidar": False})
        assert ("masks" in needed_cues(config, 1)) or not standing
        sample = KeyframeDataset(config, 1, [("a", 2)], 0)[0, 0]
        assert sample.return_points is not None
        drawn[standing] = sample
    assert len(drawn[64].return_points) == len(drawn[0].return_points) + 64
    valid = drawn[64].return_valid[-64:]
    assert valid.sum() > 10
    assert drawn[64].return_own[-64:].all()
    points, origins = (x[-64:][valid].double().numpy() for x in (drawn[64].return_points, drawn[64].return_origins))
    low, high = world.box(1.0)
    ego = world.ego(1.0)
    there = transform_points(ego, points)
    off = np.maximum(np.maximum(low - there, there - high), 0).max(axis=1)
    # A row of these small images is two metres of ground where the box stands.
    assert np.median(off) < 0.5
    assert off.max() < 2.0
    cameras = drawn[64].ref_from_cam[:, :3, 3].double().numpy()
    assert (np.abs(origins[:, None] - cameras[None]).max(axis=2).min(axis=1) < 1e-4).all()
    through = {}
    for standing, sample in drawn.items():
        others = (sample.return_valid & ~sample.return_own).numpy()
        near = passes_near(sample.return_points.numpy(), sample.return_origins.numpy(), points.astype(np.float32), 0.5)
        through[standing] = int((others & near).sum())
    assert through[64] == 0
    assert reach == 0 or through[0] > 0, "rays must pass there to prove anything"


def test_without_a_mask_nothing_stands(tiny_config: Make) -> None:
    config = tiny_config(
        rays={"triangulated": 100, "standing": 16}, ablation={"lidar": False}, data={"min_mask_score": 1.0}
    )
    sample = KeyframeDataset(config, 1, [("a", 2)], 0)[0, 0]
    assert sample.return_valid is not None
    assert not sample.return_valid[-16:].any()
