"""The checks on real frames: clean ones pass, and the same corruptions turn the same checks red."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.inspection.run import inspect_store
from storage.schema import INVALID_FLOW, SceneTable

Arrays = dict[str, dict[str, np.ndarray]]
Change = Callable[[SceneTable, Arrays], SceneTable]
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


def pose_shifted(table: SceneTable, arrays: Arrays) -> SceneTable:
    own, cameras = table.global_from_ego.copy(), table.camera_global_from_ego.copy()
    own[1::2, :3, 3] += 0.3 * own[1::2, :3, 1]
    cameras[1::2, ..., :3, 3] += 0.3 * cameras[1::2, ..., :3, 1]
    return replace(table, global_from_ego=own, camera_global_from_ego=cameras)


def camera_late(table: SceneTable, arrays: Arrays) -> SceneTable:
    return replace(table, camera_timestamp_us=table.camera_timestamp_us + 50_000)


def change_flow(factor: float) -> Change:
    def change(table: SceneTable, arrays: Arrays) -> SceneTable:
        stored = arrays["flow_next"]["flow/next/flow"]
        scaled = np.rint(stored.astype(np.float64) * factor)
        invalid = (stored == INVALID_FLOW) | (np.abs(scaled) > 32767)
        arrays["flow_next"]["flow/next/flow"] = np.where(invalid, INVALID_FLOW, scaled).astype(np.int16)
        return table

    return change


def masks_shifted(table: SceneTable, arrays: Arrays) -> SceneTable:
    arrays["masks"]["masks/instance"] = np.roll(arrays["masks"]["masks/instance"], 8, axis=-1)
    return table


def lidar_turned(table: SceneTable, arrays: Arrays) -> SceneTable:
    points, angle = arrays["lidar"]["lidar/points"], np.radians(1.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    points[..., :2] = points[..., :2] @ turn.T
    return table


def image_frozen(table: SceneTable, arrays: Arrays) -> SceneTable:
    for name in ("images", "images_length"):
        arrays["images"][name][3, 0] = arrays["images"][name][2, 0]
    return table


def red(store: Path) -> set[str]:
    """Checks that fail."""
    return {check["name"] for check in inspect_store(store).result["checks"] if check["state"] == "fail"}


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
        (image_frozen, {"frozen"}),
    ],
    ids=["pose", "time", "zeroed", "negated", "scaled", "masks", "lidar", "frozen"],
)
def test_corruptions_are_found_in_real_frames(
    change: Change,
    expected: set[str],
    kitti_store: Path,
    corrupt: Callable[[Path, Path, Change], Path],
    tmp_path: Path,
) -> None:
    assert red(corrupt(kitti_store, tmp_path / "store.zarr", change)) == expected
