"""What stands still: the street grid, and the buildings, trees, poles and street furniture along it."""

from dataclasses import dataclass

import numpy as np

from pipelines.synth import textures as tex
from pipelines.synth.ground import GRASS_BLOCK, LANE, PAVED_BLOCK, Ground
from pipelines.synth.shapes import BOX, CYLINDER, ELLIPSOID, TAPERED_BOX, Primitives, primitive

MANMADE, VEGETATION = 14, 15
PARKING = 2.3
KERB_HEIGHT = 0.15
SIDEWALK_WIDTH = 3.2
CORNER_RADIUS = 5.0


@dataclass(frozen=True)
class Street:
    """One street: its centre line's coordinate, half width (m) and lanes per direction."""

    centre: float
    half: float
    lanes: int


@dataclass(frozen=True)
class City:
    """Streets along y (`across`, at x = centre) and along x (`along`, at y = centre), and everything beside them."""

    across: tuple[Street, ...]
    along: tuple[Street, ...]
    ground: Ground
    static: Primitives


def _streets(rng: np.random.Generator, reach: tuple[float, float]) -> tuple[Street, ...]:
    """Streets from `reach[0]` to `reach[1]`, one of them at 0, and one far beyond either end to close the grid."""
    centres = [0.0]
    while centres[-1] < reach[1]:
        centres.append(centres[-1] + rng.uniform(58, 92))
    while centres[0] > reach[0]:
        centres.insert(0, centres[0] - rng.uniform(58, 92))
    lanes = [2 if rng.random() < 0.3 else 1 for _ in centres]
    inner = [Street(c, n * LANE + PARKING, n) for c, n in zip(centres, lanes, strict=True)]
    edge = LANE + PARKING
    return (Street(centres[0] - 700.0, edge, 1), *inner, Street(centres[-1] + 700.0, edge, 1))


def _colour(rng: np.random.Generator, low: float, high: float, spread: float) -> tuple[float, float, float]:
    base = rng.uniform(low, high)
    r, g, b = np.clip(base + rng.uniform(-spread, spread, 3), 0.1, 1.2)
    return float(r), float(g), float(b)


def _building(rng: np.random.Generator, x: float, y: float, hx: float, hy: float, grass: bool) -> list[np.ndarray]:
    house = grass and max(hx, hy) < 9
    storeys = int(rng.integers(1, 3)) if house else int(rng.integers(3, 9))
    half = 1.6 * storeys
    facade = (tex.BRICK, tex.OFFICE, tex.PLASTER)[int(rng.choice(3, p=(0.35, 0.25, 0.4)))]
    colour = _colour(rng, 0.6, 1.0, 0.12)
    if facade == tex.BRICK:
        colour = (colour[0] * 1.05, colour[1] * 0.72, colour[2] * 0.6)
    rows = [
        primitive(BOX, (x, y, KERB_HEIGHT + half), (hx, hy, half), facade, colour, MANMADE,
                  offset=(hx + 3.2 * rng.integers(0, 8), half))
    ]  # fmt: skip
    top = KERB_HEIGHT + 2 * half
    if house:
        taper = (0.0, 0.98) if hx > hy else (0.98, 0.0)
        rows.append(primitive(TAPERED_BOX, (x, y, top + 1.4), (hx + 0.3, hy + 0.3, 1.4), tex.ROOF,
                              _colour(rng, 0.6, 1.0, 0.12), MANMADE, taper=taper))  # fmt: skip
    else:
        rows.append(primitive(BOX, (x, y, top + 0.2), (hx + 0.15, hy + 0.15, 0.25), tex.CONCRETE, (1, 1, 1), MANMADE))
    return rows


