"""Cues that are made from each other: who needs whom is told, and what would do without."""

from typing import Any

import pytest

from pipelines.config import ConfigError, CuesConfig
from pipelines.workbench import Workbench

FLOW = {"backend": "composed", "inside": {"backend": "tracks"}, "outside": {"backend": "dis"}}


def bench(masks: dict[str, Any]) -> Workbench:
    return Workbench(
        CuesConfig.model_validate(
            {
                "dataset": {"kind": "nuscenes", "root": "nowhere"},
                "store": "nowhere.zarr",
                "sizes": {"network": [64, 176], "render": [64, 176]},
                "keyframe_interval_s": 0.5,
                "cues": {"lidar": {}, "flow_next": FLOW, "masks": masks},
            }
        )
    )


@pytest.mark.parametrize(
    ("masks", "remedy"),
    [
        ({"backend": "grounded_sam"}, "set masks.link_flow to dis_chain"),
        ({"backend": "motion_lidar"}, "leave flow_next out of masks.flows"),
    ],
)
def test_the_way_out_of_a_circle_is_told(masks: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ConfigError) as told:
        _ = bench(masks).extractors
    message = str(told.value)
    assert "'flow_next' is made from 'masks' and 'masks' is made from 'flow_next': a circle" in message
    assert remedy in message
    assert "lidar" not in message


@pytest.mark.parametrize("masks", [{"backend": "grounded_sam", "link_flow": "dis_chain"}, {"flows": []}])
def test_the_remedies_are_remedies(masks: dict[str, Any]) -> None:
    assert list(bench(masks).extractors) == ["lidar", "masks", "flow_next"]
