"""Ray intersections and surfaces of the primitive shapes against a march along the ray through an inside test."""

import numpy as np
import pytest

from pipelines.synth.shapes import (
    BOX,
    CYLINDER,
    ELLIPSOID,
    MISS,
    SHADOW,
    TAPERED_BOX,
    WHEEL,
    hit,
    place,
    primitive,
    surface,
)

HALF = (0.9, 0.6, 0.7)
CENTRE = np.array([0.4, -0.3, 0.8])
YAW = 0.7
SHAPES = {
    "box": primitive(BOX, tuple(CENTRE), HALF, 0, (1, 1, 1), 0, yaw=YAW),
    "frustum": primitive(TAPERED_BOX, tuple(CENTRE), HALF, 0, (1, 1, 1), 0, yaw=YAW, taper=(0.5, 0.3), shear=0.4),
    "roof": primitive(TAPERED_BOX, tuple(CENTRE), HALF, 0, (1, 1, 1), 0, yaw=YAW, taper=(0.0, 0.98)),
    "widening": primitive(TAPERED_BOX, tuple(CENTRE), HALF, 0, (1, 1, 1), 0, yaw=YAW, taper=(0.1, -0.15), shear=-0.2),
    "pole": primitive(CYLINDER, tuple(CENTRE), (0.6, 0.6, 0.7), 0, (1, 1, 1), 0, yaw=YAW),
    "cone": primitive(CYLINDER, tuple(CENTRE), (0.6, 0.6, 0.7), 0, (1, 1, 1), 0, yaw=YAW, taper=(0.6, 0.0)),
    "egg": primitive(ELLIPSOID, tuple(CENTRE), HALF, 0, (1, 1, 1), 0, yaw=YAW),
    "wheel": primitive(WHEEL, tuple(CENTRE), (0.6, 0.2, 0.6), 0, (1, 1, 1), 0, yaw=YAW),
}


def local(points: np.ndarray) -> np.ndarray:
    """World points (n, 3) in the frame of a primitive at CENTRE, YAW."""
    turn = np.array([[np.cos(YAW), np.sin(YAW), 0], [-np.sin(YAW), np.cos(YAW), 0], [0, 0, 1]])
    return (points - CENTRE) @ turn.T


def inside(name: str, points: np.ndarray) -> np.ndarray:
    """Whether local points lie in the solid: its definition, written from the record's description."""
    x, y, z = points.T
    hx, hy, hz = {"pole": (0.6, 0.6, 0.7), "cone": (0.6, 0.6, 0.7), "wheel": (0.6, 0.2, 0.6)}.get(name, HALF)
    up = (z + hz) / (2 * hz)
    if name == "egg":
        return (x / hx) ** 2 + (y / hy) ** 2 + (z / hz) ** 2 <= 1
    if name == "wheel":
        return (x**2 + z**2 <= hx**2) & (np.abs(y) <= hy)
    if name in ("pole", "cone"):
        taper = 0.6 if name == "cone" else 0.0
        return (x**2 + y**2 <= (hx * (1 - taper * up)) ** 2) & (np.abs(z) <= hz)
    taper_x, taper_y, shear = {
        "box": (0.0, 0.0, 0.0), "frustum": (0.5, 0.3, 0.4), "roof": (0.0, 0.98, 0.0), "widening": (0.1, -0.15, -0.2),
    }[name]  # fmt: skip
    return (
        (np.abs(x - shear * up) <= hx * (1 - taper_x * up)) & (np.abs(y) <= hy * (1 - taper_y * up)) & (np.abs(z) <= hz)
    )


def march(name: str, origin: np.ndarray, ray: np.ndarray, step: float = 2e-3) -> float:
    """First parameter at which the ray is inside, to within `step` / 2^20; MISS if it never is or starts there."""
    t = np.arange(0, 6, step)
    found = inside(name, local(origin + t[:, None] * ray))
    if found[0] or not found.any():
        return MISS
    high = t[np.argmax(found)]
    low = high - step
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if inside(name, local((origin + middle * ray)[None]))[0] else (middle, high)
    return high


