"""Predictions in files are scored as the network that wrote them; whatever is wrong with a file is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import occflow
from eval.evaluate import evaluate
from eval.export import export_predictions
from eval.label_files import FolderTruth, read_labels
from eval.predict import Predictor, save_prediction
from eval.protocols import OPENOCC_CLASSES
from eval.report import verdicts, write_report
from eval.rules import EvaluationError
from eval.score import layout_of, score
from eval.score_rays import score_submission
from geometry.grid import NUSCENES_GRID, VoxelGrid
from model.network import OccFlow
from storage.reader import StoreReader

SHAPE = NUSCENES_GRID.shape


SMALL = VoxelGrid((-14.4, -8.0, -1.0), (24.0, 8.0, 5.4), (96, 40, 16))


@pytest.fixture(scope="module")
def small(make_log: type) -> Any:
    """The usual log on a smaller grid, for speed."""
    return make_log(grid=SMALL)


@pytest.fixture(scope="module")
def small_store(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its store."""
    return small.write(tmp_path_factory.mktemp("small") / "store.zarr")


@pytest.fixture(scope="module")
def blurred(small: Any, known_network: type) -> OccFlow:
    """A network that is wrong in a known way: everything a voxel too far, and too slow by a third."""
    semantics, flow = small.volume()
    far = np.roll(semantics != len(small.classes), 1, axis=0)
    wrong = np.where(np.roll(flow, 1, axis=0) != 0, 0.7 * np.roll(flow, 1, axis=0), 0.123)
    return known_network(np.where(far, -0.3, 0.3), wrong * small.interval_s, small.grid)


