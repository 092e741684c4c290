"""DIS flow cues on images whose flow is known, and the draw of the auxiliary frame."""

import numpy as np
import pytest

from pipelines.cues.flow_dis import DisFlowCue
from pipelines.cues.flow_field import unpack_flow
from pipelines.cues.flow_targets import aim_next, aim_previous
from pipelines.cues.neighbours import DrawRule, aim_drawn, draw, seeded_uniform
from storage.schema import INVALID_FLOW


def test_pair_flow_of_a_sliding_wall_is_the_hand_computed_shift(flat_world) -> None:
    # fx 120 px, 0.3 m per frame at 12 m: 3 px of the raw image, 1.5 render pixels, to the right.
    world = flat_world(keyframes=3, sweeps=0)
    block = DisFlowCue(slot="next").extract(world.context())
    flow = unpack_flow(block.arrays["flow/next/flow"][0, 0])
    valid = ~np.isnan(flow[0])
    assert valid[:, 4:-4].mean() > 0.95
    assert np.abs(flow[0][valid] - 1.5).mean() < 0.1
    assert np.abs(flow[1][valid]).mean() < 0.1
    assert np.isnan(flow[0][:, -1]).all(), "the last column leaves the image"
    assert block.arrays["flow/next/target_frame"][:, 0].tolist() == [1, 2, -1]
    assert (block.arrays["flow/next/target_sweep"] == -1).all()
    assert (block.arrays["flow/next/flow"][2] == INVALID_FLOW).all()
    assert (block.arrays["flow/next/confidence"][2] == 0).all()
    assert block.notes == ["no next keyframe: last of the scene (1 camera-frames)"]
    assert block.quality["against_truth"]["epe"]["value"] < 0.15
    assert block.quality["warp_error"]["value"] < 0.3 * block.quality["identity_error"]["value"]


def test_previous_flow_goes_the_other_way(flat_world) -> None:
    block = DisFlowCue(slot="prev").extract(flat_world(keyframes=2, sweeps=0).context())
    flow = unpack_flow(block.arrays["flow/prev/flow"][1, 0])
    assert np.nanmedian(flow[0]) == pytest.approx(-1.5, abs=0.1)
    assert block.arrays["flow/prev/target_frame"][:, 0].tolist() == [-1, 0]
    assert block.notes == ["no previous keyframe: first of the scene (1 camera-frames)"]


def test_flow_is_the_same_whatever_size_it_was_computed_at(flat_world) -> None:
    world = flat_world(keyframes=2, sweeps=0)
    medians = []
    for max_width in (160, 100):
        block = DisFlowCue(slot="next", max_width=max_width).extract(world.context())
        medians.append(np.nanmedian(unpack_flow(block.arrays["flow/next/flow"][0, 0])[0]))
    assert medians == pytest.approx([1.5, 1.5], abs=0.1)


def test_what_the_board_hides_is_not_claimed(flat_world) -> None:
    # The board slides over 13 px of wall: pixels of the wall that it will hide have no correspondence.
    world = flat_world(keyframes=2, sweeps=0, board_depth=6.0, board_step=-0.35, board_half=(1.0, 0.7))
    context = world.context()
    block = DisFlowCue(slot="next").extract(context)
    against = block.quality["against_truth"]
    assert against["invented"]["value"] < 0.4
    assert against["epe"]["value"] < 0.5
    assert against["epe_moving"]["count"] > 100
    assert against["epe_moving"]["value"] < 0.1 * against["zero_epe_moving"]["value"]


def test_flow_is_impossible_with_a_single_frame(flat_world) -> None:
    context = flat_world(keyframes=1, sweeps=0).context()
    for slot in ("next", "prev", "aux"):
        block = DisFlowCue(slot=slot).extract(context)
        assert (block.arrays[f"flow/{slot}/flow"] == INVALID_FLOW).all()
        assert (block.arrays[f"flow/{slot}/target_frame"] == -1).all()
        assert block.notes == ["flow impossible: the scene has a single frame (1 camera-frames)"]


