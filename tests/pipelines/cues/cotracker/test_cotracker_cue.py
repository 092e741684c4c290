"""The cues around the trackers, with a stand-in for the package whose tracks are known exactly."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from pipelines import registry
from pipelines.config import ConfigError, CuesConfig
from pipelines.cues.base import BlockContext, CueBlock, loads_model, needs_gpu, parameters_digest
from pipelines.cues.blank import NOTE
from pipelines.cues.cotracker.cue import CoTrackerFlowCue
from pipelines.cues.instances import InstanceTable
from pipelines.extract import extract_log
from pipelines.registry import check_cue
from pipelines.weights import WeightsError, file_digest
from storage.layout import UnitId
from storage.reader import StoreReader
from storage.schema import FLOW_SCALE, INVALID_FLOW
from storage.store import CueStore
from storage.verify import verify

MOTION = (0.8, 0.3)
"""Pixels of the 48x64 image that the stand-in looks at, per frame."""
LEFT, RIGHT = np.s_[12:24, 8:22], np.s_[10:20, 56:70]
SURE = 0.9 * 0.75


def grey(level: int) -> np.ndarray:
    """An even image with a bright strip far below the masks: an image without anything in it would have no flow."""
    image = np.full((96, 160, 3), level, np.uint8)
    image[88:] += 40
    return image


@pytest.fixture
def context(flat_world: Callable[..., Any]) -> BlockContext:
    """Three keyframes of 96x160 with two sweeps between, 48x80 in the store; images get brighter with time.

    At keyframe 0 a thing on the left, which stays visible, and one on the right, which does not; keyframe 1 is empty.
    """
    instance = np.zeros((3, 1, 48, 80), np.uint16)
    instance[0, 0][LEFT], instance[0, 0][RIGHT] = 4, 2
    instance[2, 0][LEFT] = 5

    def brightness(image: Any) -> np.ndarray:
        return grey(50 + 10 * int(image.token.removeprefix("image")))

    return flat_world(keyframes=3, sweeps=2).context(
        load_image=brightness, upstream=lambda cue: {"masks": {"masks/instance": instance}}[cue], truth=None
    )


def expected(frames: int = 3) -> np.ndarray:
    """Render pixels: the stand-in's motion, stretched back between pixel centres, at half the size."""
    return 0.5 * frames * np.array(MOTION) * [159 / 63, 95 / 47]


def test_tracks_inside_masks_and_nothing_elsewhere(
    context: BlockContext, stand_in: list[Any], checkpoint: Callable[..., str]
) -> None:
    block = CoTrackerFlowCue(weights=checkpoint(MOTION), device="cpu").extract(context)
    flow, sure = block.arrays["flow/next/flow"], block.arrays["flow/next/confidence"]
    inside = np.zeros((48, 80), bool)
    inside[LEFT] = True
    valid = (flow[0, 0] != INVALID_FLOW).all(axis=0)
    np.testing.assert_array_equal(valid, inside)
    assert np.abs(flow[0, 0][:, inside].T / FLOW_SCALE - expected()).max() <= 1 / FLOW_SCALE
    assert set(sure[0, 0][inside]) == {round(255 * SURE)}
    assert not sure[0, 0][~inside].any()
    assert (flow[1:] == INVALID_FLOW).all()
    assert len(stand_in) == 1, "nothing is computed where there is no mask"
    assert stand_in[0][0] == (1, 4, 3, 48, 64)
    cells = len(ask_cells(LEFT)) + len(ask_cells(RIGHT))
    assert stand_in[0][1] == cells + 36
    assert block.arrays["flow/next/target_frame"].ravel().tolist() == [1, 2, -1]
    assert block.quality["camera_frames"] == 2
    assert block.quality["without_masks"] == 1
    assert block.quality["queries"] == cells
    assert block.quality["valid"] == {"value": pytest.approx(inside.sum() / (2 * 48 * 80)), "count": 2 * 48 * 80}
    assert block.notes == ["no next keyframe: last of the scene (1 camera-frames)"]


