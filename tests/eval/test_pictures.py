"""What the pictures of a keyframe show, where the log says what must be there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval import camera_tiles
from eval import pictures as drawing
from eval import sheet as pages
from eval.camera_tiles import around, stamp, tile_size
from eval.colours import NO_DATA, depth_colours
from eval.frames import TruthSource, open_truth
from eval.pictures import draw_examples, draw_keyframe, spread, with_car
from eval.predict import Predictor
from eval.sheet import camera_table, save_sheet, sheet
from eval.views import View
from geometry.grid import KITTI_GRID, NUSCENES_GRID
from storage.reader import StoreReader


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pictures: these tests are about what is in them."""
    monkeypatch.setattr(drawing, "_VIEW_SIZE", (60, 100))
    monkeypatch.setattr(camera_tiles, "_STRIP", 128)
    monkeypatch.setattr(drawing, "_NOVEL_WIDTH", 64)


def test_a_keyframe_of_an_exact_network(tiny_store: Path, log: Any, exact: Callable[..., Any], tmp_path: Path) -> None:
    reader = StoreReader(tiny_store)
    source = TruthSource(reader, open_truth(tiny_store))
    found = draw_keyframe(Predictor(exact(log), reader), source, "a", 1)
    assert found.cameras == ("CAM_FRONT", "CAM_BACK")
    tiles = [*found.images, *found.depth, *found.lidar, *found.depth_error, *found.motion]
    assert {tile.shape for tile in tiles} == {(32, 64, 3)}
    # The lowest row of pixels meets the road at 1.5 m * 32 / 15.5 from the lens; the highest meets nothing.
    road = depth_colours(np.array([1.3 * 32 / 15.5, 1.5 * 32 / 15.5]), *drawing.DEPTH_RANGE).astype(int)
    assert (np.abs(found.depth[0][-1] - road.mean(axis=0)) < 12).all()
    assert (found.depth[0][0] == NO_DATA).all()
    assert (found.motion[0][0] == NO_DATA).all()
    # The moving car is ahead and to the left; the parked one behind does not show in motion.
    coloured = [np.ptp(tile.astype(int), axis=-1) > 40 for tile in found.motion]
    assert coloured[0].any()
    assert not coloured[0][:, 32:].any()
    assert not coloured[1].any()
    # The network knows the truth: the same pictures.
    assert found.truth is not None
    for name in ("height", "motion", "height_above", "motion_above"):
        assert (getattr(found.predicted, name) == getattr(found.truth, name)).all(), name
    # Nothing is missed or invented.
    assert found.errors is not None
    counts = found.errors.errors
    assert (counts.missed, counts.invented, counts.not_judged) == (0, 0, 0)
    assert counts.hit == found.predicted_volume.occupied.sum() > 0
    assert counts.iou == 1.0
    path = save_sheet(found, tmp_path / "x" / "pictures.png")
    with Image.open(path) as saved:
        assert (np.asarray(saved) == sheet(found)).all()
    assert [p.name for p in path.parent.iterdir()] == ["pictures.png"]


def test_without_truth_lidar_or_image(tmp_path: Path, make_log: type, exact: Callable[..., Any]) -> None:
    log = make_log(truth_at=None, lidar_at=(), blind=((1, 0), (1, 1), (2, 0)))
    store = log.write(tmp_path / "store.zarr")
    first, last = draw_examples(exact(log), store, count=2)
    assert (first.t, last.t) == (0, 2)
    assert first.truth is None
    assert first.lidar == first.depth_error == []
    assert first.errors is None
    assert [picture.truth for picture in first.novel] == [None] * 5
    assert last.cameras == ("CAM_BACK",)
    assert camera_table({"a": first}).shape[0] > 3 * 32
    reader = StoreReader(store)
    # Keyframe 1 has no image of its own.
    predictor = Predictor(exact(log), reader)
    predictor.queue_length = 2
    blind = draw_keyframe(predictor, TruthSource(reader, None), "a", 1)
    assert blind.cameras == ()
    assert sheet(blind).shape[1] > 300


def test_cameras_run_from_left_to_right_around_the_car() -> None:
    def looking(c: int, degrees: float) -> View:
        pose = np.eye(4)
        pose[:3, 2] = np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), 0.0
        return View(c, np.eye(3), pose)

    rig = [looking(c, a) for c, a in enumerate((0.0, -55.0, -110.0, 180.0, 110.0, 55.0))]
    assert [view.camera for view in around(rig)] == [4, 5, 0, 1, 2, 3]
    assert [view.camera for view in around([looking(0, -179.9), looking(1, 0.0)])] == [1, 0]


