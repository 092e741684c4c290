"""What a data set settles for cues that leave it out."""

from collections.abc import Callable
from typing import Any

import pytest

from pipelines.config import CuesConfig
from pipelines.cues.neighbours import DrawRule
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


@pytest.mark.parametrize("backend", ["dis", "unimatch"])
@pytest.mark.parametrize(("kind", "sigma"), [("nuscenes", 0.5), *((kind, 1.0) for kind in KITTI)])
def test_the_earlier_frame_is_drawn_by_the_data_sets_rule(
    cues_config: Callable[..., CuesConfig], kind: str, sigma: float, backend: str
) -> None:
    # method.md, section 5: mean 0.5 m up to 6 m on both, deviation 0.5 m on nuScenes and 1.0 m on KITTI, 20 frames.
    found = extractor(cues_config, kind, "flow_aux", backend=backend).draw
    assert found == DrawRule(mean=0.5, sigma=sigma, max_distance=6.0, max_frames=20)
    some = extractor(cues_config, kind, "flow_aux", backend=backend, draw={"max_frames": 5}).draw
    assert (some.sigma, some.max_frames) == (sigma, 5)
    assert extractor(cues_config, kind, "flow_aux", backend=backend, draw={"sigma": 0.8}).draw.sigma == 0.8


def test_the_rule_of_the_draw_is_in_the_digest_of_flow_aux_alone(cues_config: Callable[..., CuesConfig]) -> None:
    def digests(cue: str) -> int:
        return len({extractor(cues_config, kind, cue, backend="dis").config_digest() for kind in ("nuscenes", *KITTI)})

    assert digests("flow_aux") == 2
    assert digests("flow_next") == 1, "flow to a keyframe draws nothing"


def test_a_group_that_is_none_is_refused_as_before(cues_config: Callable[..., CuesConfig]) -> None:
    with pytest.raises(ValueError, match="'flow_aux', parameter draw"):
        extractor(cues_config, "kitti_mot", "flow_aux", backend="dis", draw=3)
