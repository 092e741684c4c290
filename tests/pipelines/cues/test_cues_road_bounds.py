"""Bounds on depth from a flat road, for a camera whose ego frame lies on the ground and for one that hangs above it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from geometry.cameras import camera_directions, pixel_centres
from pipelines.config import ConfigError
from pipelines.cues.base import ImageSizes
from pipelines.cues.motion_witnesses import Witness
from pipelines.cues.road_bounds import GROUND_Z, RoadRule, road_bounds
from pipelines.cues.static_flow import static_flow_between
from pipelines.datasets.records import CameraImage

SIZES = ImageSizes((48, 80), (48, 80))


def pair_of(flat_world: Callable[..., Any], height: float) -> tuple[CameraImage, CameraImage]:
    """Two images whose camera is at z = `height` m of the ego frame; the car drives 1 m ahead between them."""
    first, second = (frame.images["CAM"] for frame in flat_world(keyframes=2, sweeps=0).scene().keyframes)
    mount, ahead = first.ego_from_cam.copy(), np.eye(4)
    mount[2, 3], ahead[0, 3] = height, 1.0
    return replace(first, ego_from_cam=mount), replace(second, ego_from_cam=mount, global_from_ego=ahead)


@pytest.mark.parametrize(("height", "ground"), [(1.65, GROUND_Z["nuscenes"]), (-0.08, GROUND_Z["kitti_mot"])])
def test_the_road_itself_lies_within_its_bounds(flat_world: Callable[..., Any], height: float, ground: float) -> None:
    # Both cameras are 1.65 m above the road: a ray that falls by d per metre of depth meets it at 1.65 / d.
    first, second = pair_of(flat_world, height)
    K = SIZES.render_transform(first).intrinsics(first.K)
    down = camera_directions(K, pixel_centres(48, 80).reshape(-1, 2)).reshape(48, 80, 3)[..., 1]
    inverse = np.maximum(down, 0.0) / 1.65
    with np.errstate(divide="ignore"):
        flow = static_flow_between(first, second, 1.0 / inverse, SIZES)
    bounds = road_bounds(first, Witness(flow, second), SIZES, RoadRule(ground_z=ground))
    assert (bounds.lower <= inverse + 1e-9).all()
    assert (bounds.upper >= inverse - 1e-9).all()
    assert bounds.upper[28:].max() < 0.4, "nearer than the road and what stands on it is nothing"


@pytest.mark.parametrize("height", [-0.08, 0.0])
def test_a_road_above_the_camera_is_refused(flat_world: Callable[..., Any], height: float) -> None:
    first, second = pair_of(flat_world, height)
    witness = Witness(np.zeros((2, 48, 80), np.float32), second)
    told = rf"camera CAM is at z = {height:g} m .* the road at 0 m: expected .* masks\.road\.ground_z"
    with pytest.raises(ConfigError, match=told):
        road_bounds(first, witness, SIZES, RoadRule())
