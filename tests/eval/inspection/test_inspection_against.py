"""Two stores on the same keyframes: drift per check, what is newly bad, and both side by side."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from eval.inspection.catalogue import BY_NAME
from eval.inspection.compare import _values, compare
from eval.inspection.drift import NAMED, Drift
from eval.inspection.measure import RIG
from eval.inspection.run import Inspector, inspect_store
from eval.inspection.settings import InspectionSettings
from eval.inspection.side_by_side import pair_cards
from storage.layout import INIT
from storage.schema import CUES, SceneTable
from storage.store import CueStore
from tests.eval.inspection.conftest import CAMERAS, write_store
from tests.eval.inspection.corruptions import Arrays, no_flow

ONE = ("street-0",)
Corrupt = Callable[[Path, Path, Callable[[SceneTable, Arrays], SceneTable]], Path]


@pytest.mark.slow
def test_paired_comparison(clean_store: Path, corrupt: Corrupt, tmp_path: Path) -> None:
    path = corrupt(clean_store, tmp_path / "store.zarr", no_flow)
    found = compare(inspect_store(path, InspectionSettings(scenes=ONE)), clean_store).result
    rows = {row["name"]: row for row in found["checks"]}
    assert found["keyframes"] == 6
    newly = rows["flow_valid"]["newly_bad"]
    assert newly["count"] == 1
    assert [(f["scene"], f["t"], f["camera"]) for f in newly["frames"]] == [("street-0", 2, "CAM_LEFT")]
    assert rows["photometric"]["median_difference"] == 0
    assert not any(row["worse"] or row["better"] for row in rows.values())


def test_drifts_keep_what_moved_farthest_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.inspection.drift.KEPT_PAIRS", 500)
    drift = Drift(BY_NAME["flow_valid"], InspectionSettings())  # low is bad, limit 0.1
    for k in range(1000):
        drift.add("s", k, 0, own=0.5, other=0.5 + (k % 100) * 1e-3, other_t=k)
    drift.add("s", 7, 1, own=0.05, other=0.3, other_t=9)
    drift.add("s", 8, 1, own=0.9, other=0.05, other_t=8)
    drift.close()
    assert (drift.count, len(drift.kept), len(drift.moved)) == (1002, 500, NAMED)
    assert (drift.newly_bad, drift.newly_good) == (1, 1)
    assert [(p.t, p.other_t, p.own) for p in drift.spoilt] == [(7, 9, 0.05)]
    assert drift.moved[0] == drift.spoilt[0]
    assert drift.moved[1].moved == pytest.approx(0.099)
    found = drift.result(("A", "B"))
    assert found["worse"]
    assert found["median_difference"] == pytest.approx(-0.0495, abs=0.01)
    few = Drift(BY_NAME["flow_valid"], InspectionSettings())
    few.add("s", 0, 0, own=0.2, other=0.9, other_t=0)
    assert not few.result(("A",))["worse"]
    assert found["newly_bad"]["frames"] == [{"scene": "s", "t": 7, "camera": "B", "own": 0.05, "other": 0.3}]


def test_both_stores_are_drawn_side_by_side(clean_store: Path, corrupt: Corrupt, tmp_path: Path) -> None:
    path = corrupt(clean_store, tmp_path / "store.zarr", no_flow)
    inspection = inspect_store(path, InspectionSettings(scenes=ONE, worst=3, thumbnail=80))
    comparison = compare(inspection, clean_store)
    found = pair_cards(inspection, comparison)
    first = found[0]
    assert (first["check"], first["scene"], first["t"], first["camera"]) == ("flow_valid", "street-0", 2, "CAM_LEFT")
    assert first["own"] == 0 < first["other"]
    assert first["pictures"]["flow"] != first["other_pictures"]["flow"]
    assert first["pictures"]["image"] == first["other_pictures"]["image"]
    assert shlex.split(first["other_command"])[2:] == [
        str(clean_store), "--scene", "street-0", "--frame", "2", "--camera", "CAM_LEFT"
    ]  # fmt: skip
    assert len({(card["scene"], card["t"], card["camera"]) for card in found}) == len(found)


@pytest.mark.slow
def test_a_store_does_not_differ_from_itself(clean_store: Path) -> None:
    inspection = inspect_store(clean_store, InspectionSettings(scenes=ONE, every=True))
    comparison = compare(inspection, clean_store)
    assert pair_cards(inspection, comparison) == []
    names = {row["name"]: row for row in comparison.result["checks"]}
    assert all(row["low"] == row["high"] == 0 for row in names.values())
    assert {"mask_edges", "mask_count", "lidar_level", "truth_masks", "pose_jump", "pose_time"} <= set(names)
    assert names["mask_edges"]["pairs"] == 1
    assert names["pose_jump"]["pairs"] == 4


@pytest.mark.slow
def test_a_store_that_is_worse_everywhere_says_so(clean_store: Path, corrupt: Corrupt, tmp_path: Path) -> None:
    def zeroed(table: SceneTable, arrays: Arrays) -> SceneTable:
        stored = arrays["flow_next"]["flow/next/flow"]
        stored[stored != -32768] = 0
        return table

    path = corrupt(clean_store, tmp_path / "store.zarr", zeroed)
    worse = compare(inspect_store(path, InspectionSettings(sample=6)), clean_store).result
    assert {row["name"] for row in worse["checks"] if row["worse"]} >= {"photometric", "static_bias"}
    better = compare(inspect_store(clean_store, InspectionSettings(sample=6)), path).result
    assert {row["name"] for row in better["checks"] if row["better"]} >= {"photometric", "static_bias"}


def other_rig(source: Path, path: Path, cameras: tuple[str, ...]) -> Path:
    """A copy of a store with these of its cameras alone, in this order."""
    store = CueStore.open(source)
    pick = [store.attributes.cameras.index(name) for name in cameras]
    scenes = {}
    for name in store.scenes():
        table = store.table(name)
        rig = ("camera_", "sweep_", "ego_from_cam", "K", "image_from_raw")
        per_camera = [key for key in vars(table) if key.startswith(rig)]
        axis = {key: 2 if key.startswith("sweep_") else 1 for key in per_camera}
        changed = {key: getattr(table, key).take(pick, axis=axis[key]) for key in per_camera}
        arrays = {}
        for unit in (r.unit for r in store.records() if r.unit.scene == name and r.unit.cue != INIT):
            axes = {spec.name: spec.shape for spec in CUES[unit.cue]}
            arrays[unit.cue] = {
                key: np.array(value).take(pick, axis=1 + axes[key].index("C")) if "C" in axes[key] else np.array(value)
                for key, value in store.read_block(unit).items()
            }
        scenes[name] = (replace(table, **changed), arrays)
    return write_store(path, replace(store.attributes, cameras=cameras), scenes)


def test_cameras_are_the_same_by_name(clean_store: Path, tmp_path: Path) -> None:
    """One store lists them the other way round, another has one of them."""
    turned = other_rig(clean_store, tmp_path / "turned.zarr", CAMERAS[::-1])
    inspection = inspect_store(clean_store, InspectionSettings(scenes=ONE, sample=4, worst=3, thumbnail=80))
    comparison = compare(inspection, turned)
    rows = {row["name"]: row for row in comparison.result["checks"]}
    assert comparison.result["cameras_not_compared"] == {"own": [], "other": []}
    for name in ("flow_confidence", "photometric", "exposure", "camera_offset", "pose_time", "mask_area"):
        assert rows[name]["low"] == rows[name]["high"] == 0, name
        assert rows[name]["pairs"] >= 4, name
    assert comparison.their_camera == {0: 1, 1: 0}


def test_cameras_of_one_store_alone_are_named_and_left_out(clean_store: Path, corrupt: Corrupt, tmp_path: Path) -> None:
    path = corrupt(clean_store, tmp_path / "store.zarr", no_flow)
    left = other_rig(path, tmp_path / "left.zarr", ("CAM_LEFT",))
    settings = InspectionSettings(scenes=ONE, every=True, worst=3, thumbnail=80)
    there = compare(inspect_store(clean_store, settings), left)
    assert there.result["cameras_not_compared"] == {"own": ["CAM_FRONT"], "other": []}
    rows = {row["name"]: row for row in there.result["checks"]}
    assert rows["flow_valid"]["newly_good"] == 1
    assert rows["flow_valid"]["pairs"] == 5, "the last keyframe has no flow to a next one"
    own = Inspector.open(clean_store, settings)
    kept = {one.camera for one in _values(own, "street-0", 2, {1: 0})}
    assert kept == {RIG, 0}, "nor pooled over a scene is what one store alone has"
    inspection = inspect_store(left, settings)
    here = compare(inspection, clean_store)
    assert here.result["cameras_not_compared"] == {"own": [], "other": ["CAM_FRONT"]}
    first = pair_cards(inspection, here)[0]
    assert (first["check"], first["t"], first["camera"]) == ("flow_valid", 2, "CAM_LEFT")
    assert first["pictures"]["image"] == first["other_pictures"]["image"], "the same camera's on both sides"


def test_the_command_names_cameras_that_are_not_compared(clean_store: Path, tmp_path: Path) -> None:
    from occflow import app

    left = other_rig(clean_store, tmp_path / "left.zarr", ("CAM_LEFT",))
    given = ["--sample", "2", "--out", str(tmp_path / "out"), "--against", str(left)]
    done = CliRunner().invoke(app, ["inspect", str(clean_store), *given])
    assert done.exit_code == 0, done.output
    assert "not compared: CAM_FRONT, which only this store has" in done.output
