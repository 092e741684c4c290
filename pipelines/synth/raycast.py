"""Finding what a ray hits: primitives sorted into image tiles (or LiDAR azimuth bins), then a walk through one list."""

import numpy as np

from pipelines.synth.ground import hit_ground
from pipelines.synth.kernels import allocating_kernel, kernel
from pipelines.synth.shapes import COS, CX, CY, CZ, HX, HY, HZ, KIND, MISS, SHADOW, SHEAR, SIN, hit

TILE = 16
NEAR = 0.05
GROUND_ID = -1
SKY_ID = -2


@kernel
def corner(p, k):
    """World position of corner k (0..7) of a primitive's bounding box; k's bits choose the side on x, y, z."""
    x = p[HX] + abs(p[SHEAR])
    x = x if k & 1 else -x
    y = p[HY] if k & 2 else -p[HY]
    z = p[HZ] if k & 4 else -p[HZ]
    if int(p[KIND]) == SHADOW:
        z = 0.25 if k & 4 else -0.1
    return p[CX] + p[COS] * x - p[SIN] * y, p[CY] + p[SIN] * x + p[COS] * y, p[CZ] + z


@kernel
def _image_box(p, points, eye, world_from_cam, fx, fy, cx, cy):
    """Pixel box (u0, v0, u1, v1) and least depth of a primitive; an empty box (u1 < u0) if it is behind the camera.

    points (8, 3) is scratch space.
    """
    r = world_from_cam
    u0, v0, u1, v1, near = 1e9, 1e9, -1e9, -1e9, 1e9
    for k in range(8):
        wx, wy, wz = corner(p, k)
        wx, wy, wz = wx - eye[0], wy - eye[1], wz - eye[2]
        for axis in range(3):
            points[k, axis] = r[0, axis] * wx + r[1, axis] * wy + r[2, axis] * wz
        near = min(near, points[k, 2])
    for k in range(8):
        for bit in range(-1, 3):
            # bit -1: the corner itself; otherwise where the edge to the neighbour along that axis crosses z = NEAR.
            x, y, z = points[k, 0], points[k, 1], points[k, 2]
            if bit >= 0:
                m = k ^ (1 << bit)
                zm = points[m, 2]
                if not (z < NEAR < zm):
                    continue
                share = (NEAR - z) / (zm - z)
                x, y, z = x + share * (points[m, 0] - x), y + share * (points[m, 1] - y), NEAR
            if z < NEAR:
                continue
            u, v = fx * x / z + cx, fy * y / z + cy
            u0, u1, v0, v1 = min(u0, u), max(u1, u), min(v0, v), max(v1, v)
    return u0, v0, u1, v1, max(near, 0.0)


@allocating_kernel
def build_tiles(prims, eye, world_from_cam, fx, fy, cx, cy, height, width):
    """Candidates per TILE x TILE pixels, nearest first: (starts (tiles + 1,), members, near depth per primitive)."""
    n = prims.shape[0]
    columns, rows = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    boxes = np.empty((n, 4), np.int64)
    near = np.empty(n)
    points = np.empty((8, 3))
    counts = np.zeros(columns * rows + 1, np.int64)
    for i in range(n):
        u0, v0, u1, v1, near[i] = _image_box(prims[i], points, eye, world_from_cam, fx, fy, cx, cy)
        # One pixel of margin: rays of the supersampling leave the pixel centres.
        c0 = int(max(0.0, min(u0 - 1, width + 1.0)) // TILE)
        c1 = int(min(width - 1.0, max(u1 + 1, -1.0)) // TILE)
        r0 = int(max(0.0, min(v0 - 1, height + 1.0)) // TILE)
        r1 = int(min(height - 1.0, max(v1 + 1, -1.0)) // TILE)
        boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3] = c0, c1, r0, r1
        if u1 < u0 or near[i] > 400.0:
            boxes[i, 1] = -1
        for row in range(r0, r1 + 1):
            for column in range(c0, boxes[i, 1] + 1):
                counts[row * columns + column + 1] += 1
    starts = np.cumsum(counts)
    members = np.empty(starts[-1], np.int64)
    fill = starts[:-1].copy()
    for i in np.argsort(near, kind="mergesort"):
        for row in range(boxes[i, 2], boxes[i, 3] + 1):
            for column in range(boxes[i, 0], boxes[i, 1] + 1):
                members[fill[row * columns + column]] = i
                fill[row * columns + column] += 1
    return starts, members, near


@kernel
def cast(prims, ground, members, begin, end, near, ox, oy, oz, dx, dy, dz):
    """First hit along a ray among members[begin:end] and the ground.

    Returns (t, id, ground kind); id is the primitive's index, GROUND_ID or SKY_ID. `near` bounds t from below per
    primitive, and the members come in its order.
    """
    best, kind = hit_ground(ground, ox, oy, oz, dx, dy, dz)
    found = GROUND_ID if best < MISS else SKY_ID
    for k in range(begin, end):
        i = members[k]
        if near[i] > best:
            break
        t = hit(prims[i], ox, oy, oz, dx, dy, dz)
        if t < best:
            best, found = t, i
    return best, found, kind
