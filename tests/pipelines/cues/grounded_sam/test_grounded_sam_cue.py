"""The cue around the models: from a log to the store with random weights, and its own logic with a known finder."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipelines.config import ConfigError, CuesConfig
from pipelines.cues.base import CueBlock, ImageSizes, loads_model, needs_gpu
from pipelines.cues.flow_chain import ChainedDisFlowCue
from pipelines.cues.grounded_sam.choice import Model
from pipelines.cues.grounded_sam.cue import GroundedSamMasks, PromptedMasks, Sam3Masks
from pipelines.cues.grounded_sam.own_car import own_car_mask
from pipelines.cues.grounded_sam.prompts import Prompts
from pipelines.cues.grounded_sam.records import Candidates, Image
from pipelines.cues.grounded_sam.runtime import Runtime
from pipelines.cues.grounded_sam.views import view, view_factor
from pipelines.extract import extract_log
from pipelines.registry import check_cue
from pipelines.weights import WeightsError, weights_digest
from storage.layout import UnitId
from storage.reader import StoreReader
from storage.schema import MASK_TABLE_FIELDS
from storage.store import CueStore
from storage.verify import verify

COLUMN = {name: k for k, name in enumerate(MASK_TABLE_FIELDS)}
FlatWorlds = Callable[..., Any]


def random_masks(dino: Path, sam: Path) -> dict[str, Any]:
    """Parameters under which random weights find something."""
    return {
        "backend": "grounded_sam",
        "detector": {"weights": str(dino)},
        "segmenter": {"weights": str(sam)},
        "prompts": {"car": ["car", "van"], "pedestrian": ["person"]},
        "detection": {"score": 0.5, "word": 0.0},
        "boxes": {"own_car": {"width": 1.1, "area": 1.1}, "most": 8},
        "masks": {"least_region": 4},
        "tiles": {"columns": 2},
        "runtime": {"device": "cpu", "images": 2},
    }


def cues_with(masks: dict[str, Any]) -> dict[str, Any]:
    return {"images": {}, "flow_next": {"backend": "dis"}, "masks": masks}


def test_random_weights_make_a_store(
    cues_config: Callable[..., CuesConfig], dino_folder: Path, sam_folder: Path
) -> None:
    config = cues_config(cues=cues_with(random_masks(dino_folder, sam_folder)), dataset=_one_scene(cues_config))
    report = extract_log(config)
    assert report.failed == {}
    reader = StoreReader(config.store)
    scene = reader.scene("00")
    ids = 0
    for t in range(scene.length):
        masks, table = scene.masks(t, 0), scene.mask_table(t, 0)
        assert set(np.unique(masks)) - {0} == set(table[:, COLUMN["id"]])
        assert set(table[:, COLUMN["class"]]) <= {0, 7}
        assert (table[:, COLUMN["linked"]] > 0).all()
        ids += len(table)
    assert ids > 0
    record = CueStore.open(config.store).record(UnitId("masks", "00", 0))
    assert record is not None
    parts = [weights_digest(dino_folder), weights_digest(sam_folder)]
    assert record.provenance.weights_digest == _digest_of(parts)
    assert record.provenance.licence == "Apache-2.0"
    assert list(record.provenance.upstream) == ["flow_next"]
    assert record.provenance.quality["instances"] > 0
    assert verify(config.store) == []
    assert extract_log(config).committed == 0


def _one_scene(cues_config: Callable[..., CuesConfig]) -> dict[str, Any]:
    return {**cues_config().dataset.model_dump(), "scenes": ("00",)}


def _digest_of(parts: Sequence[str]) -> str:
    from pipelines.config import json_digest

    return json_digest(list(parts))


def test_sam3_runs_by_the_same_way(cues_config: Callable[..., CuesConfig], sam3_folder: Path) -> None:
    masks = {
        "backend": "sam3",
        "model": {"weights": str(sam3_folder)},
        "detection": {"score": 0.0},
        "prompts": {"bus": ["bus"]},
        "boxes": {"most": 3},
        "masks": {"least_region": 1},
        "link_flow": "none",
        "runtime": {"device": "cpu"},
    }
    config = cues_config(cues={"images": {}, "masks": masks}, dataset=_one_scene(cues_config), block_keyframes=40)
    assert extract_log(config).failed == {}
    record = CueStore.open(config.store).record(UnitId("masks", "00", 0))
    assert record is not None
    assert record.provenance.licence == "SAM License"
    assert record.provenance.weights_digest == weights_digest(sam3_folder)
    assert record.provenance.quality["by_class"].keys() <= {"bus"}


def test_damaged_weights_are_told_and_never_skipped(
    cues_config: Callable[..., CuesConfig], dino_folder: Path, sam_folder: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(sam_folder, tmp_path / "sam")
    whole = (own / "model.safetensors").read_bytes()
    (own / "model.safetensors").write_bytes(whole[:-10])
    config = cues_config(cues=cues_with(random_masks(dino_folder, own)), on_error="skip")
    with pytest.raises(WeightsError, match=r"model\.safetensors: .* promises .* download it again"):
        extract_log(config)
    assert not config.store.exists()
    gone = cues_config(cues=cues_with(random_masks(dino_folder, tmp_path / "nowhere")))
    with pytest.raises(WeightsError, match="nowhere: no such file or folder"):
        extract_log(gone)


def test_the_digest_is_of_what_matters(dino_folder: Path, sam_folder: Path, tmp_path: Path) -> None:
    def digest(**changes: Any) -> str:
        values: dict[str, Any] = {
            "detector": Model(weights=str(dino_folder)),
            "segmenter": Model(weights=str(sam_folder)),
        }
        return GroundedSamMasks(**values | changes).config_digest()

    moved = shutil.copytree(sam_folder, tmp_path / "elsewhere")
    same = {
        digest(),
        digest(segmenter=Model(weights=str(moved))),
        digest(runtime=Runtime("cpu", images=1, boxes=3)),
        digest(threads=4),
    }
    assert len(same) == 1
    painted = tmp_path / "hood.png"
    cv2.imwrite(str(painted), np.full((4, 4), 255, np.uint8))
    others = {
        digest(prompts={"car": ("car",)}),
        digest(runtime=Runtime(precision="bfloat16")),
        digest(own_car={"CAM": ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))}),
        digest(own_car={"CAM": str(painted)}),
        digest(link_flow="none"),
    }
    cv2.imwrite(str(painted), np.zeros((4, 4), np.uint8))
    others.add(digest(own_car={"CAM": str(painted)}))
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    others.add(digest(segmenter=Model(weights=str(moved))))
    assert len(others) == 7
    assert not others & same


def test_parameters_that_cannot_be() -> None:
    check_cue("masks", {"backend": "grounded_sam", "own_car": {"CAM_BACK": [[0, 0], [9, 0], [9, 9]]}})
    for key, value, words in [
        (
            "segmenter",
            {"kind": "groundingdino"},
            "segmenter.kind = 'groundingdino': expected transformers or segment_any",
        ),
        ("detector", {"download": True}, "detector.weights is not given: name them beside the rest"),
        ("segmenter", {"kind": "segment_anything"}, "segmenter.weights is not given"),
        ("runtime", {"images": 0}, "images = 0: expected 1 or more"),
        ("tiles", {"overlap": 1.0}, "overlap = 1: expected 0 or more, below 1"),
        ("link_flow", "dis", "'flow_next', 'dis_chain' or 'none'"),
        ("promts", {}, "did you mean 'prompts'"),
    ]:
        with pytest.raises(ValueError, match="masks") as caught:
            check_cue("masks", {"backend": "grounded_sam", key: value})
        assert words in str(caught.value)
    with pytest.raises(ValueError, match=r"model\.weights is not given"):
        check_cue("masks", {"backend": "sam3", "model": {"revision": "main"}})


def test_which_units_go_where() -> None:
    assert loads_model(GroundedSamMasks())
    assert not needs_gpu(GroundedSamMasks())
    assert needs_gpu(Sam3Masks(runtime=Runtime("cuda:1")))
    assert GroundedSamMasks().needs == ("flow_next",)
    assert GroundedSamMasks(link_flow="dis_chain").needs == ()


class KnownMasks(PromptedMasks):
    """Finds the board of a FlatWorld, told apart from its wall by the frame's own truth, and a hood at the bottom."""

    world: Any
    shown: list[tuple[Any, ...]]
    frames: dict[int, np.ndarray]

    @property
    def weights_digest(self) -> str:  # type: ignore[override]
        return "none"

    @property
    def models(self) -> dict[str, Model]:
        return {}

    def build(self, prompts: Prompts, classes: Sequence[str]) -> "KnownMasks":
        self.shown.append(tuple(classes))
        return self

    def __call__(self, images: Sequence[Image], size: tuple[int, int]) -> list[Candidates]:
        found = []
        for image in images:
            self.shown.append(image.shape)
            frame = min(self.frames, key=lambda i: float(np.abs(self.frames[i] - cv2.resize(image, (40, 24))).mean()))
            board = cv2.resize(self.world.board_seen(frame).astype(np.uint8), size[::-1], interpolation=cv2.INTER_AREA)
            hood = np.zeros(size, bool)
            hood[-4:] = True
            masks = np.stack([hood, board > 0, board > 0])
            found.append(Candidates(masks, np.array([0.9, 0.5, 0.4]), np.array([0, 1, 0])))
        return found


