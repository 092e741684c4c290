"""Labels corrupted on purpose turn exactly the intended checks red."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage.schema import INVALID_FLOW, SceneTable
from tests.eval.inspection.corruptions import (
    Arrays,
    Change,
    camera_late,
    change_flow,
    image_frozen,
    instances_dropped,
    lidar_turned,
    masks_shifted,
    pose_shifted,
    red,
    ring_lost,
    sector_lost,
)


def noisy_flow(table: SceneTable, arrays: Arrays) -> SceneTable:
    """Patches of the flow belong to other places of the image."""
    stored = arrays["flow_next"]["flow/next/flow"]
    valid = stored != INVALID_FLOW
    noise = np.random.default_rng(0).normal(0, 64 * 4, stored.shape)
    arrays["flow_next"]["flow/next/flow"] = np.where(valid, stored + noise, stored).astype(np.int16)
    return table


def cameras_swapped(table: SceneTable, arrays: Arrays) -> SceneTable:
    """Everything that was seen by one camera is stored as the other's."""
    for cue, names in {
        "images": ("images", "images_length"),
        "masks": ("masks/instance", "masks/table"),
        "flow_next": ("flow/next/flow", "flow/next/confidence"),
        "flow_prev": ("flow/prev/flow", "flow/prev/confidence"),
    }.items():
        for name in names:
            arrays[cue][name] = arrays[cue][name][:, ::-1].copy()
    return table


CORRUPTIONS: dict[str, tuple[Change, set[str]]] = {
    "pose shifted by 0.3 m": (pose_shifted, {"static_bias"}),
    "camera time off by 50 ms": (camera_late, {"pose_time"}),
    "flow zeroed": (change_flow(0.0), {"photometric", "static_bias", "flow_round_trip"}),
    "flow negated": (change_flow(-1.0), {"photometric", "static_bias", "flow_round_trip"}),
    "flow scaled": (change_flow(1.3), {"photometric", "static_bias", "flow_round_trip"}),
    "flow noisy": (noisy_flow, {"photometric", "static_scatter", "flow_round_trip"}),
    "cameras swapped": (cameras_swapped, {"static_bias", "static_scatter", "lidar_alignment"}),
    "instances dropped": (instances_dropped, {"mask_flicker"}),
    "masks shifted by 8 px": (masks_shifted, {"mask_edges"}),
    "LiDAR turned by 1 degree": (lidar_turned, {"lidar_alignment"}),
    "LiDAR sector lost": (sector_lost, {"lidar_azimuth"}),
    "one image frozen": (image_frozen, {"frozen"}),
}
TRUTH = {"truth_flow", "truth_masks", "truth_depth"}


@pytest.fixture(scope="module")
def long_store(street: type, write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One street of 24 keyframes: in fewer sweeps, four that lack the same prove too little."""
    one = street(keyframes=24)
    return write(tmp_path_factory.mktemp("long") / "store.zarr", {"street-0": (one.table(), one.cues())})


@pytest.mark.slow
def test_a_lost_ring_of_lidar_turns_its_check_alone_red(
    long_store: Path, corrupt: Callable[[Path, Path, Change], Path], tmp_path: Path
) -> None:
    assert red(long_store) == set()
    assert red(corrupt(long_store, tmp_path / "store.zarr", ring_lost)) == {"lidar_birdseye"}


def test_the_clean_store_has_nothing_red(clean_store: Path) -> None:
    assert red(clean_store) == set()


FAST = ("pose shifted by 0.3 m",)


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CORRUPTIONS])
def test_a_corruption_turns_its_checks_red(
    name: str, clean_store: Path, corrupt: Callable[[Path, Path, Change], Path], tmp_path: Path
) -> None:
    change, expected = CORRUPTIONS[name]
    assert red(corrupt(clean_store, tmp_path / "store.zarr", change)) - TRUTH == expected
