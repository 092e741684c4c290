"""Stored flow: 1/64 px in int16, out of range is invalid and counted, nothing is clipped."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage.reader import FlowCue
from storage.schema import INVALID_FLOW, decode_flow, encode_flow


def test_known_values() -> None:
    flow = np.zeros((2, 1, 6), np.float32)
    flow[0, 0] = [0, 1, -1.5, 511.984375, 511.9922, np.nan]
    flow[1, 0] = [0, 2, 0.0078, -511.984375, 0, 3]
    stored, outside = encode_flow(flow)
    assert stored.dtype == np.int16
    np.testing.assert_array_equal(stored[0, 0], [0, 64, -96, 32767, INVALID_FLOW, INVALID_FLOW])
    np.testing.assert_array_equal(stored[1, 0], [0, 128, 0, -32767, INVALID_FLOW, INVALID_FLOW])
    assert outside == 1
    back = decode_flow(stored)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back[:, 0, 1], [1, 2])
    assert np.isnan(back[:, 0, 4:]).all()


@pytest.mark.parametrize("value", [np.inf, -np.inf, 512.0, -512.0, 1e30, -1e30])
def test_out_of_range_is_invalid_and_counted(value: float) -> None:
    for channel in (0, 1):
        flow = np.ones((3, 2, 2, 2), np.float32)
        flow[1, channel, 0, 1] = value
        stored, outside = encode_flow(flow)
        assert outside == 1
        assert (stored[1, :, 0, 1] == INVALID_FLOW).all()
        assert (stored == INVALID_FLOW).sum() == 2


def test_nan_is_not_counted_even_beside_infinity() -> None:
    flow = np.full((2, 1, 1), np.nan)
    flow[1] = np.inf
    stored, outside = encode_flow(flow)
    assert outside == 0
    assert (stored == INVALID_FLOW).all()


@given(hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(-600, 600, width=32) | st.just(np.nan)))
def test_round_trip_is_within_half_a_step_or_absent(flow: np.ndarray) -> None:
    stored, outside = encode_flow(flow)
    back = decode_flow(stored)
    absent = np.isnan(flow).any(0)
    beyond = (np.abs(np.where(np.isnan(flow), 0, flow)).max(0) * 64 > 32767.5) & ~absent
    near = np.abs(np.abs(np.where(np.isnan(flow), 0, flow)).max(0) * 64 - 32767.5) < 1e-2
    assert ((np.isnan(back).all(0) == (absent | beyond)) | near).all()
    assert (np.isnan(back[0]) == np.isnan(back[1])).all()
    assert abs(outside - beyond.sum()) <= near.sum()
    kept = ~np.isnan(back)
    assert np.abs(back[kept] - flow[kept]).max(initial=0) <= 0.5 / 64 + 1e-5


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(..., 2, h, w\)"):
        encode_flow(np.zeros((3, 4, 4)))
    with pytest.raises(ValueError, match="expected int16"):
        decode_flow(np.zeros((2, 4, 4), np.float32))


def test_pixels_of_a_cue_tell_where_there_is_flow() -> None:
    stored = np.array([[[64, INVALID_FLOW]], [[32, 5]]], np.int16)
    flow, valid = FlowCue(stored, np.zeros((1, 2), np.uint8), 1, -1).pixels()
    np.testing.assert_array_equal(valid, [[True, False]])
    np.testing.assert_array_equal(flow[:, 0, 0], [1.0, 0.5])
    assert np.isnan(flow[:, 0, 1]).all()
