"""RayIoU by hand on small volumes, its conventions per protocol, and that merging is pooling."""

import numpy as np
import pytest

from eval.protocols import OPENOCC_CLASSES, PROTOCOLS, RayProtocol, free_index
from eval.raycast import Hits
from eval.rayiou import RayIoU, TruthRays
from geometry.grid import NUSCENES_GRID, VoxelGrid

LINE = VoxelGrid((0.0, 0.0, 0.0), (20.0, 1.0, 1.0), (20, 1, 1))
PLAIN = RayProtocol("geometry", "no voxel freed, for tests")
AWARE = RayProtocol("openocc", "no voxel freed, for tests", class_aware=True)
ONE = RayProtocol("semantickitti", "no voxel freed, for tests", one_class=True)
ORIGIN, AHEAD = np.array([[0.5, 0.5, 0.5]]), np.array([[1.0, 0.0, 0.0]])
CAR, ROAD, WALL, FREE = 0, 10, 14, 16


def line(at: int | None, category: int = CAR) -> np.ndarray:
    semantics = np.full(LINE.shape, FREE, dtype=np.uint8)
    if at is not None:
        semantics[at] = category
    return semantics


def count(protocol: RayProtocol, pairs: list[tuple[np.ndarray, np.ndarray]]) -> RayIoU:
    metric = RayIoU(protocol, LINE, OPENOCC_CLASSES)
    for truth, predicted in pairs:
        metric.update(metric.truth_rays(truth, ORIGIN, AHEAD), predicted != FREE, predicted)
    return metric


def test_thresholds_are_strict_and_counted_by_hand() -> None:
    # Distances off by 0, 1, 2, 3 voxels of 1 m: below 1 m once, below 2 m twice, below 4 m four times.
    metric = count(PLAIN, [(line(8), line(8 + off)) for off in (0, 1, 2, 3)])
    assert metric.true_positive[:, CAR].tolist() == [1, 2, 4]
    assert metric.ground_truth[CAR] == metric.predicted[CAR] == 4
    result = metric.compute()
    # TP / (2 GT - TP)
    assert result.per_threshold == {"1m": pytest.approx(1 / 7), "2m": pytest.approx(2 / 6), "4m": pytest.approx(1.0)}
    assert result.rayiou == pytest.approx((1 / 7 + 1 / 3 + 1) / 3)


def test_geometry_pools_or_averages_and_says_which() -> None:
    # Three road rays right, one wall ray wrong by 10 m.
    metric = count(PLAIN, [(line(5, ROAD), line(5))] * 3 + [(line(5, WALL), line(15))])
    result = metric.compute()
    assert result.averaging.startswith("counts pooled")
    assert result.rayiou == pytest.approx(3 / (2 * 4 - 3))
    assert result.per_class_mean == pytest.approx((1 + 0) / 2)
    assert result.nonground == 0.0
    assert result.per_class["driveable_surface"]["rayiou"] == 1.0


def test_off_the_ground_counts_the_rays_that_truly_are() -> None:
    # One wall ray, right; a road ray that is taken for a wall is no ray off the ground, and no prediction on one.
    pairs = [(line(5, WALL), line(5, WALL)), (line(5, ROAD), line(5, WALL))]
    whole = count(AWARE, pairs)
    result = whole.compute()
    assert result.nonground == 1.0
    assert result.per_class["manmade"]["rayiou"] == pytest.approx(1 / 2)
    first = count(AWARE, pairs[:1])
    first.merge(count(AWARE, pairs[1:]))
    assert first.compute().nonground == 1.0
    # A wall that is taken for road is one that was missed.
    assert count(AWARE, [*pairs, (line(5, WALL), line(5, ROAD))]).compute().nonground == pytest.approx(1 / 2)


def test_openocc_needs_the_class_and_averages_over_classes() -> None:
    metric = count(AWARE, [(line(5, CAR), line(5, CAR)), (line(5, CAR), line(5, WALL)), (line(5, WALL), line(None))])
    result = metric.compute()
    # car: GT 2, Pred 1, TP 1; wall: GT 1, Pred 1 (on the car's ray), TP 0.
    assert result.per_class["car"]["rayiou"] == pytest.approx(1 / 2)
    assert result.per_class["manmade"]["rayiou"] == 0.0
    assert result.rayiou == pytest.approx(0.25)
    assert set(result.per_class) == {"car", "manmade"}


def test_openocc_refuses_a_prediction_without_classes() -> None:
    metric = RayIoU("openocc", LINE, OPENOCC_CLASSES)
    rays = metric.truth_rays(line(4), ORIGIN, AHEAD)
    with pytest.raises(ValueError, match="predicts none: use protocol 'geometry'"):
        metric.update(rays, line(4) != FREE)


def test_semantickitti_miss_is_not_a_prediction_and_invalid_blocks() -> None:
    blocked = line(9)
    blocked[4] = 255
    metric = RayIoU(ONE, LINE, OPENOCC_CLASSES)
    assert len(metric.truth_rays(blocked, ORIGIN, AHEAD).category) == 0
    metric.update(metric.truth_rays(line(19), ORIGIN, AHEAD), line(None) != FREE)
    metric.update(metric.truth_rays(line(3), ORIGIN, AHEAD), line(3) != FREE)
    # GT 2, Pred 1, TP 1 (the miss ends at 20 m, where the truth's voxel does, and still is none).
    assert metric.compute().rayiou == pytest.approx(1 / 2)


