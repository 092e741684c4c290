"""The page: every figure of the results is on it, nothing is loaded from elsewhere, and gaps are told."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from eval import camera_tiles
from eval import pictures as drawing
from eval.evaluate import evaluate
from eval.page import number, table
from eval.pictures import draw_examples
from eval.report import better, verdicts, write_report

VOID = {"meta", "img", "link"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed in the wrong place, and keeps what is of interest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(path: Path) -> tuple[str, Balanced]:
    text = path.read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return text, parser


def test_the_whole_page(
    small_store: Path, small_log: Any, exact: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "_VIEW_SIZE", (60, 100))
    monkeypatch.setattr(camera_tiles, "_STRIP", 128)
    monkeypatch.setattr(drawing, "_NOVEL_WIDTH", 64)
    model = exact(small_log)
    results = evaluate(model, small_store, checkpoint="runs/<stage2>", keyframes=1, sweep=(0.0, 0.2))
    page = write_report(results, tmp_path / "report.html", draw_examples(model, small_store, count=1))
    text, parser = parsed(page)
    # Icon, five legends, the cameras, four pictures each of prediction and truth, two of errors, the moved cameras.
    assert len(parser.sources) == 1 + 5 + 1 + 8 + 2 + 1
    assert all(source.startswith("data:") for source in parser.sources)
    assert "default-src 'none'" in text
    assert "://" not in text
    assert "runs/&lt;stage2&gt;" in text
    for shown in (
        results["config_digest"],
        "class ignored",
        "driveable surface",
        "By occupancy threshold",
        "semantics",
    ):
        assert (shown in text) == (shown != "semantics"), shown
    for value in (results["abs_rel"], results["baselines"]["flat_ground"]["rayiou_geometry"]):
        assert f"{value:.3f}" in text
    assert re.search(r"zero flow: [1-3]\.\d{3}", text)


def test_without_truth_the_gaps_are_told(tmp_path: Path, make_log: type, exact: Callable[..., Any]) -> None:
    log = make_log(truth_at=None, keyframes=1, lidar_at=(0,))
    results = evaluate(exact(log), log.write(tmp_path / "store.zarr"))
    text, parser = parsed(write_report(results, tmp_path / "report.html"))
    assert "Not computed: no occupancy truth beside the store" in text
    assert "By class" not in text
    assert parser.sources == ["data:,"]
    assert [better(verdict) for verdict in verdicts(results)[:4]] == [None] * 4


def test_better_means_better() -> None:
    assert better({"value": 0.3, "baseline": 0.2, "higher": True}) is True
    assert better({"value": 0.3, "baseline": 0.2, "higher": False}) is False
    assert better({"value": 0.2, "baseline": 0.2, "higher": True}) is False
    assert better({"value": None, "baseline": 0.2, "higher": True}) is None


def test_numbers_and_tables() -> None:
    assert [number(value) for value in (None, 0.12345, 12345, 2.0)] == ["–", "0.123", "12,345", "2.000"]
    assert table(("a", "b"), [("<x>", None)]) == (
        '<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>&lt;x&gt;</td><td class="number">–</td></tr>'
        "</tbody></table>"
    )
