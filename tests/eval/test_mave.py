"""mAVE and dynamic flow error by hand; what the true-positive mask changes; merging."""

import numpy as np
import pytest

from eval.mave import DynamicFlow, VelocityError, occ_score
from eval.protocols import OPENOCC_CLASSES
from eval.raycast import Hits
from eval.rayiou import TruthRays

CAR, PEDESTRIAN, ROAD, FREE = 0, 7, 10, 16


def rays(category: list[int], true_distance: list[float], distance: list[float]) -> tuple[TruthRays, Hits]:
    """Ray i truly ends in voxel i of an (8, 1, 1) volume; the prediction too, or nowhere (distance inf)."""
    n = len(category)
    voxels = np.arange(n)
    found = np.isfinite(distance)
    end = Hits(voxels, np.array(true_distance))
    truth = TruthRays(np.zeros((n, 3)), np.ones((n, 3)), (voxels, voxels), np.array(category), end)
    return truth, Hits(np.where(found, voxels, -1), np.where(found, distance, 50.0))


def velocities(rows: list[tuple[float, float]]) -> np.ndarray:
    flow = np.zeros((8, 1, 1, 2), dtype=np.float32)
    for i, row in enumerate(rows):
        flow[i, 0, 0] = row
    return flow


def test_by_hand() -> None:
    metric = VelocityError(OPENOCC_CLASSES)
    truth, hits = rays([CAR, CAR, CAR, PEDESTRIAN, ROAD], [10.0] * 5, [10.5, 11.9, 12.0, 10.0, 10.0])
    true_flow = velocities([(3, 4), (3, 4), (3, 4), (0, 1), (9, 9)])
    flow = velocities([(3, 4), (3, 0), (0, 0), (0, 0), (0, 0)])
    metric.update(truth, hits, flow, true_flow)
    result = metric.compute()
    # Cars: errors 0 and 4 on two true positives (12.0 is not < 2 m off); pedestrian: 1 on one. Road never counts.
    assert result.per_class["car"]["ave"] == pytest.approx(2.0)
    assert result.per_class["car"]["tp"] == 2
    assert result.mave == pytest.approx((2.0 + 1.0) / 2)
    assert result.zero_flow == pytest.approx((5.0 + 1.0) / 2)
    # Legacy: cars and the pedestrian both take all five rays, the road's wrong 9 (2) m/s too.
    assert result.unmasked == pytest.approx((0 + 4 + 5 + 1 + 9 * np.sqrt(2)) / 5)
    assert result.class_source == "truth"


def test_a_fresh_accumulator_takes_over_where_classes_come_from() -> None:
    truth, hits = rays([CAR], [10.0], [10.0])
    named, fresh = VelocityError(OPENOCC_CLASSES), VelocityError(OPENOCC_CLASSES)
    named.update(truth, hits, velocities([]), velocities([(3, 4)]), np.array([CAR]))
    fresh.merge(named)
    assert fresh.compute().class_source == "prediction"


def test_in_half_precision_distances_are_rounded_before_they_are_compared() -> None:
    # Above 32 m float16 has steps of 1/32 m: 41.99 and 40.0 are 1.99 m apart, and 2 m once they are rounded.
    truth, hits = rays([CAR], [40.0], [41.99])
    found = []
    for half in (False, True):
        metric = VelocityError(OPENOCC_CLASSES, half=half)
        metric.update(truth, hits, velocities([]), velocities([(3, 4)]))
        found.append(metric.compute().per_class["car"]["tp"])
    assert found == [1, 0]
    with pytest.raises(ValueError, match="cannot merge velocity errors"):
        metric.merge(VelocityError(OPENOCC_CLASSES))


def test_the_legacy_form_by_a_slow_version_of_its_script() -> None:
    """Keyframe by keyframe and class by class, the norm taken over all rays wherever the class has a true positive."""
    rng = np.random.default_rng(4)
    metric = VelocityError(OPENOCC_CLASSES)
    total, count = np.zeros(8), np.zeros(8)
    for _ in range(6):
        category, distance = rng.integers(0, 12, 8), rng.uniform(7, 13, 8)
        truth, hits = rays(category.tolist(), [10.0] * 8, distance.tolist())
        flow, true_flow = rng.normal(size=(2, 8, 1, 1, 2)).astype(np.float32)
        metric.update(truth, hits, flow, true_flow)
        for c in range(8):
            if any(category[i] == c and abs(distance[i] - 10.0) < 2.0 for i in range(8)):
                total[c] += sum(float(np.hypot(*(flow - true_flow)[i, 0, 0].astype(np.float64))) for i in range(8))
                count[c] += 8
    seen = count > 0
    assert seen.any()
    assert metric.compute().unmasked == pytest.approx(np.mean(total[seen] / count[seen]))


