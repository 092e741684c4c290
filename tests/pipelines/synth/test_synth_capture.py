"""Shots, LiDAR turns and exact flow against geometry worked out independently here."""

import numpy as np
import pytest

from geometry.cameras import pixel_centres
from pipelines.synth.capture import Shot, Stand, carry, exact_flow, moving_actors, moving_pixels, take_shot
from pipelines.synth.config import Difficulty, SynthConfig
from pipelines.synth.lidar import OWN_CAR, lidar_directions, spin
from pipelines.synth.raycast import GROUND_ID, SKY_ID, cast
from pipelines.synth.rig import nuscenes_camera, nuscenes_lidar
from pipelines.synth.world import World, build_world

CAMERA = nuscenes_camera("CAM_FRONT", 176, 99)
LIDAR = nuscenes_lidar(16, 180)


@pytest.fixture(scope="module")
def world() -> World:
    """A scene in which the ego car drives straight on."""
    return build_world(SynthConfig(keyframes=3), 0)


@pytest.fixture(scope="module")
def shot(world: World) -> Shot:
    return take_shot(world, CAMERA, 0, 0.2, 0.0, 1)


def test_depth_belongs_to_the_surface_of_the_hit(world: World, shot: Shot) -> None:
    """Every pixel's centre ray, cast through all primitives in turn, ends where the tiles said."""
    prims = shot.stand.primitives
    everything, near = np.arange(len(prims)), np.zeros(len(prims))
    pose, K = shot.stand.view.world_from_cam, CAMERA.K
    for row, column in np.random.default_rng(0).integers(0, shot.depth.shape, (60, 2)):
        ray = pose[:3, :3] @ np.linalg.solve(K, [column + 0.5, row + 0.5, 1.0])
        t, found, _ = cast(prims, world.look.ground, everything, 0, len(prims), near, *pose[:3, 3], *ray)
        assert found == shot.hit[row, column]
        if found != SKY_ID:
            assert shot.depth[row, column] == pytest.approx(t, rel=1e-5)
    assert (shot.depth[shot.hit == SKY_ID] == np.inf).all()


def test_ground_depth_is_the_plane_below_the_camera(shot: Shot) -> None:
    uv = pixel_centres(*shot.depth.shape)
    rays = np.concatenate([uv, np.ones((*uv.shape[:2], 1))], -1) @ np.linalg.inv(CAMERA.K).T
    pose = shot.stand.view.world_from_cam
    z = (pose[:3, 3] + shot.depth[..., None] * (rays @ pose[:3, :3].T))[..., 2]
    on_ground = shot.hit == GROUND_ID
    assert on_ground.mean() > 0.2
    assert z[on_ground].min() > -1e-3
    assert z[on_ground].max() < 0.151, "the road lies at 0, sidewalks at the kerb's 0.15 m"


def test_a_still_point_lands_where_projection_says(world: World, shot: Shot) -> None:
    then = Stand.at(world, CAMERA, 0.4)
    flow = exact_flow(world, shot, then)
    still = (shot.instance == 0) & np.isfinite(shot.depth) & np.isfinite(flow[0])
    assert still.mean() > 0.2
    uv = pixel_centres(*shot.depth.shape)[still]
    rays = np.concatenate([uv, np.ones((len(uv), 1))], -1) @ np.linalg.inv(CAMERA.K).T
    before, after = shot.stand.view.world_from_cam, then.view.world_from_cam
    points = (rays * shot.depth[still][:, None]) @ before[:3, :3].T + before[:3, 3]
    there = (points - after[:3, 3]) @ after[:3, :3] @ CAMERA.K.T
    np.testing.assert_allclose(flow[:, still].T, there[:, :2] / there[:, 2:] - uv, atol=2e-3)


