"""Depth and motion in the image: errors by hand, a moving plane by hand, a whole store against an analytic truth."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.baselines import flat_ground_depth
from eval.cue_motion import cue_motion
from eval.evaluate import evaluate
from eval.image_motion import ImageMotion, image_motion, next_view, rendered_motion, stereo_baseline
from eval.report import write_report
from eval.rules import EvaluationError
from eval.views import views
from geometry.cameras import camera_directions, pixel_centres
from storage.reader import StoreReader
from storage.schema import MASK_TABLE_ROWS, encode_flow
from storage.store import CueStore, Provenance, UnitId
from storage.truth import truth_path

RENDER, NETWORK = (16, 32), (32, 64)
STEP_M = 2.0
"""How far the log's car drives between two keyframes."""
MOVE_M = 4.0
"""How far everything moves forward between two keyframes, in the network and in its truth."""


def test_errors_by_hand() -> None:
    """Width 1216, so that nothing is scaled; f B = 540, so that disparities are 540 / depth."""
    found = ImageMotion()
    predicted, truth = np.array([10.0, 20.0, 5.0, 50.0]), np.array([10.0, 10.0, 6.0, np.inf])
    flow = np.array([[3.0, 4.0], [0.0, 0.0], [30.0, 40.0], [9.0, 9.0]])
    true_flow = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [9.0, 9.0]])
    still = np.zeros((4, 2))
    foreground = np.array([False, True, True, True])
    found.update((predicted, truth), (flow, true_flow), still, foreground, focal=1000.0, width=1216)
    figures = found.compute()
    # Disparities 54, 27, 108 against 54, 54, 90: errors 0, 27, 18; the fourth pixel is the sky's.
    assert figures["DE"] == pytest.approx(15.0)
    assert figures["DE_FG"] == pytest.approx(22.5)
    assert figures["D_5%"] == pytest.approx(2 / 3)
    # End points 5, 1 and 50 away from the truth.
    assert figures["EPE"] == pytest.approx(56 / 3)
    assert figures["EPE_FG"] == pytest.approx(25.5)
    assert figures["EPE_FG_zero_flow"] == pytest.approx(0.5)
    assert figures["FL_10%"] == pytest.approx(1 / 3)
    assert figures["SF_10%"] == pytest.approx(2 / 3)
    assert figures["pixels"]["DE"] == 3


def test_an_outlier_exceeds_both_bounds_and_scales_with_the_image() -> None:
    """At half the width a pixel counts twice: 5 px are 10, above 8; of a true 120 px they are less than a tenth."""
    for true_u, share in ((5.0, 1.0), (-65.0, 0.0)):
        found = ImageMotion()
        flow, true_flow = np.array([[true_u + 5.0, 0.0]]), np.array([[true_u, 0.0]])
        depth = np.array([10.0])
        found.update((depth, depth), (flow, true_flow), flow, np.array([True]), focal=500.0, width=608)
        assert found.compute()["FL_10%"] == share
        assert found.compute()["EPE"] == pytest.approx(10.0)


def test_unknown_flow_and_wild_points_do_not_spoil_the_mean() -> None:
    found = ImageMotion()
    depth, nowhere = np.array([10.0, 10.0]), np.array([[np.nan, np.nan], [0.0, 0.0]])
    found.update((depth, depth), (np.full((2, 2), 1e7), nowhere), nowhere * 0, np.array([False, False]), 500.0, 1216)
    figures = found.compute()
    assert figures["EPE"] == 1216
    assert figures["pixels"]["EPE"] == 1
    assert math.isnan(figures["EPE_FG"])


def test_a_moving_plane_by_hand(tiny_store: Path, log: Any, known_network: type) -> None:
    """A road that slides 4 m forward per interval, seen by a car that drives 2 m: a point at x ahead of the front
    camera, which stands 1.5 m above the road, has the depth x and next x + 2."""
    grid = log.grid
    flow = np.zeros((*grid.shape, 2))
    flow[..., 0] = MOVE_M
    network = known_network(grid.centres()[..., 2], flow, grid)
    table = StoreReader(tiny_store).scene("a").table
    view = views(table, 0, NETWORK, RENDER)[0]
    following = next_view(table, 0, view, 0.5, log.interval_s)
    assert following is not None
    assert following.interval == pytest.approx(1.0)
    # K at render size: f 16, centre (16, 8). Row 10.5 looks down by 2.5 / 16, so it meets the road at x = 9.6.
    uv = np.array([[20.5, 10.5], [8.5, 12.5]])
    x = 1.5 * 16 / (uv[:, 1] - 8)
    depth, moved, still = rendered_motion(network.renderer, network.fields, view, following, uv)
    np.testing.assert_allclose(depth, x, rtol=0.03)
    for found, advance in ((moved, MOVE_M - STEP_M), (still, -STEP_M)):
        wanted = (uv - [16, 8]) * (x / (x + advance) - 1)[:, None]
        np.testing.assert_allclose(found, wanted, atol=0.1)
    assert next_view(table, 2, view, 0.5, log.interval_s) is None


