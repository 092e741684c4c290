"""The colour of what a ray hits: filtered textures, road paint, sun and sky light, contact shadows, haze."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from pipelines.synth import textures
from pipelines.synth.ground import KERB, PAVED_BLOCK, ROAD, SIDEWALK, Ground, road_paint
from pipelines.synth.kernels import kernel
from pipelines.synth.raycast import GROUND_ID, SKY_ID
from pipelines.synth.shapes import (
    BLUE,
    COS,
    CX,
    CY,
    CZ,
    EMIT,
    GREEN,
    HX,
    HY,
    HZ,
    KIND,
    RED,
    SHADOW,
    SIN,
    TAPERED_BOX,
    TEXTURE,
    U0,
    UV_FIT,
    V0,
    surface,
)

SIZE = textures.SIZE
LAST_LEVEL = textures.LEVELS - 1
LEVEL_OFFSETS = tuple(int(v) for v in textures.LEVEL_OFFSETS)
_OFFSETS = textures.LEVEL_OFFSETS.astype(np.int64)
_SCALE = 1.0 / textures.METRES_PER_TEXEL
ASPHALT, PAVERS, GRASS, CONCRETE, ROOF = (
    textures.ASPHALT, textures.PAVERS, textures.GRASS, textures.CONCRETE, textures.ROOF
)  # fmt: skip
BRICK, PLASTER = textures.BRICK, textures.PLASTER
_MEAN_CONCRETE = 0.6 * 255


class Light(NamedTuple):
    """Light of a scene: unit vector to the sun, its strength and the sky's, colours of sky, haze distance (m)."""

    sun: Float[np.ndarray, " 3"]
    strength: float
    ambient: float
    horizon: Float[np.ndarray, " 3"]
    zenith: Float[np.ndarray, " 3"]
    haze_m: float
    contrast: float


class Look(NamedTuple):
    """All that shading needs besides geometry."""

    bank: UInt8[np.ndarray, "textures texels 3"]
    ground: Ground
    light: Light


@kernel
def _bilinear(bank, texture, level, u, v):
    """RGB (0..255) of one mip level at level-0 texel position (u, v), wrapping around."""
    size = SIZE >> level
    scale = 1.0 / (1 << level)
    x, y = u * scale - 0.5, v * scale - 0.5
    fx0, fy0 = np.floor(x), np.floor(y)
    ax, ay = x - fx0, y - fy0
    mask = size - 1
    x0, y0 = int(fx0) & mask, int(fy0) & mask
    x1, y1 = (x0 + 1) & mask, (y0 + 1) & mask
    base = _OFFSETS[level]
    row0, row1 = base + y0 * size, base + y1 * size
    w00, w01, w10, w11 = (1 - ax) * (1 - ay), ax * (1 - ay), (1 - ax) * ay, ax * ay
    # Scalar indices: a row view would count references, and threads would queue for the counter.
    a, b, c, d = row0 + x0, row0 + x1, row1 + x0, row1 + x1
    return (
        w00 * bank[texture, a, 0] + w01 * bank[texture, b, 0] + w10 * bank[texture, c, 0] + w11 * bank[texture, d, 0],
        w00 * bank[texture, a, 1] + w01 * bank[texture, b, 1] + w10 * bank[texture, c, 1] + w11 * bank[texture, d, 1],
        w00 * bank[texture, a, 2] + w01 * bank[texture, b, 2] + w10 * bank[texture, c, 2] + w11 * bank[texture, d, 2],
    )


@kernel
def _trilinear(bank, texture, lod, u, v):
    lod = min(max(lod, 0.0), float(LAST_LEVEL))
    level = int(lod)
    share = lod - level
    r, g, b = _bilinear(bank, texture, level, u, v)
    if share > 0.02 and level < LAST_LEVEL:
        r1, g1, b1 = _bilinear(bank, texture, level + 1, u, v)
        r, g, b = r + share * (r1 - r), g + share * (g1 - g), b + share * (b1 - b)
    return r, g, b