def test_flow_leads_to_the_same_thing(world: World) -> None:
    """Rendered correspondence: at the end of the flow the other image shows the same object, depth and colour."""
    camera = nuscenes_camera("CAM_FRONT_RIGHT", 352, 198)
    shot, later = (take_shot(world, camera, 0, t, 0.0, 1) for t in (0.5, 0.55))
    flow = exact_flow(world, shot, later.stand)
    known = np.isfinite(flow[0])
    assert known.mean() > 0.6
    landed = (pixel_centres(*shot.depth.shape) + np.moveaxis(flow, 0, -1))[known].astype(int)
    same = later.instance[landed[:, 1], landed[:, 0]] == shot.instance[known]
    assert same.mean() > 0.98, "pixels on silhouettes may differ, others not"
    here, there = shot.rgb[known].astype(float), later.rgb[landed[:, 1], landed[:, 0]].astype(float)
    unmoved = later.rgb[known].astype(float)
    assert np.abs(here - there).mean() < 0.6 * np.abs(here - unmoved).mean()


def test_hidden_points_have_no_flow(world: World, shot: Shot) -> None:
    """A wall put between camera and world hides everything behind it, and nothing else changes."""
    then = Stand.at(world, CAMERA, 0.2)
    open_view = exact_flow(world, shot, then)
    assert np.isfinite(open_view[0]).all(), "the same instant: all is seen"
    np.testing.assert_allclose(open_view, 0, atol=1e-3)
    from dataclasses import replace

    from pipelines.synth.render import Tiles
    from pipelines.synth.shapes import BOX, primitive

    x, y, heading = world.ego.pose(0.2)[0]
    ahead = (x + 6 * np.cos(heading), y + 6 * np.sin(heading), 1.5)
    wall = primitive(BOX, ahead, (0.05, 1.0, 1.5), 0, (1, 1, 1), 14, yaw=heading)
    prims = np.concatenate([then.primitives, wall[None]])
    walled = exact_flow(world, shot, replace(then, primitives=prims, tiles=Tiles.build(prims, then.view)))
    depth, hidden = shot.depth, ~np.isfinite(walled[0])
    middle = slice(30, 60), slice(80, 95)
    assert hidden[middle][depth[middle] > 6].all()
    assert not hidden[depth < 4].any()
    assert not hidden[:, :30].any(), "beside the wall"


def test_sky_moves_with_rotation_only(world: World, shot: Shot) -> None:
    flow = exact_flow(world, shot, Stand.at(world, CAMERA, 0.3))
    sky = (shot.hit == SKY_ID) & np.isfinite(flow[0])
    assert sky.sum() > 100
    np.testing.assert_allclose(flow[:, sky], 0, atol=1e-3)


def test_carry_by_hand() -> None:
    points = np.array([[1.0, 0.0, 0.5], [1.0, 0.0, 0.5], [3.0, 4.0, 0.0]])
    poses, later = np.array([[0.0, 0.0, 0.0], [0.0, 0, 0]]), np.array([[10.0, 0.0, np.pi / 2], [0.0, 2.0, 0.0]])
    moved = carry(points, np.array([0, 1, -1]), poses, later)
    np.testing.assert_allclose(moved, [[10, 1, 0.5], [1, 2, 0.5], [3, 4, 0]], atol=1e-12)


def test_moving_is_judged_by_the_way_ahead(world: World, shot: Shot) -> None:
    moving = moving_actors(world, 0.2)
    for actor, flag in zip(world.actors, moving, strict=True):
        (x, y, _), (x2, y2, _) = actor.trajectory.pose([0.2, 0.7])
        assert flag == (np.hypot(x2 - x, y2 - y) >= 0.25)
        if actor.trajectory.parked:
            assert not flag
    pixels = moving_pixels(world, shot)
    for number in np.unique(shot.instance):
        shown = pixels[shot.instance == number]
        assert (shown == (number > 0 and moving[number - 1])).all()


def test_exposure_changes_brightness_and_nothing_else() -> None:
    level = Difficulty(exposure=0.3, noise=0.0)
    config = SynthConfig(keyframes=2, difficulty=level)
    world = build_world(config, 0)
    shots = [take_shot(world, CAMERA, 0, t, 0.0, 1) for t in (0.0, 0.0)]
    np.testing.assert_array_equal(shots[0].rgb, shots[1].rgb)
    gains = [world.gain(c, 0.0) for c in range(6)]
    assert np.std(gains) > 0.01
    assert max(abs(g - 1) for g in gains) <= 0.3 + 1e-9