def ask_cells(box: tuple[slice, slice]) -> set[tuple[int, int]]:
    """Cells of 3 pixels that a box of network pixels, twice as large in the image, touches."""
    rows, columns = (range(2 * part.start, 2 * part.stop) for part in box)
    return {(v // 3, u // 3) for v in rows for u in columns}


def test_to_the_previous_keyframe(context: BlockContext, stand_in: list[Any], checkpoint: Callable[..., str]) -> None:
    block = CoTrackerFlowCue(slot="prev", weights=checkpoint(MOTION, under="model"), device="cpu").extract(context)
    flow = block.arrays["flow/prev/flow"]
    assert (flow[:2] == INVALID_FLOW).all()
    inside = (flow[2, 0] != INVALID_FLOW).all(axis=0)
    assert inside.sum() == 12 * 14
    assert np.abs(flow[2, 0][:, inside].T / FLOW_SCALE + expected()).max() <= 1 / FLOW_SCALE
    assert block.arrays["flow/prev/target_frame"].ravel().tolist() == [-1, 0, 1]


def test_visibility_is_kept_as_confidence(
    context: BlockContext, stand_in: list[Any], checkpoint: Callable[..., str]
) -> None:
    weights = checkpoint(MOTION)
    block = CoTrackerFlowCue(weights=weights, device="cpu", least_visibility=0.0).extract(context)
    sure = block.arrays["flow/next/confidence"][0, 0]
    assert set(sure[LEFT].ravel()) == {round(255 * SURE)}
    assert set(sure[RIGHT].ravel()) == {round(255 * 0.1 * 0.75)}


def test_points_in_turns_are_tracked_alike(
    context: BlockContext, stand_in: list[Any], checkpoint: Callable[..., str]
) -> None:
    weights = checkpoint(MOTION)
    whole = CoTrackerFlowCue(weights=weights, device="cpu").extract(context)
    asked = stand_in.pop()[1] - 36
    parts = CoTrackerFlowCue(weights=weights, device="cpu", memory_mb=10).extract(context)
    most = (10 << 20) // (130_000 * 4)
    assert len(stand_in) == -(-asked // most)
    assert sum(count - 36 for _, count in stand_in) == asked
    assert max(count - 36 for _, count in stand_in) <= most
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(array, parts.arrays[name])


def test_a_short_film_fills_the_window_of_version_2(
    context: BlockContext, stand_in: list[Any], checkpoint: Callable[..., str]
) -> None:
    block = CoTrackerFlowCue(weights=checkpoint(MOTION, window=16, v2=True), device="cpu").extract(context)
    assert stand_in[0][0][1] == 16
    flow = block.arrays["flow/next/flow"][0, 0]
    assert np.abs(flow[:, 15, 15] / FLOW_SCALE - expected()).max() <= 1 / FLOW_SCALE, "its end is the target, frame 3"
    assert block.arrays["flow/next/confidence"][0, 0, 15, 15] == round(255 * 0.9), "no confidence but visibility"


def test_tracks_that_do_not_come_back_are_dropped(
    context: BlockContext, stand_in: list[Any], checkpoint: Callable[..., str]
) -> None:
    cue = CoTrackerFlowCue(weights=checkpoint(MOTION), device="cpu", check_back=True)
    kept = cue.extract(context).arrays["flow/next/confidence"][0, 0]
    assert set(kept[LEFT].ravel()) <= {round(255 * SURE), round(255 * SURE) - 1}, "the way back ends where it began"
    assert stand_in[1][1] == len(ask_cells(LEFT)) + 36, "only what is seen at its end is followed back"
    # In a film that does not change the stand-in goes on in the same direction.
    context.load_image = lambda image: grey(80)
    assert not cue.extract(context).arrays["flow/next/confidence"].any()


def test_a_track_out_of_the_picture_has_no_flow(
    context: BlockContext, stand_in: list[Any], checkpoint: Callable[..., str]
) -> None:
    block = CoTrackerFlowCue(weights=checkpoint((-5.0, 0.0)), device="cpu").extract(context)
    valid = (block.arrays["flow/next/flow"][0, 0] != INVALID_FLOW).all(axis=0)
    # 15 pixels of 64 to the left are 18.9 of the 80 columns.
    assert valid[LEFT].any()
    assert not valid[:, :18].any()
    assert valid[15, 19:22].all()


def test_no_track_begins_or_ends_in_a_black_image_or_goes_through_one(
    context: BlockContext, stand_in: list[Any], checkpoint: Callable[..., str]
) -> None:
    cue = CoTrackerFlowCue(weights=checkpoint(MOTION), device="cpu")
    seen = context.load_image

    def black(token: str) -> BlockContext:
        return replace(
            context, load_image=lambda image: np.zeros((96, 160, 3), np.uint8) if image.token == token else seen(image)
        )

    block = cue.extract(black("image3"))
    assert (block.arrays["flow/next/flow"] == INVALID_FLOW).all()
    assert f"{NOTE} (1 camera-frames)" in block.notes
    assert block.quality["queries"] == 0
    assert not stand_in, "the network is not asked"
    flow = cue.extract(black("image1")).arrays["flow/next/flow"][0, 0]
    assert stand_in[0][0][1] == 3, "the film without the black image"
    assert np.abs(flow[:, 15, 15] / FLOW_SCALE - expected(2)).max() <= 1 / FLOW_SCALE


def test_without_the_package_the_error_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Callable[..., str], context: BlockContext
) -> None:
    monkeypatch.setitem(sys.modules, "cotracker", None)
    cue = CoTrackerFlowCue(weights=checkpoint(MOTION))
    for ask_for in (cue.config_digest, lambda: cue.extract(context)):
        with pytest.raises(WeightsError, match=r"pip install git\+https://github.com/facebookresearch/co-tracker"):
            ask_for()
    assert cue.licence() == "CC-BY-NC-4.0"


def test_checkpoints_of_something_else(
    stand_in: list[Any], checkpoint: Callable[..., str], context: BlockContext, tmp_path: Any
) -> None:
    def refused(weights: str, match: str, **changes: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            CoTrackerFlowCue(weights=weights, device="cpu", **changes).extract(context)

    refused(checkpoint(MOTION, window=16), "16 frames is CoTracker 3's online model; expected cotracker2.pth")
    torch.save({"fnet.weight": torch.zeros(1)}, tmp_path / "old.pth")
    refused(str(tmp_path / "old.pth"), "old.pth: not a checkpoint of CoTracker 2 or 3")
    torch.save({"time_emb": torch.zeros(1, 60, 4), "other": torch.zeros(1)}, tmp_path / "odd.pth")
    refused(str(tmp_path / "odd.pth"), "odd.pth: does not fit the network.*motion.weight")
    refused("cotracker3-offline", "get https://huggingface.co/facebook/cotracker3.*CC-BY-NC")
    refused(checkpoint(MOTION), r"size = \[62, 90\]: expected multiples of 4", size=(62, 90))
    refused(checkpoint(MOTION, window=8, v2=True), r"looks at \[48, 64\] only", size=(96, 128))


def test_a_larger_size(context: BlockContext, stand_in: list[Any], checkpoint: Callable[..., str]) -> None:
    cue = CoTrackerFlowCue(weights=checkpoint(MOTION), device="cpu", size=(96, 160))
    flow = cue.extract(context).arrays["flow/next/flow"][0, 0]
    assert stand_in[0][0][-2:] == (96, 160)
    assert np.abs(flow[:, 15, 15] / FLOW_SCALE - 1.5 * np.array(MOTION)).max() <= 1 / FLOW_SCALE


def test_parameters(stand_in: list[Any], checkpoint: Callable[..., str]) -> None:
    weights = checkpoint(MOTION)
    cue = CoTrackerFlowCue(weights=weights)
    assert loads_model(cue)
    assert not needs_gpu(cue)
    assert needs_gpu(CoTrackerFlowCue(device="cuda:1"))
    assert cue.config_digest() == CoTrackerFlowCue(weights=weights, device="cpu", threads=2).config_digest()
    changed = [{"slot": "prev"}, {"stride": 2}, {"memory_mb": 7}, {"least_visibility": 0.1}, {"size": (96, 128)}]
    assert len({CoTrackerFlowCue(**{"weights": weights, **change}).config_digest() for change in [{}, *changed]}) == 6
    check_cue("flow_prev", {"backend": "cotracker", "stride": 2, "size": [384, 512]})
    for wrong in ({"stride": 0}, {"memory_mb": 0}, {"least_visibility": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            check_cue("flow_next", {"backend": "cotracker", **wrong})


@dataclass(frozen=True)
class BoxMasks:
    """One thing in the same place at every keyframe."""

    name: ClassVar[str] = "masks"
    needs: ClassVar[tuple[str, ...]] = ()

    def config_digest(self) -> str:
        return parameters_digest(self, version=1)

    def licence(self) -> str:
        return "Apache-2.0"

    def extract(self, context: BlockContext) -> CueBlock:
        count = context.stop - context.start
        table = InstanceTable((count, len(context.cameras)), context.sizes.network)
        labels = np.zeros(context.sizes.network, np.int32)
        labels[8:24, 10:30] = 1
        for i in range(count):
            table.add(i, 0, labels, scores=[1.0])
        return CueBlock({"masks/instance": table.instance, "masks/table": table.table})


@pytest.fixture
def box_masks(monkeypatch: pytest.MonkeyPatch) -> str:
    """A masks backend of another distribution."""
    module = ModuleType("box_masks")
    module.BoxMasks = BoxMasks  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "box_masks", module)
    monkeypatch.setattr(registry, "_installed", lambda: (("masks", "box", "box_masks:BoxMasks"),))
    return "box"


def test_a_store_with_its_licence(
    cues_config: Callable[..., CuesConfig],
    box_masks: str,
    stand_in: list[Any],
    checkpoint: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    weights = checkpoint((0.5, 0.0))
    track = {"backend": "cotracker", "weights": weights, "device": "cpu"}
    config = cues_config(cues={"images": {}, "flow_next": track, "flow_prev": track, "masks": {"backend": box_masks}})
    with caplog.at_level(logging.WARNING):
        assert extract_log(config).failed == {}
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "CoTracker is CC-BY-NC-4.0, code and weights"
    ], "told once"
    assert verify(config.store) == []
    store = CueStore.open(config.store)
    for cue in ("flow_next", "flow_prev"):
        record = store.record(UnitId(cue, "00", 0))
        assert record is not None
        assert record.provenance.licence == "CC-BY-NC-4.0"
        assert record.provenance.weights_digest == file_digest(Path(weights))
        assert set(record.provenance.upstream) == {"masks"}
    flow, valid = StoreReader(config.store).scene("00").flow("next", 0, 0).pixels()
    assert 0 < valid.sum() <= 8 * 10
    length = 2 * 0.5 * 191 / 63 * 48 / 192  # two frames; forth or back, as the images happen to get brighter or darker
    np.testing.assert_allclose(np.abs(flow[0][valid]), length, atol=1 / 64)