def _tree(rng: np.random.Generator, x: float, y: float) -> list[np.ndarray]:
    trunk = rng.uniform(1.1, 1.6)
    radius = rng.uniform(0.12, 0.22)
    tint = rng.uniform(0.75, 1.15)
    green = (tint * rng.uniform(0.75, 1.25), tint, tint * rng.uniform(0.6, 1.0))
    bark = primitive(CYLINDER, (x, y, KERB_HEIGHT + trunk), (radius, radius, trunk), tex.BARK, (0.75, 0.7, 0.65),
                     VEGETATION, taper=(0.3, 0.0), offset=(rng.uniform(0, 3), 0))  # fmt: skip
    rows = [bark]
    crown = rng.uniform(1.3, 2.1)
    for _ in range(int(rng.integers(2, 5))):
        r = crown * rng.uniform(0.65, 1.0)
        dx, dy = rng.uniform(-0.5, 0.5, 2) * crown
        z = KERB_HEIGHT + 2 * trunk + r * 0.6 + rng.uniform(0, 0.9)
        rows.append(
            primitive(ELLIPSOID, (x + dx, y + dy, z), (r, r, r * rng.uniform(0.75, 1.0)), tex.FOLIAGE, green,
                      VEGETATION, offset=(rng.uniform(0, 6), rng.uniform(0, 6)))
        )  # fmt: skip
    return rows


def _lamp_post(x: float, y: float, towards: tuple[float, float]) -> list[np.ndarray]:
    tx, ty = towards
    arm = (abs(tx) * 0.9 + 0.05, abs(ty) * 0.9 + 0.05, 0.04)
    grey = (0.5, 0.52, 0.52)
    return [
        primitive(CYLINDER, (x, y, 3.4), (0.09, 0.09, 3.25), tex.METAL, grey, MANMADE, taper=(0.4, 0)),
        primitive(BOX, (x + tx * 0.9, y + ty * 0.9, 6.6), arm, tex.METAL, grey, MANMADE),
        primitive(BOX, (x + tx * 1.8, y + ty * 1.8, 6.55), (0.3, 0.3, 0.07), tex.METAL, (1, 1, 0.9), MANMADE),
    ]


def _signpost(rng: np.random.Generator, x: float, y: float) -> list[np.ndarray]:
    yaw = rng.uniform(0, np.pi)
    return [
        primitive(CYLINDER, (x, y, 1.3), (0.04, 0.04, 1.15), tex.METAL, (0.7, 0.7, 0.7), MANMADE),
        primitive(BOX, (x, y, 2.5), (0.03, 0.35, 0.35), tex.SIGN, (1, 1, 1), MANMADE, yaw=yaw,
                  offset=(rng.uniform(0, 5), rng.uniform(0, 5))),
    ]  # fmt: skip


def _furniture(rng: np.random.Generator, x: float, y: float) -> list[np.ndarray]:
    kind = rng.integers(4)
    if kind == 0:
        colour = _colour(rng, 0.3, 0.6, 0.2)
        return [primitive(CYLINDER, (x, y, 0.65), (0.28, 0.28, 0.5), tex.METAL, colour, MANMADE)]
    if kind == 1:
        return [primitive(BOX, (x, y, 0.9), (0.35, 0.5, 0.75), tex.SIGN, (1, 1, 1), MANMADE, yaw=rng.uniform(0, 3))]
    if kind == 2:
        return _signpost(rng, x, y)
    return [primitive(ELLIPSOID, (x, y, 0.6), (0.7, 0.7, 0.55), tex.FOLIAGE, (0.7, 1, 0.7), VEGETATION)]


def _along_kerb(rng: np.random.Generator, ax: np.ndarray, bx: np.ndarray, inward: np.ndarray) -> list[np.ndarray]:
    """Everything on one sidewalk from point ax to bx; `inward` points away from the road."""
    rows: list[np.ndarray] = []
    length = float(np.linalg.norm(bx - ax))
    along = (bx - ax) / length
    s = rng.uniform(1, 6)
    trees = rng.random() < 0.75
    lamp_at = rng.uniform(3, 15)
    while s < length - 1:
        spot = ax + along * s + inward * 0.75
        if s > lamp_at:
            lamp_at += 26
            rows += _lamp_post(*(ax + along * s + inward * 0.5), towards=(-inward[0], -inward[1]))
        elif trees and rng.random() < 0.7:
            rows += _tree(rng, *spot)
        elif rng.random() < 0.6:
            rows += _furniture(rng, *spot)
        s += rng.uniform(4.5, 9)
    return rows


