"""From fields to occupancy and velocity on the truth's grid, and the files that hold them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.predict import Prediction, Predictor, evaluation_grid, occupy, save_prediction
from geometry.grid import KITTI_GRID, NUSCENES_GRID, VoxelGrid
from storage.reader import StoreReader

COARSE = VoxelGrid((-40.0, -40.0, -1.0), (40.0, 40.0, 5.4), (100, 100, 8))
SMALL = VoxelGrid((-8.0, -8.0, -1.0), (8.0, 8.0, 5.4), (40, 40, 16))


def linear(grid: VoxelGrid) -> tuple[np.ndarray, np.ndarray]:
    """Fields that trilinear interpolation reproduces exactly: sdf = x + 2 y - z, flow = (y, -x)."""
    x, y, z = np.moveaxis(grid.centres(), -1, 0)
    return x + 2 * y - z, np.stack([y, -x], axis=-1)


def test_which_grid() -> None:
    assert evaluation_grid(COARSE) == NUSCENES_GRID
    assert evaluation_grid(KITTI_GRID) == KITTI_GRID
    assert evaluation_grid(SMALL) == SMALL
    described = {"lower": [-8.0, -8.0, -1.0], "upper": [8.0, 8.0, 5.4], "shape": [40.0, 40.0, 16.0]}
    assert evaluation_grid(COARSE, described) == SMALL


def test_fields_reach_another_grid_and_become_metres_per_second(
    tiny_store: Path, log: Any, known_network: type
) -> None:
    predictor = Predictor(known_network(*linear(COARSE), COARSE), StoreReader(tiny_store), NUSCENES_GRID, 0.25)
    found = predictor.predict("a", 1)
    sdf, flow = linear(NUSCENES_GRID)
    inner = (slice(1, -1),) * 3  # beyond the outermost centres the border's value holds
    assert found.sdf is not None
    np.testing.assert_allclose(found.sdf[inner], sdf[inner], atol=1e-3)
    np.testing.assert_allclose(found.flow[inner], flow[inner] / log.interval_s, atol=1e-3)
    clear = np.abs(sdf - 0.25) > 0.01
    clear[[0, -1]] = clear[:, [0, -1]] = clear[:, :, [0, -1]] = False
    assert (found.occupied == (sdf <= 0.25))[clear].all()
    assert (found.occupied_at(5.0) == (sdf <= 5.0))[clear & (np.abs(sdf - 5) > 0.01)].all()


def test_nothing_is_claimed_outside_the_networks_box(tiny_store: Path, known_network: type) -> None:
    network = known_network(np.full(SMALL.shape, -1.0), np.zeros((*SMALL.shape, 2)), SMALL)
    found = Predictor(network, StoreReader(tiny_store), NUSCENES_GRID).predict("a", 0)
    # 16 m of 80 m in x and y.
    assert found.occupied.sum() == 40 * 40 * 16
    assert found.occupied_at(9.0).sum() == 40 * 40 * 16


def test_nan_is_free() -> None:
    sdf = np.array([[[np.nan, -1.0, 0.1, 0.2]]], dtype=np.float32)
    assert occupy(sdf, np.ones(sdf.shape, dtype=bool), 0.1 + 1e-6).tolist() == [[[False, True, True, False]]]
    with pytest.raises(ValueError, match="no sdf"):
        Prediction(np.zeros((1, 1, 1), bool), np.zeros((1, 1, 1, 2), np.float32)).occupied_at(0.1)


def test_every_keyframe_with_an_image_is_saved(tmp_path: Path, make_log: type, exact: Callable[..., Any]) -> None:
    log = make_log(truth_at=None, blind=((0, 0), (0, 1), (2, 1)))
    predictor = Predictor(exact(log), StoreReader(log.write(tmp_path / "store.zarr")))
    paths = list(predictor.run("a", tmp_path / "out"))
    assert paths == [tmp_path / "out" / "a" / f"token{t}" / "labels.npz" for t in (1, 2)]
    semantics, flow = log.volume()
    with np.load(paths[0]) as saved:
        occupied = semantics != 16
        assert (saved["semantics"] == np.where(occupied, 255, 16)).all()
        assert (saved["occupancy"] == occupied).all()
        np.testing.assert_array_equal(saved["flow"], np.where(occupied[..., None], flow, 0))
        assert saved["threshold"] == np.float32(0.1)
        np.testing.assert_allclose(saved["upper"], [40, 40, 5.4])
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["labels.npz"]


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, **arrays: np.ndarray) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", full)
    prediction = Prediction(np.zeros(SMALL.shape, bool), np.zeros((*SMALL.shape, 2), np.float32))
    with pytest.raises(OSError, match="disk full"):
        save_prediction(prediction, SMALL, 0.1, tmp_path)
    assert list(tmp_path.iterdir()) == []