@pytest.fixture(scope="module")
def predicted(blurred: OccFlow, small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `occflow predict` writes for it."""
    out = tmp_path_factory.mktemp("predicted")
    assert len(list(Predictor(blurred, StoreReader(small_store), SMALL).run("a", out))) == 3
    return out


@pytest.fixture
def labelled(small: Any, tmp_path: Path) -> Path:
    """The truth itself as another system's labels with classes."""
    semantics, flow = small.volume()
    for t in range(3):
        write(tmp_path / "labels", t, semantics=semantics, flow=flow)
    return tmp_path / "labels"


@pytest.fixture(scope="module")
def full(make_log: type, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Keyframe 1 on nuScenes' own grid: a folder of its truth, and one of labels that are a voxel too far and slow."""
    semantics, flow = make_log().volume()
    root = tmp_path_factory.mktemp("full")
    write(root / "truth", 1, semantics=semantics, flow=flow)
    slow = (0.7 * np.roll(flow, 1, axis=0)).astype(np.float16)
    write(root / "labels", 1, semantics=np.roll(semantics, 1, axis=0), flow=slow)
    return root / "truth", root / "labels"


def write(root: Path, t: int, **arrays: np.ndarray) -> Path:
    path = root / "a" / f"token{t}" / "labels.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


def test_a_round_trip_is_the_networks_own_evaluation(predicted: Path, blurred: OccFlow, small_store: Path) -> None:
    own, files = evaluate(blurred, small_store), score(predicted, small_store)
    assert own["rayiou"] == files["rayiou"]
    assert 0.1 < own["rayiou_geometry"] < 0.99
    assert own["voxels"] == files["voxels"]
    for key in ("mave", "recall_dynamic", "flow_epe_dynamic_masked", "threeway_epe", "bucketed_epe_dynamic"):
        assert files[key] == pytest.approx(own[key], rel=1e-3), key  # velocities are float16 in the files
    for key in ("mave", "mave_unmasked_legacy", "mave_zero_flow_same_tp"):
        assert files["velocity"][key] == pytest.approx(own["velocity"][key], rel=1e-3), key
    assert files["occscore_geometry"] == pytest.approx(own["occscore_geometry"], rel=1e-3)
    assert files["baselines"]["flat_ground"]["rayiou_geometry"] == own["baselines"]["flat_ground"]["rayiou_geometry"]
    # What the network says of voxels it leaves free is not in the files.
    assert own["flow_epe_dynamic"] != pytest.approx(own["flow_epe_dynamic_masked"], rel=1e-3)
    assert files["flow_epe_dynamic"] is None
    assert files["false_flow_parked"] is None
    assert files["layout"] == "openocc"
    assert "no depth figures" in files["not_computed"][0]
    json.dumps(files, allow_nan=False)


def test_a_page_of_files_has_the_error_that_files_can_have(predicted: Path, small_store: Path, tmp_path: Path) -> None:
    found = score(predicted, small_store, ["a:0"])
    rows = {row["key"]: row for row in verdicts(found)}
    assert "flow_epe_dynamic" not in rows
    row = rows["flow_epe_dynamic_masked"]
    assert (row["value"], row["baseline"]) == (
        found["flow_epe_dynamic_masked"],
        found["dynamic_flow"]["flow_epe_dynamic_zero_flow"],
    )
    page = write_report(found, tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{found['false_flow_parked_masked']:.3f} m/s" in page


def test_what_predict_writes_is_on_the_truths_grid(
    blurred: OccFlow, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the network's own box is: its files can be scored."""
    monkeypatch.setattr("model.checkpoint.load_model", lambda folder: blurred)
    out = tmp_path / "predictions"
    run = CliRunner().invoke(occflow.app, ["predict", str(tmp_path), str(small_store), "--out", str(out)])
    assert run.exit_code == 0, run.output
    assert score(out, small_store)["rayiou"] == evaluate(blurred, small_store)["rayiou"]


def test_classes_are_scored_when_asked(labelled: Path, small_store: Path) -> None:
    found = score(labelled, small_store, protocol="openocc", keyframes=1)
    assert found["rayiou_openocc"] == found["occscore_openocc"] == found["voxels"]["voxel_miou"] == 1.0
    assert found["velocity"]["class_source"] == "prediction"
    assert score(labelled, small_store, ["a:0"])["protocol"] == "geometry"


def test_a_prediction_without_classes_is_refused_by_openocc(predicted: Path, small_store: Path) -> None:
    with pytest.raises(EvaluationError, match=r"labels\.npz: this prediction has no class per voxel.*use 'geometry'"):
        score(predicted, small_store, protocol="openocc")


def test_labels_without_flow_are_scored_for_occupancy(labelled: Path, small_store: Path) -> None:
    with np.load(write(labelled, 0, semantics=np.full(SMALL.shape, 16, np.uint8))) as file:
        assert "flow" not in file.files
    found = score(labelled, small_store)
    assert "1 keyframes' predictions have no flow: they count for occupancy only" in found["notes"]
    found = score(labelled, small_store, ["a:0"])
    assert found["mave"] is None
    assert "no prediction has flow: no mAVE, no flow error" in found["not_computed"]


def test_missing_tokens_are_an_error_or_counted(labelled: Path, small_store: Path) -> None:
    (labelled / "a" / "token1" / "labels.npz").unlink()
    with pytest.raises(EvaluationError, match=r"no prediction for 1 of 3 keyframes \(.*token1.labels\.npz\).*--skip"):
        score(labelled, small_store)
    found = score(labelled, small_store, skip_missing=True)
    assert found["keyframes"] == found["rayiou"]["frames"] == 2
    assert "1 of 3 keyframes have no prediction: left out" in found["notes"]


GOOD = {"semantics": np.full(SHAPE, 16, np.uint8), "flow": np.zeros((*SHAPE, 2), np.float16)}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"flow": GOOD["flow"]}, "no array 'semantics'"),
        ({"semantics": np.zeros((200, 200), np.uint8)}, r"shape \(200, 200\), expected \(200, 200, 16\)"),
        ({"semantics": np.zeros(SHAPE, np.float32)}, "type float32, expected uint8"),
        ({"semantics": np.full(SHAPE, 17, np.uint8)}, "class index 17, expected 0..16"),
        ({"semantics": np.full(SHAPE, -1, np.int8)}, "class index -1"),
        (GOOD | {"flow": np.zeros((*SHAPE, 3), np.float16)}, r"'flow' has shape \(200, 200, 16, 3\)"),
        (GOOD | {"flow": np.zeros((*SHAPE, 2), np.int16)}, "type int16, expected float16 or float32"),
        (GOOD | {"flow": np.full((*SHAPE, 2), np.nan, np.float16)}, "not finite in 640000 voxels"),
        (GOOD | {"lower": np.array([0.0, 0, 0])}, "'lower' is"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = write(tmp_path, 0, **arrays)
    with pytest.raises(EvaluationError, match=message) as caught:
        read_labels(path, NUSCENES_GRID, OPENOCC_CLASSES)
    assert str(path) in str(caught.value)


def test_damaged_and_absent_files(tmp_path: Path, tiny_store: Path) -> None:
    path = tmp_path / "labels.npz"
    with pytest.raises(EvaluationError, match="no such file"):
        read_labels(path, NUSCENES_GRID, OPENOCC_CLASSES)
    path.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(EvaluationError, match=r"no sound \.npz"):
        read_labels(path, NUSCENES_GRID, OPENOCC_CLASSES)
    with pytest.raises(EvaluationError, match=r"neither a checkpoint \(model\.safetensors\) nor predictions"):
        layout_of(tmp_path)
    with pytest.raises(EvaluationError, match="no <scene>/<token>"):
        FolderTruth(tmp_path, StoreReader(tiny_store))
    with pytest.raises(EvaluationError, match="unknown layout 'occ'"):
        score(tmp_path, tiny_store, layout="occ")


def test_a_submission_needs_classes(predicted: Path, small_store: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="needs a class per voxel"):
        export_predictions(predicted, small_store, tmp_path / "x.gz")
    assert not list(tmp_path.iterdir())


def test_a_submission_needs_the_challenges_classes(full: tuple[Path, Path], tiny_store: Path, tmp_path: Path) -> None:
    """Occ3D's 17 is free, and no class of a submission."""
    mask = np.ones(SHAPE, np.uint8)
    semantics = np.full(SHAPE, 17, np.uint8)
    semantics[:, :, 2] = 11
    truth = write(tmp_path / "occ3d", 1, semantics=semantics, mask_camera=mask).parents[2]
    write(tmp_path / "labels", 1, semantics=semantics)
    with pytest.raises(EvaluationError, match=r"OpenOcc's 16 classes.*numbered as \['others'.*--truth"):
        export_predictions(tmp_path / "labels", tiny_store, tmp_path / "x.gz", ["a:1"], truth=truth)
    out = tmp_path / "uniocc"
    assert export_predictions(tmp_path / "labels", tiny_store, out, ["a:1"], truth=truth) == ("uniocc", 1)
    with np.load(out / "a" / "1.npz") as found:
        assert (found["occ_label"] == np.where(semantics == 17, 10, 7)).all()


def test_what_is_exported_is_what_was_asked_for(labelled: Path, small_store: Path, tmp_path: Path) -> None:
    (labelled / "a" / "token1" / "labels.npz").unlink()
    with pytest.raises(EvaluationError, match="no prediction for 1 of 3 keyframes"):
        export_predictions(labelled, small_store, tmp_path / "uniocc")
    assert export_predictions(labelled, small_store, tmp_path / "all", skip_missing=True) == ("uniocc", 2)
    assert export_predictions(labelled, small_store, tmp_path / "one", ["a:0", "a:2"], keyframes=1)[1] == 1
    with pytest.raises(EvaluationError, match="this is uniocc already"):
        export_predictions(tmp_path / "all", small_store, tmp_path / "again")


def test_a_submission_without_a_ray_is_none(make_log: type, tmp_path: Path) -> None:
    log = make_log(grid=SMALL, lidar_at=())
    store = log.write(tmp_path / "store.zarr")
    write(tmp_path / "labels", 0, semantics=log.volume()[0])
    with pytest.raises(EvaluationError, match="a:0 has no LiDAR within 39 m"):
        export_predictions(tmp_path / "labels", store, tmp_path / "x.gz", ["a:0"])
    assert not (tmp_path / "x.gz").exists()


def test_a_volume_that_is_free_throughout_has_classes(labelled: Path, small_store: Path) -> None:
    write(labelled, 1, semantics=np.full(SMALL.shape, 16, np.uint8), flow=np.zeros((*SMALL.shape, 2), np.float16))
    found = score(labelled, small_store, protocol="openocc")
    assert 0.5 < found["rayiou_openocc"] < 0.9
    assert found["voxels"]["voxel_miou"] is not None


def test_uniocc_there_and_back(predicted: Path, small_store: Path, tmp_path: Path) -> None:
    assert export_predictions(predicted, small_store, tmp_path / "uniocc") == ("uniocc", 3)
    first, again = score(predicted, small_store, ["a:0-1"]), score(tmp_path / "uniocc", small_store, ["a:0-1"])
    assert again["layout"] == "uniocc"
    assert again["rayiou"] == first["rayiou"]
    for key in ("mave", "flow_epe_dynamic_masked", "threeway_epe", "bucketed_epe_dynamic"):
        assert again[key] == pytest.approx(first[key], rel=1e-4), key
    last = score(tmp_path / "uniocc", small_store)
    assert "1 keyframes' predictions have no flow: they count for occupancy only" in last["notes"]


def test_labels_of_ours_are_read_by_kittis_numbers_too(
    tmp_path: Path, make_log: type, exact: Callable[..., Any]
) -> None:
    classes = ("car", *(f"class{i}" for i in range(9)), "road", *(f"class{i}" for i in range(11, 20)))
    log = make_log(dataset="semantic_kitti", grid=SMALL, classes=classes, keyframes=1, truth_at=(0,))
    store = log.write(tmp_path / "store.zarr")
    predictor = Predictor(exact(log), StoreReader(store), SMALL)
    save_prediction(predictor.predict("a", 0), SMALL, 0.1, tmp_path / "out" / "a" / "token0")
    found = score(tmp_path / "out", store)
    assert found["protocol"] == "semantickitti"
    assert found["rayiou_semantickitti"] == found["voxel_iou"] == 1.0


def test_truth_may_be_a_folder(full: tuple[Path, Path], tiny_store: Path) -> None:
    truth, labels = full
    by_store = score(labels, tiny_store, ["a:1"])
    by_folder = score(labels, tiny_store, ["a:1"], truth=truth)
    assert by_folder["truth"] == str(truth)
    assert by_folder["rayiou"] == by_store["rayiou"]
    assert by_folder["mave"] == by_store["mave"]


def test_occ3d_truth_has_its_own_numbers_and_no_velocity(
    full: tuple[Path, Path], tiny_store: Path, tmp_path: Path
) -> None:
    semantics = np.full(SHAPE, 17, np.uint8)
    semantics[:, :, 2] = 11
    mask = np.ones(SHAPE, np.uint8)
    write(tmp_path, 1, semantics=semantics, mask_camera=mask, mask_lidar=mask)
    assert FolderTruth(tmp_path, StoreReader(tiny_store)).whose == "Occ3D"
    write(tmp_path / "labels", 1, semantics=np.where(semantics == 17, 16, 255).astype(np.uint8))
    found = score(tmp_path / "labels", tiny_store, ["a:1"], truth=tmp_path)
    assert set(found["rayiou"]["per_class"]) == {"driveable_surface"}
    assert found["rayiou_geometry"] == 1.0
    assert found["mave"] is None
    assert "no voxel of the truth has a velocity: no mAVE, no flow error" in found["not_computed"]


def test_a_submission_is_scored_as_the_labels_it_was_made_from(
    full: tuple[Path, Path], tiny_store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "submission.gz"
    assert export_predictions(full[1], tiny_store, out, ["a:1"]) == ("submission", 1)
    volumes = score(full[1], tiny_store, ["a:1"], protocol="openocc", half=True)
    rays = score(out, tiny_store, ["a:1"])
    assert rays["rayiou"] == volumes["rayiou"]
    assert 0.1 < rays["rayiou_openocc"] < 0.99
    assert rays["velocity"]["mave"] == pytest.approx(volumes["velocity"]["mave"], rel=1e-3)
    assert rays["velocity"]["per_class"]["car"]["tp"] == volumes["velocity"]["per_class"]["car"]["tp"]
    assert rays["occscore_openocc"] == pytest.approx(volumes["occscore_openocc"], rel=1e-4)
    assert "float16" in rays["rayiou"]["notes"][0]
    assert rays["time_step"]["keyframes_s"]["mean"] == pytest.approx(0.4)
    page = write_report(rays, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "layout submission" in page
    assert f"{rays['rayiou_openocc']:.3f}" in page
    same = score_submission(out, out)
    assert same["rayiou_openocc"] == 1.0
    assert same["mave"] == 0.0
    with pytest.raises(EvaluationError, match="cast already"):
        score(out, tiny_store, protocol="geometry")
    with pytest.raises(EvaluationError, match=r"no prediction for 2 of 3 keyframes \(token0, token2\)"):
        score(out, tiny_store)
