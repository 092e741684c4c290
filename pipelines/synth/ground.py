"""The ground of a grid city: which street, kerb, sidewalk or block a point belongs to, and where a ray meets it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from pipelines.synth.kernels import kernel
from pipelines.synth.shapes import MISS

ROAD, SIDEWALK, GRASS_BLOCK, PAVED_BLOCK, KERB = range(5)
GROUND_CLASS = np.array([10, 12, 13, 11, 12], dtype=np.uint8)
"""Occupancy class of each kind of ground: driveable_surface, sidewalk, terrain, other_flat; a kerb is sidewalk."""

LANE = 3.3
"""Width of a lane (m)."""
TWO_LANES_HALF = 7.0
"""Half width (m) from which a street has two lanes per direction: one lane and parking take 5.6 m, two 8.9 m."""
FAR = 600.0
"""Horizontal distance (m) at which the ground ends."""


class Ground(NamedTuple):
    """Streets along y at x = `across[:, 0]` and along x at y = `along[:, 0]`, with half widths in column 1 (m).

    Between them lie blocks with rounded corners, raised by a kerb: a sidewalk all around and inside it the block's own
    kind of ground, `cells[i, j]` between streets i, i+1 and j, j+1. `sizes` holds corner radius, sidewalk width and
    kerb height (m).
    """

    across: Float[np.ndarray, "n 2"]
    along: Float[np.ndarray, "m 2"]
    cells: UInt8[np.ndarray, "cells_x cells_y"]
    sizes: Float[np.ndarray, " 3"]


@kernel
def cell_of(streets, value):
    """Index of the gap between streets that `value` is in: streets i <= value < i+1, clamped."""
    last = streets.shape[0] - 2
    i = 0
    while i < last and streets[i + 1, 0] <= value:
        i += 1
    return i


@kernel
def block_distance(ground, x, y):
    """Signed distance (m) to the kerb line of the block nearest by, negative inside the block; and its cell."""
    across, along, _, sizes = ground
    i, j = cell_of(across, x), cell_of(along, y)
    lx, hx = across[i, 0] + across[i, 1], across[i + 1, 0] - across[i + 1, 1]
    ly, hy = along[j, 0] + along[j, 1], along[j + 1, 0] - along[j + 1, 1]
    r = sizes[0]
    qx = abs(x - 0.5 * (lx + hx)) - 0.5 * (hx - lx) + r
    qy = abs(y - 0.5 * (ly + hy)) - 0.5 * (hy - ly) + r
    outside = np.sqrt(max(qx, 0.0) ** 2 + max(qy, 0.0) ** 2)
    return outside + min(max(qx, qy), 0.0) - r, i, j


@kernel
def ground_kind(ground, x, y):
    """Kind of ground at a point of the plane (never KERB)."""
    distance, i, j = block_distance(ground, x, y)
    if distance >= 0.0:
        return ROAD
    if distance > -ground[3][1]:
        return SIDEWALK
    return ground[2][i, j]


@kernel
def ground_height(ground, x, y):
    """Height (m) of the ground: 0 on the road, the kerb's height on blocks."""
    return ground[3][2] if block_distance(ground, x, y)[0] < 0.0 else 0.0


@kernel
def hit_ground(ground, ox, oy, oz, dx, dy, dz):
    """Ray parameter where a falling ray from above meets the ground, and the kind of ground; MISS beyond FAR metres."""
    if dz >= 0.0:
        return MISS, 0
    top = (ground[3][2] - oz) / dz
    if top * np.sqrt(dx * dx + dy * dy) > FAR:
        return MISS, 0
    if block_distance(ground, ox + top * dx, oy + top * dy)[0] < 0.0:
        return top, ground_kind(ground, ox + top * dx, oy + top * dy)
    low = -oz / dz
    if block_distance(ground, ox + low * dx, oy + low * dy)[0] >= 0.0:
        return low, ROAD
    for _ in range(24):
        middle = 0.5 * (top + low)
        if block_distance(ground, ox + middle * dx, oy + middle * dy)[0] < 0.0:
            low = middle
        else:
            top = middle
    return low, KERB


@kernel
def _stripe(d, half, blur):
    """Share of a pixel `blur` wide at d that is covered by |x| < half: their overlap."""
    blur = max(blur, 1e-3)
    return max(0.0, min(d + 0.5 * blur, half) - max(d - 0.5 * blur, -half)) / blur


@kernel
def _painted(x, period, share):
    """Length painted between 0 and x where the first `share` of every period is."""
    whole = np.floor(x / period)
    return period * (whole * share + min(x / period - whole, share))


@kernel
def _dashes(d, half_width, x, period, share, blur_d, blur_x):
    blur_x = max(blur_x, 1e-3)
    dash = (_painted(x + 0.5 * blur_x, period, share) - _painted(x - 0.5 * blur_x, period, share)) / blur_x
    return _stripe(d, half_width, blur_d) * dash


@kernel
def _street_paint(d, half, s, crossing, towards, blur_d, blur_s):
    """White and yellow paint on one street: d across it (m), s along it, `crossing` m from the crossing's edge.

    towards: +1 if lanes of positive d lead to that crossing (they get the stop line), else -1.
    """
    if crossing < 1.0:
        return 0.0, 0.0
    if crossing < 4.0:
        zebra = _dashes(crossing - 2.5, 1.4, d, 1.0, 0.5, blur_s, blur_d) if abs(d) < half - 0.3 else 0.0
        return zebra, 0.0
    white = 0.0
    if 0.0 < d * towards < half - 0.5:
        white = _stripe(crossing - 5.2, 0.2, blur_s)
    if crossing < 5.5:
        return white, 0.0
    lanes = 1 if half < TWO_LANES_HALF else 2
    edge = _stripe(abs(d) - lanes * LANE, 0.06, blur_d)
    white = max(white, edge)
    if lanes == 2:
        white = max(white, _dashes(abs(d) - LANE, 0.07, s, 6.0, 0.5, blur_d, blur_s))
        return white, _stripe(abs(d) - 0.14, 0.06, blur_d)
    return white, _dashes(d, 0.07, s, 4.5, 0.55, blur_d, blur_s)


@kernel
def road_paint(ground, x, y, blur_x, blur_y):
    """White and yellow paint coverage (0..1) of the road at a point, filtered over blur_x by blur_y metres."""
    across, along = ground[0], ground[1]
    i, j = cell_of(across, x), cell_of(along, y)
    if abs(x - across[i + 1, 0]) < abs(x - across[i, 0]):
        i += 1
    if abs(y - along[j + 1, 0]) < abs(y - along[j, 0]):
        j += 1
    r = ground[3][0]
    dx, dy = x - across[i, 0], y - along[j, 0]
    beyond_x, beyond_y = abs(dx) - across[i, 1] - r, abs(dy) - along[j, 1] - r
    if abs(dy) < along[j, 1] and beyond_x > 0.0:
        # Right-hand traffic: lanes of negative y lead along +x, those of positive x along +y.
        towards = -1.0 if dx < 0.0 else 1.0
        return _street_paint(dy, along[j, 1], x, beyond_x, towards, blur_y, blur_x)
    if abs(dx) < across[i, 1] and beyond_y > 0.0:
        towards = 1.0 if dy < 0.0 else -1.0
        return _street_paint(dx, across[i, 1], y, beyond_y, towards, blur_x, blur_y)
    return 0.0, 0.0
