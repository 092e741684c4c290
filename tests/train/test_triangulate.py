"""Points from flow and ego-motion: by hand, against the exact world, on wrong and missing cues, and in a run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from geometry.transforms import transform_points
from storage.schema import FLOW_SCALE
from train.config import TrainConfig
from train.data import KeyframeDataset
from train.loop import train
from train.selection import needed_cues
from train.triangulate import Towards, Triangulated, triangulate, triangulated_returns

Make = Callable[..., TrainConfig]
FORWARD = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
K = np.array([[88.0, 0, 88], [0, 88, 32], [0, 0, 1]])
SHAPE = (64, 176)


def towards(flow: tuple[float, float], moved: tuple[float, float, float], known: bool = True) -> Towards:
    """One flow everywhere, into an image of the same camera after the car has moved (x ahead, y left, z up)."""
    target_from_ref = np.linalg.inv(FORWARD)
    target_from_ref[:3, 3] = -target_from_ref[:3, :3] @ np.array(moved)
    everywhere = np.broadcast_to((np.array(flow) * FLOW_SCALE).astype(np.int16)[:, None, None], (2, *SHAPE))
    return Towards(everywhere, np.full(SHAPE, known), target_from_ref, K)


def at(*cues: Towards, pixel: tuple[int, int] = (87, 31)) -> Triangulated:
    still = np.zeros(SHAPE, dtype=bool)
    still[pixel[1], pixel[0]] = True
    return triangulate(FORWARD, K, still, list(cues))


def test_a_step_to_the_side_by_hand() -> None:
    """A metre to the left moves what is 8 m away by 11 pixels to the right."""
    found = at(towards((11.0, 0.0), (0, 1, 0)))
    assert found.depth == pytest.approx([8.0], abs=0.01)
    assert found.points[0] == pytest.approx([8.0, 0.5 / 88 * 8, 0.5 / 88 * 8], abs=0.01)
    # An error of a pixel, a 176th of the width, is an eleventh of the depth.
    assert found.error == pytest.approx([1 / 11], abs=0.001)


def test_two_cues_are_joined_by_what_each_knows() -> None:
    both = at(towards((11.0, 0.0), (0, 1, 0)), towards((-22.0, 0.0), (0, -2, 0)))
    assert both.depth == pytest.approx([8.0], abs=0.01)
    assert both.error == pytest.approx([1 / np.hypot(11, 22)], abs=0.001)
    # Where they differ a little (10.5 px for 11) the longer way counts four times, where they differ much neither does.
    differ = at(towards((10.5, 0.0), (0, 1, 0)), towards((-22.0, 0.0), (0, -2, 0)))
    assert differ.depth == pytest.approx([8.0 * (1 + 0.5 / 11 * 0.2)], abs=0.02)
    assert not len(at(towards((5.0, 0.0), (0, 1, 0)), towards((-22.0, 0.0), (0, -2, 0))).depth)
    unknown = at(towards((11.0, 0.0), (0, 1, 0)), towards((500.0, 0.0), (0, -2, 0), known=False))
    assert unknown.depth == pytest.approx([8.0], abs=0.01)


@pytest.mark.parametrize(
    ("flow", "moved"),
    [
        ((0.0, 0.0), (0.0, 0.0, 0.0)),  # the car stands: no way between the images
        ((11.0, 0.0), (0.0, 0.0, 0.0)),  # and what moves there is not the car
        ((3.0, 0.0), (0.0, 1.0, 0.0)),  # 29 m away by 3 px: known too badly
        ((11.0, 4.0), (0.0, 1.0, 0.0)),  # off the line on which it could move
        ((-11.0, 0.0), (0.0, 1.0, 0.0)),  # would lie behind the camera
        ((120.0, 0.0), (0.0, 1.0, 0.0)),  # 0.7 m before the lens
    ],
)
def test_what_gives_no_point(flow: tuple[float, float], moved: tuple[float, float, float]) -> None:
    assert not len(at(towards(flow, moved)).depth)


def test_no_cue_no_point() -> None:
    assert not len(at().depth)
    assert not len(at(towards((11.0, 0.0), (0, 1, 0), known=False)).depth)
    nothing = triangulate(FORWARD, K, np.zeros(SHAPE, dtype=bool), [towards((11.0, 0.0), (0, 1, 0))])
    assert nothing.points.shape == (0, 3)
    none = triangulated_returns(FORWARD[None], K[None], np.array([False]), np.zeros((1, *SHAPE), dtype=bool), [])
    assert none.shape == (0, 6)


def triangulating(tiny_config: Make, **sections: Any) -> TrainConfig:
    sections["rays"] = {"triangulated": 400, "lidar": 300, **sections.get("rays", {})}
    return tiny_config(**sections)


def test_points_lie_on_the_worlds_surfaces(world: Any, tiny_config: Make) -> None:
    """Seen again in the exact world from where they were measured, they meet a surface that does not move."""
    config = triangulating(tiny_config, rays={"lidar_reach": 2}, ablation={"lidar": False})
    for stage in (1, 2):
        sample = KeyframeDataset(config, stage, [("a", 2)], 0)[0, 0]
        assert sample.return_points is not None
        assert sample.return_valid is not None
        assert sample.return_own is not None
        assert sample.return_origins is not None
        valid = sample.return_valid.numpy()
        assert (valid & sample.return_own.numpy()).sum() > 50
        assert (valid & ~sample.return_own.numpy()).sum() > 50
        pose = world.ego(2 * 0.5)
        points, origins = (x.numpy()[valid].astype(np.float64) for x in (sample.return_points, sample.return_origins))
        start = transform_points(pose, origins)
        share, kind = world.cast(start, transform_points(pose, points) - start, 1.0)
        assert np.median(np.abs(share - 1)) < 0.02
        assert np.quantile(np.abs(share - 1), 0.9) < 0.1
        assert (kind == 0).mean() > 0.97


def test_beside_lidar_both_are_drawn(tiny_config: Make) -> None:
    sample = KeyframeDataset(triangulating(tiny_config), 1, [("a", 2)], 0)[0, 0]
    assert sample.return_points is not None
    assert sample.return_origins is not None
    assert len(sample.return_points) == 700
    assert len(np.unique(sample.return_origins[:300].numpy(), axis=0)) == 1
    assert len(np.unique(sample.return_origins[300:].numpy().round(3), axis=0)) > 1


def test_cues_it_asks_for(tiny_config: Make) -> None:
    camera_only = triangulating(tiny_config, ablation={"lidar": False})
    assert {"flow_next", "flow_aux", "masks"} <= set(needed_cues(camera_only, 1))
    assert "lidar" not in needed_cues(camera_only, 1)
    assert len(set(needed_cues(camera_only, 2))) == len(needed_cues(camera_only, 2))
    assert "flow_next" not in needed_cues(tiny_config(), 1)


def test_a_camera_only_run_trains_its_images_first(tiny_config: Make) -> None:
    config = triangulating(
        tiny_config,
        ablation={"lidar": False},
        loss={"pixel_depth": 1.0},
        stage1={"max_steps": 4, "image_share": 0.5},
        model={"depth_lift": {"bins": 16}},
    )
    assert train(config).finished
