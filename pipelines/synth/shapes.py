"""Primitive shapes: their record, builders for it, and their intersection with a ray."""

import numpy as np
from jaxtyping import Float

from pipelines.synth.kernels import kernel

BOX, TAPERED_BOX, CYLINDER, ELLIPSOID, WHEEL, SHADOW = range(6)
"""Kinds. CYLINDER stands upright and may taper; WHEEL lies along its local y; SHADOW only darkens the ground."""

# Columns of a primitive's record. Positions and half extents in metres; COS and SIN of its heading; TAPER_X and TAPER_Y
# are the shares by which the top is smaller than the bottom; SHEAR moves the top along x (m). UV_FIT stretches the
# texture over each face instead of laying it out in metres.
KIND, CX, CY, CZ, HX, HY, HZ, COS, SIN, TAPER_X, TAPER_Y, SHEAR = range(12)
TEXTURE, RED, GREEN, BLUE, U0, V0, OBJECT, CLASS, UV_FIT, EMIT = range(12, 22)
COLUMNS = 22

Primitives = Float[np.ndarray, "n 22"]

MISS = 1e30


def primitive(
    kind: int,
    centre: tuple[float, float, float],
    half: tuple[float, float, float],
    texture: int,
    rgb: tuple[float, float, float],
    semantic: int,
    yaw: float = 0.0,
    taper: tuple[float, float] = (0.0, 0.0),
    shear: float = 0.0,
    offset: tuple[float, float] = (0.0, 0.0),
    fit: bool = False,
    emit: float = 0.0,
) -> Float[np.ndarray, " 22"]:
    """One record. `half` are half extents (m); `rgb` tints the texture; `semantic` is the occupancy class index."""
    row = np.zeros(COLUMNS)
    row[[KIND, CX, CY, CZ, HX, HY, HZ]] = (kind, *centre, *half)
    row[[COS, SIN, TAPER_X, TAPER_Y, SHEAR]] = (np.cos(yaw), np.sin(yaw), *taper, shear)
    row[[TEXTURE, RED, GREEN, BLUE, U0, V0]] = (texture, *rgb, *offset)
    row[[CLASS, UV_FIT, EMIT]] = (semantic, float(fit), emit)
    return row


def place(local: Primitives, x: np.ndarray, y: np.ndarray, heading: np.ndarray) -> Primitives:
    """Primitives given in their objects' frames, moved to the objects' poses (one pose per primitive, m and rad)."""
    out = local.copy()
    c, s = np.cos(heading), np.sin(heading)
    out[:, CX] = x + c * local[:, CX] - s * local[:, CY]
    out[:, CY] = y + s * local[:, CX] + c * local[:, CY]
    out[:, COS] = c * local[:, COS] - s * local[:, SIN]
    out[:, SIN] = s * local[:, COS] + c * local[:, SIN]
    return out


@kernel
def clip_half_space(f0, fd, near, far):
    """Part of near..far where f0 + t fd <= 0."""
    if fd < 0.0:
        near = max(near, -f0 / fd)
    elif fd > 0.0:
        far = min(far, -f0 / fd)
    elif f0 > 0.0:
        far = -1.0
    return near, far


@kernel
def _hit_box(p, x, y, z, dx, dy, dz):
    hz = p[HZ]
    near, far = clip_half_space(z - hz, dz, 0.0, MISS)
    near, far = clip_half_space(-z - hz, -dz, near, far)
    if far <= near:
        return MISS
    ax, bx = p[HX] * (1 - 0.5 * p[TAPER_X]), 0.5 * p[HX] * p[TAPER_X] / hz
    ay, by = p[HY] * (1 - 0.5 * p[TAPER_Y]), 0.5 * p[HY] * p[TAPER_Y] / hz
    k = 0.5 * p[SHEAR] / hz
    near, far = clip_half_space(x + (bx - k) * z - k * hz - ax, dx + (bx - k) * dz, near, far)
    near, far = clip_half_space(-x + (bx + k) * z + k * hz - ax, -dx + (bx + k) * dz, near, far)
    if far <= near:
        return MISS
    near, far = clip_half_space(y + by * z - ay, dy + by * dz, near, far)
    near, far = clip_half_space(-y + by * z - ay, -dy + by * dz, near, far)
    return near if far > near and near > 0.0 else MISS


@kernel
def _hit_quadric(a, b, c, near, far):
    """First t in near..far at which a t^2 + 2 b t + c <= 0 begins, for a convex body (a >= 0 or degenerate)."""
    if abs(a) < 1e-14:
        return clip_half_space(c, 2 * b, near, far)
    disc = b * b - a * c
    if a < 0.0:
        # A cone seen nearly along its axis: the body is outside the roots; its cut with the slab decides.
        if disc > 0.0:
            root = np.sqrt(disc)
            low, high = (-b + root) / a, (-b - root) / a
            if near < high and near > low:
                near = high
        return near, far
    if disc <= 0.0:
        return near, -1.0
    root = np.sqrt(disc)
    return max(near, (-b - root) / a), min(far, (-b + root) / a)


@kernel
def _hit_cylinder(p, x, y, z, dx, dy, dz):
    hz = p[HZ]
    near, far = clip_half_space(z - hz, dz, 0.0, MISS)
    near, far = clip_half_space(-z - hz, -dz, near, far)
    if far <= near:
        return MISS
    slope = -0.5 * p[HX] * p[TAPER_X] / hz
    r0 = p[HX] * (1 - 0.5 * p[TAPER_X]) + slope * z
    dr = slope * dz
    near, far = _hit_quadric(dx * dx + dy * dy - dr * dr, x * dx + y * dy - r0 * dr, x * x + y * y - r0 * r0, near, far)
    return near if far > near and near > 0.0 else MISS


