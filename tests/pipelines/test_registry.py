"""What a data set settles for cues that leave it out."""

from collections.abc import Callable
from typing import Any

import pytest

from pipelines.config import CuesConfig
from pipelines.registry import build_extractor

KITTI = ("semantic_kitti", "kitti_mot")


def extractor(cues_config: Callable[..., CuesConfig], kind: str, cue: str, **parameters: Any) -> Any:
    """The extractor of one cue for a kind of data set."""
    dataset = {**cues_config().dataset.model_dump(), "kind": kind}
    return build_extractor(cues_config(dataset=dataset, cues={cue: parameters}), cue)


@pytest.mark.parametrize(("kind", "height"), [("nuscenes", 0.0), *((kind, -1.73) for kind in KITTI)])
def test_the_road_lies_where_the_data_set_has_it(
    cues_config: Callable[..., CuesConfig], kind: str, height: float
) -> None:
    assert extractor(cues_config, kind, "masks", backend="motion_epipolar").road.ground_z == height
    some = extractor(cues_config, kind, "masks", backend="motion_epipolar", road={"tilt": 0.02}).road
    assert (some.ground_z, some.tilt) == (height, 0.02)
    own = extractor(cues_config, kind, "masks", backend="motion_epipolar", road={"ground_z": -1.6}).road
    assert own.ground_z == -1.6
    assert not hasattr(extractor(cues_config, kind, "masks", backend="motion_lidar"), "road")
