"""Three-way and bucketed errors by hand and against slow versions; what a sparse or still prediction gets."""

import numpy as np
import pytest

from eval.protocols import OPENOCC_CLASSES
from eval.scene_flow import BUCKET_EDGES, META_CLASSES, BucketedError, ThreeWayError

CAR, BUS, BICYCLE, PEDESTRIAN, ROAD, FREE, UNKNOWN = 0, 3, 5, 7, 10, 16, 255
Volumes = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def volumes(rows: list[tuple[int, float, float, bool]]) -> Volumes:
    """occupied, flow, semantics, true flow of voxels (class, true vx, predicted vx, predicted occupied)."""
    n = len(rows)
    occupied = np.array([row[3] for row in rows]).reshape(n, 1, 1)
    semantics = np.array([row[0] for row in rows], dtype=np.uint8).reshape(n, 1, 1)
    flow, true_flow = np.zeros((n, 1, 1, 2), np.float32), np.zeros((n, 1, 1, 2), np.float32)
    true_flow[:, 0, 0, 0], flow[:, 0, 0, 0] = [row[1] for row in rows], [row[2] for row in rows]
    return occupied, flow, semantics, true_flow


def random_volumes(seed: int) -> Volumes:
    rng = np.random.default_rng(seed)
    shape = (6, 5, 4)
    semantics = rng.choice([CAR, BUS, BICYCLE, PEDESTRIAN, ROAD, 9, FREE, UNKNOWN], shape).astype(np.uint8)
    true_flow = rng.choice([0.0, 0.0, 0.0, 0.3, 0.4, 3.0, 19.9, 20.0, 45.0, np.nan], (*shape, 2)).astype(np.float32)
    return rng.random(shape) < 0.7, rng.normal(size=(*shape, 2)).astype(np.float32), semantics, true_flow


HAND = [
    (CAR, 10.0, 8.0, True),  # foreground dynamic, error 2
    (CAR, 10.0, 10.0, False),  # right, but where nothing is predicted: error 10
    (PEDESTRIAN, 0.4, 0.0, True),  # foreground static, error 0.4
    (ROAD, 0.0, 0.1, True),  # background static, error 0.1
    (ROAD, 2.0, 0.0, True),  # background that moves: no part of it
    (FREE, 5.0, 0.0, True),  # nothing there
    (UNKNOWN, 5.0, 0.0, True),
    (CAR, np.nan, 0.0, True),
]


def test_three_ways_by_hand() -> None:
    metric = ThreeWayError(OPENOCC_CLASSES)
    metric.update(*volumes(HAND))
    found = metric.compute()
    assert found["epe_foreground_dynamic"] == pytest.approx(6.0)
    assert found["epe_foreground_static"] == pytest.approx(0.4)
    assert found["epe_background_static"] == pytest.approx(0.1, rel=1e-6)
    assert found["threeway_epe"] == pytest.approx(6.5 / 3)
    assert found["voxels"] == {"foreground_dynamic": 2, "foreground_static": 1, "background_static": 1}
    assert found["background_dynamic_left_out"] == 1


def test_buckets_by_hand() -> None:
    metric = BucketedError(OPENOCC_CLASSES)
    # Cars at 10 m/s (mean error 6 of a mean 10) and at 1 m/s (error 0.1 of 1); a pedestrian at 2 m/s found still.
    metric.update(*volumes([*HAND, (CAR, 1.0, 1.1, True), (PEDESTRIAN, 2.0, 0.0, True)]))
    found = metric.compute()
    car, pedestrian = found["per_class"]["car"], found["per_class"]["pedestrian"]
    assert car["dynamic_normalised_epe"] == pytest.approx((0.6 + 0.1) / 2, rel=1e-5)
    assert [(row["from_m_s"], row["voxels"]) for row in car["buckets"]] == [(pytest.approx(0.8), 1), (10.0, 2)]
    # 0.4 m/s lies on an edge: float32 0.4 is a little more, so it is the second bucket's, and found still too.
    assert pedestrian["dynamic_normalised_epe"] == pytest.approx(1.0)
    background = found["per_class"]["background"]
    assert background["static_epe"] == pytest.approx(0.1, rel=1e-6)
    assert found["dynamic_normalised_epe"] == pytest.approx((0.35 + 1.0 + background["dynamic_normalised_epe"]) / 3)


