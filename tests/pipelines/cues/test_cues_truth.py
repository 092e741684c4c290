"""Truth copies: grids, units, invalid marks."""

from dataclasses import dataclass

import numpy as np

from pipelines.cues.flow_field import unpack_flow
from pipelines.cues.truth import CameraTruth, OccupancyTruth, camera_truth


def test_camera_truth_lands_on_the_grids_of_the_cues(flat_world) -> None:
    world = flat_world(keyframes=2, sweeps=0, board_depth=6.0, board_step=-0.35)
    block = CameraTruth().extract(world.context())
    flow = unpack_flow(block.arrays["camera/flow_next"][0, 0])
    # Wall: 3 raw px; board: 120 * 0.65 / 6 = 13 raw px; the render grid is half as fine.
    assert set(np.unique(flow[0][~np.isnan(flow[0])])) == {1.5, 6.5}
    assert np.isnan(flow[:, :, -1]).all()
    depth = block.arrays["camera/depth"][0, 0]
    np.testing.assert_allclose(np.sort(np.unique(depth)), [6.0, 12.0], rtol=1e-6)
    assert (block.arrays["camera/moving"][0, 0] == (block.arrays["camera/instance"][0, 0] == 1)).all()
    assert abs(block.arrays["camera/moving"][0, 0].mean() - world.board_seen(0).mean()) < 0.02
    assert block.arrays["camera/valid"].tolist() == [[1], [1]]
    assert np.isnan(unpack_flow(block.arrays["camera/flow_next"][1, 0])).all()


def test_a_missing_image_or_absent_truth_is_marked_invalid(flat_world) -> None:
    missing = CameraTruth().extract(flat_world(keyframes=2, sweeps=0, missing={0}).context())
    assert missing.arrays["camera/valid"].tolist() == [[0], [1]]
    assert np.isnan(missing.arrays["camera/depth"][0]).all()
    absent = CameraTruth().extract(flat_world(keyframes=2, sweeps=0).context(truth=None))
    assert absent.arrays["camera/valid"].tolist() == [[0], [0]]


def test_true_flow_into_a_sweep_is_left_out(flat_world) -> None:
    """As where every frame of a log counts as a keyframe in its truth, and every second one is one here."""
    world = flat_world(keyframes=3, sweeps=1, board_depth=6.0, board_step=-0.35)
    truth = world.context().truth

    @dataclass
    class Ends:
        step: int

        def camera(self, token: str, channel: str) -> dict[str, np.ndarray] | None:
            return truth.camera(token, channel)

        def flow_target(self, token: str) -> str:
            return f"frame{int(token.removeprefix('frame')) + self.step}"

    right = CameraTruth().extract(world.context(truth=Ends(2)))
    whole = CameraTruth().extract(world.context())
    assert right.notes == whole.notes == []
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(right.arrays[name], array)
    wrong = CameraTruth().extract(world.context(truth=Ends(1)))
    assert wrong.notes == ["no true flow at 2 camera-frames: the log's does not end in the next keyframe"]
    assert np.isnan(unpack_flow(wrong.arrays["camera/flow_next"][:, 0])).all()
    for name in ("camera/depth", "camera/instance", "camera/moving", "camera/valid"):
        np.testing.assert_array_equal(wrong.arrays[name], whole.arrays[name])
    assert set(camera_truth(world.context(truth=Ends(1)), 0, world.channel)) == {"depth", "instance", "moving"}


@dataclass
class SparseTruth:
    """Occupancy at the second keyframe only, without flow at the third."""

    def occupancy(self, token: str) -> tuple[np.ndarray, np.ndarray | None] | None:
        semantics = np.full((2, 3, 4), 16, np.uint8)
        flow = np.full((2, 3, 4, 2), 1.5, np.float32)
        return {"frame1": (semantics, flow), "frame2": (semantics, None)}.get(token)

    def camera(self, token: str, channel: str) -> None:
        return None


def test_occupancy_is_copied_where_there_is_some(flat_world) -> None:
    block = OccupancyTruth().extract(flat_world(keyframes=3, sweeps=0).context(truth=SparseTruth()))
    assert block.arrays["occupancy/valid"].tolist() == [0, 1, 1]
    assert (block.arrays["occupancy/semantics"][0] == 255).all()
    assert (block.arrays["occupancy/semantics"][1] == 16).all()
    assert (block.arrays["occupancy/flow"][1] == 1.5).all()
    assert (block.arrays["occupancy/flow"][2] == 0).all()
    assert block.notes == [
        "no occupancy truth at 1 of 3 keyframes",
        "occupancy truth without flow at 1 keyframes: its flow is stored as zero",
    ]


def test_a_block_without_any_truth_has_the_configured_shape(flat_world) -> None:
    block = OccupancyTruth(shape=(4, 5, 6)).extract(flat_world(keyframes=2, sweeps=0).context(truth=None))
    assert block.arrays["occupancy/semantics"].shape == (2, 4, 5, 6)
    assert block.arrays["occupancy/flow"].shape == (2, 4, 5, 6, 2)
