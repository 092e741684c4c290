"""Colour scales at their ends, their middle and their gaps."""

import numpy as np

from eval.colours import NO_DATA, STILL, depth_colours, flow_colours, flow_wheel, height_colours


def test_depth_is_logarithmic_and_blank_where_unknown() -> None:
    colours = depth_colours(np.array([2.0, 60.0, 1.0, 100.0, np.nan, np.inf, 0.0, np.sqrt(2 * 60)]), 2.0, 60.0)
    assert colours[0].tolist() == [253, 245, 180]
    assert colours[1].tolist() == [12, 8, 38]
    assert (colours[2] == colours[0]).all()
    assert (colours[3] == colours[1]).all()
    assert all(colours[i].tolist() == list(NO_DATA) for i in (4, 5, 6))
    # Half way between the third and the fourth of six stops.
    assert colours[7].tolist() == [(226 + 146) / 2, (88 + 44) / 2, (82 + 116) / 2]


def test_height_between_its_ends() -> None:
    colours = height_colours(np.array([-5.0, -1.0, 3.0, 9.0]), -1.0, 3.0)
    assert colours.tolist() == [[58, 82, 122], [58, 82, 122], [214, 88, 108], [214, 88, 108]]


def test_motion_by_direction_and_speed() -> None:
    ways = np.array([[10.0, 0.0], [-10.0, 0.0], [0.0, 10.0], [0.0, 0.0], [np.nan, 1.0], [0.01, 0.0], [20.0, 0.0]])
    forward, back, left, still, broken, slow, fast = flow_colours(ways, 10.0).astype(int)
    assert forward.tolist() == [250, 28, 28]
    assert back.tolist() == [28, 250, 250]
    assert left[1] == 250
    assert left[1] > left[0] > left[2]
    assert still.tolist() == list(STILL)
    assert np.abs(slow - STILL).max() < 3
    assert (fast == forward).all()
    assert np.isfinite(broken).all()


def test_the_wheel_is_the_scale_seen_from_above() -> None:
    wheel = flow_wheel(101)
    rim = flow_colours(np.array([[98 / 101, 0.0], [0.0, 98 / 101]]), 1.0)
    # The pixel in row 1 is 98/101 of the radius up: forward is up, and left is left.
    assert (wheel[1, 50, :3] == rim[0]).all()
    assert (wheel[50, 1, :3] == rim[1]).all()
    assert wheel[0, 0, 3] == 0
    assert wheel[50, 50].tolist() == [*STILL, 255]
