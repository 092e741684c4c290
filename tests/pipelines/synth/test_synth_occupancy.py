"""Voxel truth: single solids by hand, the ground, velocities, and agreement with what the LiDAR measures."""

from dataclasses import replace

import numpy as np
import pytest

from geometry.grid import NUSCENES_GRID, VoxelGrid
from geometry.transforms import yaw_transform
from pipelines.synth.config import SynthConfig
from pipelines.synth.lidar import OWN_CAR, spin
from pipelines.synth.models import Actor, Model
from pipelines.synth.occupancy import FREE, voxelise
from pipelines.synth.rig import nuscenes_lidar
from pipelines.synth.shapes import BOX, CYLINDER, ELLIPSOID, SHADOW, TAPERED_BOX, primitive
from pipelines.synth.trajectories import Path, Speed, Trajectory
from pipelines.synth.world import World, build_world

GRID = VoxelGrid((-8.0, -8.0, -1.0), (8.0, 8.0, 5.4), (40, 40, 16))


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(SynthConfig(keyframes=3), 0)


def alone(world: World, rows: list[np.ndarray], actors: list[Actor] | None = None) -> World:
    """The same ground with nothing on it but these."""
    return replace(world, city=replace(world.city, static=np.stack(rows)), actors=actors or [])


def far_from_everything(world: World) -> np.ndarray:
    """world_from_grid in the middle of a block, level with the world."""
    a, b = world.city.across[1:3], world.city.along[1:3]
    return yaw_transform(0.0, ((a[0].centre + a[1].centre) / 2, (b[0].centre + b[1].centre) / 2, 0.0))


def test_a_box_fills_the_voxels_it_reaches_into(world: World) -> None:
    pose = far_from_everything(world)
    x, y, _ = pose[:3, 3]
    # From 1.1 to 2.5 m along x (voxels 22..26), -0.7 to 0.1 m along y (18..20), 0.5 to 1.5 m along z (3..6).
    box = primitive(BOX, (x + 1.8, y - 0.3, 1.0), (0.7, 0.4, 0.5), 0, (1, 1, 1), 14)
    semantics, flow = voxelise(alone(world, [box]), 0.0, pose, GRID)
    expected = np.zeros(GRID.shape, bool)
    expected[22:27, 18:21, 3:7] = True
    np.testing.assert_array_equal(semantics == 14, expected)
    assert not flow.any()


@pytest.mark.parametrize(
    ("kind", "volume"), [(BOX, 8.0), (CYLINDER, 2 * np.pi), (ELLIPSOID, 4 / 3 * np.pi)], ids=["box", "pole", "ball"]
)
def test_solids_fill_their_own_volume(world: World, kind: int, volume: float) -> None:
    """On a fine grid the filled volume is the solid's, with half a voxel more all around for voxels it only touches."""
    pose = far_from_everything(world)
    fine = VoxelGrid((-2.0, -2.0, 0.0), (2.0, 2.0, 6.0), (80, 80, 120))
    solid = primitive(kind, (pose[0, 3], pose[1, 3], 3.0), (1.0, 1.0, 1.0), 0, (1, 1, 1), 14, yaw=0.4)
    semantics, _ = voxelise(alone(world, [solid]), 0.0, pose, fine)
    filled = (semantics == 14).sum() * 0.05**3
    assert volume < filled < volume * 1.12**3 / 1.0


LEANING = {
    "tapered": ((2.0, 0.8, 1.0), (0.9, 0.8), 0.0),
    "sheared": ((0.4, 0.8, 1.4), (0.0, 0.0), 1.2),
    "both": ((1.2, 0.6, 0.5), (0.6, 0.3), -0.7),
}