def test_no_motion_is_one_and_the_truth_is_zero() -> None:
    _, _, semantics, true_flow = random_volumes(3)
    everywhere = np.ones(semantics.shape, bool)
    still, right = BucketedError(OPENOCC_CLASSES), BucketedError(OPENOCC_CLASSES)
    still.update(everywhere, np.zeros_like(true_flow), semantics, true_flow)
    right.update(everywhere, np.nan_to_num(true_flow), semantics, true_flow)
    assert still.compute()["dynamic_normalised_epe"] == pytest.approx(1.0)
    assert right.compute()["dynamic_normalised_epe"] == right.compute()["static_epe"] == 0.0
    nothing = BucketedError(OPENOCC_CLASSES)
    nothing.update(~everywhere, np.nan_to_num(true_flow), semantics, true_flow)
    assert nothing.compute()["dynamic_normalised_epe"] == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(3))
def test_against_slow_versions(seed: int) -> None:
    occupied, flow, semantics, true_flow = random_volumes(seed)
    three, buckets = ThreeWayError(OPENOCC_CLASSES), BucketedError(OPENOCC_CLASSES)
    three.update(occupied, flow, semantics, true_flow)
    buckets.update(occupied, flow, semantics, true_flow)
    parts: dict[str, list[float]] = {}
    cells: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for at in np.ndindex(semantics.shape):
        c, v = int(semantics[at]), true_flow[at].astype(float)
        if c >= FREE or np.isnan(v).any():
            continue
        p = flow[at].astype(float) if occupied[at] else np.zeros(2)
        error, speed = float(np.hypot(*(p - v))), float(np.hypot(*v))
        part = ("foreground" if c < 8 else "background") + ("_dynamic" if speed >= 0.5 else "_static")
        parts.setdefault(part, []).append(error)
        group = next((g for g, names in META_CLASSES.items() if OPENOCC_CLASSES[c] in names), "background")
        bucket = next(b for b in range(51) if BUCKET_EDGES[b] <= speed < BUCKET_EDGES[b + 1])
        cells.setdefault((group, bucket), []).append((error, speed))
    found = three.compute()
    for name in ThreeWayError.PARTS:
        assert found[f"epe_{name}"] == pytest.approx(np.mean(parts[name])), name
    by_class: dict[str, list[float]] = {}
    for (group, bucket), rows in cells.items():
        if bucket:
            by_class.setdefault(group, []).append(np.mean([r[0] for r in rows]) / np.mean([r[1] for r in rows]))
    assert len(by_class) == 5
    wanted = np.mean([np.mean(values) for values in by_class.values()])
    assert buckets.compute()["dynamic_normalised_epe"] == pytest.approx(wanted)
    for group, shown in buckets.compute()["per_class"].items():
        still = [error for error, _ in cells.get((group, 0), [])]
        assert shown["static_voxels"] == len(still)
        assert shown["static_epe"] == pytest.approx(np.mean(still) if still else np.nan, nan_ok=True)
        moving = {bucket: rows for (name, bucket), rows in sorted(cells.items()) if name == group and bucket}
        assert shown["dynamic_voxels"] == sum(len(rows) for rows in moving.values())
        assert [row["voxels"] for row in shown["buckets"]] == [len(rows) for rows in moving.values()]
        for row, (bucket, rows) in zip(shown["buckets"], moving.items(), strict=True):
            assert row["from_m_s"] == pytest.approx(BUCKET_EDGES[bucket])
            assert row["normalised_epe"] == pytest.approx(np.mean([r[0] for r in rows]) / np.mean([r[1] for r in rows]))


@pytest.mark.parametrize("kind", [ThreeWayError, BucketedError])
def test_merging_is_pooling(kind: type) -> None:
    whole, first, second = (kind(OPENOCC_CLASSES) for _ in range(3))
    for seed, part in ((1, first), (2, second)):
        whole.update(*random_volumes(seed))
        part.update(*random_volumes(seed))
    first.merge(second)
    np.testing.assert_allclose(first.errors, whole.errors)
    np.testing.assert_array_equal(first.counts, whole.counts)
    for name in ("threeway_epe", "dynamic_normalised_epe", "static_epe"):
        assert first.compute().get(name) == pytest.approx(whole.compute().get(name))
    with pytest.raises(ValueError, match="cannot merge"):
        first.merge(kind(OPENOCC_CLASSES[:10]))


@pytest.mark.parametrize("kind", [ThreeWayError, BucketedError])
def test_nothing_at_all(kind: type) -> None:
    metric = kind(OPENOCC_CLASSES)
    metric.update(*volumes([(FREE, 0.0, 0.0, True)]))
    found = metric.compute()
    assert np.isnan(found.get("threeway_epe", found.get("dynamic_normalised_epe")))
