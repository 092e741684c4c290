"""`occflow eval` on a folder of predictions writes the same page as on a network: figures, volumes, errors, viewer."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import occflow
from eval import camera_tiles
from eval import pictures as drawing
from eval.file_pictures import draw_files
from eval.score import score, score_shown


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pictures: these tests are about what is in them."""
    monkeypatch.setattr(drawing, "_VIEW_SIZE", (60, 100))
    monkeypatch.setattr(camera_tiles, "_STRIP", 128)


def write(log: Any, root: Path, tokens: range) -> Path:
    """Another system's labels: the truth without the wall, and no motion."""
    semantics, _ = log.volume()
    semantics[semantics == 14] = 16
    for t in tokens:
        path = root / "a" / f"token{t}" / "labels.npz"
        path.parent.mkdir(parents=True)
        np.savez_compressed(path, semantics=semantics, flow=np.zeros((*semantics.shape, 2), np.float16))
    return root


def test_the_page_of_a_folder(small_store: Path, small_log: Any, tmp_path: Path) -> None:
    root = write(small_log, tmp_path / "theirs", range(3))
    outcome = CliRunner().invoke(
        occflow.app, ["eval", str(root), str(small_store), "--pictures", "1", "--out", str(tmp_path / "out")]
    )
    assert outcome.exit_code == 0, outcome.output
    assert "time step" in outcome.output
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert f"Occupancy and flow: {root}" in text
    assert "3 keyframes of 1 scenes of nuscenes; predictions in files, layout openocc." in text
    for value in (results["rayiou_geometry"], results["mave"], results["voxel_iou"]):
        assert f"{value:.3f}" in text
    for shown in ("Volumes", "By class", "time step", "m/s in the files", "against the truth", "layout"):
        assert shown in text, shown
    for absent in ("signed distance", "weights", "LiDAR depth", "depth, Abs Rel", "://"):
        assert absent not in text, absent
    assert "default-src 'none'" in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    # Icon, four legends, the cameras, four pictures of each volume, two of errors.
    assert len(sources) == 1 + 4 + 1 + 8 + 2
    assert all(source.startswith("data:") for source in sources)


def test_pictures_of_files_are_drawn_where_there_are_files(small_store: Path, small_log: Any, tmp_path: Path) -> None:
    root = write(small_log, tmp_path / "theirs", range(1, 2))
    (found,) = draw_files(root, "openocc", small_store, count=5)
    assert (found.scene, found.t, found.cameras) == ("a", 1, ("CAM_FRONT", "CAM_BACK"))
    assert len(found.images) == len(found.lidar) == 2
    assert found.depth == found.motion == found.novel == []
    assert found.errors is not None
    semantics, _ = small_log.volume()
    # The protocol frees 6 voxels of each side: 2.4 m, so that the wall ends at 13.6 m instead of 15.
    assert found.errors.errors.missed == (semantics[6:-6, 6:-6] == 14).sum() > 0
    assert found.errors.errors.invented == 0
    assert draw_files(root, "submission", small_store) == []


def test_what_the_protocol_frees_is_no_error(small_store: Path, small_log: Any, tmp_path: Path) -> None:
    """All four sides full: RayIoU does not count them, nor do the pictures."""
    root = write(small_log, tmp_path / "theirs", range(1))
    path = root / "a" / "token0" / "labels.npz"
    semantics, flow = small_log.volume()
    semantics[:6] = semantics[-6:] = 10
    semantics[:, :6] = semantics[:, -6:] = 10
    np.savez_compressed(path, semantics=semantics, flow=flow.astype(np.float16))
    assert score(root, small_store, ("a:0",))["rayiou_geometry"] == 1.0
    (found,) = draw_files(root, "openocc", small_store, ("a:0",))
    assert found.errors is not None
    assert (found.errors.errors.missed, found.errors.errors.invented) == (0, 0)


def test_a_store_without_images_will_do(make_log: type, small_log: Any, tmp_path: Path) -> None:
    """Who only scores files needs poses, LiDAR and truth."""
    log = make_log(grid=small_log.grid, blind=tuple((t, c) for t in range(3) for c in range(2)))
    store = log.write(tmp_path / "store.zarr")
    root = write(log, tmp_path / "theirs", range(3))
    console = Console(quiet=True)
    score_shown(root, str(store), None, tmp_path / "out", None, console, pictures=1)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Volumes" in text
    assert 'alt="cameras"' not in text
