"""Black and dead images: no flow begins or ends in one, and a film goes on without those in between."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.cues.base import BlockContext
from pipelines.cues.blank import NOTE, seen_film, shows_nothing
from pipelines.cues.flow_chain import ChainedDisFlowCue
from pipelines.cues.flow_dis import DisFlowCue
from pipelines.cues.flow_field import unpack_flow
from pipelines.cues.flow_tracks import TracksFlowCue
from pipelines.cues.masks_motion import EpipolarMotionMasks
from pipelines.datasets.records import CameraImage
from storage.schema import INVALID_FLOW

FlatWorlds = Callable[..., Any]


def dark(context: BlockContext, tokens: Sequence[str], noise: float = 0.0) -> BlockContext:
    """The context with images that a dead camera wrote in the place of some."""

    def load(image: CameraImage) -> np.ndarray:
        if image.token not in tokens:
            return context.load_image(image)
        level = np.random.default_rng(len(image.token)).normal(3.0, noise, (image.height, image.width, 3))
        return np.clip(level, 0, 255).astype(np.uint8)

    return replace(context, load_image=load)


def test_what_shows_something() -> None:
    rng = np.random.default_rng(0)
    flat = np.full((60, 80, 3), 3.0)
    assert shows_nothing(flat.astype(np.uint8))
    assert shows_nothing(np.broadcast_to(np.array([0, 0, 255], np.uint8), (60, 80, 3)).copy()), "one colour"
    assert shows_nothing(np.clip(rng.normal(flat, 1.5), 0, 255).astype(np.uint8)), "a sensor's noise"
    # Half at 100, half at 106 levels deviate by 3: a night or fog with little in it still counts.
    faint = np.where(np.arange(80)[:, None] < 40, 100, 106) * np.ones((60, 1, 3))
    assert not shows_nothing(faint.astype(np.uint8))


def test_a_film_keeps_its_ends_and_what_shows_something() -> None:
    rng = np.random.default_rng(0)
    a, b, c = rng.integers(0, 255, (3, 20, 30, 3)).astype(np.uint8)
    black = np.zeros((20, 30, 3), np.uint8)
    kept = seen_film([a, black, b, black, c])
    assert kept is not None
    assert [id(image) for image in kept] == [id(a), id(b), id(c)]
    assert seen_film([black, b, c]) is None
    assert seen_film([a, b, black]) is None


@pytest.mark.parametrize("noise", [0.0, 1.5])
@pytest.mark.parametrize("cue", [DisFlowCue, ChainedDisFlowCue, TracksFlowCue])
def test_no_flow_begins_or_ends_in_a_black_image(cue: Any, noise: float, flat_world: FlatWorlds) -> None:
    context = dark(flat_world(keyframes=4, sweeps=0).context(), ["image1"], noise)
    block = cue(slot="next").extract(context)
    invalid = (block.arrays["flow/next/flow"] == INVALID_FLOW).all(axis=(1, 2, 3, 4))
    assert invalid.tolist() == [True, True, False, True]
    assert not block.arrays["flow/next/confidence"][:2].any()
    assert block.arrays["flow/next/target_frame"][:, 0].tolist() == [1, 2, 3, -1], "the target is there, its image not"
    assert f"{NOTE} (2 camera-frames)" in block.notes
    assert block.quality["camera_frames"] == 3
    assert block.quality["valid"]["count"] == 3 * 48 * 80


@pytest.mark.parametrize("cue", [ChainedDisFlowCue, TracksFlowCue])
def test_a_film_goes_on_without_a_black_sweep(cue: Any, flat_world: FlatWorlds) -> None:
    # Six steps of 3 raw px are 9 render px; with the black sweep in the chain nothing or something wrong is found.
    block = cue(slot="next").extract(dark(flat_world(keyframes=2, sweeps=5).context(), ["image3"]))
    flow = unpack_flow(block.arrays["flow/next/flow"][0, 0])
    known = ~np.isnan(flow[0])
    assert known[:, :-10].mean() > 0.9
    assert np.abs(flow[0][known] - 9.0).mean() < 0.2
    assert not any(NOTE in note for note in block.notes)


def test_a_dead_camera_has_no_masks(flat_world: FlatWorlds) -> None:
    # Its flow would be zero, sure of itself, where ego-motion says 3 px: all of it would move.
    context = flat_world(keyframes=2, sweeps=1, ego_step=0.6).context()
    noisy = dark(context, [f"image{i}" for i in range(3)], 1.5)
    assert not EpipolarMotionMasks(flows=()).extract(noisy).arrays["masks/instance"].any()
    made = {"flow_next": ChainedDisFlowCue().extract(noisy).arrays}
    noisy = replace(noisy, upstream=made.__getitem__)
    assert not EpipolarMotionMasks().extract(noisy).arrays["masks/instance"].any()
