"""The parts of the demo that stand alone: its stopwatch, and the label figures it reads from commit records."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from occflow_demo import Stopwatch, label_figures
from pipelines.config import CuesConfig
from pipelines.extract import extract_log


def test_the_stopwatch_adds_up_over_runs(tmp_path: Path) -> None:
    path = tmp_path / "seconds.json"
    first = Stopwatch(path)

    def interrupted_part() -> None:
        with first.part("cues"):
            time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_part()
    interrupted = json.loads(path.read_text())["cues"]
    assert interrupted >= 0.05
    again = Stopwatch(path)
    with again.part("cues"):
        time.sleep(0.05)
    assert again.seconds["cues"] >= interrupted + 0.05


def test_label_figures_pool_blocks_by_their_counts(cues_config: Callable[..., CuesConfig]) -> None:
    config = cues_config()
    report = extract_log(config)
    figures = label_figures(config.store)
    flows = [quality for name, quality in report.quality.items() if name.startswith("flow_next")]
    blocks = [quality["warp_error"] for quality in flows if "warp_error" in quality]
    assert len(blocks) == 2, "the last block of a scene has no next keyframe"
    count = sum(block["count"] for block in blocks)
    mean = sum(block["value"] * block["count"] for block in blocks) / count
    assert figures["flow_next"]["warp_error"]["count"] == count
    assert figures["flow_next"]["warp_error"]["value"] == pytest.approx(mean)
    assert figures["lidar"]["points"] == 2 * (50 + 52 + 54 + 56)
