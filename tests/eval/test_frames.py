"""Truth by the keyframes of the cue store: paired by token, not by number."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.frames import TruthSource, open_truth
from eval.image_motion import image_motion
from eval.inspection.run import Inspector
from eval.inspection.settings import InspectionSettings
from eval.rules import EvaluationError
from storage.reader import StoreReader
from storage.schema import BOX_FIELDS, BOX_ROWS
from storage.store import CueStore, Provenance, UnitId
from storage.truth import truth_path

SHAPES = {"depth": (16, 32), "instance": (32, 64), "moving": (32, 64), "flow_next": (2, 16, 32)}
TYPES = {"depth": np.float32, "instance": np.uint16, "moving": np.uint8, "flow_next": np.int16}


@pytest.fixture
def every_second(small_store: Path, tmp_path: Path) -> Path:
    """A store whose cues are of keyframes 0 and 2 and of one more; its truth is still of 0, 1 and 2, boxes and camera
    truth included. Truth of keyframe t: t in the corner of the volume, a box at x = t, depth t + 1."""
    store = shutil.copytree(small_store, tmp_path / "store.zarr")
    truth = CueStore.open(shutil.copytree(truth_path(small_store), truth_path(store)))
    occupancy = truth.read_block(UnitId("occupancy", "a"))
    occupancy["occupancy/semantics"][:, 0, 0, 0] = [0, 1, 2]
    truth.commit_block(UnitId("occupancy", "a"), occupancy, Provenance("g"))
    boxes = np.zeros((3, BOX_ROWS, len(BOX_FIELDS)), np.float32)
    boxes[:, 0, BOX_FIELDS.index("x")] = [0, 1, 2]
    count = np.ones(3, np.int32)
    truth.commit_block(UnitId("boxes", "a"), {"boxes/table": boxes, "boxes/count": count}, Provenance("g"))
    camera = {f"camera/{name}": np.zeros((3, 2, *shape), TYPES[name]) for name, shape in SHAPES.items()}
    camera["camera/depth"] += np.arange(1, 4, dtype=np.float32)[:, None, None, None]
    camera["camera/valid"] = np.ones((3, 2), np.uint8)
    truth.commit_block(UnitId("camera", "a"), camera, Provenance("g"))
    cues = CueStore.open(store)
    blocks = {cue: cues.read_block(UnitId(cue, "a")) for cue in ("images", "lidar")}
    cues.commit_init("a", replace(cues.table("a"), tokens=("token0", "token2", "token4")), "g")
    for cue, arrays in blocks.items():
        cues.commit_block(UnitId(cue, "a"), arrays, Provenance("g"))
    return store


def test_truth_is_paired_by_token(every_second: Path) -> None:
    reader = StoreReader(every_second)
    source = TruthSource(reader, open_truth(every_second))
    for t, there in ((0, 0), (1, 2)):
        volume, boxes, whole = source.volume("a", t), source.boxes("a", t), source.at("a", t)
        assert volume is not None
        assert boxes is not None
        assert whole is not None
        assert volume[0][0, 0, 0] == whole.semantics[0, 0, 0] == there
        assert boxes[0, BOX_FIELDS.index("x")] == there
    assert source.volume("a", 2) is None
    assert source.boxes("a", 2) is None
    assert source.at("a", 2) is None


def test_true_flow_into_another_keyframe_is_no_truth(every_second: Path, small_log: Any, known_network: type) -> None:
    """Depth is still compared; what moved until keyframe 1 says nothing of what moves until keyframe 2."""
    network = known_network(small_log.grid.centres()[..., 2], np.zeros((*small_log.grid.shape, 2)), small_log.grid)
    found = image_motion(network, every_second, stride=4)
    assert found["pixels"]["DE"] > 0
    assert found["pixels"]["EPE"] == 0
    with pytest.raises(EvaluationError, match="no keyframe has per-pixel truth"):
        image_motion(network, every_second, scenes=["a:2"])


def test_an_inspection_pairs_by_token_too(every_second: Path) -> None:
    inspector = Inspector.open(every_second, InspectionSettings())
    depths = []
    for t in range(3):
        exact = inspector.keyframe("a", t).camera(0).truth
        depths.append(None if exact is None else exact["depth"][0, 0])
        assert exact is None or np.isnan(exact["flow_next"]).all()
    assert depths == [1.0, 3.0, None]
