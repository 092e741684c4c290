"""What a world's cameras measure at an instant, with the exact truth behind every pixel."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, UInt8, UInt16

from geometry.cameras import camera_directions, in_image, pixel_centres, project
from pipelines.synth.kernels import allocating_kernel
from pipelines.synth.raycast import SKY_ID, TILE, cast
from pipelines.synth.render import Tiles, View, expose, render
from pipelines.synth.rig import KEYFRAME_INTERVAL_S, Camera
from pipelines.synth.shapes import OBJECT, Primitives
from pipelines.synth.world import World

MOVING_SPEED = 0.5
"""m/s over the next keyframe interval from which an actor's pixels count as moving."""


@dataclass(frozen=True)
class Stand:
    """A camera in a world at time `t` (s): its view, the primitives then, and those that each image tile may show."""

    t: float
    view: View
    primitives: Primitives
    tiles: Tiles

    @classmethod
    def at(cls, world: World, camera: Camera, t: float) -> "Stand":
        """The camera where the ego car is at time `t`."""
        primitives = world.primitives(t)
        view = View(camera, world.world_from_ego(t) @ camera.ego_from_cam)
        return cls(t, view, primitives, Tiles.build(primitives, view))


@dataclass(frozen=True)
class Shot:
    """One image, and what its pixels' centre rays met.

    rgb: exposed bytes. depth: camera z in metres, inf = sky. hit: index into the primitives, or GROUND_ID, SKY_ID.
    """

    stand: Stand
    rgb: UInt8[np.ndarray, "height width 3"]
    depth: Float[np.ndarray, "height width"]
    hit: Int32[np.ndarray, "height width"]

    @property
    def instance(self) -> UInt16[np.ndarray, "height width"]:
        """The number of the actor that each pixel shows, 0 = none."""
        numbers = self.stand.primitives[:, OBJECT].astype(np.uint16)
        return np.where(self.hit >= 0, numbers[np.maximum(self.hit, 0)], 0).astype(np.uint16)


def take_shot(world: World, camera: Camera, number: int, t: float, noise: float, seed: int) -> Shot:
    """Camera `number` of the rig fires at time `t`; `seed` decides the noise of this one image."""
    stand = Stand.at(world, camera, t)
    rendering = render(world.look, stand.primitives, stand.view, stand.tiles)
    rgb = expose(rendering.colour, world.gain(number, t), noise, seed)
    return Shot(stand, rgb, rendering.depth, rendering.hit)


def moving_actors(world: World, t: float) -> Bool[np.ndarray, " actors"]:
    """Which actors move, by their way over the keyframe interval after `t`."""
    way = world.actor_poses(t + KEYFRAME_INTERVAL_S)[:, :2] - world.actor_poses(t)[:, :2]
    return np.linalg.norm(way, axis=1) >= MOVING_SPEED * KEYFRAME_INTERVAL_S


def moving_pixels(world: World, shot: Shot) -> UInt8[np.ndarray, "height width"]:
    """1 where a pixel shows an actor that moves."""
    table = np.concatenate([[False], moving_actors(world, shot.stand.t)])
    return table[shot.instance].astype(np.uint8)


def carry(
    points: Float[np.ndarray, "n 3"],
    owners: Int[np.ndarray, " n"],
    poses: Float[np.ndarray, "actors 3"],
    later: Float[np.ndarray, "actors 3"],
) -> Float[np.ndarray, "n 3"]:
    """World points moved rigidly with the actors that own them (number - 1; negative: nobody, stays)."""
    out = points.copy()
    owned = owners >= 0
    x, y, heading = poses[owners[owned]].T
    x2, y2, heading2 = later[owners[owned]].T
    dx, dy, turn = points[owned, 0] - x, points[owned, 1] - y, heading2 - heading
    out[owned, 0] = x2 + np.cos(turn) * dx - np.sin(turn) * dy
    out[owned, 1] = y2 + np.sin(turn) * dx + np.cos(turn) * dy
    return out


def exact_flow(world: World, shot: Shot, then: Stand) -> Float[np.ndarray, "2 height width"]:
    """Where every pixel's surface point is in a later image of the camera: (u right, v down), raw pixels, float32.

    NaN where the point leaves the image, falls behind the camera, or is hidden in the later image (its own ray is
    cast there and meets something nearer). The sky is infinitely far away and moves with the camera's rotation.
    """
    height, width = shot.depth.shape
    now = shot.stand
    uv = pixel_centres(height, width).reshape(-1, 2)
    rays = camera_directions(now.view.camera.K, uv) @ now.view.world_from_cam[:3, :3].T
    depth = shot.depth.reshape(-1).astype(np.float64)
    sky = ~np.isfinite(depth)
    points = now.view.world_from_cam[:3, 3] + np.where(sky, 0.0, depth)[:, None] * rays
    owners = shot.instance.reshape(-1).astype(np.int64) - 1
    points = carry(points, owners, world.actor_poses(now.t), world.actor_poses(then.t))
    eye, rotation = then.view.world_from_cam[:3, 3], then.view.world_from_cam[:3, :3]
    there = np.where(sky[:, None], rays, points - eye) @ rotation
    landed, z, in_front = project(then.view.camera.K, there)
    ok = in_front & in_image(landed, height, width)
    z = np.where(sky, np.inf, z)
    tiles = then.tiles
    seen = _visible(
        then.primitives, world.look.ground, tiles.starts, tiles.members, tiles.near, *then.view.arguments,
        width, landed, z, ok,
    )  # fmt: skip
    flow = np.where(seen[:, None], landed - uv, np.nan)
    return np.ascontiguousarray(flow.T.reshape(2, height, width)).astype(np.float32)


@allocating_kernel
def _visible(prims, ground, starts, members, near, eye, rotation, fx, fy, cx, cy, width, uv, z, wanted):
    """Whether the first thing on each ray through uv lies at camera z (inf: is the sky)."""
    columns = (width + TILE - 1) // TILE
    out = np.zeros(len(z), np.bool_)
    for i in range(len(z)):
        if not wanted[i]:
            continue
        u, v = uv[i, 0], uv[i, 1]
        tile = int(v) // TILE * columns + int(u) // TILE
        x, y = (u - cx) / fx, (v - cy) / fy
        dx = rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2]
        dy = rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2]
        dz = rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2]
        t, found, _ = cast(
            prims, ground, members, starts[tile], starts[tile + 1], near, eye[0], eye[1], eye[2], dx, dy, dz
        )
        if found == SKY_ID or z[i] == np.inf:
            out[i] = found == SKY_ID and z[i] == np.inf
        else:
            # Points come from float32 depths; on a grazing surface their error grows along the ray.
            out[i] = t > z[i] - 0.02 - 0.002 * z[i]
    return out