def test_a_missing_image_leaves_its_flows_invalid_and_says_so(flat_world) -> None:
    block = DisFlowCue(slot="next").extract(flat_world(keyframes=4, sweeps=0, missing={1}).context())
    assert block.arrays["flow/next/target_frame"][:, 0].tolist() == [-1, -1, 3, -1]
    assert (block.arrays["flow/next/flow"][:2] == INVALID_FLOW).all()
    assert "the camera has no image at this or the next keyframe (2 camera-frames)" in block.notes


def test_the_film_runs_through_the_sweeps_in_the_order_of_travel(flat_world) -> None:
    scene = flat_world(keyframes=3, sweeps=2, missing={2}).scene()
    forward, backward = aim_next(scene)(0, "CAM"), aim_previous(scene)(1, "CAM")
    assert [image.token for image in forward.film] == ["image0", "image1", "image3"]
    assert [image.token for image in backward.film] == ["image3", "image1", "image0"]


def test_drawing_prefers_the_mean_distance() -> None:
    rule = DrawRule(mean=0.5, sigma=0.5, max_distance=6.0)
    distances = np.array([0.5, 1.0, 1.5])
    # Weights 1, exp(-0.5), exp(-2): cumulated shares 0.574, 0.922, 1.
    assert [draw(distances, rule, u) for u in (0.0, 0.57, 0.58, 0.92, 0.93, 0.9999)] == [0, 0, 1, 1, 2, 2]


def test_drawing_keeps_to_its_bounds() -> None:
    rule = DrawRule(mean=0.5, sigma=0.5, max_distance=6.0, max_frames=3)
    assert draw(np.array([7.0, 8.0]), rule, 0.5) is None
    assert draw(np.array([]), rule, 0.5) is None
    assert draw(np.array([5.9, 6.5]), rule, 0.999) == 0, "weights of far frames must not underflow to nothing"
    assert draw(np.array([3.0, 3.0, 3.0, 0.5]), rule, 0.999) < 3
    assert draw(np.array([0.001, 0.5]), rule, 0.999) == 0, "standing still: the frame just before"


def test_the_draw_is_seeded_by_scene_and_keyframe() -> None:
    assert seeded_uniform("scene", "a") == seeded_uniform("scene", "a")
    many = np.array([seeded_uniform("scene", str(k)) for k in range(2000)])
    assert abs(many.mean() - 0.5) < 0.03
    assert 0 <= many.min() < 0.01 < 0.99 < many.max() < 1


def test_aux_targets_are_stored_frames_before_the_keyframe(flat_world) -> None:
    world = flat_world(keyframes=5, sweeps=3, ego_step=0.25)
    context = world.context(sweep_slots=2)
    block = DisFlowCue(slot="aux").extract(context)
    frames, sweeps = block.arrays["flow/aux/target_frame"][:, 0], block.arrays["flow/aux/target_sweep"][:, 0]
    assert frames[0] == -1
    assert (frames[1:] >= 0).all()
    assert (frames[1:] < np.arange(1, 5)).all()
    assert set(sweeps[1:]) <= {-1, 0, 1}, "slot 2 is not stored"
    for t in range(1, 5):
        target = aim_drawn(context.scene, DrawRule(), 2)(t, "CAM")
        assert (target.frame, target.sweep) == (frames[t], sweeps[t])
        steps = world.frame_of(frames[t], sweeps[t]) - world.frame_of(t)
        expected = world.flow(world.frame_of(t), world.frame_of(t) + steps)[0, 0, 0] / 2
        flow = unpack_flow(block.arrays["flow/aux/flow"][t, 0])
        assert np.nanmedian(flow[0]) == pytest.approx(expected, abs=0.1)
    assert block.quality["against_truth"]["static_epe"]["value"] < 0.2
    assert block.notes == ["no earlier frame: first of the scene (1 camera-frames)"]


def test_digests_follow_the_parameters() -> None:
    assert DisFlowCue(slot="next").config_digest() == DisFlowCue(slot="next").config_digest()
    assert DisFlowCue(slot="next").config_digest() != DisFlowCue(slot="next", max_width=640).config_digest()
    assert DisFlowCue(slot="next").config_digest() != DisFlowCue(slot="aux").config_digest()
