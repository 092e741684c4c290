"""Flow arithmetic against hand-computed cases and slow loops."""

import math

import numpy as np
import pytest

from geometry.cameras import ImageTransform
from pipelines.cues.flow_field import (
    FlowField,
    checked,
    compose,
    flow_onto_render,
    limited,
    onto_grid,
    pack_flow,
    round_trip_error,
    sample_field,
    unpack_flow,
)


def constant(u: float, v: float, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.broadcast_to(np.array([u, v], np.float32)[:, None, None], (2, *size)).copy()


def test_sampling_matches_a_slow_bilinear_loop() -> None:
    rng = np.random.default_rng(0)
    field = rng.normal(size=(2, 5, 7)).astype(np.float32)
    uv = rng.uniform([0.5, 0.5], [6.5, 4.5], (4, 3, 2))
    got = sample_field(field, uv)
    for i in range(4):
        for j in range(3):
            x, y = uv[i, j] - 0.5
            x0, y0 = min(math.floor(x), 5), min(math.floor(y), 3)
            a, b = x - x0, y - y0
            expected = (1 - b) * ((1 - a) * field[:, y0, x0] + a * field[:, y0, x0 + 1])
            expected += b * ((1 - a) * field[:, y0 + 1, x0] + a * field[:, y0 + 1, x0 + 1])
            # OpenCV interpolates at steps of 1/32 pixel.
            np.testing.assert_allclose(got[:, i, j], expected, atol=0.08)


def test_sampling_is_unknown_outside_and_next_to_unknown() -> None:
    field = np.ones((1, 4, 4), np.float32)
    field[0, 1, 1] = np.nan
    uv = np.array([[[3.5, 3.5], [-0.1, 2.0], [4.0, 2.0], [np.nan, 1.0], [2.0, 1.5], [0.1, 0.1]]])
    assert np.isnan(sample_field(field, uv)[0, 0]).tolist() == [False, True, True, True, True, False]


def test_composition_adds_along_the_way() -> None:
    second = constant(0, 0)
    second[0] = np.arange(8)  # u displacement = column
    both = compose(constant(2, 0), second)
    np.testing.assert_allclose(both[0, :, :6], np.broadcast_to(2 + np.arange(6) + 2, (6, 6)))
    assert np.isnan(both[:, :, 6:]).all(), "leaves the image after the first step"


def test_round_trip_is_zero_for_inverse_flows_and_the_sum_otherwise() -> None:
    assert round_trip_error(constant(1, 0), constant(-1, 0))[:, :-1].max() == 0
    np.testing.assert_allclose(round_trip_error(constant(1, 0), constant(2, 4))[2, 2], 5.0)
    assert np.isinf(round_trip_error(constant(1, 0), constant(-1, 0))[:, -1]).all()


def test_checked_flow_falls_off_with_the_round_trip() -> None:
    # |forward| = 1; bound = 1 + 0.5 * 1 = 1.5; miss of 0.75 px is half of it, a miss of 1.6 px is refused.
    half = checked(constant(1, 0), constant(-0.25, 0), tolerance=1.0, relative=0.5)
    assert half.confidence[3, 3] == pytest.approx(0.5)
    refused = checked(constant(1, 0), constant(0.6, 0), tolerance=1.0, relative=0.5)
    assert np.isnan(refused.flow).all()
    assert (refused.confidence == 0).all()


def test_unknown_flow_and_zero_confidence_go_together() -> None:
    flow = constant(0, 0)
    flow[:, 0, 0] = np.nan
    confidence = np.ones((6, 8))
    confidence[1, 1] = 0
    field = limited(flow, confidence)
    assert np.argwhere(np.isnan(field.flow[0])).tolist() == [[0, 0], [1, 1]]
    assert ((field.confidence == 0) == np.isnan(field.flow[0])).all()


def test_vectors_scale_with_the_grid() -> None:
    # Raw 80x160, flow computed at 40x80 (raw / 2), render 10x40 (raw / 4, top half cropped): 3 px there is 6 raw px
    # and 1.5 render px.
    transform = ImageTransform.fit((80, 160), (10, 40))
    assert transform.scale == pytest.approx(0.25)
    flow = constant(3, -1, (40, 80))
    flow[1, :20] = 5  # the rows that the crop removes
    out = flow_onto_render(FlowField(flow, np.full((40, 80), 0.8, np.float32)), (80, 160), transform)
    assert out.flow.shape == (2, 10, 40)
    np.testing.assert_allclose(out.flow[0], 1.5, rtol=1e-6)
    np.testing.assert_allclose(out.flow[1], -0.5, rtol=1e-6)
    np.testing.assert_allclose(out.confidence, 0.8, rtol=1e-5)


def test_resampling_does_not_mix_two_motions_and_keeps_holes_out() -> None:
    values = np.zeros((1, 2, 8), np.float32)
    values[0, :, 3:] = 10.0  # an edge inside the second output pixel
    values[0, 0, 6] = np.nan
    values[0, :, 7] = np.nan
    transform = ImageTransform(scale=0.5, left=0.0, top=0.0, height=1, width=4)
    out = onto_grid(values, (2, 8), transform, tolerance=1.0)[0, 0]
    assert out[0] == 0
    assert out[1] in (0.0, 10.0), "one side or the other, never their mean 5"
    assert out[2] == 10
    assert out[3] == 10, "one known neighbour of four is enough"
    gone = onto_grid(np.full((1, 2, 8), np.nan, np.float32), (2, 8), transform, tolerance=1.0)
    assert np.isnan(gone).all()
    sky = onto_grid(np.full((1, 2, 8), np.inf, np.float32), (2, 8), transform, tolerance=1.0)
    assert np.isinf(sky).all()


def test_packing_rounds_to_a_64th_and_refuses_what_does_not_fit() -> None:
    flow = np.array([[[1.0, 511.98, 512.0, -600.0, np.nan]], [[-0.26, 0, 0, 0, np.nan]]], np.float32)
    stored, confidence, lost = pack_flow(FlowField(flow, np.array([[1e-6, 1.0, 0.5, 0.5, 0.0]], np.float32)))
    assert stored[:, 0].tolist() == [[64, 32767, -32768, -32768, -32768], [-17, 0, -32768, -32768, -32768]]
    assert confidence[0].tolist() == [1, 255, 0, 0, 0], "valid is never 0"
    assert lost == 2
    np.testing.assert_array_equal(unpack_flow(stored)[:, 0, 0], [1.0, -17 / 64])
    assert np.isnan(unpack_flow(stored)[:, 0, 2:]).all()