def known(world: Any, **changes: Any) -> KnownMasks:
    cue = KnownMasks(prompts={"car": ("car",)}, **changes)
    images = {i: world.image(i) for i in map(world.frame_of, range(world.keyframes))}
    frames = {i: cv2.resize(image, (40, 24)).astype(int) for i, image in images.items()}
    cue.__dict__.update(world=world, shown=[], frames=frames)
    return cue


def labelled(world: Any, cue: KnownMasks, **changes: Any) -> CueBlock:
    context = replace(world.context(), classes=("car", "bus"), **changes)
    if cue.needs:
        flow = ChainedDisFlowCue(slot="next").extract(context).arrays
        context = replace(context, upstream={"flow_next": flow}.__getitem__)
    return cue.extract(context)


@pytest.mark.parametrize("link_flow", ["flow_next", "dis_chain", "none"])
def test_an_object_keeps_its_track(flat_world: FlatWorlds, link_flow: str) -> None:
    world = flat_world(keyframes=3, sweeps=3, board_depth=6.0, board_step=0.1, ego_step=0.1)
    hood = ((0.0, 88.0), (160.0, 88.0), (160.0, 96.0), (0.0, 96.0))
    cue = known(world, link_flow=link_flow, own_car={"CAM": hood})
    block = labelled(world, cue)
    table = block.arrays["masks/table"][:, 0]
    assert (table[..., 0] > 0).sum(axis=1).tolist() == [1, 1, 1], "the hood and the repeated board are gone"
    rows = table[:, 0]
    assert rows[:, COLUMN["class"]].tolist() == [1, 1, 1]
    np.testing.assert_allclose(rows[:, COLUMN["score"]], 0.5)
    assert rows[:, COLUMN["id"]].tolist() == [1, 2, 3]
    assert rows[:, COLUMN["linked"]].tolist() == ([1, 2, 3] if link_flow == "none" else [1, 1, 1])
    for t in range(3):
        instance = block.arrays["masks/instance"][t, 0]
        expected = cv2.resize(
            world.board_seen(world.frame_of(t)).astype(np.uint8), instance.shape[::-1], interpolation=cv2.INTER_AREA
        )
        assert ((instance > 0) != (expected > 0)).mean() < 0.01
    assert block.quality["instances"] == 3
    assert block.quality["by_class"] == {"bus": 3}


