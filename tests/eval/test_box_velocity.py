"""Velocity over labelled boxes: which voxels lie in a box, errors by hand, and the figure in results and page."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.box_velocity import FLOOR_M, BoxVelocity, voxels_in_box
from eval.evaluate import evaluate
from eval.predict import Predictor
from eval.report import write_report
from eval.score import score
from geometry.grid import VoxelGrid
from storage.reader import StoreReader

GRID = VoxelGrid((0.0, -8.0, -2.0), (20.0, 8.0, 2.0), (20, 16, 4))
"""Voxels of one metre, centres at .5."""
CLASSES = ("car", "truck")
SMALL = VoxelGrid((-14.4, -8.0, -1.0), (24.0, 8.0, 5.4), (96, 40, 16))


def box(
    x: float = 10.0,
    y: float = 0.0,
    z: float = -1.6,
    size: tuple[float, float, float] = (4.0, 2.0, 1.8),
    yaw: float = 0.0,
    velocity: tuple[float, float] = (3.0, -4.0),
    category: int = 0,
    seconds: float = 0.1,
) -> tuple[float, ...]:
    return (7, category, x, y, z, *size, yaw, *velocity, seconds)


def rows(*boxes: tuple[float, ...]) -> np.ndarray:
    return np.array(boxes, dtype=np.float32)


def slowly(one: np.ndarray, grid: VoxelGrid) -> set[tuple[int, int, int]]:
    """Voxels in a box, one by one: the centre is on the inner side of each of its four walls."""
    _, _, x, y, z, length, width, height, yaw = map(float, one[:9])
    ahead, left = np.array([math.cos(yaw), math.sin(yaw)]), np.array([-math.sin(yaw), math.cos(yaw)])
    found = set()
    for index in np.ndindex(*grid.shape):
        centre = [low + (i + 0.5) * s for low, i, s in zip(grid.lower, index, grid.voxel_size, strict=True)]
        walls = [
            float(np.dot(way, np.array(centre[:2]) - (np.array([x, y]) + way * half)))
            for way, half in ((ahead, length / 2), (-ahead, length / 2), (left, width / 2), (-left, width / 2))
        ]
        if max(walls) <= 0 and FLOOR_M <= centre[2] - z <= height:
            found.add(index)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_voxels_of_a_box_by_a_slow_version(seed: int) -> None:
    rng = np.random.default_rng(seed)
    place = rng.uniform([-3.0, -10.0, -3.0], [22.0, 10.0, 2.0])
    one = rows(box(*place, size=tuple(rng.uniform(0.3, 6.0, 3)), yaw=rng.uniform(-4, 4)))[0]
    assert set(map(tuple, voxels_in_box(one, GRID).tolist())) == slowly(one, GRID)


def test_a_box_by_hand() -> None:
    """4 x 2 x 1.8 m with its floor at -1.6 m: 4 x 2 centres each at heights -1.5 (0.1 above the floor: road), -0.5."""
    index = voxels_in_box(rows(box())[0], GRID)
    assert sorted(map(tuple, index.tolist())) == [(i, j, 1) for i in (8, 9, 10, 11) for j in (7, 8)]
    # Across, a length of 4 spans y; turned by 45 degrees the footprint is the diamond's.
    assert len(voxels_in_box(rows(box(yaw=math.pi / 2))[0], GRID)) == 8
    assert len(voxels_in_box(rows(box(x=40.0))[0], GRID)) == 0


def test_errors_by_hand() -> None:
    occupied, flow = np.zeros(GRID.shape, dtype=bool), np.zeros((*GRID.shape, 2), dtype=np.float32)
    occupied[8:10, 7:9, 1] = True  # half of the first box: four voxels
    occupied[:, :, 0] = True  # the road below it, with a flow that must not count
    flow[..., 0, :] = 99.0
    flow[8, 7:9, 1], flow[9, 7:9, 1] = (3.0, 0.0), (3.0, -2.0)
    flow[10:12, 7:9, 1] = 50.0  # free: must not count
    occupied[2:6, 2:4, 1], flow[2:6, 2:4, 1] = True, (0.3, 0.4)
    metric = BoxVelocity(CLASSES, GRID)
    metric.update(
        occupied,
        flow,
        rows(
            box(),  # mean flow (3, -1) against (3, -4): 3 m/s
            box(x=15.0, y=5.0, velocity=(0.0, 2.0), category=255, seconds=0.3),  # nothing there: as standing still
            box(x=4.0, y=-5.0, velocity=(0.1, 0.0), category=1),  # parked, but predicted at 0.5 m/s
            box(velocity=(math.nan, math.nan), seconds=math.nan),
            box(x=40.0),
        ),
    )
    found = metric.compute()
    assert found["box_velocity_error"] == pytest.approx((3.0 + 2.0) / 2)
    assert found["box_velocity_error_found"] == pytest.approx(3.0)
    assert found["box_velocity_error_zero_flow"] == pytest.approx((5.0 + 2.0) / 2)
    assert found["voxel_error_in_boxes"] == pytest.approx((4.0 + 2.0) / 2)
    assert found["boxes_found"] == 0.5
    assert found["parked_box_speed"] == pytest.approx(0.5)
    counts = ("moving_boxes", "parked_boxes", "voxels_in_boxes", "boxes_of_unknown_velocity", "boxes_outside_the_grid")
    assert [found[name] for name in counts] == [2, 1, 4, 1, 1]
    steps = found["time_step_s"]
    assert (steps["count"], steps["min"], steps["max"]) == (3, pytest.approx(0.1), pytest.approx(0.3))
    assert steps["mean"] == pytest.approx(0.5 / 3)
    assert set(found["per_class"]) == {"car", "truck", "other"}
    assert found["per_class"]["other"]["box_velocity_error"] == pytest.approx(2.0)
    assert found["per_class"]["truck"]["moving_boxes"] == 0


def test_merged_parts_are_the_whole() -> None:
    rng = np.random.default_rng(0)
    frames = [
        (
            rng.random(GRID.shape) < 0.3,
            rng.normal(0, 3, (*GRID.shape, 2)).astype(np.float32),
            rows(*(box(*rng.uniform([0, -8, -2], [20, 8, 0]), velocity=tuple(rng.normal(0, 1, 2))) for _ in range(6))),
        )
        for _ in range(4)
    ]
    whole, parts = BoxVelocity(CLASSES, GRID), [BoxVelocity(CLASSES, GRID) for _ in range(2)]
    for i, frame in enumerate(frames):
        whole.update(*frame)
        parts[i % 2].update(*frame)
    parts[0].merge(parts[1])
    expected, merged = whole.compute(), parts[0].compute()
    for key, value in expected.items():
        if isinstance(value, float):
            assert merged[key] == pytest.approx(value, rel=1e-12), key
    assert merged["moving_boxes"] == expected["moving_boxes"] > 5
    with pytest.raises(ValueError, match="cannot merge box velocities"):
        whole.merge(BoxVelocity(("car",), GRID))


def test_no_box_gives_no_figure() -> None:
    metric = BoxVelocity(CLASSES, GRID)
    metric.update(np.zeros(GRID.shape, dtype=bool), np.zeros((*GRID.shape, 2)), rows().reshape(0, 12))
    found = metric.compute()
    assert math.isnan(found["box_velocity_error"])
    assert found["frames"] == 1
    assert found["time_step_s"] == {"mean": None, "min": None, "max": None, "count": 0}


@pytest.fixture
def labelled(make_log: type) -> Any:
    """The usual log with boxes around its moving and its parked car, and no occupancy truth: as KITTI-MOT's."""
    moving = box(10.0, 3.0, 0.0, (4.0, 2.0, 1.8), velocity=(3.0, -1.0), seconds=0.4)
    parked = box(-10.0, -3.0, 0.0, (4.0, 2.0, 1.8), velocity=(0.0, 0.0), seconds=0.4)
    return make_log(grid=SMALL, truth_at=(), boxes=(moving, parked))


def test_evaluation_of_a_store_with_boxes(labelled: Any, exact: Callable[..., Any], tmp_path: Path) -> None:
    store = labelled.write(tmp_path / "store.zarr")
    model = exact(labelled)
    results = evaluate(model, store)
    assert results["box_velocity_error"] == pytest.approx(0.0, abs=1e-6)
    assert results["baselines"]["zero_flow"]["box_velocity_error"] == pytest.approx(math.hypot(3, 1))
    assert results["mave"] is None, "boxes need no occupancy truth"
    assert (results["boxes"]["moving_boxes"], results["boxes"]["parked_boxes"], results["boxes"]["boxes_found"]) == (
        3,
        3,
        1.0,
    )
    assert list(Predictor(model, StoreReader(store), SMALL).run("a", tmp_path / "out"))
    files = score(tmp_path / "out", store)
    assert files["box_velocity_error"] == pytest.approx(0.0, abs=1e-3)
    assert files["boxes"]["voxels_in_boxes"] == results["boxes"]["voxels_in_boxes"]
    json.dumps(files, allow_nan=False)
    text = write_report(results, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Labelled boxes" in text
    assert "their velocities are over 0.4 s" in text
