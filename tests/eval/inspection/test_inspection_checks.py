"""Each check against arrays made by hand."""

import numpy as np
import pytest

from eval.inspection import flow_checks, image_checks, lidar_checks, mask_checks, table_checks
from eval.inspection.ego_motion import Camera, binned, fit_motion, seen_points, static_flow
from eval.inspection.lidar_extent import SweepHistograms, azimuth_elevation, sweep_extent, usual_extent
from geometry.cameras import project

NAN = np.nan
K = np.array([[100.0, 0, 50], [0, 100, 30], [0, 0, 1]])


def flow_of(u: list[float]) -> np.ndarray:
    """One row of flow with v = 0."""
    row = np.array(u, np.float64)
    return np.stack([row, row * 0])[:, None]


def test_valid_share_counts_what_is_missing_or_saturated() -> None:
    assert flow_checks.valid_share(flow_of([1, NAN, 511.9, -3]), None) == 0.5


def test_a_cue_that_lives_in_masks_is_judged_there() -> None:
    movable = np.array([[True, True, False, False]])
    assert flow_checks.valid_share(flow_of([1, NAN, NAN, NAN]), movable) == 0.5
    assert flow_checks.valid_share(flow_of([1, NAN, 2, NAN]), movable) == 0.5


def test_confidence_is_taken_where_there_is_flow() -> None:
    confidence = np.array([[255, 0, 127, 128]], np.uint8)
    assert flow_checks.confident_share(flow_of([1, NAN, 1, 1]), confidence) == pytest.approx(2 / 3)
    assert np.isnan(flow_checks.confident_share(flow_of([NAN] * 4), confidence))


def test_round_trip_by_hand() -> None:
    # Pixel 0 goes to 2, which comes back; pixel 1 goes to 3, which comes back a pixel short: 1 > 0.01 (4 + 1) + 0.5.
    share, error = flow_checks.round_trip(flow_of([2, 2, NAN, 9]), flow_of([0, 0, -2, -1]))
    assert share == 0.5
    np.testing.assert_allclose(error, [[0, 1, NAN, NAN]])


def test_photometric_ratio_is_zero_for_the_true_flow_and_one_for_none() -> None:
    image = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)
    target = np.roll(image, 3, axis=1)
    flow = np.zeros((2, 12, 20))
    assert flow_checks.photometric_ratio(*flow_checks.warp_errors(image, target, flow)) == 1
    flow[0] = 3
    assert flow_checks.photometric_ratio(*flow_checks.warp_errors(image, target, flow)) == 0
    assert np.isnan(flow_checks.photometric_ratio(*flow_checks.warp_errors(image, image, flow * 0)))


def test_exposure_and_difference() -> None:
    image = np.full((2, 4, 3), 128, np.uint8)
    image[0, 0], image[0, 1] = 255, 0
    image[1, 0, 0] = 255
    assert image_checks.clipped_share(image) == 0.25
    assert image_checks.difference(image, image) == 0
    assert image_checks.difference(np.full((1, 1, 3), 2, np.uint8), np.full((1, 1, 3), 5, np.uint8)) == 3


def points_in_front(count: int = 400) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.column_stack([rng.uniform(-3, 3, count), rng.uniform(-1, 1, count), rng.uniform(5, 30, count)])


def test_a_known_motion_is_found_in_spite_of_outliers() -> None:
    points = points_in_front()
    metres, degrees = np.array([0.1, -0.05, 0.2]), np.array([0.1, -0.2, 0.3])
    moved = points + np.cross(np.radians(degrees), points) + metres
    residual = project(K, moved)[0] - project(K, points)[0]
    residual[::10] += 40
    fit = fit_motion(residual, points, K)
    np.testing.assert_allclose(fit.translation, metres, atol=0.01)
    np.testing.assert_allclose(fit.rotation, degrees, atol=0.02)
    assert np.median(np.linalg.norm(residual - fit.explained, axis=1)) < 0.05


def test_noise_without_a_motion_is_all_scatter() -> None:
    points = points_in_front(4000)
    residual = np.random.default_rng(2).normal(0, 3, (4000, 2))
    fit = fit_motion(residual, points, K)
    assert np.linalg.norm(fit.translation) < 0.1
    assert np.median(np.linalg.norm(residual - fit.explained, axis=1)) > 3


def test_static_flow_of_a_step_forward() -> None:
    points = np.array([[1.0, 0.0, 10.0], [0.0, 0.0, -5.0], [0.0, 0.2, 4.0]])
    step = np.eye(4)
    step[2, 3] = -1.0
    found = static_flow(points, Camera(K, np.eye(4)), Camera(K, step), (60, 100))
    assert found.index.tolist() == [0, 2]
    np.testing.assert_allclose(found.uv, [[60, 30], [50, 35]])
    np.testing.assert_allclose(found.flow, [[100 / 9 - 10, 0], [0, 20 / 3 - 5]])
    np.testing.assert_allclose(found.depth, [10, 4])


def test_points_behind_something_near_are_not_seen() -> None:
    points = np.array([[0.0, 0.0, 5.0], [0.02, 0.0, 20.0], [5.0, 0.0, 20.0]])
    assert seen_points(points, Camera(K, np.eye(4)), (60, 100))[2].tolist() == [0, 2]