@kernel
def sample_texture(bank, texture, u, v, ju, jv, ku, kv, detailed):
    """Texture filtered over a pixel's footprint, with a coarser and a finer octave of itself as modulation.

    (u, v) and the footprint's two sides (ju, jv), (ku, kv) are in level-0 texels. Along the longer side up to four
    samples are averaged (anisotropic filtering), so that the road does not blur into grey at grazing angles.
    """
    a, b = np.sqrt(ju * ju + jv * jv), np.sqrt(ku * ku + kv * kv)
    if b > a:
        a, b, ju, jv = b, a, ku, kv
    b = max(b, 1e-4)
    taps = int(min(4.0, np.ceil(a / b - 0.25)))
    taps = max(taps, 1)
    lod = np.log2(max(b, a / taps))
    red, green, blue = 0.0, 0.0, 0.0
    for k in range(taps):
        step = (k + 0.5) / taps - 0.5
        r, g, bl = _trilinear(bank, texture, lod, u + step * ju, v + step * jv)
        red, green, blue = red + r, green + g, blue + bl
    gain = 1.0 / (255.0 * taps)
    if detailed:
        value, _, _ = _bilinear(bank, CONCRETE, int(max(0.0, min(lod - 3.0, 9.0))), u * 0.07 + 91.0, v * 0.07 + 17.0)
        gain *= 1.0 + 1.0 * (value / _MEAN_CONCRETE - 1.0)
        if lod < 2.0:
            value, _, _ = _trilinear(bank, CONCRETE, lod + 3.0, u * 8.0, v * 8.0)
            gain *= 1.0 + 0.8 * (value / _MEAN_CONCRETE - 1.0)
    return red * gain, green * gain, blue * gain


@kernel
def _shade_sky(look, dx, dy, dz):
    light = look[2]
    norm = 1.0 / np.sqrt(dx * dx + dy * dy + dz * dz)
    up = max(dz * norm, 0.0)
    blend = min(1.0, 1.6 * up)
    scale = 260.0 / (up + 0.12)
    cloud, _, _ = _bilinear(look[0], CONCRETE, 2, dx * norm * scale, dy * norm * scale)
    cloud = 1.0 + 0.6 * (cloud / _MEAN_CONCRETE - 1.0) * min(1.0, 8 * up)
    h, z = light[3], light[4]
    return (
        (h[0] + blend * (z[0] - h[0])) * cloud,
        (h[1] + blend * (z[1] - h[1])) * cloud,
        (h[2] + blend * (z[2] - h[2])) * (0.6 * cloud + 0.4),
    )


@kernel
def _contact_shadow(prims, members, begin, end, x, y):
    """Share of light (0..1) that reaches a ground point beside and under the objects standing there."""
    lit = 1.0
    for k in range(begin, end):
        p = prims[members[k]]
        if int(p[KIND]) != SHADOW:
            continue
        wx, wy = x - p[CX], y - p[CY]
        qx = abs(p[COS] * wx + p[SIN] * wy) - p[HX] + 0.5
        qy = abs(p[COS] * wy - p[SIN] * wx) - p[HY] + 0.5
        d = np.sqrt(max(qx, 0.0) ** 2 + max(qy, 0.0) ** 2) + min(max(qx, qy), 0.0)
        if d < 0.5:
            lit *= 1.0 - p[EMIT] * min(1.0, (0.5 - d) / 0.8)
    return lit


@kernel
def _shade_ground(look, prims, members, begin, end, kind, x, y, ju, jv, ku, kv):
    """Unhazed colour of a ground point; (ju, jv), (ku, kv) are the pixel footprint's sides in metres."""
    texture = ASPHALT
    if kind in (SIDEWALK, KERB):
        texture = PAVERS
    elif kind == PAVED_BLOCK:
        texture = CONCRETE
    elif kind != ROAD:
        texture = GRASS
    s = _SCALE[texture]
    r, g, b = sample_texture(look[0], texture, x * s, y * s, ju * s, jv * s, ku * s, kv * s, True)
    if kind == ROAD:
        white, yellow = road_paint(look[1], x, y, abs(ju) + abs(ku), abs(jv) + abs(kv))
        if white > 0.0 or yellow > 0.0:
            wear = min(1.0, 0.55 + g)
            white, yellow = white * wear, yellow * wear
            r += white * (0.86 - r) + yellow * (0.80 - r)
            g += white * (0.86 - g) + yellow * (0.62 - g)
            b += white * (0.84 - b) + yellow * (0.18 - b)
    light = look[2]
    lit = light[2] + light[1] * light[0][2]
    if kind == KERB:
        lit *= 0.75
    lit *= _contact_shadow(prims, members, begin, end, x, y)
    return r * lit, g * lit, b * lit