def rays(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Origins around the solid and directions to points in and about it; every third along an axis, or in a plane."""
    rng = np.random.default_rng(4)
    origins = CENTRE + rng.normal(0, 1, (count, 3)) / np.linalg.norm(rng.normal(0, 1, (count, 3)), axis=1)[:, None] * 2
    ways = CENTRE + rng.uniform(-0.8, 0.8, (count, 3)) - origins
    for i in range(0, count, 3):
        axis = rng.integers(3)
        ways[i] = 0.0
        ways[i, axis] = rng.choice([-1.0, 1.0])
        origins[i] = CENTRE + rng.uniform(-0.5, 0.5, 3) - 3 * ways[i]
    ways[1::3, rng.integers(3)] = 0.0
    return origins, ways / np.linalg.norm(ways, axis=1)[:, None]


@pytest.mark.parametrize("name", SHAPES)
def test_first_hit_is_where_a_march_enters(name: str) -> None:
    origins, ways = rays(150)
    hits = 0
    for origin, ray in zip(origins, ways, strict=True):
        expected, found = march(name, origin, ray), hit(SHAPES[name], *origin, *ray)
        if expected == MISS and found < MISS:
            # A march may step over a corner that the ray only grazes.
            through = np.linspace(found, found + 2e-3, 200)[:, None]
            assert inside(name, local(origin + through * ray)).any(), (origin, ray)
            continue
        assert found == pytest.approx(expected, abs=1e-6), (origin, ray)
        hits += expected < MISS
    assert hits > 40


@pytest.mark.parametrize("name", SHAPES)
def test_rays_from_inside_or_away_miss(name: str) -> None:
    rng = np.random.default_rng(1)
    for ray in rng.normal(0, 1, (20, 3)):
        assert hit(SHAPES[name], *CENTRE, *ray) == MISS
        assert hit(SHAPES[name], *(CENTRE + 3 * ray / np.linalg.norm(ray)), *ray) == MISS


def test_rays_in_and_beside_a_face() -> None:
    box = primitive(BOX, (0, 0, 0), (1, 1, 1), 0, (1, 1, 1), 0)
    assert hit(box, -3.0, 0.999, 0.0, 1.0, 0.0, 0.0) == pytest.approx(2)
    assert hit(box, -3.0, 1.001, 0.0, 1.0, 0.0, 0.0) == MISS
    assert hit(box, -3.0, 1.0, 0.0, 1.0, 0.0, 0.0) in (pytest.approx(2), MISS)
    assert hit(box, -3.0, 0.0, 0.0, 1.0, 1e-300, -0.0) == pytest.approx(2)
    assert hit(box, -3.0, 0.0, 0.0, 2.0, 0.0, 0.0) == pytest.approx(1), "parameters count the direction's length"


def test_shadows_are_not_solid() -> None:
    shadow = primitive(SHADOW, (0, 0, 0), (1, 1, 1), 0, (0, 0, 0), 0)
    assert hit(shadow, -3.0, 0.0, 0.0, 1.0, 0.0, 0.0) == MISS


@pytest.mark.parametrize("name", SHAPES)
def test_normals_point_out_and_stand_on_the_surface(name: str) -> None:
    """A small step along the normal leaves the solid, one against it enters; the surface near by is square to it."""
    origins, ways = rays(120)
    checked = 0
    for origin, ray in zip(origins, ways, strict=True):
        t = hit(SHAPES[name], *origin, *ray)
        if t == MISS:
            continue
        point = local((origin + t * ray)[None])[0]
        values = surface(SHAPES[name], *point)
        normal = np.array(values[1:4])
        assert np.linalg.norm(normal) == pytest.approx(1)
        near = 1e-3 * np.array([np.eye(3)[i] * s for i in range(3) for s in (-1, 1)])
        # Where some neighbour lies on another face there is an edge: no single normal.
        faces = {surface(SHAPES[name], *(point + offset))[0] for offset in 5 * near}
        if len(faces) > 1:
            continue
        assert inside(name, (point - 1e-3 * normal)[None])[0]
        assert not inside(name, (point + 1e-3 * normal)[None])[0]
        checked += 1
    assert checked > 15


def test_place_moves_a_solid_with_its_object() -> None:
    part = primitive(BOX, (1.0, 0.5, 0.3), (0.4, 0.2, 0.3), 0, (1, 1, 1), 0, yaw=0.2)
    moved = place(part[None], np.array([10.0]), np.array([-4.0]), np.array([1.1]))[0]
    c, s = np.cos(1.1), np.sin(1.1)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    rng = np.random.default_rng(0)
    for target in rng.uniform(-0.2, 0.2, (20, 3)) + [1.0, 0.5, 0.3]:
        origin = np.array([-2.0, 0.3, 1.5])
        there = turn @ origin + [10.0, -4.0, 0.0]
        expected = hit(part, *origin, *(target - origin))
        assert expected < MISS
        assert hit(moved, *there, *(turn @ (target - origin))) == pytest.approx(expected)
