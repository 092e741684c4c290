"""Verdicts on voxels, the surfaces they are drawn on, and their mean from above."""

import numpy as np

from eval.colours import VERDICTS, difference_colours, verdict_colours
from eval.volume_errors import HIT, INVENTED, MISSED, NOT_JUDGED, NOTHING, compare_volumes, errors_from_above, exposed


def test_each_verdict_once() -> None:
    predicted = np.array([True, False, True, False, True, False]).reshape(1, 6, 1)
    true = np.array([True, True, False, False, False, True]).reshape(1, 6, 1)
    judged = np.array([True, True, True, True, False, False]).reshape(1, 6, 1)
    found = compare_volumes(predicted, true, judged)
    assert found.kind.ravel().tolist() == [HIT, MISSED, INVENTED, NOTHING, NOT_JUDGED, NOTHING]
    assert (found.hit, found.missed, found.invented, found.not_judged) == (1, 1, 1, 1)
    assert (found.iou, found.recall, found.precision) == (1 / 3, 1 / 2, 1 / 2)
    everywhere = compare_volumes(predicted, true)
    assert (everywhere.hit, everywhere.missed, everywhere.invented) == (1, 2, 2)


def test_empty_volumes_have_no_shares() -> None:
    nothing = np.zeros((2, 2, 2), dtype=bool)
    assert np.isnan([compare_volumes(nothing, nothing).iou, compare_volumes(nothing, nothing).recall]).all()


def test_surfaces_against_a_look_at_every_neighbour() -> None:
    rng = np.random.default_rng(0)
    occupied = rng.random((6, 5, 4)) < 0.7
    found = exposed(occupied)
    for x, y, z in np.ndindex(occupied.shape):
        free = False
        for dx, dy, dz in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)):
            beside = (x + dx, y + dy, z + dz)
            inside = all(0 <= b < n for b, n in zip(beside, occupied.shape, strict=True))
            free |= not occupied[beside] if inside else beside[2] >= 0
        assert found[x, y, z] == (occupied[x, y, z] and free)


def test_from_above_a_column_has_the_mean_colour_of_its_surface() -> None:
    kind = np.zeros((3, 3, 3), dtype=np.uint8)
    kind[0, 2] = [HIT, INVENTED, MISSED]
    picture = errors_from_above(kind, pixels=3).astype(int)
    # x up and y to the left: x = 0 is the lowest row, y = 2 the first column. All three have free neighbours.
    mean = verdict_colours(np.array([HIT, INVENTED, MISSED], dtype=np.uint8)).astype(float).mean(axis=0)
    assert np.abs(picture[2, 0] - mean).max() <= 0.5
    assert len({tuple(c) for c in picture.reshape(-1, 3)}) == 2
    # What is buried does not count: the middle of a solid block.
    solid = np.full((3, 3, 3), HIT, dtype=np.uint8)
    solid[1, 1, :2] = INVENTED
    assert errors_from_above(solid, pixels=3)[1, 1].tolist() == list(VERDICTS["hit"])


def test_too_near_is_blue_and_too_far_is_red() -> None:
    near, right, far, beyond, nothing = difference_colours(np.array([1 / 1.5, 1.0, 1.5, 9.0, np.nan])).astype(int)
    assert near[2] > near[0] + 100
    assert far[0] > far[2] + 100
    assert np.ptp(right) < 12
    assert (beyond == far).all()
    assert nothing.tolist() == list(VERDICTS["nothing"])
