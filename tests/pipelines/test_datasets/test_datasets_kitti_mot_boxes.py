"""KITTI-MOT's labels as truth in the store, and the velocity of boxes that `occflow eval` makes of them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import occflow
from eval.box_velocity import voxels_in_box
from geometry.grid import KITTI_GRID
from geometry.transforms import invert
from pipelines.config import load_config
from pipelines.cues.truth import BoxTruth
from pipelines.datasets.kitti_mot import KittiMotLog
from pipelines.datasets.records import LabelledBox
from pipelines.extract import extract_log
from storage.layout import UnitId
from storage.reader import StoreReader
from storage.schema import BOX_FIELDS, BOX_ROWS
from storage.store import CueStore
from storage.truth import TruthReader, truth_path

LABEL = "{frame} {track} {kind} 0 1 -1.57 10 5 30 25 1.5 1.8 4.2 {x} 1.6 {z} {turn}\n"
NAME = "training_0001"
LAST = 11


def labels() -> str:
    """A car that keeps its place 15 m before the (driving) car, seen to the end; a tram whose track has one label."""
    car = [LABEL.format(frame=i, track=7, kind="Van", x=2.0, z=15.0, turn=0.1) for i in range(LAST + 1)]
    return "".join([*car, LABEL.format(frame=0, track=9, kind="Tram", x=-6.0, z=25.0, turn=0.0)])


@pytest.fixture
def store(tiny_mot: Any, tmp_path: Path) -> Path:
    """Cues and truth of the tiny sequence with these labels."""
    (tiny_mot.root / "training" / "label_02" / "0001.txt").write_text(labels())
    path = tmp_path / "store.zarr"
    given = {"dataset.root": tiny_mot.root, "dataset.split": "all", "store": path, "runner.workers": 1}
    sizes = {"sizes.network": (32, 64), "sizes.render": (32, 64)}
    report = extract_log(load_config("kitti_mot_small", given | sizes), cues=["images", "lidar", "truth"])
    assert not report.failed
    return path


def test_labels_come_into_the_truth_store(store: Path, tiny_mot: Any) -> None:
    truth = CueStore.open(truth_path(store))
    assert {record.unit.cue for record in truth.records()} == {"init", "boxes"}, "nothing empty is written"
    record = truth.record(UnitId("boxes", NAME, 0))
    assert record is not None
    assert record.provenance.quality["boxes"] > 0
    scene = TruthReader(truth_path(store)).scene(NAME)
    assert scene.has("boxes", 0)
    assert not scene.has("occupancy", 0)
    first = scene.boxes(0)
    assert first is not None
    log = KittiMotLog(tiny_mot.root)
    boxes, frames = log.tracks(NAME), log.scene(NAME).frames
    assert boxes is not None
    van = dict(zip(BOX_FIELDS, first[0].tolist(), strict=True))
    assert (van["track"], van["class"], van["length"]) == (7, 0, pytest.approx(4.2))
    np.testing.assert_allclose(first[0, 2:5], boxes[0].ego_from_box[:3, 3], atol=1e-5)
    # It keeps its place in the ego frame, so it moves as that place of the car does.
    place = boxes[0].ego_from_box[:, 3]
    moved = (invert(frames[0].global_from_ego) @ frames[1].global_from_ego @ place - place)[:2] / 0.1037
    np.testing.assert_allclose([van["vx"], van["vy"]], moved, rtol=1e-4)
    assert van["seconds"] == pytest.approx(0.1037)
    assert first[1, BOX_FIELDS.index("class")] == 255, "a tram has none of the eight classes"
    last = scene.boxes(LAST)
    assert last is not None
    assert np.isnan(last[0, BOX_FIELDS.index("vx")])


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_eval_tells_how_well_flow_agrees_with_the_tracks(store: Path, tmp_path: Path, share: float) -> None:
    """Files that fill the labelled boxes and move as they do, or half as fast; the last keyframe knows no velocity."""
    scene, table = TruthReader(truth_path(store)).scene(NAME), StoreReader(store).scene(NAME).table
    speeds = []
    for t in (0, 1, LAST):
        semantics, flow = np.full(KITTI_GRID.shape, 16, np.uint8), np.zeros((*KITTI_GRID.shape, 2), np.float16)
        found = scene.boxes(t)
        assert found is not None
        index = tuple(voxels_in_box(found[0], KITTI_GRID).T)
        velocity = np.nan_to_num(found[0, 9:11])
        semantics[index], flow[index] = 255, share * velocity
        speeds += [float(np.linalg.norm(velocity))] * (t != LAST)
        folder = tmp_path / "out" / NAME / table.tokens[t]
        folder.mkdir(parents=True)
        np.savez_compressed(folder / "labels.npz", semantics=semantics, flow=flow)
    command = ["eval", str(tmp_path / "out"), str(store), "--pictures", "0", "--skip-missing"]
    outcome = CliRunner().invoke(occflow.app, command)
    assert outcome.exit_code == 0, outcome.output
    assert "velocity of boxes" in outcome.output
    results = json.loads((tmp_path / "out_eval" / "results.json").read_text())
    assert results["box_velocity_error"] == pytest.approx((1 - share) * np.mean(speeds), rel=2e-3, abs=0.01)
    assert results["baselines"]["zero_flow"]["box_velocity_error"] == pytest.approx(np.mean(speeds), rel=1e-6)
    boxes = results["boxes"]
    assert (boxes["moving_boxes"], boxes["boxes_found"], boxes["boxes_of_unknown_velocity"]) == (2, 1.0, 2)
    assert boxes["time_step_s"]["mean"] == pytest.approx(0.1037)
    assert list(boxes["per_class"]) == ["car"]
    assert results["time_step"]["keyframes_s"]["mean"] == pytest.approx(0.1037)
    assert any("no occupancy" in line or "no keyframe has both" in line for line in results["not_computed"])


def test_without_poses_there_are_no_velocities_to_take(tiny_mot: Any, tmp_path: Path) -> None:
    tiny_mot.write_sequence(tmp_path / "training", "0003", oxts=False)
    (tmp_path / "training" / "label_02" / "0003.txt").write_text(labels())
    assert KittiMotLog(tmp_path).truth("training_0003") is None


def test_more_boxes_than_rows_keep_the_nearest(flat_context: Any) -> None:
    """A note says so; a keyframe that nobody labelled is marked."""

    class Crowd:
        cues = ("boxes",)

        def boxes(self, token: str) -> list[LabelledBox] | None:
            if token != "0":
                return None
            poses = [np.eye(4) for _ in range(BOX_ROWS + 2)]
            for i, pose in enumerate(poses):
                pose[0, 3] = BOX_ROWS + 2 - i
            return [LabelledBox(i, "car", (1.0, 1.0, 1.0), pose) for i, pose in enumerate(poses)]

    block = BoxTruth().extract(flat_context(Crowd()))
    assert block.arrays["boxes/count"].tolist() == [BOX_ROWS, -1]
    assert block.arrays["boxes/table"][0, :, 2].max() == BOX_ROWS
    assert np.isnan(block.arrays["boxes/table"][0, 0, BOX_FIELDS.index("seconds")])
    assert block.notes == [
        f"0: {BOX_ROWS + 2} boxes, the {BOX_ROWS} nearest are kept",
        "no boxes labelled at 1 of 2 keyframes",
    ]


@pytest.fixture
def flat_context() -> Any:
    """A function from a scene's truth to what an extractor of truth reads: two keyframes, tokens 0 and 1."""
    frames = tuple(SimpleNamespace(token=str(i)) for i in range(2))

    def make(truth: Any) -> Any:
        return SimpleNamespace(scene=SimpleNamespace(keyframes=frames), start=0, stop=2, truth=truth, classes=("car",))

    return make