def test_bins_by_depth_and_region() -> None:
    residual = np.array([[1.0, 0.0], [3.0, 4.0]])
    found = binned(residual, np.array([[1.0, 1.0], [99.0, 59.0]]), np.array([3.0, 100.0]), (60, 100))
    assert found["depth"][0] == [1, 1, 0, 1]
    assert found["depth"][-1] == [1, 3, 4, 5]
    assert found["region"][0] == [1, 1, 0, 1]
    assert found["region"][8] == [1, 3, 4, 5]
    assert sum(row[0] for row in found["region"]) == 2


def test_flicker_counts_the_instance_that_is_gone() -> None:
    masks = np.zeros((20, 40), np.uint16)
    masks[2:8, 2:8], masks[12:18, 2:8], masks[0, 39] = 1, 2, 3
    following = np.zeros_like(masks)
    following[2:8, 12:18] = 9
    flow = np.zeros((2, 20, 40))
    flow[0] = 10
    assert mask_checks.flicker(masks, following, flow) == (1, 2)
    assert mask_checks.flicker(masks, following, flow * NAN) == (0, 0)


def test_few_lost_instances_prove_little() -> None:
    # Wilson's interval by hand for 8 of 14: (0.5714 + 0.0966 - 0.2381) / 1.1933.
    assert mask_checks.surely_lost(8, 14) == pytest.approx(0.360, abs=0.001)
    assert mask_checks.surely_lost(160, 280) > 0.5
    assert mask_checks.surely_lost(12, 12) == pytest.approx(12 / (12 + 1.645**2))
    assert mask_checks.surely_lost(0, 9) == pytest.approx(0, abs=1e-12)


def test_depth_strays() -> None:
    label = np.array([1] * 8 + [2] * 3 + [0])
    depth = np.array([10.0] * 7 + [30.0] + [5.0, 50.0, 90.0] + [1.0])
    assert mask_checks.depth_strays(label, depth) == (1, 8)


@pytest.mark.parametrize("shift", [-7, 0, 8])
def test_borders_find_a_shift_both_ways(shift: int) -> None:
    rng = np.random.default_rng(3)
    image, masks = np.full((40, 90, 3), 60, np.uint8), np.zeros((40, 90), np.uint16)
    for k, (row, column) in enumerate([(4, 10), (20, 40), (9, 60)]):
        image[row : row + 12, column : column + 14] = 200
        masks[row : row + 12, column : column + 14] = k + 1
    image += rng.integers(0, 9, image.shape, dtype=np.uint8)
    moved = np.roll(masks, shift, axis=1)
    assert mask_checks.border_shift(mask_checks.border_scores(moved, lidar_checks.edge_strength(image))) == -shift


def test_no_borders_no_shift() -> None:
    empty = np.zeros((10, 20), np.uint16)
    assert np.isnan(mask_checks.border_shift(mask_checks.border_scores(empty, np.ones((10, 20)))))


def test_a_mask_that_is_always_there_in_every_scene() -> None:
    own, ahead = mask_checks.Persistence(), mask_checks.Persistence()
    masked = np.zeros((4, 5), bool)
    masked[3] = True
    for k in range(12):
        own.add(f"scene{k % 3}", masked)
        ahead.add("one scene", masked)
    assert own.share() == 0.25
    assert np.isnan(ahead.share())


def sweep(tilt_degrees: float = 0.0) -> np.ndarray:
    """Level ground 1.8 m below the sensor, turned about y."""
    rng = np.random.default_rng(4)
    ground = np.column_stack([rng.uniform(-20, 20, 4000), rng.uniform(-20, 20, 4000), np.full(4000, -1.8)])
    angle = np.radians(tilt_degrees)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    return ground @ turn.T


@pytest.mark.parametrize("degrees", [0.0, 1.0, 3.0])
def test_ground_tilt(degrees: float) -> None:
    clutter = np.random.default_rng(5).uniform([-20, -20, -1.5], [20, 20, 3], (1500, 3))
    points = np.concatenate([sweep(degrees), clutter])
    assert lidar_checks.ground_tilt(points) == pytest.approx(degrees, abs=0.1)
    assert np.isnan(lidar_checks.ground_tilt(points[:50]))


def test_half_a_sweep_reaches_half_around() -> None:
    origin = np.zeros(3)
    full = sweep_extent(sweep(), origin)
    half = sweep_extent(sweep()[sweep()[:, 1] > 0], origin)
    assert (full.sectors > 0).all()
    assert full.sectors.sum() == full.points == 4000
    assert full.cells[1:-1, 1:-1].all()
    usual = usual_extent([full, full, half])
    assert usual.points == 4000
    assert (usual.ratio(full), usual.missing_degrees(full), usual.reached_share(full)) == (1, 0, 1)
    assert usual.ratio(half) == pytest.approx(0.5, abs=0.03)
    assert usual.missing_degrees(half) == 180
    # Squares on the right are reached by two of the three sweeps: only those on the left are expected.
    assert usual.reached_share(half) == 1
    assert usual_extent([full]).reached_share(half) == 0.5