def test_models_see_the_network_s_view_at_the_raw_resolution(flat_world: FlatWorlds) -> None:
    world = flat_world(keyframes=2, sweeps=1, board_depth=6.0)
    cue = known(world, link_flow="none")
    labelled(world, cue)
    assert cue.shown[0] == ("car", "bus"), "the models are loaded once, for the data set's classes"
    assert cue.shown[1:] == [(96, 160, 3)] * 2, "twice the network's 48 x 80: the raw image"
    small = known(world, link_flow="none", max_width=159)
    labelled(world, small)
    assert small.shown[1:] == [(48, 80, 3)] * 2


def test_the_view_is_a_whole_multiple_within_bounds(flat_world: FlatWorlds) -> None:
    image = replace(flat_world().scene().frames[0].images["CAM"], width=1600, height=900)
    nuscenes = ImageSizes((512, 1408), (256, 704))
    assert view_factor(nuscenes, image, 1600) == 1
    half = ImageSizes((256, 704), (128, 352))
    assert view_factor(half, image, 1600) == 2
    assert view_factor(half, image, 1407) == 1
    seen, network = view(half, image, 2), half.transform(image)
    np.testing.assert_allclose(seen.image_from_raw[:2], 2 * network.image_from_raw[:2])


def test_a_camera_without_an_image_has_no_masks(flat_world: FlatWorlds) -> None:
    world = flat_world(keyframes=3, sweeps=1, board_depth=6.0, missing={2})
    block = labelled(world, known(world, link_flow="dis_chain", runtime=Runtime("cpu", images=2)))
    assert block.notes == ["the camera has no image: no masks (1 camera-frames)"]
    assert not block.arrays["masks/instance"][1].any()
    assert block.arrays["masks/instance"][2].any()


