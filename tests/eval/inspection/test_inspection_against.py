"""Two stores on the same keyframes: drift per check, what is newly bad, and both side by side."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.inspection.catalogue import BY_NAME
from eval.inspection.compare import compare
from eval.inspection.drift import NAMED, Drift
from eval.inspection.run import inspect_store
from eval.inspection.settings import InspectionSettings
from eval.inspection.side_by_side import pair_cards
from storage.schema import SceneTable
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