def test_a_predicted_miss_has_no_velocity() -> None:
    metric = VelocityError(OPENOCC_CLASSES)
    truth, hits = rays([CAR], [49.0], [np.inf])
    metric.update(truth, hits, velocities([(7, 7)]), velocities([(0, 2)]))
    assert metric.compute().mave == pytest.approx(2.0)


def test_predicted_classes_restrict_the_true_positives() -> None:
    metric = VelocityError(OPENOCC_CLASSES)
    truth, hits = rays([CAR, CAR], [10.0, 10.0], [10.0, 10.0])
    metric.update(truth, hits, velocities([(0, 0), (0, 0)]), velocities([(1, 0), (5, 0)]), np.array([CAR, ROAD]))
    result = metric.compute()
    assert result.mave == pytest.approx(1.0)
    assert result.class_source == "prediction"


def test_no_true_positive_and_unknown_velocity() -> None:
    metric = VelocityError(OPENOCC_CLASSES)
    truth, hits = rays([CAR, CAR], [10.0, 10.0], [20.0, 10.0])
    metric.update(truth, hits, velocities([]), velocities([(1, 0), (np.nan, 0)]))
    result = metric.compute()
    assert np.isnan(result.mave)
    assert result.per_class["car"]["rays"] == 1
    assert "1 rays left out" in result.notes[0]


def test_merging_is_pooling() -> None:
    parts = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        truth, hits = rays(rng.integers(0, 9, 8).tolist(), [10.0] * 8, rng.uniform(8, 12, 8).tolist())
        parts.append((truth, hits, rng.normal(size=(8, 1, 1, 2)), rng.normal(size=(8, 1, 1, 2))))
    whole, first, second = (VelocityError(OPENOCC_CLASSES) for _ in range(3))
    for part in parts:
        whole.update(*part)
    first.update(*parts[0])
    second.update(*parts[1])
    first.merge(second)
    assert first.compute().per_class == whole.compute().per_class


def test_dynamic_flow_by_hand() -> None:
    semantics = np.array([CAR, CAR, PEDESTRIAN, CAR, ROAD, FREE, CAR, CAR], dtype=np.uint8).reshape(8, 1, 1)
    true_flow, flow = np.zeros((8, 1, 1, 2)), np.zeros((8, 1, 1, 2))
    true_flow[:, 0, 0, 0] = [3.0, 5.0, 1.0, 0.2, 4.0, 4.0, np.nan, 0.0]
    flow[:, 0, 0, 0] = [2.0, 0.0, 1.0, 0.6, 0.0, 0.0, 0.0, 1.6]
    occupied = np.array([1, 0, 1, 1, 1, 0, 1, 0], dtype=bool).reshape(8, 1, 1)
    metric = DynamicFlow(OPENOCC_CLASSES)
    metric.update(occupied, flow, semantics, true_flow)
    result = metric.compute()
    assert result["dynamic_voxels"] == 3
    assert result["flow_epe_dynamic"] == pytest.approx((1 + 5 + 0) / 3)
    assert result["flow_epe_dynamic_zero_flow"] == pytest.approx((3 + 5 + 1) / 3)
    assert result["recall_dynamic"] == pytest.approx(2 / 3)
    assert result["parked_voxels"] == 2
    assert result["false_flow_parked"] == pytest.approx((0.6 + 1.6) / 2)
    assert result["false_flow_parked_masked"] == pytest.approx(0.6 / 2)
    assert result["flow_epe_dynamic_masked"] == pytest.approx((1 + 5 + 0) / 3)
    flow[1, 0, 0, 0] = 5.0  # right, where the prediction is free: the field knows, labels do not
    field = DynamicFlow(OPENOCC_CLASSES)
    field.update(occupied, flow, semantics, true_flow)
    assert field.compute()["flow_epe_dynamic"] == pytest.approx(1 / 3)
    assert field.compute()["flow_epe_dynamic_masked"] == pytest.approx((1 + 5 + 0) / 3)
    flow[1] = 0.0
    other = DynamicFlow(OPENOCC_CLASSES)
    other.update(occupied, flow, semantics, true_flow)
    other.merge(metric)
    assert other.compute()["flow_epe_dynamic"] == pytest.approx(2.0)
    assert other.compute()["dynamic_voxels"] == 6


def test_nothing_moves() -> None:
    metric = DynamicFlow(OPENOCC_CLASSES)
    shape = (2, 2, 2)
    metric.update(np.ones(shape, bool), np.zeros((*shape, 2)), np.full(shape, FREE, np.uint8), np.zeros((*shape, 2)))
    assert np.isnan(metric.compute()["flow_epe_dynamic"])


def test_occ_score() -> None:
    assert occ_score(0.4, 0.5) == pytest.approx(0.41)
    assert occ_score(0.4, 3.0) == pytest.approx(0.36)
