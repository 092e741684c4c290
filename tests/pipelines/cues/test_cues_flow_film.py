"""Flow through a film of sweeps, by chained DIS and by tracks, on images whose flow is known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipelines.cues.flow_chain import ChainedDis, ChainedDisFlowCue
from pipelines.cues.flow_dis import DisFlowCue
from pipelines.cues.flow_field import unpack_flow
from pipelines.cues.flow_tracks import TrackFlow, TracksFlowCue
from pipelines.cues.spread import spread_tracks
from storage.schema import INVALID_FLOW

CUES = [ChainedDisFlowCue, TracksFlowCue]


@pytest.mark.parametrize("cue", CUES)
def test_motion_too_large_for_one_step_is_followed_through_the_sweeps(cue: Any, flat_world: Callable[..., Any]) -> None:
    # Six steps of 3 raw px carry the wall 18 px (9 render px); the board moves 36 px against it: -18 render px.
    world = flat_world(keyframes=2, sweeps=5, board_depth=6.0, board_step=0.6, ego_step=0.3)
    context = world.context()
    block = cue(slot="next").extract(context)
    direct = DisFlowCue(slot="next").extract(context).quality["against_truth"]
    found = block.quality["against_truth"]
    assert found["epe"]["value"] < 0.2
    assert found["epe_moving"]["value"] < 1.0
    assert found["epe_moving"]["value"] < 0.1 * found["zero_epe_moving"]["value"]
    assert found["epe_moving"]["value"] < 0.1 * direct["epe_moving"]["value"]
    assert found["coverage_moving"]["value"] > 0.8
    assert found["invented"]["value"] < 0.3
    flow = unpack_flow(block.arrays["flow/next/flow"][0, 0])
    confidence = block.arrays["flow/next/confidence"][0, 0]
    np.testing.assert_array_equal(confidence == 0, np.isnan(flow[0]))


@pytest.mark.parametrize("cue", CUES)
def test_the_previous_keyframe_is_reached_backwards(cue: Any, flat_world: Callable[..., Any]) -> None:
    block = cue(slot="prev").extract(flat_world(keyframes=2, sweeps=3).context())
    flow = unpack_flow(block.arrays["flow/prev/flow"][1, 0])
    assert np.nanmedian(flow[0]) == pytest.approx(-6.0, abs=0.2)  # 4 steps of 3 raw px, halved
    assert block.arrays["flow/prev/target_frame"][:, 0].tolist() == [-1, 0]


@pytest.mark.parametrize("cue", CUES)
def test_coverage_of_what_stands_still_leaves_out_what_leaves_the_picture(
    cue: Any, flat_world: Callable[..., Any]
) -> None:
    # Six steps of 3 raw px back: 9 of 80 render columns end left of the picture, the other 71 can be covered.
    world = flat_world(keyframes=2, sweeps=5, ego_step=0.3)
    found = cue(slot="prev").extract(world.context()).quality["against_truth"]
    assert found["static_coverage"]["count"] == 71 * 48
    assert found["static_coverage"]["value"] > 0.97
    assert found["static_epe"]["value"] < 0.2


@pytest.mark.parametrize("cue", CUES)
def test_hostile_scenes(cue: Any, flat_world: Callable[..., Any]) -> None:
    alone = cue().extract(flat_world(keyframes=1, sweeps=0).context())
    assert (alone.arrays["flow/next/flow"] == INVALID_FLOW).all()
    assert alone.notes == ["flow impossible: the scene has a single frame (1 camera-frames)"]
    gap = cue().extract(flat_world(keyframes=2, sweeps=2, missing={1}).context())
    assert np.nanmedian(unpack_flow(gap.arrays["flow/next/flow"][0, 0])[0]) == pytest.approx(4.5, abs=0.2)
    lost = cue().extract(flat_world(keyframes=2, sweeps=1, missing={2}).context())
    assert (lost.arrays["flow/next/flow"] == INVALID_FLOW).all()


def test_blank_images_give_no_tracks_and_no_false_motion() -> None:
    blank = np.full((40, 60, 3), 90, np.uint8)
    assert np.isnan(TrackFlow()([blank, blank]).flow).all()
    chained = ChainedDis()([blank, blank, blank]).flow
    assert np.nanmax(np.abs(chained)) < 1e-3


def test_tracks_speak_for_their_surroundings_only() -> None:
    # One trusted track in the middle of a 21x21 image of two colours; reach 4, the edge between columns 11 and 12.
    image = np.zeros((21, 21, 3), np.uint8)
    image[:, 12:] = 255
    motion, trust = np.zeros((2, 7, 7)), np.zeros((7, 7))
    motion[:, 3, 3], trust[3, 3] = (5.0, -2.0), 0.8  # pixel (10, 10)
    spread = spread_tracks(image, motion, trust, stride=3, reach=4.0, colour=10.0)
    known = ~np.isnan(spread.flow[0])
    np.testing.assert_allclose(spread.flow[:, known].T, np.tile([5.0, -2.0], (known.sum(), 1)), rtol=1e-5)
    np.testing.assert_allclose(spread.confidence[known], 0.8, rtol=1e-5)
    v, u = np.nonzero(known)
    assert np.hypot(v - 10, u - 10).max() <= 4
    assert u.max() == 11, "does not cross the edge"
    assert known[10, 6:12].all()
    # A tracker may have lost itself where nobody trusts it.
    motion[:, 3, 4], motion[:, 2, 3] = np.nan, np.inf
    again = spread_tracks(image, motion, trust, stride=3, reach=4.0, colour=10.0)
    np.testing.assert_array_equal(again.flow, spread.flow)


def test_digests_follow_the_parameters() -> None:
    for cue in CUES:
        assert cue().config_digest() == cue().config_digest()
        assert len({cue().config_digest(), cue(slot="prev").config_digest(), cue(max_width=64).config_digest()}) == 3
        # OpenCV's threads change nothing in what is found; a store made with one goes on with four.
        assert cue(threads=4).config_digest() == cue().config_digest()
    assert ChainedDisFlowCue().config_digest() != TracksFlowCue().config_digest()
