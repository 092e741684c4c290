"""Two networks side by side: on the same keyframes, under names that tell them apart, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval import camera_tiles
from eval import pictures as drawing
from eval.comparison import compare, draw_sides, figure_rows, telling_names, write_comparison
from eval.evaluate import evaluate
from eval.rules import EvaluationError
from geometry.grid import VoxelGrid


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_VIEW_SIZE", (60, 100))
    monkeypatch.setattr(drawing, "_NOVEL_WIDTH", 64)
    monkeypatch.setattr(camera_tiles, "_STRIP", 128)


@pytest.mark.slow
def test_the_page_and_sheets_of_two_networks(
    small_store: Path, small_log: Any, exact: Callable[..., Any], known_network: type, tmp_path: Path
) -> None:
    right = exact(small_log)
    wrong = known_network(-right.fields.sdf[0].numpy(), np.zeros((*small_log.grid.shape, 2)), small_log.grid)
    models = {"right": right, "<wrong>": wrong}
    results = {name: evaluate(model, small_store, ["a:0-1"], keyframes=1) for name, model in models.items()}
    path = compare(models, results, small_store, ["a:0-1"], tmp_path, count=1)
    text = path.read_text(encoding="utf-8")
    assert "right against &lt;wrong&gt;" in text
    assert "<wrong>" not in text
    for result in results.values():
        assert f"{result['rayiou_geometry']:.3f}" in text
    assert [p.name for p in (tmp_path / "sheets").iterdir()] == ["a_0001.png"]
    rows = {row[0]: row[1:3] for row in figure_rows(results)}
    # Zero flow is measured on what each network found: of the one that found nothing there is none.
    baselines = [results[name]["baselines"]["zero_flow"]["mave"] for name in models]
    assert next(row for row in figure_rows(results) if row[0] == "mAVE m/s")[3:5] == tuple(baselines)
    assert baselines[0] != baselines[1]
    assert "right: baseline" in text
    assert rows["RayIoU, geometry"] == (results["right"]["rayiou_geometry"], results["<wrong>"]["rayiou_geometry"])
    sides = draw_sides(models, small_store, ["a:0"], count=1, thresholds={"right": 0.0})[0]
    assert sides["right"].threshold == 0.0
    assert sides["right"].errors.errors.missed == 0  # type: ignore[union-attr]
    assert sides["<wrong>"].errors.errors.hit == 0  # type: ignore[union-attr]


def test_networks_of_two_grids_need_a_truth(tmp_path: Path, make_log: type, known_network: type) -> None:
    log = make_log(truth_at=None, keyframes=1, lidar_at=())
    store = log.write(tmp_path / "store.zarr")
    models = {}
    for name, cells in (("a", 8), ("b", 10)):
        grid = VoxelGrid((-8.0, -8.0, -1.0), (8.0, 8.0, 3.0), (cells, cells, 4))
        models[name] = known_network(np.ones(grid.shape), np.zeros((*grid.shape, 2)), grid)
        models[name].config = models[name].config.model_copy(update={"grid": _config(grid)})
    with pytest.raises(EvaluationError, match="2 networks on 2 grids"):
        draw_sides(models, store)


def _config(grid: VoxelGrid) -> Any:
    class Fixed:
        def build(self) -> VoxelGrid:
            return grid

    return Fixed()


def test_results_of_other_keyframes_are_refused(tmp_path: Path) -> None:
    some = {"protocol": "geometry", "keyframes": 3, "scenes": ["a"], "dataset": "x"}
    with pytest.raises(EvaluationError, match="different keyframes or protocols"):
        write_comparison({"a": some, "b": some | {"keyframes": 4}}, tmp_path / "page.html", [])


def test_names_are_what_differs() -> None:
    assert telling_names(["runs/a/stage2/ema", "runs/b/stage2/ema"]) == ["a", "b"]
    assert telling_names(["runs/a/stage1", "runs/a/stage2/ema"]) == ["stage1", "stage2/ema"]
    assert telling_names(["runs/a", "runs/a"]) == ["a 1", "a 2"]
    assert telling_names(["runs/a/ema", "runs/ema"]) == ["a", "ema"]