@pytest.fixture
def sliding_store(tiny_store: Path, log: Any, tmp_path: Path) -> Path:
    """The session's store with per-pixel truth of a road that slides forward."""
    store = shutil.copytree(tiny_store, tmp_path / "store.zarr")
    shutil.copytree(truth_path(tiny_store), truth_path(store))
    table, T, C = log.table(1), log.keyframes, 2
    depth, flow = np.full((T, C, *RENDER), np.inf, dtype=np.float32), np.full((T, C, 2, *RENDER), np.nan)
    uv = pixel_centres(*RENDER).reshape(-1, 2)
    for view in views(table, 0, NETWORK, RENDER):
        z = flat_ground_depth(view.K, view.ego_from_cam, uv, log.grid)
        rays = camera_directions(view.K, uv)
        forward = 1.0 if view.camera == 0 else -1.0
        moved = rays * z[:, None] + np.array([0, 0, forward * (MOVE_M - STEP_M)])
        shift = moved @ view.K.T
        on_road = (uv[:, 1] > 9) & (z < 20) & (moved[:, 2] > 1)
        depth[:, view.camera] = np.where(on_road, z, np.inf).reshape(RENDER)
        shift = np.where(on_road[:, None], shift[:, :2] / shift[:, 2:] - uv, np.nan)
        flow[: T - 1, view.camera] = shift.T.reshape(2, *RENDER)
    arrays = {
        "camera/depth": depth,
        "camera/instance": np.ones((T, C, *NETWORK), dtype=np.uint16),
        "camera/moving": np.zeros((T, C, *NETWORK), dtype=np.uint8),
        "camera/flow_next": encode_flow(flow)[0],
        "camera/valid": np.ones((T, C), dtype=np.uint8),
    }
    CueStore.open(truth_path(store)).commit_block(UnitId("camera", "a"), arrays, Provenance("f"))
    return store


def test_a_network_that_knows_the_road(sliding_store: Path, log: Any, known_network: type) -> None:
    grid = log.grid
    flow = np.zeros((*grid.shape, 2))
    flow[..., 0] = MOVE_M
    knows = image_motion(known_network(grid.centres()[..., 2], flow, grid), sliding_store, stride=1)
    still = image_motion(known_network(grid.centres()[..., 2], 0 * flow, grid), sliding_store, stride=1)
    # 38 px at this width are one pixel here; the truth itself is stored to 1/64 of one.
    assert knows["EPE"] < 0.1 * still["EPE"]
    assert knows["EPE"] < 4
    assert still["EPE_FG"] == pytest.approx(still["EPE_FG_zero_flow"])
    assert knows["EPE_FG_zero_flow"] == pytest.approx(still["EPE_FG"])
    assert knows["DE"] == pytest.approx(still["DE"])
    assert knows["pixels"]["DE"] > 200


def test_a_store_without_pixel_truth_is_refused(tiny_store: Path, log: Any, exact: Any) -> None:
    with pytest.raises(EvaluationError, match="no keyframe has per-pixel truth"):
        image_motion(exact(log), tiny_store)


def test_the_outlier_rule_is_named_and_changes_the_shares() -> None:
    """An error of 9 px of a true 100 px: above 8 px, below 10 %."""
    depth, still = np.array([10.0]), np.zeros((1, 2))
    shares = {}
    for rule in ("both", "either"):
        found = ImageMotion(rule)
        found.update((depth, depth), (np.array([[109.0, 0]]), np.array([[100.0, 0]])), still, depth > 0, 700.0, 1216)
        shares[rule] = found.compute()["FL_10%"]
        assert found.compute()["outlier_rule"] == rule
    assert shares == {"both": 0.0, "either": 1.0}
    with pytest.raises(ValueError, match="choose from both, either"):
        ImageMotion("paper")
    with pytest.raises(ValueError, match="cannot merge outliers"):
        ImageMotion().merge(ImageMotion("either"))


