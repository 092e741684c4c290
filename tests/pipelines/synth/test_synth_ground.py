"""Heights and kinds of the ground against polygons drawn by hand, ray hits against a march, and the paint's layout."""

from itertools import pairwise

import numpy as np
import pytest

from pipelines.synth.ground import (
    GRASS_BLOCK,
    KERB,
    PAVED_BLOCK,
    ROAD,
    SIDEWALK,
    Ground,
    block_distance,
    ground_height,
    ground_kind,
    hit_ground,
    road_paint,
)
from pipelines.synth.shapes import MISS

KERB_HEIGHT, CORNER = 0.15, 5.0
STREETS = np.array([(-700.0, 5.6), (0.0, 5.6), (70.0, 8.9), (700.0, 5.6)])
CELLS = np.full((3, 3), GRASS_BLOCK, np.uint8)
CELLS[1, 1] = PAVED_BLOCK
GROUND = Ground(STREETS, STREETS.copy(), CELLS, np.array([CORNER, 3.2, KERB_HEIGHT]))


def depth_in_block(x: float, y: float) -> float:
    """How deep (m) a point lies in the block it is in, by sampling that block's outline; negative outside."""
    for low_x, high_x in pairwise(STREETS):
        for low_y, high_y in pairwise(STREETS):
            x0, x1 = low_x[0] + low_x[1], high_x[0] - high_x[1]
            y0, y1 = low_y[0] + low_y[1], high_y[0] - high_y[1]
            if x0 < x < x1 and y0 < y < y1:
                cx, cy = np.clip(x, x0 + CORNER, x1 - CORNER), np.clip(y, y0 + CORNER, y1 - CORNER)
                corner = np.hypot(x - cx, y - cy)
                return float(CORNER - corner) if corner > 0 else float(min(x - x0, x1 - x, y - y0, y1 - y))
    return -1.0


def test_kinds_and_heights() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for x, y in rng.uniform(-25, 85, (1000, 2)):
        depth = depth_in_block(x, y)
        kind = ground_kind(GROUND, x, y)
        seen.add(kind)
        if abs(depth) > 1e-9:
            assert (kind == ROAD) == (depth <= 0), (x, y)
            assert ground_height(GROUND, x, y) == (KERB_HEIGHT if depth > 0 else 0.0)
        if depth > 0 and abs(depth - 3.2) > 1e-6 and depth != CORNER:
            assert (kind == SIDEWALK) == (depth < 3.2), (x, y)
    assert seen == {ROAD, SIDEWALK, GRASS_BLOCK, PAVED_BLOCK}


def test_hand_made_points() -> None:
    for (x, y), kind in {
        (0.0, 0.0): ROAD, (5.5, 30.0): ROAD, (5.7, 30.0): SIDEWALK, (8.9, 30.0): PAVED_BLOCK, (-9.0, 30.0): GRASS_BLOCK,
        (6.0, 6.0): ROAD, (61.0, 30.0): SIDEWALK, (61.2, 30.0): ROAD, (1.0, 900.0): GRASS_BLOCK,
    }.items():  # fmt: skip
        if y < 700:
            assert ground_kind(GROUND, x, y) == kind, (x, y)
    distance, i, j = block_distance(GROUND, 10.0, 30.0)
    assert (distance, i, j) == (pytest.approx(-4.4), 1, 1)


def test_rays_meet_the_ground_where_a_march_does() -> None:
    rng = np.random.default_rng(3)
    kinds = set()
    for _ in range(80):
        eye = np.array([*rng.uniform(-6, 12, 2), rng.uniform(0.5, 2.0)])
        ray = np.array([*rng.normal(0, 1, 2), -rng.uniform(0.02, 1.0)])
        ray /= np.linalg.norm(ray)
        t, kind = hit_ground(GROUND, *eye, *ray)
        steps = np.linspace((0.2 - eye[2]) / ray[2], (-0.001 - eye[2]) / ray[2], 600)
        below = [eye[2] + s * ray[2] <= ground_height(GROUND, *(eye[:2] + s * ray[:2])) for s in steps]
        expected = steps[np.argmax(below)]
        assert t == pytest.approx(expected, abs=1.5 * (steps[1] - steps[0]) + 1e-9)
        point = eye + t * ray
        if kind == KERB:
            assert abs(block_distance(GROUND, point[0], point[1])[0]) < 1e-5
            assert -1e-9 <= point[2] <= KERB_HEIGHT + 1e-9
        else:
            assert point[2] == pytest.approx(0.0 if kind == ROAD else KERB_HEIGHT, abs=1e-9)
            assert kind == ground_kind(GROUND, point[0], point[1])
        kinds.add(kind)
    assert {ROAD, SIDEWALK, KERB} <= kinds


@pytest.mark.parametrize("dz", [0.0, 0.3, -1e-6])
def test_rays_that_rise_or_end_beyond_the_world_miss(dz: float) -> None:
    assert hit_ground(GROUND, 0.0, 0.0, 1.5, 1.0, 0.0, dz)[0] == MISS


def test_paint_lies_where_a_street_has_it() -> None:
    """Street along y at x = 0, one lane each way; the crossing at y = 0 ends at |y| = 5.6 + 5."""
    fine = (1e-3, 1e-3)
    assert road_paint(GROUND, 3.3, 35.0, *fine) == (1.0, 0.0), "edge of the lane"
    assert road_paint(GROUND, 1.6, 35.0, *fine) == (0.0, 0.0), "bare lane"
    yellow = [road_paint(GROUND, 0.0, y, *fine)[1] for y in np.linspace(25, 34, 901)]
    assert np.mean(yellow) == pytest.approx(0.55, abs=0.02), "dashes over two periods"
    zebra = [road_paint(GROUND, x, 10.6 + 2.5, *fine)[0] for x in np.linspace(-2, 2, 401)]
    assert np.mean(zebra) == pytest.approx(0.5, abs=0.02)
    assert road_paint(GROUND, 0.0, 0.0, *fine) == (0.0, 0.0), "the crossing is bare"


def test_the_stop_line_is_on_the_lane_that_comes_in() -> None:
    """Right-hand traffic: from the south (y < 0) on x > 0, from the north on x < 0, from the west on y < 0."""
    line = 10.6 + 5.2
    incoming = [(1.6, -line), (-1.6, line), (-line, -1.6), (line, 1.6)]
    assert [road_paint(GROUND, x, y, 1e-3, 1e-3)[0] for x, y in incoming] == [1.0] * 4
    assert [road_paint(GROUND, -x if abs(x) < 5 else x, -y if abs(y) < 5 else y, 1e-3, 1e-3)[0]
            for x, y in incoming] == [0.0] * 4  # fmt: skip


@pytest.mark.parametrize("blur", [0.05, 0.3, 2.0])
def test_blurred_paint_keeps_its_mean(blur: float) -> None:
    """A pixel's footprint spreads a line without adding or losing paint."""
    xs = np.linspace(-5.5, 5.5, 5501)
    sharp = np.mean([road_paint(GROUND, x, 35.0, 1e-3, 1e-3)[0] for x in xs])
    wide = np.mean([road_paint(GROUND, x, 35.0, blur, 1e-3)[0] for x in xs])
    assert wide == pytest.approx(sharp, rel=0.01)
