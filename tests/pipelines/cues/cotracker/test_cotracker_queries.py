"""Where trackers are asked, and their answers made dense: against slow versions and by hand."""

import numpy as np
import pytest

from geometry.cameras import ImageTransform
from pipelines.cues.cotracker.queries import ask, fill, mask_onto, render_mask


def speckled(seed: int = 0) -> np.ndarray:
    """Three instances that touch, one of them a single pixel."""
    instance = np.zeros((23, 31), np.uint16)
    instance[3:14, 4:15] = 7
    instance[5:20, 15:29] = 2
    instance[np.random.default_rng(seed).random(instance.shape) < 0.3] = 0
    instance[22, 30] = 9
    return instance


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_one_query_for_each_instance_in_each_cell(stride: int) -> None:
    instance = speckled()
    queries = ask(instance, stride)
    got = {}
    for (u, v), name, (row, column) in zip(queries.points, queries.instance, queries.cell, strict=True):
        assert instance[v, u] == name
        assert (v // stride, u // stride) == (row, column)
        assert (name, row, column) not in got
        middle = stride * np.array([row, column]) + (stride - 1) // 2
        got[name, row, column] = ((np.array([v, u]) - middle) ** 2).sum()
    slow: dict = {}
    for v, u in np.argwhere(instance):
        key = instance[v, u], v // stride, u // stride
        middle = stride * np.array(key[1:]) + (stride - 1) // 2
        slow[key] = min(slow.get(key, 1e9), ((np.array([v, u]) - middle) ** 2).sum())
    assert got == slow
    runs = 1 + np.count_nonzero(np.diff(queries.instance))
    assert runs == 3, "an instance's points stand together"


def test_no_mask_asks_nothing() -> None:
    queries = ask(np.zeros((5, 6), np.uint16), 3)
    assert len(queries) == 0
    image = np.zeros((5, 6, 3), np.uint8)
    empty = fill(image, np.zeros((5, 6), np.uint16), queries, np.zeros((0, 2)), np.zeros(0), 3, 5.0, 12.0)
    assert np.isnan(empty.flow).all()
    assert not empty.confidence.any()


@pytest.mark.parametrize("keep", ["bottom", "centre"])
def test_masks_on_the_working_image(keep: str) -> None:
    network = ImageTransform.fit((90, 160), (30, 64), keep=keep)
    instance = np.arange(30 * 64, dtype=np.uint16).reshape(30, 64) + 1
    got = mask_onto(instance, (90, 160), network, (45, 80))
    for row in range(45):
        for column in range(80):
            u, v = (network.image_from_raw @ [2 * column + 1, 2 * row + 1, 1])[:2]
            inside = 0 <= u < 64 and 0 <= v < 30
            assert got[row, column] == (instance[int(v), int(u)] if inside else 0)
    assert (got == 0).any()
    assert (got > 0).any()
    np.testing.assert_array_equal(render_mask(instance, (15, 32)), instance[1::2, 1::2])


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_tracks_fill_their_own_instance(stride: int) -> None:
    instance = np.zeros((24, 40), np.uint16)
    instance[2:20, 5:17], instance[2:20, 17:33] = 3, 1
    instance[22, 37] = 8  # fits no cell's middle
    image = np.full((24, 40, 3), 90, np.uint8)
    image[22, 37] = 255
    queries = ask(instance, stride)
    motion = np.array({3: (1.0, 0.25), 1: (0.5, 0.0), 8: (-7.0, 1.0)}[1]) * np.ones((len(queries), 2))
    motion[queries.instance == 3] = (1.0, 0.25)
    motion[queries.instance == 8] = (-7.0, 1.0)
    trust = np.where(queries.instance == 1, 0.5, 1.0)
    field = fill(image, instance, queries, motion, trust, stride, max(1.5, 1.7 * stride), 12.0)
    for name, flow, sure in ((3, (1.0, 0.25), 1.0), (1, (0.5, 0.0), 0.5), (8, (-7.0, 1.0), 1.0)):
        own = instance == name
        # Motions are closer than spread_tracks would keep apart: only the instances do.
        np.testing.assert_allclose(field.flow[:, own].T, np.tile(flow, (own.sum(), 1)), rtol=1e-5)
        np.testing.assert_allclose(field.confidence[own], sure, rtol=1e-5)
    assert np.isnan(field.flow[:, instance == 0]).all()
    assert not field.confidence[instance == 0].any()


def test_a_track_that_is_not_trusted_says_nothing() -> None:
    instance = np.ones((9, 9), np.uint16)
    queries = ask(instance, 3)
    trust = (queries.points[:, 0] == 1).astype(float)  # the left column of cells
    field = fill(np.zeros((9, 9, 3), np.uint8), instance, queries, np.zeros((9, 2)), trust, 3, 3.0, 12.0)
    v, u = np.mgrid[:9, :9]
    away = np.min([np.hypot(v - row, u - 1) for row in (1, 4, 7)], axis=0)
    np.testing.assert_array_equal(~np.isnan(field.flow[0]), away <= 3)
