"""One camera image: colour, what each pixel's centre ray hits and how far, anti-aliased, with noise and exposure."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int32, UInt8

from pipelines.synth.kernels import kernel
from pipelines.synth.raycast import GROUND_ID, SKY_ID, TILE, build_tiles, cast
from pipelines.synth.rig import Camera
from pipelines.synth.shading import Look, shade
from pipelines.synth.shapes import Primitives


@dataclass(frozen=True)
class View:
    """A camera in the world at one instant: K and world_from_cam (x right, y down, z forward, metres)."""

    camera: Camera
    world_from_cam: Float[np.ndarray, "4 4"]

    @property
    def arguments(self) -> tuple[np.ndarray, np.ndarray, float, float, float, float]:
        """Eye (3,), rotation (3, 3) world_from_cam, fx, fy, cx, cy, as the kernels take them."""
        K = self.camera.K
        eye = np.ascontiguousarray(self.world_from_cam[:3, 3])
        rotation = np.ascontiguousarray(self.world_from_cam[:3, :3])
        return eye, rotation, float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])


@dataclass(frozen=True)
class Tiles:
    """Candidates of each image tile: see raycast.build_tiles."""

    starts: np.ndarray
    members: np.ndarray
    near: np.ndarray

    @classmethod
    def build(cls, primitives: Primitives, view: View) -> "Tiles":
        """Sort the primitives into the view's tiles."""
        return cls(*build_tiles(primitives, *view.arguments, view.camera.height, view.camera.width))


@dataclass(frozen=True)
class Rendering:
    """What a camera saw. depth is camera z (m, inf = sky) and hit the primitive index (GROUND_ID, SKY_ID), both of
    the pixels' centre rays; colour is display RGB, about 0..1, before exposure and noise."""

    colour: Float[np.ndarray, "height width 3"]
    depth: Float[np.ndarray, "height width"]
    hit: Int32[np.ndarray, "height width"]


@kernel
def _direction(rotation, fx, fy, cx, cy, u, v):
    x, y = (u - cx) / fx, (v - cy) / fy
    return (
        rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2],
        rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2],
        rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2],
    )


@kernel
def _sample(look, prims, tiles, camera, steps, u, v):
    """Depth, hit, ground kind and colour (three numbers) of the ray through pixel position (u, v)."""
    starts, members, near, columns = tiles
    eye, rotation, fx, fy, cx, cy = camera
    tile = (int(v) // TILE) * columns + int(u) // TILE
    begin, end = starts[tile], starts[tile + 1]
    ox, oy, oz = eye[0], eye[1], eye[2]
    dx, dy, dz = _direction(rotation, fx, fy, cx, cy, u, v)
    t, k, kind = cast(prims, look[1], members, begin, end, near, ox, oy, oz, dx, dy, dz)
    r, g, b = shade(look, prims, members, begin, end, k, kind, t, ox, oy, oz, dx, dy, dz, steps[0], steps[1])
    return t, k, kind, r, g, b


@kernel
def _render(look, prims, tiles, camera, steps, colour, depth, found, kinds):
    """One ray per pixel centre; then four more where a neighbour shows something else."""
    height, width = depth.shape
    for row in range(height):
        for column in range(width):
            t, k, kind, r, g, b = _sample(look, prims, tiles, camera, steps, column + 0.5, row + 0.5)
            depth[row, column] = t if k != SKY_ID else np.inf
            found[row, column], kinds[row, column] = k, kind
            colour[row, column, 0], colour[row, column, 1], colour[row, column, 2] = r, g, b
    for row in range(height):
        for column in range(width):
            if not _on_edge(found, kinds, row, column):
                continue
            red, green, blue = 0.0, 0.0, 0.0
            for s in range(4):
                # Rotated grid: four samples, no two in one row or column of eighths.
                u = column + (0.375, 0.875, 0.125, 0.625)[s]
                v = row + (0.125, 0.375, 0.625, 0.875)[s]
                _, _, _, r, g, b = _sample(look, prims, tiles, camera, steps, u, v)
                red, green, blue = red + r, green + g, blue + b
            colour[row, column, 0], colour[row, column, 1], colour[row, column, 2] = red / 4, green / 4, blue / 4


@kernel
def _on_edge(found, kinds, row, column):
    """Whether one of the four neighbours hits something else."""
    k, kind = found[row, column], kinds[row, column]
    for step in range(4):
        y, x = row + (0, 0, 1, -1)[step], column + (1, -1, 0, 0)[step]
        if 0 <= y < found.shape[0] and 0 <= x < found.shape[1]:
            other = found[y, x]
            if other != k or (k == GROUND_ID and kinds[y, x] != kind):
                return True
    return False


@kernel
def _mix(x):
    """64-bit finaliser: a hash of a counter, so that noise depends on the pixel and the seed alone."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@kernel
def _expose(colour, gain, noise, seed, out):
    flat, target = colour.reshape(-1), out.reshape(-1)
    for i in range(flat.size):
        value = max(flat[i] * gain, 0.0)
        if noise > 0.0:
            bits = _mix(np.uint64(seed) + np.uint64(i) * np.uint64(0x9E3779B97F4A7C15))
            # Four 16-bit uniforms: their sum is close to a normal of variance 4 / 12.
            total = 0.0
            for k in range(4):
                total += float((bits >> np.uint64(16 * k)) & np.uint64(0xFFFF)) / 65536.0
            value += noise * (total - 2.0) * 1.7320508 * np.sqrt(value + 0.05)
        target[i] = np.uint8(min(max(value * 255.0 + 0.5, 0.0), 255.0))


def render(look: Look, primitives: Primitives, view: View, tiles: Tiles) -> Rendering:
    """Cast and shade one image. Edges between surfaces get four more samples per pixel."""
    height, width = view.camera.height, view.camera.width
    colour = np.empty((height, width, 3), np.float32)
    depth = np.empty((height, width), np.float32)
    found = np.empty((height, width), np.int32)
    kinds = np.empty((height, width), np.uint8)
    eye, rotation, fx, fy, cx, cy = view.arguments
    steps = np.stack([rotation[:, 0] / fx, rotation[:, 1] / fy])
    columns = (width + TILE - 1) // TILE
    lists = (tiles.starts, tiles.members, tiles.near, columns)
    _render(look, primitives, lists, (eye, rotation, fx, fy, cx, cy), steps, colour, depth, found, kinds)
    return Rendering(colour, depth, found)


def expose(
    colour: Float[np.ndarray, "height width 3"], gain: float, noise: float, seed: int
) -> UInt8[np.ndarray, "height width 3"]:
    """RGB bytes: colour times `gain`, plus noise whose deviation at mid grey is about `noise`, a share of full scale.

    The noise is a function of `seed` and the pixel, nothing else.
    """
    out = np.empty(colour.shape, np.uint8)
    # shot noise grows as the root of the signal: 1.35 brings its deviation at a value of 0.5 to `noise`.
    _expose(colour, gain, noise * 1.35, np.uint64(seed & (2**63 - 1)), out)
    return out
