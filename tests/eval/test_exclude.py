"""Evaluation leaves out what a file of marks excludes, in figures, pictures and the choice of a threshold, and its
result says so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from eval import comparison, file_pictures, pictures
from eval.evaluate import choose_threshold, evaluate
from eval.frames import chosen_keyframes
from eval.pictures import KeyframePictures
from eval.report import provenance_rows
from eval.rules import EvaluationError
from eval.score import score_shown
from model.config import FusionConfig
from occflow_eval import evaluate_checkpoint
from storage.exclusions import ExcludedFrame, fingerprints, write_exclusions
from storage.reader import StoreReader


def empty(scene: str, t: int) -> KeyframePictures:
    """Pictures in which nothing is drawn."""
    found = object.__new__(KeyframePictures)
    found.__dict__.update(scene=scene, t=t)
    return found


def times(drawn: list[KeyframePictures]) -> list[int]:
    """Which keyframes of scene a were drawn."""
    assert {found.scene for found in drawn} == {"a"}
    return [found.t for found in drawn]


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn: which keyframes would be is what is asked."""
    for module in (pictures, comparison):
        monkeypatch.setattr(module, "draw_keyframe", lambda predictor, source, scene, t, *a, **k: empty(scene, t))


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """A file that marks a:1."""
    return write_exclusions(tmp_path / "marks.json", [ExcludedFrame("a", 1)], "s")


def test_marks_are_left_out_and_counted(
    tiny_store: Path, log: Any, exact: Callable[[Any], Any], tmp_path: Path
) -> None:
    own = fingerprints(StoreReader(tiny_store).scene("a"), 1)
    marks = [ExcludedFrame("a", 1, fingerprints=own), ExcludedFrame("a", 2, fingerprints={"images": "another"})]
    path = write_exclusions(tmp_path / "marks.json", marks, "s")
    found = evaluate(exact(log), tiny_store, ("a:1", "a:2"), exclude=[path])
    assert found["keyframes"] == 1
    assert found["excluded"] == {"files": [str(path)], "keyframes": 1, "stale": 1}
    rows = dict(provenance_rows(found))
    assert rows["left out"] == f"1 keyframes by {path}; 1 marks no longer hold"
    with pytest.raises(EvaluationError, match=r"no keyframe.* but the 1 that are marked"):
        evaluate(exact(log), tiny_store, ("a:1",), exclude=[path])


def test_marks_elsewhere_are_not_counted(
    tiny_store: Path, log: Any, exact: Callable[[Any], Any], tmp_path: Path
) -> None:
    path = write_exclusions(tmp_path / "marks.json", [ExcludedFrame("a", t) for t in (0, 1)], "s")
    found = evaluate(exact(log), tiny_store, ("a:1-2",), exclude=[path])
    assert (found["keyframes"], found["excluded"]["keyframes"]) == (1, 1)


@pytest.mark.usefixtures("drawing")
def test_what_is_drawn_was_measured(tiny_store: Path, log: Any, exact: Callable[[Any], Any], marked: Path) -> None:
    network = exact(log)
    assert times(pictures.draw_examples(network, tiny_store, count=3)) == [0, 1, 2]
    assert times(pictures.draw_examples(network, tiny_store, count=3, exclude=[marked])) == [0, 2]
    assert times(pictures.draw_examples(network, tiny_store, count=3, keyframes=1)) == [0]
    sides = comparison.draw_sides({"x": network, "y": network}, tiny_store, count=3, exclude=[marked])
    assert [times(list(side.values())) for side in sides] == [[0, 0], [2, 2]]
    assert len(comparison.draw_sides({"x": network}, tiny_store, keyframes=2)) == 2


def test_drawn_files_were_scored(
    tiny_store: Path, log: Any, marked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def draw(volumes: Any, source: Any, scene: str, t: int, workers: int) -> KeyframePictures:
        drawn.append(t)
        return empty(scene, t)

    monkeypatch.setattr(file_pictures, "draw_file", draw)
    monkeypatch.setattr("eval.report.write_report", lambda *a: None)
    semantics, flow = log.volume()
    for t in range(3):
        folder = tmp_path / "theirs" / "a" / f"token{t}"
        folder.mkdir(parents=True)
        np.savez_compressed(folder / "labels.npz", semantics=semantics, flow=flow.astype(np.float16))
    given: dict[str, Any] = {"exclude": [marked]}
    score_shown(tmp_path / "theirs", str(tiny_store), None, tmp_path / "out", None, Console(quiet=True), 3, **given)
    assert drawn == [0, 2]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["excluded"]["keyframes"] == 1


def test_a_threshold_is_chosen_without_them(
    tiny_store: Path, log: Any, exact: Callable[[Any], Any], tmp_path: Path
) -> None:
    path = write_exclusions(tmp_path / "marks.json", [ExcludedFrame("a", t) for t in range(3)], "s")
    with pytest.raises(EvaluationError, match="but the 3 that are marked"):
        choose_threshold(exact(log), tiny_store, ("a",), (0.2,), exclude=[path])


def test_the_command_hands_them_on_and_keeps_figures_that_cannot_be_drawn(
    tiny_store: Path, log: Any, exact: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_exclusions(tmp_path / "marks.json", [ExcludedFrame("a", 1)], "s")
    told: dict[str, Any] = {}

    def chosen(*args: Any, **given: Any) -> float:
        told["choice"] = given["exclude"]
        return 0.2

    def drawn(*args: Any, **given: Any) -> None:
        told["drawing"] = given["exclude"], given["keyframes"]
        raise RuntimeError("no picture today")

    monkeypatch.setattr("model.checkpoint.load_model", lambda path: exact(log))
    monkeypatch.setattr("eval.evaluate.choose_threshold", chosen)
    monkeypatch.setattr("eval.pictures.draw_examples", drawn)
    options: dict[str, Any] = {"exclude": [path], "keyframes": 1, "choose_on": ("a",)}
    with pytest.raises(RuntimeError, match="no picture"):
        evaluate_checkpoint(tmp_path, tiny_store, None, tmp_path / "out", Console(quiet=True), 1, **options)
    assert told == {"choice": [path], "drawing": ([path], 1)}
    assert json.loads((tmp_path / "out" / "results.json").read_text())["keyframes"] == 1


def test_a_keyframe_that_is_named_twice_counts_once(tiny_store: Path) -> None:
    assert chosen_keyframes(StoreReader(tiny_store), ["a:1-2", "a:0-1"], None) == [("a", 1), ("a", 2), ("a", 0)]


@pytest.mark.usefixtures("drawing")
def test_a_keyframe_whose_image_lies_earlier(make_log: type, exact: Callable[[Any], Any], tmp_path: Path) -> None:
    """It is measured; drawn only where there is no other."""
    log = make_log(blind=((1, 0), (1, 1)))
    reader = StoreReader(log.write(tmp_path / "store.zarr"))
    network = exact(log)
    fusion = FusionConfig(kind="concat", history=1)
    network.config = network.config.model_copy(update={"fusion": fusion})
    assert chosen_keyframes(reader, ["a:1"], 2) == [("a", 1)]
    assert times(pictures.draw_examples(network, reader.path, count=3)) == [0, 2]
    assert times(pictures.draw_examples(network, reader.path, ["a:1"])) == [1]
