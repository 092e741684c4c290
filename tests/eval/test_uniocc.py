"""UniOcc's flow: by hand for a turning car, its inverse, and the files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.label_files import OCC3D_CLASSES
from eval.predict import Prediction
from eval.protocols import OPENOCC_CLASSES
from eval.rules import EvaluationError
from eval.uniocc import CLASSES, UniOccFolder, velocity_of, voxel_flow, write_uniocc
from geometry.grid import VoxelGrid
from storage.reader import StoreReader

GRID = VoxelGrid((-2.0, -2.0, -1.0), (2.0, 2.0, 1.0), (10, 10, 5))


def turned(degrees: float, ahead: float) -> np.ndarray:
    """next_from_current ego of a car that drives ahead and turns left."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    current_from_next = np.array([[c, -s, 0, ahead], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    return np.linalg.inv(current_from_next)


def test_a_resting_world_flows_back_as_the_car_drives() -> None:
    flow = voxel_flow(np.zeros((*GRID.shape, 2)), GRID, turned(0.0, 2.0), 0.5)
    np.testing.assert_allclose(flow, np.broadcast_to([-5.0, 0.0, 0.0], flow.shape), atol=1e-6)  # 2 m of 0.4 m voxels
    # A thing that drives along, 2 m in 0.5 s, stays where it is.
    along = np.broadcast_to([4.0, 0.0], (*GRID.shape, 2))
    np.testing.assert_allclose(voxel_flow(along, GRID, turned(0.0, 2.0), 0.5), 0.0, atol=1e-6)


def test_a_quarter_turn_by_hand() -> None:
    """What is at (x, y) is at (y, -x) once the car has turned left by 90 degrees."""
    flow = voxel_flow(np.zeros((*GRID.shape, 2)), GRID, turned(90.0, 0.0), 0.5)
    x, y, _ = np.moveaxis(GRID.centres(), -1, 0)
    np.testing.assert_allclose(flow[..., 0], (y - x) / 0.4, atol=1e-5)
    np.testing.assert_allclose(flow[..., 1], (-x - y) / 0.4, atol=1e-5)
    assert not flow[..., 2].any()


@pytest.mark.parametrize("seconds", [0.5, -0.1])
def test_the_inverse(seconds: float) -> None:
    velocity = np.random.default_rng(0).normal(0, 5, (*GRID.shape, 2))
    pose = turned(17.0, 3.0)
    flow = voxel_flow(velocity, GRID, pose, seconds)
    np.testing.assert_allclose(velocity_of(flow, GRID, pose, seconds), velocity, atol=1e-4)


def test_files(tiny_store: Path, make_log: type, tmp_path: Path) -> None:
    log: Any = make_log(grid=VoxelGrid((-14.4, -8.0, -1.0), (24.0, 8.0, 5.4), (96, 40, 16)))
    reader = StoreReader(tiny_store)  # for its poses
    table, (semantics, flow) = reader.scene("a").table, log.volume()
    for t in range(3):
        prediction = Prediction(semantics != 16, flow, semantics=semantics)
        write_uniocc(prediction, OPENOCC_CLASSES, log.grid, table, t, tmp_path / "a")
    with np.load(tmp_path / "a" / "1.npz") as found:
        assert set(found.files) == {
            "occ_label",
            "occ_flow_forward",
            "occ_flow_backward",
            "ego_to_world_transformation",
        }
        label, forward, backward = (found[n] for n in ("occ_label", "occ_flow_forward", "occ_flow_backward"))
    assert label.dtype == np.uint8
    assert forward.dtype == np.float32
    assert {CLASSES[c] for c in np.unique(label)} == {"car", "road", "building", "free"}
    # The car drives 2 m in 0.4 s: the road flows back by 5 voxels of 0.4 m; the moving car by (3, -1) m/s more.
    assert forward[label == 7][0] == pytest.approx([-5.0, 0.0, 0.0], abs=1e-5)
    assert backward[label == 7][0] == pytest.approx([5.0, 0.0, 0.0], abs=1e-5)
    moving = flow[..., 0] != 0
    assert forward[moving][0] == pytest.approx([-5.0 + 3.0, -1.0, 0.0], abs=1e-5)
    assert not forward[label == 10].any()
    folder = UniOccFolder(tmp_path, reader, log.grid)
    again = folder.at("a", 0)
    np.testing.assert_array_equal(again.occupied, semantics != 16)
    np.testing.assert_allclose(again.flow[semantics != 16], flow[semantics != 16], atol=1e-4)
    assert not folder.at("a", 2).has_flow
    with np.load(tmp_path / "a" / "2.npz") as found:
        assert not found["occ_flow_forward"].any()
        assert found["occ_flow_backward"].any()


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (
            OPENOCC_CLASSES,
            "car car car car car bicycle motorcycle pedestrian traffic_cone undefined road road terrain terrain "
            "building vegetation free",
        ),
        (
            OCC3D_CLASSES,
            "undefined undefined bicycle car car car motorcycle pedestrian traffic_cone car car road road terrain "
            "terrain building vegetation free",
        ),
        (("car", "other-vehicle", "person", "road", "fence", "trunk", "free"), "car car pedestrian road undefined "
         "vegetation free"),
    ],
)  # fmt: skip
def test_classes_go_by_their_names(tiny_store: Path, tmp_path: Path, classes: tuple[str, ...], expected: str) -> None:
    free = len(classes) - 1
    semantics = np.full(GRID.shape, free, np.uint8)
    semantics.flat[:free] = np.arange(free)
    prediction = Prediction(semantics != free, np.zeros((*GRID.shape, 2), np.float32), semantics=semantics)
    path = write_uniocc(prediction, classes, GRID, StoreReader(tiny_store).scene("a").table, 0, tmp_path)
    with np.load(path) as found:
        labels = found["occ_label"].flat[: free + 1]
    assert [CLASSES[label] for label in labels] == expected.split()


def test_wrong_files_are_named(tiny_store: Path, log: Any, tmp_path: Path) -> None:
    folder = UniOccFolder(tmp_path, StoreReader(tiny_store), log.grid)
    path = folder.path("a", 0)
    path.parent.mkdir()
    good = {"occ_label": np.full(log.grid.shape, 10, np.uint8), "cameras": np.array([{"name": "x"}], dtype=object)}
    for arrays, message in (
        ({}, "no array 'occ_label'"),
        (good | {"occ_label": np.full(log.grid.shape, 11, np.uint8)}, r"class index 11, expected 0\.\.10"),
        (good | {"occ_flow_forward": np.zeros((*log.grid.shape, 2), np.float32)}, r"expected \(200, 200, 16, 3\)"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(EvaluationError, match=message):
            folder.at("a", 0)
    np.savez(path, **good)  # the objects in it are left alone
    assert not folder.at("a", 0).has_flow
