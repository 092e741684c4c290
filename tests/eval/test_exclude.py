"""Evaluation leaves out what a file of marks excludes, and its result says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.evaluate import evaluate
from eval.report import provenance_rows
from eval.rules import EvaluationError
from storage.exclusions import ExcludedFrame, fingerprints, write_exclusions
from storage.reader import StoreReader


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
    with pytest.raises(EvaluationError, match="no keyframe"):
        evaluate(exact(log), tiny_store, ("a:1",), exclude=[path])