def test_geometry_counts_a_miss_by_its_exit() -> None:
    assert count(PLAIN, [(line(19), line(None))]).compute().rayiou == 1.0
    assert count(PLAIN, [(line(10), line(None))]).compute().rayiou == 0.0


def test_free_truth_is_dropped() -> None:
    result = count(PLAIN, [(line(None), line(3))]).compute()
    assert result.rays == 0
    assert np.isnan(result.rayiou)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_perfect_prediction_scores_one(name: str) -> None:
    rng = np.random.default_rng(0)
    semantics = np.where(rng.random(NUSCENES_GRID.shape) < 0.01, rng.integers(0, 16, NUSCENES_GRID.shape), FREE)
    semantics = semantics.astype(np.uint8)
    metric = RayIoU(name, NUSCENES_GRID, OPENOCC_CLASSES)
    rays = metric.truth_rays(semantics, np.array([[0.0, 0.0, 1.8]]))
    metric.update(rays, semantics != FREE, semantics)
    result = metric.compute()
    assert result.rays > 1000
    assert (result.rayiou, result.nonground, result.per_class_mean) == (1.0, 1.0, 1.0)


def test_geometry_frees_the_top_and_the_border_in_both() -> None:
    keep = PROTOCOLS["geometry"].evaluated(NUSCENES_GRID.shape)
    assert keep.sum() == 188 * 188 * 12
    assert not keep[:, :, 12:].any()
    assert not keep[:6].any()
    assert not keep[-6:].any()
    assert not keep[:, :6].any()
    assert not keep[:, -6:].any()
    metric = RayIoU("geometry", NUSCENES_GRID, OPENOCC_CLASSES)
    semantics = np.full(NUSCENES_GRID.shape, FREE, dtype=np.uint8)
    semantics[-3:] = WALL  # only in the border
    ahead = np.array([[1.0, 0.0, 0.0]])
    assert len(metric.truth_rays(semantics, np.zeros((1, 3)), ahead).category) == 0
    semantics[150] = WALL
    rays = metric.truth_rays(semantics, np.zeros((1, 3)), ahead)
    predicted = semantics != FREE
    predicted[150] = False  # the prediction's border wall must not count either: the ray leaves at 40 m
    hits = metric.update(rays, predicted)
    assert hits.distance[0] == pytest.approx(40.0)


def test_the_first_voxel_is_a_hit_and_only_a_miss_names_nothing() -> None:
    """Flat index 0 is a voxel like any other; classes are the prediction's, the truth's, or one, by the protocol."""
    semantics = np.full(NUSCENES_GRID.shape, 16, dtype=np.uint8)
    semantics.reshape(-1)[[0, 5]] = 3, 7
    truth = TruthRays(
        np.zeros((1, 3)), np.eye(3), (np.zeros(3, int), np.arange(3)), np.array([4, 5, 6]),
        Hits(np.array([0, 0, 0]), np.full(3, 9.0)),
    )  # fmt: skip
    hits = Hits(np.array([0, -1, 5]), np.full(3, 9.0))
    for name, named in (("openocc", [3, 16, 7]), ("semantickitti", [4, 16, 6]), ("geometry", [4, 5, 6])):
        found = RayIoU(name, NUSCENES_GRID, OPENOCC_CLASSES).predicted_category(truth, hits, semantics)
        assert found.tolist() == named, name


def test_classes_beyond_the_list_are_no_predictions_and_frames_are_counted() -> None:
    metric = RayIoU("openocc", NUSCENES_GRID, OPENOCC_CLASSES)
    for named in ([0, 16, 255, -1], [0, 0, 17, 0]):
        metric.count(np.array([0, 0, 0, 0]), np.full(4, 5.0), np.array(named), np.full(4, 5.0))
    assert metric.frames == 2
    assert metric.predicted.tolist() == [4, *[0] * 16]
    assert metric.true_positive[:, 0].tolist() == [4, 4, 4]


def test_distances_in_half_precision_change_what_is_near() -> None:
    """Above 32 m float16 has steps of 1/32 m: 41.99 and 40 m are 1.99 m apart, and 2 m once they are rounded."""
    for half, near in ((False, 1), (True, 0)):
        metric = RayIoU(PLAIN, LINE, OPENOCC_CLASSES, half=half)
        metric.count(np.array([CAR]), np.array([40.0]), np.array([CAR]), np.array([41.99]))
        assert metric.true_positive[:, CAR].tolist() == [0, near, 1]


def test_merging_is_pooling() -> None:
    rng = np.random.default_rng(1)
    pairs = [(line(int(a), int(c)), line(int(b))) for a, b, c in rng.integers(1, 16, (12, 3))]
    whole, first, second = (count(PLAIN, part) for part in (pairs, pairs[:5], pairs[5:]))
    first.merge(second)
    assert first.compute() == whole.compute()
    with pytest.raises(ValueError, match="cannot merge"):
        first.merge(count(AWARE, pairs))


def test_which_index_is_free() -> None:
    assert free_index(OPENOCC_CLASSES) == 16
    assert free_index(OPENOCC_CLASSES[:16]) == 16
    assert free_index(("empty", "occupied")) == 0
    with pytest.raises(ValueError, match="means free"):
        free_index(("car", "road"))