def test_prompts_for_classes_that_the_data_set_has_not(flat_world: FlatWorlds) -> None:
    world = flat_world(keyframes=1, sweeps=0, board_depth=6.0)
    with pytest.raises(ConfigError, match="cue 'masks': prompts: class 'car' is not one of this data set's: boat"):
        known(world, link_flow="none").extract(replace(world.context(), classes=("boat",)))


def test_an_own_car_mask_of_no_camera_is_told(flat_world: FlatWorlds) -> None:
    world = flat_world(keyframes=1, sweeps=0, board_depth=6.0)
    hood = ((0.0, 88.0), (160.0, 88.0), (160.0, 96.0), (0.0, 96.0))
    cue = known(world, link_flow="none", own_car={"CAN": hood})
    with pytest.raises(ConfigError, match=r"own_car\.CAN: the log has no camera of that name; did you mean 'CAM'"):
        cue.extract(replace(world.context(), classes=("car", "bus")))
    assert not cue.shown, "before a model is loaded"


def test_own_car_masks(flat_world: FlatWorlds, tmp_path: Path) -> None:
    image = flat_world().scene().frames[0].images["CAM"]
    transform = ImageSizes((48, 80), (24, 40)).transform(image)
    polygon = own_car_mask("CAM", ((40.0, 60.0), (120.0, 60.0), (120.0, 96.0), (40.0, 96.0)), (96, 160), transform)
    expected = np.zeros((48, 80), bool)
    expected[30:, 20:60] = True
    assert (polygon != expected).sum() <= 58, "at most the pixels on the outline differ"
    painted = np.zeros((96, 160), np.uint8)
    painted[60:, 40:120] = 255
    cv2.imwrite(str(tmp_path / "hood.png"), painted)
    np.testing.assert_array_equal(own_car_mask("CAM", str(tmp_path / "hood.png"), (96, 160), transform), expected)
    with pytest.raises(ConfigError, match=r"own_car.CAM = \S+hood.png: 160x96 pixels, but .* 200x96"):
        own_car_mask("CAM", str(tmp_path / "hood.png"), (96, 200), transform)
    for wrong, words in [
        (str(tmp_path / "no.png"), "no image can be read"),
        (((0.0, 0.0), (1.0, 1.0)), "three corners"),
    ]:
        with pytest.raises(ConfigError, match=words):
            GroundedSamMasks(own_car={"CAM": wrong}).config_digest()
