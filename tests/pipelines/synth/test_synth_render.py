"""Image tiles against all primitives, edges against many samples, noise against its statistics, bytes against bytes."""

import numpy as np
import pytest

from geometry.transforms import from_rotation_translation
from pipelines.synth.config import SynthConfig
from pipelines.synth.raycast import GROUND_ID, SKY_ID, cast
from pipelines.synth.render import Rendering, Tiles, View, expose, render
from pipelines.synth.rig import Camera, nuscenes_camera, yaw_rotation
from pipelines.synth.world import World, build_world

WIDTH, HEIGHT = 96, 54


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(SynthConfig(keyframes=3), 1)


def view_of(world: World, channel: str, width: int = WIDTH, height: int = HEIGHT, t: float = 0.4) -> View:
    camera = nuscenes_camera(channel, width, height)
    return View(camera, world.world_from_ego(t) @ camera.ego_from_cam)


def rendering_of(world: World, view: View, t: float = 0.4) -> Rendering:
    primitives = world.primitives(t)
    return render(world.look, primitives, view, Tiles.build(primitives, view))


@pytest.mark.parametrize("channel", ["CAM_FRONT", "CAM_BACK_LEFT"])
def test_tiles_lose_nothing(world: World, channel: str) -> None:
    """Every pixel of every tile, cast through all primitives, hits the same thing."""
    view, prims = view_of(world, channel), world.primitives(0.4)
    found = rendering_of(world, view)
    eye, rotation, fx, fy, cx, cy = view.arguments
    everything, near = np.arange(len(prims)), np.zeros(len(prims))
    for row in range(0, HEIGHT, 3):
        for column in range(row % 2, WIDTH, 4):
            ray = rotation @ [(column + 0.5 - cx) / fx, (row + 0.5 - cy) / fy, 1.0]
            t, k, _ = cast(prims, world.look.ground, everything, 0, len(prims), near, *eye, *ray)
            assert k == found.hit[row, column], (row, column)
            if k != SKY_ID:
                assert found.depth[row, column] == pytest.approx(t, rel=1e-6)


def test_near_depths_bound_every_hit_from_below(world: World) -> None:
    view, prims = view_of(world, "CAM_FRONT"), world.primitives(0.4)
    tiles, found = Tiles.build(prims, view), rendering_of(world, view)
    solid = found.hit >= 0
    assert solid.sum() > 300
    assert (tiles.near[found.hit[solid]] <= found.depth[solid] * (1 + 1e-6)).all()
    for begin, end in zip(tiles.starts[:-1], tiles.starts[1:], strict=True):
        assert (np.diff(tiles.near[tiles.members[begin:end]]) >= 0).all()


def test_a_camera_inside_the_crowd_of_boxes_sees_what_is_beside_and_behind_it(world: World) -> None:
    """Boxes that reach behind the camera are kept in the tiles that they cover before it."""
    camera = nuscenes_camera("CAM_FRONT", WIDTH, HEIGHT)
    prims = world.primitives(0.4)
    target = prims[np.argmin(np.hypot(prims[:, 1], prims[:, 2]) + 100.0 * (prims[:, 0] > 1))]
    beside = np.array([target[1] - target[4] - 0.4, target[2] + target[5] + 0.4, 1.0])
    pose = from_rotation_translation(yaw_rotation(-0.5), beside) @ from_rotation_translation(
        camera.ego_from_cam[:3, :3], np.zeros(3)
    )
    view = View(camera, pose)
    found = rendering_of(world, view)
    eye, rotation, fx, fy, cx, cy = view.arguments
    everything, near = np.arange(len(prims)), np.zeros(len(prims))
    for row in range(0, HEIGHT, 4):
        for column in range(0, WIDTH, 4):
            ray = rotation @ [(column + 0.5 - cx) / fx, (row + 0.5 - cy) / fy, 1.0]
            assert (
                cast(prims, world.look.ground, everything, 0, len(prims), near, *eye, *ray)[1]
                == (found.hit[row, column])
            )


