"""Two backends put together: each pixel is that of the one its mask asks for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipelines.cues.base import BlockContext, loads_model, needs_gpu
from pipelines.cues.cotracker.composed import ComposedFlowCue
from pipelines.cues.flow_dis import DisFlowCue
from pipelines.cues.flow_tracks import TracksFlowCue
from pipelines.registry import check_cue
from storage.schema import FLOW_INSIDE, FLOW_OUTSIDE, INVALID_FLOW, NO_FLOW

PARTS: dict[str, Any] = {"inside": {"backend": "tracks", "max_width": 160}, "outside": {"backend": "dis"}}


@pytest.fixture
def context(flat_world: Callable[..., Any]) -> BlockContext:
    """A board that moves in front of a wall, and a mask around it that is a little too wide."""
    world = flat_world(keyframes=2, sweeps=1, board_depth=6.0, board_step=0.2)
    instance = np.zeros((2, 1, 48, 80), np.uint16)
    for i, frame in enumerate((0, 2)):
        rows, columns = np.nonzero(world.board_seen(frame)[::2, ::2])
        instance[i, 0, rows.min() - 1 : rows.max() + 2, columns.min() - 1 : columns.max() + 2] = i + 1
    return world.context(upstream=lambda cue: {"masks": {"masks/instance": instance}}[cue])


@pytest.mark.parametrize("slot", ["next", "prev"])
def test_each_pixel_is_of_its_own_source(slot: Any, context: BlockContext) -> None:
    block = ComposedFlowCue(slot=slot, **PARTS).extract(context)
    tracks = TracksFlowCue(slot=slot, max_width=160).extract(context).arrays
    dis = DisFlowCue(slot=slot).extract(context).arrays
    i = 0 if slot == "next" else 1
    instance = context.upstream("masks")["masks/instance"][i, 0]
    for name in (f"flow/{slot}/flow", f"flow/{slot}/confidence"):
        got = block.arrays[name][i, 0]
        np.testing.assert_array_equal(got[..., instance > 0], tracks[name][i, 0][..., instance > 0])
        np.testing.assert_array_equal(got[..., instance == 0], dis[name][i, 0][..., instance == 0])
        assert (got != tracks[name][i, 0]).any()
        assert (got != dis[name][i, 0]).any()
        np.testing.assert_array_equal(block.arrays[name][1 - i], dis[name][1 - i])
    for name in (f"flow/{slot}/target_frame", f"flow/{slot}/target_sweep"):
        np.testing.assert_array_equal(block.arrays[name], dis[name])
    flow = block.arrays[f"flow/{slot}/flow"][i, 0]
    sources = block.arrays[f"flow/{slot}/source"][i, 0]
    assert not block.arrays[f"flow/{slot}/source"][1 - i].any(), "no target there"
    known = (flow[0] != INVALID_FLOW) & (flow[1] != INVALID_FLOW)
    np.testing.assert_array_equal(sources == NO_FLOW, ~known)
    np.testing.assert_array_equal(sources == FLOW_INSIDE, known & (instance > 0))
    np.testing.assert_array_equal(sources == FLOW_OUTSIDE, known & (instance == 0))
    shares = block.quality["sources"]
    assert shares["inside"] == {"value": pytest.approx((sources == FLOW_INSIDE).mean()), "count": sources.size}
    assert shares["outside"] == {"value": pytest.approx((sources == FLOW_OUTSIDE).mean()), "count": sources.size}
    assert block.quality["camera_frames"] == 1
    assert block.notes[0] == "source 2: tracks, inside masks; 1: dis"
    assert len(block.notes) == 2, "what both parts note is told once"


def test_what_the_parts_are_is_told() -> None:
    cue = ComposedFlowCue(**PARTS)
    assert cue.needs == ("masks",)
    assert cue.licence() == "Apache-2.0"
    assert cue.weights_digest == ""
    assert not loads_model(cue)
    both = ComposedFlowCue(inside={"backend": "cotracker", "device": "cuda"}, outside={"backend": "unimatch"})
    assert both.licence() == "CC-BY-NC-4.0 AND MIT"
    assert needs_gpu(both)
    assert loads_model(both)
    others = [ComposedFlowCue(slot="prev", **PARTS), ComposedFlowCue(inside=PARTS["inside"], outside=PARTS["inside"])]
    assert len({part.config_digest() for part in (cue, *others)}) == 3


def test_wrong_parts_are_told() -> None:
    check_cue("flow_next", {"backend": "composed", **PARTS})
    for parameters, told in (
        ({"inside": {"backend": "composed"}}, "inside.backend = 'composed'"),
        ({"outside": {}}, "outside.backend = None"),
        ({"inside": {"backend": "track"}}, "did you mean 'tracks'"),
        ({"inside": {"backend": "tracks", "max_widht": 3}}, "did you mean 'max_width'"),
    ):
        with pytest.raises(ValueError, match=told):
            check_cue("flow_next", {"backend": "composed", **PARTS, **parameters})