def test_merging_is_pooling_and_the_baseline_scales_disparity() -> None:
    parts = [ImageMotion(), ImageMotion()]
    whole = ImageMotion()
    for seed, part in enumerate(parts):
        rng = np.random.default_rng(seed)
        depth, flow = rng.uniform(1, 50, (2, 20)), rng.normal(0, 20, (2, 20, 2))
        for one in (part, whole):
            one.update(tuple(depth), tuple(flow), 0 * flow[0], rng.random(20) < 2, 700.0, 1216, 0.5 + seed / 2)
    parts[0].merge(parts[1])
    pooled, wanted = parts[0].compute(), whole.compute()
    assert pooled.pop("pixels") == wanted.pop("pixels")
    assert pooled == pytest.approx(wanted)
    assert "baseline 0.5, 1 m" in wanted["rule"]
    one, two = ImageMotion(), ImageMotion()
    for found, baseline in ((one, 0.5), (two, 1.0)):
        found.update(tuple(depth), tuple(flow), 0 * flow[0], depth[0] > 0, 700.0, 1216, baseline)
    assert two.compute()["DE"] == pytest.approx(2 * one.compute()["DE"])


def test_against_cues_by_hand(
    tiny_store: Path, log: Any, known_network: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sliding road again, its flow as a cue that is off by 1 render pixel, a mask on the left half."""
    store = shutil.copytree(tiny_store, tmp_path / "store.zarr")
    T, C, grid = log.keyframes, 2, log.grid
    uv = pixel_centres(*RENDER).reshape(-1, 2)
    field = np.zeros((*grid.shape, 2))
    field[..., 0] = MOVE_M
    network = known_network(grid.centres()[..., 2], field, grid)
    table = StoreReader(tiny_store).scene("a").table
    flow = np.full((T, C, 2, *RENDER), np.nan)
    for view in views(table, 0, NETWORK, RENDER):
        following = next_view(table, 0, view, 0.5, log.interval_s)
        assert following is not None
        moved = rendered_motion(network.renderer, network.fields, view, following, uv)[1]
        shift = np.where(np.abs(moved).max(axis=1, keepdims=True) < 60, moved + [1.0, 0.0], np.nan)
        flow[: T - 1, view.camera] = shift.T.reshape(2, *RENDER)
    target = np.repeat(np.array([[1], [2], [-1]], np.int32), C, axis=1)
    cue = {
        "flow/next/flow": encode_flow(flow)[0],
        "flow/next/confidence": np.full((T, C, *RENDER), 255, np.uint8),
        "flow/next/target_frame": target,
        "flow/next/target_sweep": np.full((T, C), -1, np.int32),
    }
    instance = np.zeros((T, C, *NETWORK), np.uint16)
    instance[..., : NETWORK[1] // 2] = 1
    masks = {"masks/instance": instance, "masks/table": np.zeros((T, C, MASK_TABLE_ROWS, 8), np.float32)}
    writer = CueStore.open(store)
    writer.commit_block(UnitId("flow_next", "a"), cue, Provenance("f"))
    writer.commit_block(UnitId("masks", "a"), masks, Provenance("f"))
    found = cue_motion(network, store)
    # One render pixel is 1216 / 32 = 38 of the reference's; flow is stored to 1/64 of a pixel.
    assert found["EPE"] == pytest.approx(38.0, abs=0.5)
    assert 0 < found["pixels"]["DE_FG"] < found["pixels"]["DE"]
    assert found["pixels"]["EPE"] <= found["pixels"]["DE"]
    assert found["SF_10%"] >= found["FL_10%"]
    assert "image_motion" not in evaluate(network, store, keyframes=1)
    monkeypatch.setattr("eval.tally.MOTION_DATASET", log.dataset)
    results = evaluate(network, store)
    assert results["image_motion"] == found
    assert not [line for line in results["not_computed"] if "DE" in line]
    page = write_report(results, tmp_path / "report.html").read_text(encoding="utf-8")
    for shown in ("Depth and motion in the image", f"{found['EPE']:.3f}", f"{found['DE_FG']:.3f}", "EPE_FG_zero_flow"):
        assert shown in page
    lacking = evaluate(network, tiny_store)
    assert "image_motion" not in lacking
    assert [line for line in lacking["not_computed"] if "no camera has lidar, flow_next, masks" in line]
    assert "Depth and motion in the image" not in write_report(lacking, tmp_path / "report.html").read_text()
    with pytest.raises(EvaluationError, match="no keyframe has lidar, flow_next, masks"):
        cue_motion(network, tiny_store)


def test_the_baseline_is_the_sequences_own(log: Any) -> None:
    table = log.table(1)
    assert stereo_baseline(table) == 0.54
    assert stereo_baseline(replace(table, tags=("training", "stereo_baseline_m=0.5327"))) == 0.5327