def test_edges_are_anti_aliased(world: World) -> None:
    """On edges the colour is near the mean of 8 x 8 finer pixels; single rays are much further off."""
    finer = 8
    coarse = rendering_of(world, view_of(world, "CAM_FRONT", 48, 27))
    fine = rendering_of(world, view_of(world, "CAM_FRONT", 48 * finer, 27 * finer))
    blocks = fine.colour.reshape(27, finer, 48, finer, 3)
    truth = blocks.mean(axis=(1, 3))
    hits = fine.hit.reshape(27, finer, 48, finer).transpose(0, 2, 1, 3).reshape(27, 48, -1)
    edge = (hits != hits[..., :1]).any(axis=-1)
    assert edge.sum() > 100
    single = blocks[:, finer // 2, :, finer // 2]
    error = np.abs(coarse.colour - truth).mean(axis=-1)
    alone = np.abs(single - truth).mean(axis=-1)
    assert error[edge].mean() < 0.6 * alone[edge].mean()
    assert error[edge].mean() < 0.06


def test_textures_are_filtered_not_sampled(world: World) -> None:
    """Away from edges, too, one ray per pixel has about the mean colour of the finer pixels it stands for."""
    finer = 8
    coarse = rendering_of(world, view_of(world, "CAM_BACK", 48, 27))
    fine = rendering_of(world, view_of(world, "CAM_BACK", 48 * finer, 27 * finer))
    blocks = fine.colour.reshape(27, finer, 48, finer, 3)
    ground = (fine.hit == GROUND_ID).reshape(27, finer, 48, finer).all(axis=(1, 3))
    error = np.abs(coarse.colour - blocks.mean(axis=(1, 3))).mean(axis=-1)[ground]
    alone = np.abs(blocks[:, 4, :, 4] - blocks.mean(axis=(1, 3))).mean(axis=-1)[ground]
    assert ground.sum() > 200
    assert error.mean() < 0.7 * alone.mean()


def test_noise_has_the_deviation_asked_for_and_depends_on_the_seed_alone() -> None:
    grey = np.full((120, 160, 3), 0.5, np.float32)
    first, again, other = (expose(grey, 1.0, 0.02, seed).astype(float) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 3
    assert first.std() == pytest.approx(0.02 * 255, rel=0.05)
    assert first.mean() == pytest.approx(127.5, abs=0.2)
    centred = first - first.mean()
    variance = (centred**2).mean()
    for shift in ((0, 1, 0), (1, 0, 0), (0, 0, 1)):
        assert abs((centred * np.roll(centred, shift, (0, 1, 2))).mean()) < 0.03 * variance, "white"
    assert abs((centred * (other - other.mean())).mean()) < 0.03 * variance
    dark = expose(np.full_like(grey, 0.1), 1.0, 0.02, 5).astype(float)
    assert dark.std() < 0.7 * first.std(), "shot noise falls with the signal"


def test_exposure_scales_and_clips() -> None:
    ramp = np.linspace(-0.1, 1.4, 300, dtype=np.float32).reshape(10, 10, 3)
    np.testing.assert_array_equal(expose(ramp, 1.2, 0.0, 1), np.clip(np.floor(ramp * 1.2 * 255 + 0.5), 0, 255))


def test_rendering_is_bit_reproducible(world: World) -> None:
    again = build_world(SynthConfig(keyframes=3), 1)
    view = view_of(world, "CAM_FRONT_LEFT")
    one, two = rendering_of(world, view), rendering_of(again, view)
    for name in ("colour", "depth", "hit"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes()


def test_odd_sizes_fill_every_pixel(world: World) -> None:
    camera: Camera = nuscenes_camera("CAM_FRONT", 45, 33)
    found = rendering_of(world, View(camera, world.world_from_ego(0.4) @ camera.ego_from_cam))
    assert found.colour.shape == (33, 45, 3)
    assert np.isfinite(found.colour).all()
    assert ((found.depth == np.inf) == (found.hit == SKY_ID)).all()
    assert (found.depth > 0.5).all()
