"""Depth figures by hand, projection of LiDAR onto pixels, median scaling."""

import numpy as np
import pytest

from eval.depth import DepthError, depth_metrics, project_lidar


def test_by_hand() -> None:
    predicted, truth = np.array([2.0, 3.0, 10.0]), np.array([2.0, 2.0, 20.0])
    found = depth_metrics(predicted, truth)
    logs = np.log([1.0, 1.5, 0.5])
    want = [
        (0 + 1 / 2 + 10 / 20) / 3,
        (0 + 1 / 2 + 100 / 20) / 3,
        np.sqrt((0 + 1 + 100) / 3),
        np.sqrt((logs**2).sum() / 3),
        1 / 3,  # ratios 1, 1.5, 2 against 1.25, 1.5625, 1.953
        2 / 3,
        2 / 3,
    ]
    np.testing.assert_allclose(found, want)


def test_images_count_once_and_merging_adds_them() -> None:
    first, second = DepthError(), DepthError()
    first.update(np.array([2.0, 2.0, 2.0]), np.array([1.0, 1.0, 1.0]))  # Abs Rel 1
    second.update(np.array([1.0]), np.array([1.0]))  # Abs Rel 0
    first.merge(second)
    result = first.compute()
    assert result["abs_rel"] == pytest.approx(0.5)
    assert (result["images"], result["pixels"]) == (2, 4)
    with pytest.raises(ValueError, match="median scaling"):
        first.merge(DepthError(median_scaling=True))


def test_range_and_missing_predictions() -> None:
    metric = DepthError()
    metric.update(np.array([200.0, 5.0, np.nan, 3.0]), np.array([80.0, 90.0, 4.0, np.nan]))
    result = metric.compute()
    assert result["pixels"] == 1  # 90 m is out of range; the nan prediction is not scored
    assert result["pixels_without_prediction"] == 1
    assert result["abs_rel"] == 0.0  # 200 m is clamped to 80 m
    assert np.isnan(DepthError().compute()["abs_rel"])


def test_median_scaling_removes_a_wrong_scale_and_is_named() -> None:
    truth = np.array([4.0, 6.0, 9.0])
    metric = DepthError(median_scaling=True)
    metric.update(truth / 3, truth)
    result = metric.compute()
    assert result["abs_rel"] == pytest.approx(0.0)
    assert result["median_scaling"] is True
    assert result["mean_median_ratio"] == pytest.approx(3.0)
    metric.update(truth, truth)
    assert metric.compute()["mean_median_ratio"] == pytest.approx(2.0), "a mean over images"


def test_lidar_on_pixels() -> None:
    K = np.array([[10.0, 0, 5], [0, 10, 4], [0, 0, 1]])
    ego_from_cam = np.array([[0, 0, 1, 1], [-1, 0, 0, 0], [0, -1, 0, 2], [0, 0, 0, 1]], dtype=np.float64)
    points = np.array(
        [
            [11.0, 0.0, 2.0],  # 10 m ahead of the lens, on the axis: uv (5, 4)
            [21.0, 0.0, 2.0],  # behind the first, same pixel
            [6.0, 1.0, 2.0],  # 5 m ahead, 1 m to the left: u = 5 - 2
            [-4.0, 0.0, 2.0],  # behind the camera
            [3.0, 9.0, 2.0],  # outside the image
            [200.0, 10.0, 2.0],  # too far
        ]
    )
    found = project_lidar(points, ego_from_cam, K, 8, 10)
    assert {(*uv, d) for uv, d in zip(found.uv.tolist(), found.depth.tolist(), strict=True)} == {
        (5.5, 4.5, 10.0),
        (3.5, 4.5, 5.0),
    }
    unseen = project_lidar(points, ego_from_cam, K, 8, 10, seen=np.zeros(6, dtype=bool))
    assert len(unseen.depth) == 0