def _frontage(
    rng: np.random.Generator, ax: np.ndarray, bx: np.ndarray, inward: np.ndarray, grass: bool
) -> list[np.ndarray]:
    """Buildings (and hedges between them) facing one side of a block, set back behind its sidewalk."""
    rows: list[np.ndarray] = []
    length = float(np.linalg.norm(bx - ax))
    along = (bx - ax) / length
    setback = rng.uniform(2.5, 6.0) if grass else rng.uniform(0.2, 1.5)
    s = rng.uniform(0, 2) + 6
    while s < length - 8:
        front = rng.uniform(8, 14) if grass else rng.uniform(10, 22)
        front = min(front, length - 4 - s)
        depth = rng.uniform(7, 11)
        centre = ax + along * (s + front / 2) + inward * (setback + depth / 2)
        hx, hy = np.abs(along * front / 2 + inward * depth / 2)
        rows += _building(rng, float(centre[0]), float(centre[1]), float(hx), float(hy), grass)
        gap = rng.uniform(3, 9) if grass else rng.choice([0.3, 0.3, 4.0])
        if grass and setback > 3 and rng.random() < 0.6:
            hedge = ax + along * (s + front / 2) + inward * 0.9
            hx, hy = np.abs(along * front / 2 * 0.8 + inward * 0.35)
            z = rng.uniform(0.4, 0.7)
            rows.append(primitive(BOX, (hedge[0], hedge[1], KERB_HEIGHT + z), (hx, hy, z), tex.FOLIAGE,
                                  (0.7, 0.95, 0.6), VEGETATION))  # fmt: skip
        elif gap > 3.5:
            rows += _tree(rng, *(ax + along * (s + front + gap / 2) + inward * (setback + 3)))
        s += front + gap
    return rows


def _block(rng: np.random.Generator, low: np.ndarray, high: np.ndarray, grass: bool) -> list[np.ndarray]:
    rows: list[np.ndarray] = []
    corners = [low, np.array([high[0], low[1]]), high, np.array([low[0], high[1]])]
    for k in range(4):
        a, b = corners[k], corners[(k + 1) % 4]
        along = (b - a) / np.linalg.norm(b - a)
        inward = np.array([-along[1], along[0]])
        rows += _along_kerb(rng, a + along * CORNER_RADIUS, b - along * CORNER_RADIUS, inward)
        # Each side keeps clear of the next one's row of buildings.
        inner_a, inner_b = a + inward * SIDEWALK_WIDTH + along * 4, b + inward * SIDEWALK_WIDTH - along * 14
        rows += _frontage(rng, inner_a, inner_b, inward, grass)
    return rows


def build_city(rng: np.random.Generator, x_reach: tuple[float, float], y_reach: tuple[float, float]) -> City:
    """A grid of streets over the reaches (m), a crossing at the origin, and all that stands along them."""
    across, along = _streets(rng, x_reach), _streets(rng, y_reach)
    cells = np.full((len(across) - 1, len(along) - 1), GRASS_BLOCK, np.uint8)
    rows: list[np.ndarray] = []
    for i in range(1, len(across) - 2):
        for j in range(1, len(along) - 2):
            grass = rng.random() < 0.55
            cells[i, j] = GRASS_BLOCK if grass else PAVED_BLOCK
            low = np.array([across[i].centre + across[i].half, along[j].centre + along[j].half])
            high = np.array([across[i + 1].centre - across[i + 1].half, along[j + 1].centre - along[j + 1].half])
            rows += _block(rng, low, high, grass)
    ground = Ground(
        np.array([(s.centre, s.half) for s in across]),
        np.array([(s.centre, s.half) for s in along]),
        cells,
        np.array([CORNER_RADIUS, SIDEWALK_WIDTH, KERB_HEIGHT]),
    )
    return City(across, along, ground, np.stack(rows))