def test_tiles_keep_the_shape_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_tiles, "_STRIP", 1440)
    assert tile_size(6, (64, 176)) == (87, 240)
    assert tile_size(1, (352, 1216)) == (208, 720)
    assert tile_size(2, (32, 64)) == (64, 128)


def test_stamps_are_where_they_belong() -> None:
    tile = np.zeros((6, 8, 3), dtype=np.uint8)
    colours = np.array([[255, 0, 0], [0, 255, 0]], dtype=np.uint8)
    stamp(tile, np.array([[3.0, 2.0], [7.9, 5.9]]), colours, 1)
    rows, columns = np.nonzero(tile[..., 0])
    assert (set(rows), set(columns)) == ({1, 2}, {2, 3})
    assert tile[5, 7].tolist() == [0, 255, 0]


def test_the_car_is_at_the_origin() -> None:
    blank = np.full((400, 400, 3), 255, dtype=np.uint8)
    rows, columns = np.nonzero((with_car(blank, NUSCENES_GRID) != 255).any(axis=-1))
    assert columns.mean() == pytest.approx(199.5, abs=0.6)
    # 5 pixels a metre: the arrow ends at most 2.8 m ahead of the origin.
    assert rows.min() == pytest.approx(200 - 2.8 * 5, abs=2.5)
    assert rows.max() < 200 + 2 * 5
    rows, columns = np.nonzero((with_car(np.full((256, 256, 3), 255, np.uint8), KITTI_GRID) != 255).any(axis=-1))
    assert rows.min() > 230
    assert columns.mean() == pytest.approx(127.5, abs=0.6)


def test_what_the_protocol_frees_is_not_drawn(
    tiny_store: Path, log: Any, exact: Callable[..., Any], known_network: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers from 12 up and 6 voxels at each side: occupied there is no error. Depth of moved cameras is cast
    through the truth up to its sides."""
    kept = np.zeros(log.grid.shape, dtype=bool)
    kept[6:-6, 6:-6, :12] = True
    right = exact(log).fields
    network = known_network(np.where(kept, right.sdf[0].numpy(), -0.3), right.flow[0].numpy(), log.grid)
    cast: list[np.ndarray] = []
    monkeypatch.setattr(drawing, "draw_novel", lambda *args: cast.append(args[3].occupied) or [])
    reader = StoreReader(tiny_store)
    found = draw_keyframe(Predictor(network, reader), TruthSource(reader, open_truth(tiny_store)), "a", 1)
    assert found.errors is not None
    assert (found.errors.errors.missed, found.errors.errors.invented) == (0, 0)
    assert found.errors.errors.hit > 0
    assert found.true_volume is not None
    for volume in (found.predicted_volume, found.true_volume):
        assert not volume.occupied[~kept].any()
    assert cast[0][:6].any(), "the road goes on to the side"


def test_an_error_of_depth_is_named_by_two_decimals(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    blank = np.zeros((1, 1, 3), np.uint8)
    monkeypatch.setattr(pages, "_bar", lambda title, colours, ticks: told.extend(ticks.values()) or blank)
    pages.difference_legend()
    assert told == ["0.67", "0.8", "1", "1.25", "1.5"]


def test_drawing_does_not_count_as_predicting(
    small_store: Path, small_log: Any, exact: Callable[..., Any], tmp_path: Path
) -> None:
    predictor = Predictor(exact(small_log), StoreReader(small_store), small_log.grid)
    path = next(predictor.run("a", tmp_path))
    assert pages.draw_prediction(predictor, "a", path.parent).is_file()
    assert predictor.keyframes == 1


def test_another_networks_pictures_share_the_truth(
    small_store: Path, small_log: Any, exact: Callable[..., Any]
) -> None:
    reader = StoreReader(small_store)
    source = TruthSource(reader, open_truth(small_store))
    first = draw_keyframe(Predictor(exact(small_log), reader, small_log.grid), source, "a", 0, novel=False)
    second = draw_keyframe(Predictor(exact(small_log), reader, small_log.grid), source, "a", 0, like=first)
    assert second.truth is first.truth
    assert first.novel == []
    assert len(second.novel) == 5
    # A sheet of both is the first's with the second's rows between.
    assert sheet({"a": first, "b": second}).shape[0] > sheet(first).shape[0] + 100


def test_examples_are_spread_over_the_keyframes() -> None:
    frames = [("a", t) for t in range(10)]
    assert spread(frames, 2) == [("a", 2), ("a", 7)]
    assert spread(frames[:3], 5) == frames[:3]
    assert spread([], 3) == []