@pytest.mark.parametrize(("half", "taper", "shear"), LEANING.values(), ids=LEANING)
def test_slanted_surfaces_fill_every_voxel_with_a_sample_point_inside(
    world: World, half: tuple[float, float, float], taper: tuple[float, float], shear: float
) -> None:
    """All 5^3 points of every voxel, against the solid as the rays' planes have it."""
    pose = far_from_everything(world)
    x, y, _ = pose[:3, 3]
    lean = primitive(TAPERED_BOX, (x + 0.13, y - 0.21, 2.13), half, 0, (1, 1, 1), 14, yaw=0.5, taper=taper, shear=shear)
    semantics, _ = voxelise(alone(world, [lean]), 0.0, pose, GRID)
    steps = np.stack(np.meshgrid(*[np.linspace(0, 1, 5)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    expected = np.zeros(GRID.shape, bool)
    c, s = np.cos(0.5), np.sin(0.5)
    for i, j, k in np.argwhere(np.ones(GRID.shape)):
        points = np.array(GRID.lower) + (np.array([i, j, k]) + steps) * GRID.voxel_size - (0.13, -0.21, 2.13)
        along, across, z = c * points[:, 0] + s * points[:, 1], c * points[:, 1] - s * points[:, 0], points[:, 2]
        up = (z / half[2] + 1) / 2
        along = along - shear * up
        inside = (np.abs(z) <= half[2]) & (np.abs(across) <= half[1])
        inside &= (np.abs(along) <= half[0] * (1 - taper[0] * up)) & (np.abs(across) <= half[1] * (1 - taper[1] * up))
        expected[i, j, k] = inside.any()
    assert expected.sum() > 40
    np.testing.assert_array_equal(semantics == 14, expected)


def test_thin_things_are_not_lost_and_shadows_are_nothing(world: World) -> None:
    pose = far_from_everything(world)
    x, y, _ = pose[:3, 3]
    pole = primitive(CYLINDER, (x + 0.23, y + 0.17, 2.0), (0.03, 0.03, 1.8), 0, (1, 1, 1), 14)
    shadow = primitive(SHADOW, (x - 3, y, 0.0), (1.0, 1.0, 0.01), 0, (0, 0, 0), 0)
    semantics, _ = voxelise(alone(world, [pole, shadow]), 0.0, pose, GRID)
    assert (semantics[20, 20, 3:12] == 14).all()
    assert not (semantics == 0).any()


def test_the_ground_is_one_layer(world: World) -> None:
    far = primitive(BOX, (9e3, 9e3, 0.0), (1, 1, 1), 0, (1, 1, 1), 14)
    semantics, _ = voxelise(alone(world, [far]), 0.0, world.world_from_ego(0.0), GRID)
    assert (semantics[:, :, 2] != FREE).all(), "z = 0 and the kerb's 0.15 m lie in [-0.2, 0.2)"
    assert (np.delete(semantics, 2, axis=2) == FREE).all()
    assert semantics[20, 20, 2] == 10, "the car stands on the road"
    assert {10, 12} <= set(np.unique(semantics[:, :, 2]))


def test_velocity_is_the_actor_s_in_the_ego_frame(world: World) -> None:
    pose = far_from_everything(world)
    x, y, _ = pose[:3, 3]
    body = primitive(BOX, (0, 0, 1.0), (1.0, 0.6, 0.6), 0, (1, 1, 1), 0)
    model = Model(0, "vehicle.car", (2.0, 1.2, 1.6), body[None])
    still = primitive(BOX, (x - 4, y, 1.0), (0.5, 0.5, 0.5), 0, (1, 1, 1), 14)
    driving = Actor(1, model, Trajectory(Path((x, y, 0.0)), Speed(3.0)))
    turned = pose @ yaw_transform(np.pi / 2, (0.0, 0.0, 0.0))
    semantics, flow = voxelise(alone(world, [still], [driving]), 0.0, turned, GRID)
    assert (semantics == 0).sum() > 20
    # The grid's x axis points along the world's y: motion along the world's x is motion along the grid's -y.
    np.testing.assert_allclose(flow[semantics == 0], np.tile([0.0, -3.0], ((semantics == 0).sum(), 1)), atol=1e-5)
    assert not flow[semantics != 0].any()


def test_velocity_of_a_turning_actor_differs_from_voxel_to_voxel(world: World) -> None:
    pose = far_from_everything(world)
    x, y, _ = pose[:3, 3]
    body = primitive(BOX, (0, 0, 1.0), (2.0, 0.6, 0.6), 0, (1, 1, 1), 0)
    model = Model(0, "vehicle.car", (4.0, 1.2, 1.6), body[None])
    radius, speed = 8.0, 4.0
    far = primitive(BOX, (9e3, 0, 0), (1, 1, 1), 0, (1, 1, 1), 14)
    path = Path((x, y, 0.0), (100.0,), (1 / radius,))
    semantics, flow = voxelise(
        alone(world, [far], [Actor(1, model, Trajectory(path, Speed(speed)))]),
        0.0, pose, GRID,
    )  # fmt: skip
    index = np.argwhere(semantics == 0)
    centres = GRID.centres()[tuple(index.T)]
    angle = speed * 0.5 / radius
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # A rigid turn about the centre of the circle, (0, radius) in the grid's frame.
    pivot = np.array([0.0, radius])
    expected = ((centres[:, :2] - pivot) @ turn.T + pivot - centres[:, :2]) / 0.5
    np.testing.assert_allclose(flow[tuple(index.T)], expected, atol=1e-4)


@pytest.mark.parametrize("tilt", [0.0, 2.0])
def test_lidar_returns_fall_into_occupied_voxels(tilt: float) -> None:
    from pipelines.synth.config import Difficulty

    world = build_world(SynthConfig(keyframes=3, difficulty=Difficulty(tilt_deg=tilt)), 1)
    lidar = nuscenes_lidar(32, 360)
    semantics, _ = voxelise(world, 0.3, world.world_from_ego(0.3), NUSCENES_GRID)
    turn = spin(world, lidar, 0.3, 0.0, 0.0, 1)
    points = turn.points[:, :3] @ lidar.ego_from_lidar[:3, :3].T + lidar.ego_from_lidar[:3, 3]
    kept = NUSCENES_GRID.contains(points) & (turn.object != OWN_CAR)
    index = np.floor(NUSCENES_GRID.index_coordinates(points[kept])).astype(int)
    found = semantics[tuple(index.T)]
    assert (found != FREE).mean() > 0.99
    movable = turn.object[kept] > 0
    assert movable.sum() > 20
    assert (found[movable] < 8).mean() > 0.97
