"""Label figures against hand-counted cases."""

import numpy as np
import pytest

from eval.labels import (
    bilinear,
    figure,
    flow_figures,
    mask_figures,
    photometric_figures,
    round_trip_figures,
    static_flow_figures,
    summarise,
)

NAN = np.nan


def row(u: list[float]) -> np.ndarray:
    """A flow of one row with the given u and v = 0 (NaN with it)."""
    u = np.array(u, np.float64)
    return np.stack([u, u * 0])[:, None]


def test_flow_errors_counted_by_hand() -> None:
    truth = row([10, 100, 0, 2, NAN, NAN])
    flow = row([14, 104, NAN, 2, 1, NAN])
    moving = np.array([[True, False, True, False, True, False]])
    figures = flow_figures(flow, truth, moving)
    assert figures["epe"] == {"value": pytest.approx(8 / 3), "count": 3}
    assert figures["zero_epe"]["value"] == pytest.approx(112 / 3)
    # 4 px of 10 is an outlier; 4 px of 100 exceeds 3 px but not 5 %.
    assert figures["fl_all"]["value"] == pytest.approx(1 / 3)
    assert figures["coverage"] == {"value": 0.75, "count": 4}
    assert figures["invented"] == {"value": 0.5, "count": 2}
    assert figures["epe_moving"] == {"value": 4, "count": 1}
    assert figures["coverage_moving"] == {"value": 0.5, "count": 2}


def test_diagonal_errors_are_euclidean() -> None:
    flow, truth = np.zeros((2, 1, 1)), np.array([3.0, 4.0]).reshape(2, 1, 1)
    assert flow_figures(flow, truth)["epe"]["value"] == 5


def test_nothing_known_gives_no_value_instead_of_nan() -> None:
    figures = flow_figures(row([1.0]), row([NAN]))
    assert figures["epe"] == {"value": None, "count": 0}
    assert figures["invented"]["value"] == 1


def test_masks_counted_by_hand() -> None:
    true_instance = np.array([[1, 1, 1, 1, 2, 2, 3, 3, 0, 0]])
    moving = true_instance * 0 + np.array([[1, 1, 1, 1, 1, 1, 0, 0, 0, 0]])
    instance = np.array([[7, 7, 7, 0, 0, 0, 8, 8, 0, 0]])
    figures = mask_figures(instance, true_instance, moving > 0, min_pixels=2)
    assert figures["iou"] == {"value": 3 / 8, "count": 8}
    assert figures["precision"]["value"] == pytest.approx(3 / 5)
    assert figures["recall"]["value"] == pytest.approx(0.5)
    # Mask 7 meets instance 1 at 3/4; mask 8 covers a thing that stands still; instance 2 is not met.
    assert figures["instance_recall"] == {"value": 0.5, "count": 2}
    assert figures["instance_precision"] == {"value": 0.5, "count": 2}


def test_half_overlap_is_no_match_and_tiny_instances_are_not_asked_for() -> None:
    true_instance = np.array([[1, 1, 0, 2, 0]])
    instance = np.array([[1, 0, 0, 3, 0]])
    figures = mask_figures(instance, true_instance, true_instance > 0, min_pixels=2)
    assert figures["instance_recall"] == {"value": 0, "count": 1}
    assert figures["instance_precision"] == {"value": 0.5, "count": 2}


def test_empty_masks_have_no_precision() -> None:
    empty = np.zeros((4, 4), np.int64)
    figures = mask_figures(empty, empty, empty > 0)
    assert all(figures[key]["value"] is None for key in figures)


def test_bilinear_reads_between_pixels() -> None:
    image = np.array([[[0.0], [10.0]], [[20.0], [30.0]]])
    uv = np.array([[0.5, 0.5], [1.0, 1.0], [1.9, 0.5], [2.0, 1.0], [NAN, 1.0]])
    np.testing.assert_allclose(bilinear(image, uv)[:, 0], [0, 15, 10, NAN, NAN])


def test_round_trip_of_opposite_flows_is_zero() -> None:
    there, back = row([1, 1, 1, 1]), row([-1, -1, -1, -0.5])
    figures = round_trip_figures(there, back)
    # The last pixel leaves the image; the third lands on the fourth, which returns half a pixel short.
    assert figures["round_trip_px"] == {"value": pytest.approx(0.5 / 3), "count": 3}


def test_warp_error_vanishes_for_the_true_flow_only() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (8, 12, 3), dtype=np.uint8)
    target = np.roll(image, 2, axis=1)
    flow = np.zeros((2, 8, 12))
    flow[0] = 2
    figures = photometric_figures(image, target, flow)
    assert figures["warp_error"] == {"value": 0, "count": 80}
    assert figures["identity_error"]["value"] > 0.1


def test_static_residuals_split_by_mask() -> None:
    flow = np.array([[1.0, 0], [0, 3], [NAN, 0]])
    figures = static_flow_figures(flow, np.zeros((3, 2)), np.array([False, True, False]))
    assert figures["static_residual_px"] == {"value": 1, "count": 1}
    assert figures["masked_residual_px"] == {"value": 3, "count": 1}


def test_pooling_weights_by_count_and_adds_numbers() -> None:
    blocks = [
        {"n": 2, "epe": figure(6, 3), "against_truth": {"iou": figure(1, 4)}, "note": "x"},
        {"n": 3, "epe": figure(0, 0), "against_truth": {"iou": figure(3, 4)}},
        {"epe": figure(2, 1)},
    ]
    pooled = summarise(blocks)
    assert pooled["n"] == 5
    assert pooled["epe"] == {"value": 2, "count": 4}
    assert pooled["against_truth"]["iou"] == {"value": 0.5, "count": 8}
    assert "note" not in pooled
    assert summarise([]) == {}