def test_lidar_returns_lie_on_the_first_surface(world: World) -> None:
    turn = spin(world, LIDAR, 0.2, 0.0, 0.0, 3)
    prims = world.primitives(0.2)
    everything, near = np.arange(len(prims)), np.zeros(len(prims))
    pose = world.world_from_ego(0.2) @ LIDAR.ego_from_lidar
    chosen = np.flatnonzero(turn.object != OWN_CAR)[::29]
    for point, number in zip(turn.points[chosen, :3].astype(float), turn.object[chosen], strict=True):
        distance = np.linalg.norm(point)
        ray = pose[:3, :3] @ (point / distance)
        t, found, _ = cast(prims, world.look.ground, everything, 0, len(prims), near, *pose[:3, 3], *ray)
        assert distance == pytest.approx(t, rel=1e-4)
        assert number == (prims[found, 18] if found >= 0 else 0)


def test_lidar_lies_on_rendered_depth(world: World) -> None:
    """A camera that fires at the LiDAR's instant sees the returns at their own distance, wherever it sees them."""
    camera = nuscenes_camera("CAM_FRONT", 352, 198)
    shot, turn = take_shot(world, camera, 0, 0.2, 0.0, 1), spin(world, LIDAR, 0.2, 0.0, 0.0, 3)
    cam_from_lidar = np.linalg.inv(camera.ego_from_cam) @ LIDAR.ego_from_lidar
    points = turn.points[turn.object != OWN_CAR, :3] @ cam_from_lidar[:3, :3].T + cam_from_lidar[:3, 3]
    uvw = points @ camera.K.T
    with np.errstate(divide="ignore", invalid="ignore"):
        uv = uvw[:, :2] / uvw[:, 2:]
    seen = (points[:, 2] > 1) & (uv >= 1).all(1) & (uv < [351, 197]).all(1)
    assert seen.sum() > 100
    column, row = uv[seen].astype(int).T
    window = np.stack([shot.depth[row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    z = points[seen, 2]
    behind, before = z > window.min(0) * 0.97 - 0.02, z < window.max(0) * 1.03 + 0.02
    assert behind.mean() > 0.99, "no return hangs in what the camera sees to be free"
    # The roof sees a little over what hides things from the camera: more so the nearer that is.
    assert before.mean() > 0.85


def test_own_car_returns_are_marked_and_inside_the_cue_s_box(world: World) -> None:
    from pipelines.cues.lidar import OWN_CAR as BOXES

    turn = spin(world, LIDAR, 0.2, 0.0, 0.0, 3)
    own = turn.points[turn.object == OWN_CAR, :3]
    assert len(own) > 20
    ego = own @ LIDAR.ego_from_lidar[:3, :3].T + LIDAR.ego_from_lidar[:3, 3]
    lower, upper = BOXES["nuscenes"]
    assert (ego > lower).all()
    assert (ego < upper).all()


def test_lidar_noise_and_dropout(world: World) -> None:
    clean = spin(world, LIDAR, 0.2, 0.0, 0.0, 3)
    noisy = spin(world, LIDAR, 0.2, 0.05, 0.0, 3)
    again = spin(world, LIDAR, 0.2, 0.05, 0.0, 3)
    np.testing.assert_array_equal(noisy.points, again.points)
    ranges = [np.linalg.norm(turn.points[:, :3].astype(float), axis=1) for turn in (clean, noisy)]
    assert np.std(ranges[1] - ranges[0]) == pytest.approx(0.05, rel=0.1)
    thinned = spin(world, LIDAR, 0.2, 0.0, 0.25, 3)
    assert len(thinned.points) / len(clean.points) == pytest.approx(0.75, abs=0.03)


def test_lidar_rays_are_unit_and_turn_clockwise() -> None:
    ways = lidar_directions(LIDAR).reshape(16, 180, 3)
    np.testing.assert_allclose(np.linalg.norm(ways, axis=-1), 1)
    np.testing.assert_allclose(np.arcsin(ways[:, 0, 2]), LIDAR.elevations)
    azimuth = np.unwrap(np.arctan2(ways[0, :, 1], ways[0, :, 0]))
    assert (np.diff(azimuth) < 0).all()
