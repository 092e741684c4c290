"""The checks on real frames: clean ones pass, and the same corruptions turn the same checks red."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.eval.inspection.corruptions import (
    Change,
    camera_late,
    change_flow,
    image_frozen,
    lidar_turned,
    masks_shifted,
    pose_shifted,
    red,
    sector_lost,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kitti_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten frames of sequence 04 with every embedded cue at half size."""
    root = Path(__file__).parents[3].parent / "shared" / "data" / "semantic_kitti"
    if not root.is_dir():
        pytest.skip("no real data at ../shared/data/semantic_kitti")
    from pipelines.config import CuesConfig
    from pipelines.extract import extract_log

    path = tmp_path_factory.mktemp("kitti") / "store.zarr"
    flows = {"flow_next": {"backend": "dis"}, "flow_prev": {"backend": "dis"}}
    masks = {"backend": "motion_lidar", "flows": ["flow_next", "flow_prev"], "motion": {"least_px": 0.001}}
    values = {
        "dataset": {"kind": "semantic_kitti", "root": root},
        "store": path,
        "sizes": {"network": (176, 608), "render": (176, 608), "keep": "bottom"},
        "keyframe_interval_s": 0.1037,
        "block_keyframes": 100,
        "on_error": "skip",
        "cues": {"images": {}, "lidar": {}, **flows, "masks": masks},
        "runner": {"workers": 1},
    }
    report = extract_log(CuesConfig.model_validate(values))
    assert not report.failed
    return path


def test_clean_frames_have_nothing_red(kitti_store: Path) -> None:
    assert red(kitti_store) == set()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (pose_shifted, {"static_bias", "pose_jump"}),  # at 10 Hz 0.3 m are an impossible acceleration
        (camera_late, {"pose_time"}),
        (change_flow(0.0), {"photometric", "static_bias", "flow_round_trip"}),
        (change_flow(-1.0), {"photometric", "static_bias", "flow_round_trip"}),
        (change_flow(1.3), {"photometric", "static_bias", "flow_round_trip"}),
        (masks_shifted, {"mask_edges"}),
        (lidar_turned, {"lidar_alignment"}),
        (sector_lost, {"lidar_azimuth"}),
        (image_frozen, {"frozen"}),
    ],
    ids=["pose", "time", "zeroed", "negated", "scaled", "masks", "lidar", "sector", "frozen"],
)
def test_corruptions_are_found_in_real_frames(
    change: Change,
    expected: set[str],
    kitti_store: Path,
    corrupt: Callable[[Path, Path, Change], Path],
    tmp_path: Path,
) -> None:
    assert red(corrupt(kitti_store, tmp_path / "store.zarr", change)) == expected