@kernel
def _shade_primitive(look, p, x, y, z, dx, dy, dz, ax, ay, az, bx, by, bz):
    """Unhazed colour of a primitive; point, ray and the pixel's two sides (metres at the hit's depth) in its frame."""
    face, nx, ny, nz, u, v, ux, uy, uz, vx, vy, vz = surface(p, x, y, z)
    facing = nx * dx + ny * dy + nz * dz
    if facing > -0.05:
        facing = -0.05
    ka, kb = (nx * ax + ny * ay + nz * az) / facing, (nx * bx + ny * by + nz * bz) / facing
    ax, ay, az = ax - ka * dx, ay - ka * dy, az - ka * dz
    bx, by, bz = bx - kb * dx, by - kb * dy, bz - kb * dz
    texture = int(p[TEXTURE])
    if BRICK <= texture <= PLASTER and face == 4:
        texture = ROOF
    su = sv = _SCALE[texture]
    if p[UV_FIT] > 0.0 and p[KIND] <= TAPERED_BOX:
        su = 0.5 * SIZE / (p[HY] if face < 2 else p[HX])
        sv = 0.5 * SIZE / (p[HZ] if face < 4 else p[HY])
        tu, tv = u * su + 0.5 * SIZE, v * sv + 0.5 * SIZE
    else:
        tu, tv = (u + p[U0]) * su, (v + p[V0]) * sv
    r, g, b = sample_texture(
        look[0], texture, tu, tv,
        (ux * ax + uy * ay + uz * az) * su, (vx * ax + vy * ay + vz * az) * sv,
        (ux * bx + uy * by + uz * bz) * su, (vx * bx + vy * by + vz * bz) * sv, p[UV_FIT] == 0.0,
    )  # fmt: skip
    light = look[2]
    sun = light[0]
    # The sun in the primitive's frame.
    sx, sy = p[COS] * sun[0] + p[SIN] * sun[1], p[COS] * sun[1] - p[SIN] * sun[0]
    lit = light[2] * (0.75 + 0.25 * nz) + light[1] * max(0.0, nx * sx + ny * sy + nz * sun[2]) + p[EMIT]
    return r * p[RED] * lit, g * p[GREEN] * lit, b * p[BLUE] * lit


@kernel
def shade(look, prims, members, begin, end, found, kind, t, ox, oy, oz, dx, dy, dz, pu, pv):
    """Linear RGB (about 0..1) of a hit. pu, pv (3,): how the ray's direction changes per pixel right, downwards."""
    if found == SKY_ID:
        return _shade_sky(look, dx, dy, dz)
    if found == GROUND_ID:
        ka, kb = pu[2] / min(dz, -0.002), pv[2] / min(dz, -0.002)
        r, g, b = _shade_ground(
            look, prims, members, begin, end, kind, ox + t * dx, oy + t * dy,
            t * (pu[0] - ka * dx), t * (pu[1] - ka * dy), t * (pv[0] - kb * dx), t * (pv[1] - kb * dy),
        )  # fmt: skip
    else:
        p = prims[found]
        c, s = p[COS], p[SIN]
        wx, wy = ox + t * dx - p[CX], oy + t * dy - p[CY]
        r, g, b = _shade_primitive(
            look, p, c * wx + s * wy, c * wy - s * wx, oz + t * dz - p[CZ], c * dx + s * dy, c * dy - s * dx, dz,
            t * (c * pu[0] + s * pu[1]), t * (c * pu[1] - s * pu[0]), t * pu[2],
            t * (c * pv[0] + s * pv[1]), t * (c * pv[1] - s * pv[0]), t * pv[2],
        )  # fmt: skip
    light = look[2]
    mean = 0.42 * (light[2] + 0.5 * light[1])
    keep = light[6] * np.exp(-t / light[5])
    h = light[3]
    haze = 1.0 - keep / light[6]
    r, g, b = mean + light[6] * (r - mean), mean + light[6] * (g - mean), mean + light[6] * (b - mean)
    return r + haze * (h[0] - r), g + haze * (h[1] - g), b + haze * (h[2] - b)
