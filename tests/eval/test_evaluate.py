"""Evaluation of whole stores: exact networks score exactly, baselines as by hand, what is missing is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.depth import depth_metrics
from eval.evaluate import choose_threshold, evaluate
from eval.rules import EvaluationError
from geometry.grid import KITTI_GRID
from model.network import OccFlow

Exact = Callable[..., OccFlow]


@pytest.fixture(scope="module")
def results(tiny_store: Path, log: Any, exact: Exact) -> dict[str, Any]:
    """The exact network on the whole store."""
    return evaluate(exact(log), tiny_store, sweep=(-0.4, 0.0, 0.4))


def test_a_network_that_knows_the_truth_is_perfect(results: dict[str, Any]) -> None:
    assert results["protocol"] == "geometry"
    assert results["rayiou_geometry"] == results["rayiou_nonground"] == 1.0
    assert results["mave"] == pytest.approx(0.0, abs=1e-6)
    assert results["flow_epe_dynamic"] == pytest.approx(0.0, abs=1e-6)
    assert results["recall_dynamic"] == 1.0
    assert results["false_flow_parked"] == 0.0
    assert results["occscore_geometry"] == pytest.approx(1.0, abs=1e-6)
    assert results["not_computed"] == results["notes"] == []
    assert results["rayiou"]["frames"] == 3


def test_zero_flow_errs_by_the_speed(results: dict[str, Any]) -> None:
    speed = np.hypot(3.0, 1.0)
    assert results["baselines"]["zero_flow"]["flow_epe_dynamic"] == pytest.approx(speed, rel=1e-6)
    # mAVE is over all cars that rays found, the parked one too.
    car = results["velocity"]["per_class"]["car"]
    assert 0 < results["baselines"]["zero_flow"]["mave"] < speed
    assert results["baselines"]["zero_flow"]["mave"] == pytest.approx(car["ave_zero_flow"])


def test_flat_ground_is_right_about_the_road_and_wrong_about_the_rest(results: dict[str, Any]) -> None:
    flat = results["baselines"]["flat_ground"]
    counts = results["rayiou"]["per_class"]
    total, road = results["rayiou"]["rays"], counts["driveable_surface"]["gt"]
    assert flat["rayiou_nonground"] < 0.3 < road / (2 * total - road) <= flat["rayiou_geometry"] < 1


def test_depth_of_the_flat_baseline_by_a_slow_version(results: dict[str, Any], log: Any) -> None:
    """Ground points and wall points projected one by one; the plane's depth, or the box's end, by similar triangles."""
    figures = []
    for c, way in ((0, 1.0), (1, -1.0)):
        nearest: dict[tuple[int, int], float] = {}
        for x, y, z in log.points():
            depth = way * x
            if depth < 0.1:
                continue
            u, v = 16 - 16 * way * y / depth, 8 - 16 * (z - 1.5) / depth
            if 0 <= u < 32 and 0 <= v < 16:
                key = (int(u), int(v))
                nearest[key] = min(nearest.get(key, np.inf), depth)
        flat = []
        for u, v in nearest:
            aside, down = abs(u + 0.5 - 16) / 16, (v + 0.5 - 8) / 16
            flat.append(min(40.0, 40.0 / aside, 1.5 / down if down > 0 else 3.9 / -down))
        figures.append(depth_metrics(np.array(flat), np.array(list(nearest.values())))[0])
        assert len(nearest) > 20, c
    assert results["baselines"]["flat_ground"]["abs_rel"] == pytest.approx(np.mean(figures), rel=1e-5)
    assert results["depth"]["images"] == 6


def test_the_sweep_brackets_the_surface(results: dict[str, Any]) -> None:
    """sdf is -0.3 inside and 0.3 outside: nothing is occupied at -0.4, everything at 0.4."""
    nothing, exact, everything = results["sweep"]
    assert [row["threshold_m"] for row in results["sweep"]] == [-0.4, 0.0, 0.4]
    assert exact["rayiou"] == 1.0
    assert nothing["rayiou"] < 0.2
    assert everything["rayiou"] < 0.2


def test_provenance_names_everything(results: dict[str, Any], tiny_store: Path) -> None:
    assert results["store"] == str(tiny_store)
    assert results["truth"].endswith("store.truth.zarr")
    assert results["checkpoint"] is None
    assert results["scenes"] == ["a"]
    assert results["keyframes"] == 3
    assert results["threshold_m"] == 0.1
    assert results["grid"]["shape"] == [200, 200, 16]
    assert len(results["config_digest"]) == 12
    assert results["depth_size"] == [16, 32]
    json.dumps(results, allow_nan=False)


def test_the_threshold_is_chosen_by_rayiou(tiny_store: Path, log: Any, exact: Exact) -> None:
    assert choose_threshold(exact(log), tiny_store, None, (0.4, 0.25, -0.35, 0.2), keyframes=1) == 0.2
    with pytest.raises(EvaluationError, match="candidates"):
        choose_threshold(exact(log), tiny_store, None, ())


def test_a_protocol_with_classes_is_refused(tiny_store: Path, log: Any, exact: Exact) -> None:
    with pytest.raises(EvaluationError, match="predicts none: use 'geometry'"):
        evaluate(exact(log), tiny_store, protocol="openocc")
    with pytest.raises(EvaluationError, match="choose from openocc, geometry, semantickitti"):
        evaluate(exact(log), tiny_store, protocol="geometri")


def test_without_truth_depth_is_left(tmp_path: Path, make_log: type, exact: Exact) -> None:
    log = make_log(truth_at=None)
    found = evaluate(exact(log), log.write(tmp_path / "store.zarr"))
    assert found["abs_rel"] is not None
    assert found["rayiou_geometry"] is found["mave"] is found["flow_epe_dynamic"] is None
    assert found["baselines"]["zero_flow"] == {}
    assert found["not_computed"] == [
        "no occupancy truth beside the store: no RayIoU, no velocity errors; depth is measured against LiDAR"
    ]
    assert "rayiou" not in found


def test_keyframes_without_truth_or_lidar_and_cameras_without_image(
    tmp_path: Path, make_log: type, exact: Exact
) -> None:
    log = make_log(truth_at=(0, 2), lidar_at=(0, 1), blind=((0, 1), (1, 0), (1, 1)))
    found = evaluate(exact(log), log.write(tmp_path / "store.zarr"))
    # Keyframe 1 has no image at all and keyframe 2 no LiDAR of its own (rays start from the others' positions).
    assert found["keyframes"] == 2
    assert found["rayiou"]["frames"] == 2
    assert found["rayiou_geometry"] == 1.0
    assert found["depth"]["images"] == 1
    log = make_log(truth_at=(1,))
    found = evaluate(exact(log), log.write(tmp_path / "other.zarr"))
    assert found["rayiou"]["frames"] == 1
    assert found["depth"]["images"] == 6
    assert found["notes"] == ["2 of 3 keyframes have no occupancy truth and count for depth only"]


def test_without_lidar_there_are_no_rays(tmp_path: Path, make_log: type, exact: Exact) -> None:
    log = make_log(lidar_at=())
    found = evaluate(exact(log), log.write(tmp_path / "store.zarr"))
    assert found["rayiou_geometry"] is found["abs_rel"] is None
    assert len(found["not_computed"]) == 2
    json.dumps(found, allow_nan=False)


def test_nan_is_free_and_counted(tiny_store: Path, log: Any, exact: Exact) -> None:
    network = exact(log)
    network.fields.sdf[0, :, :, 2] = np.nan  # type: ignore[union-attr, index]
    found = evaluate(network, tiny_store, keyframes=1)
    assert found["notes"] == ["40000 predicted voxels are not a number: they count as free"]
    assert found["rayiou_geometry"] < 0.5
    json.dumps(found, allow_nan=False)


def test_truth_that_never_moves_gives_no_velocity_error(tmp_path: Path, make_log: type, exact: Exact) -> None:
    log = make_log(speed=(0.0, 0.0))
    found = evaluate(exact(log), log.write(tmp_path / "store.zarr"), keyframes=1)
    assert found["mave"] is None
    assert found["not_computed"] == ["no voxel of the truth has a velocity: no mAVE, no flow error"]


def test_kitti_has_its_own_protocol(tmp_path: Path, make_log: type, exact: Exact) -> None:
    classes = ("car", *(f"class{i}" for i in range(9)), "road", *(f"class{i}" for i in range(11, 16)))
    log = make_log(dataset="semantic_kitti", grid=KITTI_GRID, classes=classes, keyframes=1, truth_at=(0,))
    found = evaluate(exact(log), log.write(tmp_path / "store.zarr"))
    assert found["protocol"] == "semantickitti"
    assert found["rayiou_semantickitti"] == found["rayiou_nonground"] == 1.0
    assert "rayiou_geometry" not in found
    assert found["mave"] == pytest.approx(0.0, abs=1e-6)  # this log's truth has velocities, and KITTI's class names
    assert found["not_computed"] == []


def test_keyframes_are_chosen_by_scene_and_span(tiny_store: Path) -> None:
    from eval.frames import chosen_keyframes
    from storage.errors import CueMissing
    from storage.reader import StoreReader

    reader = StoreReader(tiny_store)
    name = reader.scenes()[0]
    length = reader.scene(name).length
    assert length >= 3
    assert chosen_keyframes(reader, [f"{name}:1"], 1) == [(name, 1)]
    assert chosen_keyframes(reader, [f"{name}:1-2"], 1) == [(name, 1), (name, 2)]
    assert chosen_keyframes(reader, [f"{name}:1-99"], 1) == [(name, t) for t in range(1, length)]
    with pytest.raises(CueMissing):
        chosen_keyframes(reader, ["nowhere:0"], 1)
    with pytest.raises(EvaluationError, match="no keyframe"):
        chosen_keyframes(reader, [f"{name}:{length}"], 1)
