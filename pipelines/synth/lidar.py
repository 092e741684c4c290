"""One turn of a spinning LiDAR through a world, returns from the own car included."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from pipelines.synth import textures as tex
from pipelines.synth.ground import GROUND_CLASS, KERB, PAVED_BLOCK, ROAD, SIDEWALK
from pipelines.synth.kernels import allocating_kernel, kernel
from pipelines.synth.raycast import GROUND_ID, SKY_ID, cast
from pipelines.synth.rig import Lidar
from pipelines.synth.shapes import BOX, CLASS, CX, CY, HX, HY, MISS, OBJECT, SHEAR, TEXTURE, Primitives, hit, primitive
from pipelines.synth.world import World

BINS = 180
OWN_CAR = -1
"""Object number of returns from the own car; the static world has 0, actors count from 1."""


@dataclass(frozen=True)
class Turn:
    """Returns of one turn: x y z (m, LiDAR frame) and intensity (0..255); beam, from the lowest; object number.

    semantic: the CLASS of what was hit (see shapes), GROUND_CLASS on the ground.
    """

    points: Float32[np.ndarray, "n 4"]
    ring: Int32[np.ndarray, " n"]
    object: Int32[np.ndarray, " n"]
    semantic: UInt8[np.ndarray, " n"]


def own_car() -> Primitives:
    """Body and cabin of the car that carries the sensors, in nuScenes' ego frame."""
    body = primitive(BOX, (1.2, 0, 0.55), (2.2, 0.86, 0.33), tex.PAINT, (1, 1, 1), 0)
    cabin = primitive(BOX, (0.85, 0, 1.16), (0.8, 0.62, 0.28), tex.GLASS, (1, 1, 1), 0)
    return np.stack([body, cabin])


def spin(world: World, lidar: Lidar, t: float, noise_m: float, dropout: float, seed: int) -> Turn:
    """All returns of a turn taken in an instant at time `t` (s), beam by beam.

    Args:
        noise_m: standard deviation of the range.
        dropout: share of returns lost at random.
        seed: of both.
    """
    primitives = world.primitives(t)
    world_from_lidar = world.world_from_ego(t) @ lidar.ego_from_lidar
    eye = np.ascontiguousarray(world_from_lidar[:3, 3])
    directions = lidar_directions(lidar)
    ways = directions @ world_from_lidar[:3, :3].T
    own_eye, own_ways = lidar.ego_from_lidar[:3, 3], directions @ lidar.ego_from_lidar[:3, :3].T
    starts, members, near = azimuth_bins(primitives, eye)
    ranges, texture, number, semantic = _spin(
        primitives, world.look.ground, starts, members, near, eye, ways, own_car(), own_eye, own_ways, lidar.max_range_m
    )
    rng = np.random.default_rng(seed)
    kept = (ranges < MISS) & (rng.random(len(ranges)) >= dropout)
    measured = ranges + noise_m * rng.standard_normal(len(ranges))
    intensity = 255 * tex.REFLECTIVITY[texture] * (0.85 + 0.3 * rng.random(len(ranges)))
    points = np.concatenate([measured[:, None] * directions, np.clip(intensity, 0, 255)[:, None]], axis=1)
    ring = np.repeat(np.arange(len(lidar.elevations)), lidar.azimuths)
    return Turn(
        points[kept].astype(np.float32), ring[kept].astype(np.int32), number[kept].astype(np.int32), semantic[kept]
    )


def lidar_directions(lidar: Lidar) -> np.ndarray:
    """Unit directions (beams * azimuths, 3) in the LiDAR frame, beam-major, azimuths clockwise from the back."""
    elevation, azimuth = np.meshgrid(
        lidar.elevations, np.pi - 2 * np.pi * (np.arange(lidar.azimuths) + 0.5) / lidar.azimuths, indexing="ij"
    )
    ways = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    return np.stack(ways, axis=-1).reshape(-1, 3)


@allocating_kernel
def azimuth_bins(prims, eye):
    """Candidates per azimuth bin of the world frame, nearest first: starts (BINS + 1,), members, least range."""
    n = prims.shape[0]
    first, last, near = np.zeros(n, np.int64), np.zeros(n, np.int64), np.empty(n)
    counts = np.zeros(BINS + 1, np.int64)
    step = 2 * np.pi / BINS
    for i in range(n):
        dx, dy = prims[i, CX] - eye[0], prims[i, CY] - eye[1]
        reach = np.sqrt((prims[i, HX] + abs(prims[i, SHEAR])) ** 2 + prims[i, HY] ** 2)
        distance = np.sqrt(dx * dx + dy * dy)
        near[i] = max(0.0, distance - reach)
        if distance <= reach * 1.001:
            first[i], last[i] = 0, BINS - 1
        else:
            middle, half = np.arctan2(dy, dx), np.arcsin(reach / distance)
            first[i] = int(np.floor((middle - half) / step))
            last[i] = int(np.floor((middle + half) / step))
        for b in range(first[i], last[i] + 1):
            counts[b % BINS + 1] += 1
    starts = np.cumsum(counts)
    members = np.empty(starts[-1], np.int64)
    fill = starts[:-1].copy()
    for i in np.argsort(near, kind="mergesort"):
        for b in range(first[i], last[i] + 1):
            members[fill[b % BINS]] = i
            fill[b % BINS] += 1
    return starts, members, near


@kernel
def _ground_texture(kind):
    if kind == ROAD:
        return tex.ASPHALT
    if kind in (SIDEWALK, KERB):
        return tex.PAVERS
    return tex.CONCRETE if kind == PAVED_BLOCK else tex.GRASS


@allocating_kernel
def _spin(prims, ground, starts, members, near, eye, ways, own, own_eye, own_ways, max_range):
    """Range (m, MISS = none), texture, object number and class of each ray."""
    n = ways.shape[0]
    ranges, texture, number = np.full(n, MISS), np.zeros(n, np.int64), np.zeros(n, np.int64)
    semantic = np.zeros(n, np.uint8)
    step = 2 * np.pi / BINS
    for i in range(n):
        dx, dy, dz = ways[i, 0], ways[i, 1], ways[i, 2]
        b = int(np.floor(np.arctan2(dy, dx) / step)) % BINS
        t, found, kind = cast(
            prims, ground, members, starts[b], starts[b + 1], near, eye[0], eye[1], eye[2], dx, dy, dz
        )
        if found == SKY_ID:
            t = MISS
        elif found == GROUND_ID:
            texture[i], semantic[i] = _ground_texture(kind), GROUND_CLASS[kind]
        else:
            semantic[i] = np.uint8(prims[found, CLASS])
            texture[i], number[i] = int(prims[found, TEXTURE]), int(prims[found, OBJECT])
        for k in range(own.shape[0]):
            s = hit(own[k], own_eye[0], own_eye[1], own_eye[2], own_ways[i, 0], own_ways[i, 1], own_ways[i, 2])
            if s < t:
                t, texture[i], number[i], semantic[i] = s, int(own[k, TEXTURE]), OWN_CAR, np.uint8(own[k, CLASS])
        if t <= max_range:
            ranges[i] = t
    return ranges, texture, number, semantic