def test_no_points_reach_nothing() -> None:
    origin = np.zeros(3)
    usual, none = usual_extent([sweep_extent(sweep(), origin)]), sweep_extent(np.zeros((0, 3)), origin)
    assert (usual.ratio(none), usual.missing_degrees(none), usual.reached_share(none)) == (0, 360, 0)
    assert np.isnan(usual_extent([none]).reached_share(none))


def test_azimuth_and_elevation_by_hand() -> None:
    azimuth, elevation = azimuth_elevation(np.array([[1.0, 0, 0], [0, 2, 0], [-1, 0, 1], [0, -1, 0], [0, 0, -3]]))
    np.testing.assert_allclose(azimuth, [0, 90, 180, 270, 0])
    np.testing.assert_allclose(elevation, [0, 0, 45, 0, -90])


def test_sweeps_add_up_in_histograms() -> None:
    found = SweepHistograms()
    points = np.array([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0], [-500.0, 0.0, 0.0]])
    found.add(points, np.zeros(3), unseen=1, lost=1)
    found.add(points[:0], np.zeros(3), unseen=0, lost=0)
    out = found.result()
    assert (out["sweeps"], out["points_per_sweep"]) == (2, 1.5)
    assert (out["unseen_share"], out["not_finite_share"]) == (1 / 3, 1 / 4)
    assert out["histograms"]["range_m"]["counts"][1] == 2  # sqrt(10) m, bins of 2 m
    assert out["histograms"]["range_m"]["counts"][-1] == 1
    assert out["histograms"]["azimuth_deg"]["counts"][3] == 2  # atan(1/3) is 18.4 degrees
    density = np.array(out["density"]["per_m2"])
    assert density[15, 15] == 2 / 2 / 16  # two points in two sweeps on 16 square metres
    assert density.sum() == density[15, 15]


def test_depth_edges_lie_on_the_border_of_a_post() -> None:
    azimuth = np.radians(np.arange(-40, 40, 0.4))
    distance = np.where(np.abs(azimuth) < np.radians(3), 8.0, 30.0)
    rows = [
        distance[:, None] * np.stack([np.cos(azimuth), np.sin(azimuth), np.full_like(azimuth, k)], 1) for k in (0, 0.1)
    ]
    edges = lidar_checks.depth_edges(np.concatenate(rows), np.zeros(3))
    assert len(edges) == 4
    found = np.degrees(np.arctan2(edges[:, 1], edges[:, 0]))
    np.testing.assert_allclose(np.abs(found), 3, atol=0.25)
    np.testing.assert_allclose(np.linalg.norm(edges[:, :2], axis=1), 8, atol=0.1)


@pytest.mark.parametrize("degrees", [-1.0, 0.0, 1.5])
def test_alignment_finds_a_turn(degrees: float) -> None:
    rng = np.random.default_rng(6)
    image = np.full((60, 400, 3), 80, np.uint8)
    columns = np.array([40, 95, 160, 230, 290, 350])
    for k, column in enumerate(columns):
        image[:, column:] = 200 if k % 2 == 0 else 80
    image += rng.integers(0, 9, image.shape, dtype=np.uint8)
    fx = 400.0
    edges = np.column_stack(
        [np.repeat(columns - fx * np.tan(np.radians(degrees)), 10), np.tile(np.arange(10) * 5.0 + 2, 6)]
    )
    scores = lidar_checks.alignment_scores(edges, lidar_checks.edge_strength(image), fx)
    assert lidar_checks.best_shift(scores) == pytest.approx(degrees, abs=0.13)


def test_no_alignment_without_edges() -> None:
    scores = lidar_checks.alignment_scores(np.array([[5.0, 5.0]]), np.ones((10, 10)), 20.0)
    assert np.isnan(lidar_checks.best_shift(scores))


def test_tables_of_a_steady_drive_are_clean(street: type) -> None:
    table = street().table()
    np.testing.assert_allclose(table_checks.camera_offsets_ms(table), np.tile([-4.0, -12.0], (6, 1)), atol=1e-3)
    assert np.nanmax(np.abs(table_checks.pose_times_ms(table))) < 1
    assert np.nanmax(table_checks.accelerations(table)) < 0.5


def test_a_time_offset_is_measured_in_milliseconds(street: type) -> None:
    table = street().table()
    table.camera_timestamp_us[:, 1] += 40_000
    found = table_checks.pose_times_ms(table)
    assert np.isnan(found[[0, -1]]).all()
    np.testing.assert_allclose(found[1:-1], np.tile([0.0, -40.0], (4, 1)), atol=1)


def test_a_standing_car_tells_no_time(street: type) -> None:
    assert np.isnan(table_checks.pose_times_ms(street(speed=0.0).table())).all()


def test_a_jump_is_an_acceleration(street: type) -> None:
    table = street().table()
    table.global_from_ego[3, 1, 3] += 1.0
    # Velocity changes by twice 1 m / 0.25 s within 0.25 s.
    assert table_checks.accelerations(table)[3] == pytest.approx(32, abs=1)
