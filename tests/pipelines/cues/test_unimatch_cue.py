"""The UniMatch cue: from a checkpoint in the published form and a log on disk to flow in a store."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from pipelines.config import ConfigError, CuesConfig
from pipelines.cues.base import loads_model, needs_gpu
from pipelines.cues.blank import NOTE
from pipelines.cues.unimatch import pairs
from pipelines.cues.unimatch.cue import UniMatchFlowCue
from pipelines.cues.unimatch.inference import CheckRule, flow_both_ways, stays_inside
from pipelines.cues.unimatch.network import UniMatch, save_network
from pipelines.cues.unimatch.variants import SCALE1, Variant
from pipelines.cues.unimatch.weights import load_network
from pipelines.datasets.records import CameraImage
from pipelines.extract import extract_log
from pipelines.weights import WeightsError, file_digest
from storage.reader import StoreReader
from storage.schema import INVALID_FLOW
from storage.verify import verify

TINY = Variant("tiny", scales=1, splits=(2,), widths=(8, 8, 8), channels=16, layers=1)
KEEP_ALL = CheckRule(tolerance=1e4)
"""Random weights never come back to where they left."""


@pytest.fixture
def tiny_weights(tmp_path: Path) -> str:
    torch.manual_seed(2)
    return str(save_network(UniMatch(TINY), tmp_path / "tiny.pth"))


@pytest.fixture(scope="module")
def frames() -> dict[str, np.ndarray]:
    """Images of the flat world: drawing one takes longer than its flow."""
    return {}


@pytest.fixture
def context(flat_world: Callable[..., Any], frames: dict[str, np.ndarray]) -> Any:
    """A small world of four keyframes without sweeps."""
    world = flat_world(keyframes=4, sweeps=0, height=48, width=80, focal=60.0)

    def load(image: CameraImage) -> np.ndarray:
        if image.token not in frames:
            frames[image.token] = world.image(int(image.token.removeprefix("image")))
        return frames[image.token]

    return world.context(load_image=load)


def test_a_published_checkpoint_fills_a_store(cues_config: Callable[..., CuesConfig], tmp_path: Path) -> None:
    torch.manual_seed(3)
    path = tmp_path / "gmflow-scale1-random.pth"
    torch.save({"model": UniMatch(SCALE1).state_dict()}, path)
    flow_cue = {
        "backend": "unimatch",
        "weights": str(path),
        "check": {"tolerance": 1e4},
        "device": "cpu",
        "least_width": 0,
    }
    config = cues_config(
        dataset={**cues_config().dataset.model_dump(), "scenes": ["00"], "options": {"keyframe_every": 6}},
        sizes={"network": (64, 192), "render": (64, 192)},
        cues={"images": {}, "flow_next": flow_cue},
    )
    extract_log(config)
    scene = StoreReader(config.store).scene("00")
    assert verify(config.store) == []
    # Render pixels are raw pixels here, so the store holds the network's own flow, rounded to 1/64 px.
    first, last = (
        torch.from_numpy(_raw(config.dataset.root, frame)).permute(2, 0, 1)[None].float() for frame in (0, 6)
    )
    expected = flow_both_ways(load_network(path), first, last)[0][0].numpy()
    flow, valid = scene.flow("next", 0, 0).pixels()
    # Where the flow leaves the image its neighbours' is stored, if anything.
    stays = stays_inside(torch.from_numpy(expected)[None])[0].numpy()
    assert 0.2 < stays.mean() < 1
    assert valid[stays].all()
    np.testing.assert_allclose(flow[:, stays], expected[:, stays], atol=1 / 64)
    record = next(r for r in _records(config) if r.unit.cue == "flow_next")
    assert record.provenance.weights_digest == file_digest(path)
    assert record.provenance.licence == "MIT"


def _records(config: CuesConfig) -> list[Any]:
    from storage.store import CueStore

    return list(CueStore.open(config.store).records())


def _raw(root: Path, frame: int) -> np.ndarray:
    import cv2

    return np.ascontiguousarray(cv2.imread(str(root / "sequences" / "00" / "image_2" / f"{frame:06d}.png"))[..., ::-1])


@pytest.mark.parametrize("slot", ["next", "prev", "aux"])
def test_every_slot(slot: Any, tiny_weights: str, context: Any) -> None:
    cue = UniMatchFlowCue(slot=slot, weights=tiny_weights, check=KEEP_ALL, batch=2)
    block = cue.extract(context)
    flow = block.arrays[f"flow/{slot}/flow"]
    empty = (flow == INVALID_FLOW).all(axis=(1, 2, 3, 4))
    assert empty.tolist() == {"next": [False] * 3 + [True]}.get(slot, [True] + [False] * 3)
    np.testing.assert_array_equal(block.arrays[f"flow/{slot}/confidence"] == 0, (flow == INVALID_FLOW).any(axis=2))
    assert block.quality["camera_frames"] == 3
    assert len(block.notes) == 1


def test_batches_and_memory_change_nothing(tiny_weights: str, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = []
    for batch, kept in ((1, 0), (3, 0), (3, 1 << 30)):
        monkeypatch.setattr(pairs, "_ANSWERS", pairs.TwoWayCache(kept))
        blocks.append(UniMatchFlowCue(weights=tiny_weights, check=KEEP_ALL, batch=batch).extract(context))
    for other in blocks[1:]:
        found = np.abs(blocks[0].arrays["flow/next/flow"].astype(int) - other.arrays["flow/next/flow"])
        assert found.max() <= 1  # 1/64 px


def test_a_black_image_has_no_flow_and_leaves_the_batch_whole(
    tiny_weights: str, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "_ANSWERS", pairs.TwoWayCache(0))
    asked = []
    original = pairs.flow_both_ways
    monkeypatch.setattr(pairs, "flow_both_ways", lambda n, a, *rest: asked.append(len(a)) or original(n, a, *rest))
    cue = UniMatchFlowCue(weights=tiny_weights, check=KEEP_ALL, batch=2)
    whole = cue.extract(context).arrays["flow/next/flow"]
    seen = context.load_image
    black = replace(context, load_image=lambda i: np.zeros((48, 80, 3), np.uint8) if i.token == "image0" else seen(i))
    asked.clear()
    block = cue.extract(black)
    assert asked == [2], "the two pairs that show something, in one batch"
    flow = block.arrays["flow/next/flow"]
    assert (flow[0] == INVALID_FLOW).all()
    assert np.abs(flow[1:].astype(int) - whole[1:]).max() <= 1  # 1/64 px
    assert f"{NOTE} (1 camera-frames)" in block.notes
    dead = cue.extract(replace(context, load_image=lambda image: np.zeros((48, 80, 3), np.uint8)))
    assert (dead.arrays["flow/next/flow"] == INVALID_FLOW).all()
    assert asked == [2]


def test_the_way_back_is_not_computed_again(tiny_weights: str, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_ANSWERS", pairs.TwoWayCache(1 << 30))
    asked = []
    original = pairs.flow_both_ways
    monkeypatch.setattr(pairs, "flow_both_ways", lambda n, a, *rest: asked.append(len(a)) or original(n, a, *rest))
    there = UniMatchFlowCue(slot="next", weights=tiny_weights, check=KEEP_ALL).extract(context)
    back = UniMatchFlowCue(slot="prev", weights=tiny_weights, check=KEEP_ALL).extract(context)
    assert asked == [3]
    monkeypatch.setattr(pairs, "_ANSWERS", pairs.TwoWayCache(0))
    anew = UniMatchFlowCue(slot="prev", weights=tiny_weights, check=KEEP_ALL).extract(context)
    np.testing.assert_array_equal(back.arrays["flow/prev/flow"], anew.arrays["flow/prev/flow"])
    assert (there.arrays["flow/next/flow"][0] != back.arrays["flow/prev/flow"][1]).any()


def test_answers_are_kept_within_their_bytes() -> None:
    field = pairs.FlowField(np.zeros((2, 10, 10), np.float32), np.zeros((10, 10), np.float32))
    kept = pairs.TwoWayCache(3 * 2400)
    for key in "abcd":
        kept.put(key, (field, field))
    assert [kept.get(key) is not None for key in "abcd"] == [False, True, True, True]


def test_what_changes_the_flow_changes_the_digest(tiny_weights: str, tmp_path: Path) -> None:
    cue = UniMatchFlowCue(weights=tiny_weights)
    copy = tmp_path / "copy.pth"
    copy.write_bytes(Path(tiny_weights).read_bytes())
    same = [UniMatchFlowCue(weights=str(copy)), UniMatchFlowCue(weights=tiny_weights, batch=9, device="cpu")]
    assert {other.config_digest() for other in same} == {cue.config_digest()}
    other_weights = str(save_network(UniMatch(TINY), tmp_path / "other.pth"))
    different = [
        UniMatchFlowCue(weights=tiny_weights, slot="prev"),
        UniMatchFlowCue(weights=tiny_weights, precision="float16"),
        UniMatchFlowCue(weights=tiny_weights, size=(32, 64)),
        UniMatchFlowCue(weights=tiny_weights, least_width=0),
        UniMatchFlowCue(weights=tiny_weights, check=CheckRule(2.0)),
        UniMatchFlowCue(weights=other_weights),
    ]
    assert len({other.config_digest() for other in [cue, *different]}) == 7


@pytest.mark.parametrize(
    ("least_width", "size", "seen"),
    [
        (0, None, (48, 80)),
        (80, None, (48, 80)),
        (160, None, (96, 160)),
        (150, None, (96, 160)),
        (160, (32, 64), (32, 64)),
    ],
)
def test_small_pictures_are_seen_enlarged(
    tiny_weights: str, context: Any, least_width: int, size: tuple[int, int] | None, seen: tuple[int, int]
) -> None:
    cue = UniMatchFlowCue(weights=tiny_weights, device="cpu", least_width=least_width, size=size)
    looked: list[tuple[int, int]] = []

    def forward(self: UniMatch, first: torch.Tensor, *rest: Any, **named: Any) -> Any:
        looked.append(tuple(first.shape[-2:]))  # type: ignore[arg-type]
        return original(self, first, *rest, **named)

    original = UniMatch.forward
    with mock.patch.object(UniMatch, "forward", forward):
        cue.extract(context)
    assert set(looked) == {seen}


def test_where_it_runs(tiny_weights: str) -> None:
    assert loads_model(UniMatchFlowCue())
    assert [needs_gpu(UniMatchFlowCue(device=device)) for device in ("auto", "cpu", "cuda", "cuda:1")] == [
        False, False, True, True,
    ]  # fmt: skip


def test_what_cannot_be_used_is_told_before_a_frame_is_read(tiny_weights: str, context: Any) -> None:
    def never(image: object) -> np.ndarray:
        raise AssertionError("a frame was read")

    context = replace(context, load_image=never)
    with pytest.raises(WeightsError, match=r"nowhere\.pth"):
        UniMatchFlowCue(weights="/nowhere.pth").extract(context)
    with pytest.raises(ConfigError, match=r"size = \[30, 64\].*multiples of 16"):
        UniMatchFlowCue(weights=tiny_weights, size=(30, 64)).extract(context)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="sees no GPU"):
            UniMatchFlowCue(weights=tiny_weights, device="cuda").extract(context)
    with pytest.raises(ValueError, match="batch = 0: expected 1 or more"):
        UniMatchFlowCue(batch=0)