@kernel
def _hit_wheel(p, x, y, z, dx, dy, dz):
    near, far = clip_half_space(y - p[HY], dy, 0.0, MISS)
    near, far = clip_half_space(-y - p[HY], -dy, near, far)
    if far <= near:
        return MISS
    near, far = _hit_quadric(dx * dx + dz * dz, x * dx + z * dz, x * x + z * z - p[HX] * p[HX], near, far)
    return near if far > near and near > 0.0 else MISS


@kernel
def _hit_ellipsoid(p, x, y, z, dx, dy, dz):
    x, dx, y, dy, z, dz = x / p[HX], dx / p[HX], y / p[HY], dy / p[HY], z / p[HZ], dz / p[HZ]
    a = dx * dx + dy * dy + dz * dz
    b = x * dx + y * dy + z * dz
    disc = b * b - a * (x * x + y * y + z * z - 1.0)
    if disc <= 0.0:
        return MISS
    t = (-b - np.sqrt(disc)) / a
    return t if t > 0.0 else MISS


@kernel
def hit(p, ox, oy, oz, dx, dy, dz):
    """Ray parameter of the first hit of one primitive from outside it, MISS if none; world coordinates."""
    c, s = p[COS], p[SIN]
    wx, wy = ox - p[CX], oy - p[CY]
    x, y, z = c * wx + s * wy, c * wy - s * wx, oz - p[CZ]
    lx, ly = c * dx + s * dy, c * dy - s * dx
    kind = int(p[KIND])
    if kind <= TAPERED_BOX:
        return _hit_box(p, x, y, z, lx, ly, dz)
    if kind == CYLINDER:
        return _hit_cylinder(p, x, y, z, lx, ly, dz)
    if kind == ELLIPSOID:
        return _hit_ellipsoid(p, x, y, z, lx, ly, dz)
    if kind == WHEEL:
        return _hit_wheel(p, x, y, z, lx, ly, dz)
    return MISS


@kernel
def _box_face(p, x, y, z):
    """Face 0..5 (+x -x +y -y +z -z) that a surface point lies on, and the face's outward normal, local frame."""
    hz = p[HZ]
    k = 0.5 * p[SHEAR] / hz
    bx, by = 0.5 * p[HX] * p[TAPER_X] / hz, 0.5 * p[HY] * p[TAPER_Y] / hz
    ax, ay = p[HX] * (1 - 0.5 * p[TAPER_X]), p[HY] * (1 - 0.5 * p[TAPER_Y])
    best, face = z - hz, 4
    nx, ny, nz = 0.0, 0.0, 1.0
    if -z - hz > best:
        best, face, nz = -z - hz, 5, -1.0
    value = x + (bx - k) * z - k * hz - ax
    if value > best:
        best, face, nx, nz = value, 0, 1.0, bx - k
    value = -x + (bx + k) * z + k * hz - ax
    if value > best:
        best, face, nx, nz = value, 1, -1.0, bx + k
    value = y + by * z - ay
    if value > best:
        best, face, nx, ny, nz = value, 2, 0.0, 1.0, by
    value = -y + by * z - ay
    if value > best:
        best, face, nx, ny, nz = value, 3, 0.0, -1.0, by
    return face, nx, ny, nz


@kernel
def surface(p, x, y, z):
    """Local geometry at a surface point (local frame): face, unit normal, texture position (m), its two axes.

    Returns (face, nx, ny, nz, u, v, ux, uy, uz, vx, vy, vz); the axes are the local-frame directions in which u and v
    grow by one metre per metre.
    """
    kind = int(p[KIND])
    if kind <= TAPERED_BOX:
        face, nx, ny, nz = _box_face(p, x, y, z)
        norm = 1.0 / np.sqrt(nx * nx + ny * ny + nz * nz)
        nx, ny, nz = nx * norm, ny * norm, nz * norm
        if face < 2:
            return face, nx, ny, nz, y, z, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0
        if face < 4:
            return face, nx, ny, nz, x, z, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0
        return face, nx, ny, nz, x, y, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    if kind == CYLINDER:
        if abs(z) >= p[HZ] * 0.9999:
            return 1, 0.0, 0.0, np.sign(z), x, y, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
        r = max(np.sqrt(x * x + y * y), 1e-9)
        lean = 0.5 * p[HX] * p[TAPER_X] / p[HZ]
        norm = 1.0 / np.sqrt(1.0 + lean * lean)
        nx, ny, nz = x / r * norm, y / r * norm, lean * norm
        return 0, nx, ny, nz, np.arctan2(y, x) * p[HX], z, -y / r, x / r, 0.0, 0.0, 0.0, 1.0
    if kind == WHEEL:
        if abs(y) >= p[HY] * 0.9999:
            return 1, 0.0, np.sign(y), 0.0, x, z, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0
        r = max(np.sqrt(x * x + z * z), 1e-9)
        return 0, x / r, 0.0, z / r, np.arctan2(z, x) * p[HX], y, -z / r, 0.0, x / r, 0.0, 1.0, 0.0
    nx, ny, nz = x / (p[HX] * p[HX]), y / (p[HY] * p[HY]), z / (p[HZ] * p[HZ])
    norm = 1.0 / np.sqrt(nx * nx + ny * ny + nz * nz)
    nx, ny, nz = nx * norm, ny * norm, nz * norm
    # An oblique projection is smooth everywhere, where longitude and latitude would pinch the texture at the poles.
    return 0, nx, ny, nz, x + 0.6 * y, z + 0.5 * y, 0.8, 0.6, 0.0, 0.0, 0.5, 0.9
