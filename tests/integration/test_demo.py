"""The demo at a tiny size, the whole way; and its parts that stand alone."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import occflow_demo
from occflow_demo import STAGES, Size, Stopwatch, evaluate_stages, label_figures, run
from occflow_shell import CommandError
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


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, fresh: bool) -> None:
    code = tmp_path / "train" / "code.py"
    code.parent.mkdir()
    code.write_text("x = 1\n")
    with pytest.raises(CommandError, match=r"holds train, which no demo made.*another --out"):
        run(tmp_path, Console(quiet=True), fresh=fresh)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [code]


def test_a_full_disk_leaves_the_seconds_that_there_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "seconds.json"
    with Stopwatch(path).part("cues"):
        pass

    def full(self: Path, text: str) -> int:
        self.touch()
        self.open("w").close()
        raise OSError(28, "No space left on device", str(self))

    def interrupted_part() -> None:
        with Stopwatch(path).part("train"):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            interrupted_part()
    assert set(Stopwatch(path).seconds) == {"cues"}


@pytest.mark.parametrize("again", [False, True], ids=["first evaluation", "of newer weights"])
def test_an_evaluation_that_ended_before_its_page_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    stopped: list[str] = []

    def evaluated(checkpoint: Path, store: Path, scenes: Any, folder: Path, *rest: Any, **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text('{"baselines": {}}')
        if folder.name in stopped:
            raise KeyboardInterrupt
        (folder / "report.html").write_text(f"page {len(stopped)}")

    monkeypatch.setattr(occflow_demo, "evaluate_checkpoint", evaluated)
    for stage in STAGES:
        (tmp_path / "train" / stage).mkdir(parents=True)
        (tmp_path / "train" / stage / "model.safetensors").touch()
    given = tmp_path, ["a"], ["b"], Stopwatch(tmp_path / "seconds.json"), Console(quiet=True)
    if again:
        evaluate_stages(*given)
        time.sleep(0.02)
        (tmp_path / "train" / STAGES[-1] / "model.safetensors").touch()
    stopped.append(STAGES[-1])
    time.sleep(0.02)
    with pytest.raises(KeyboardInterrupt):
        evaluate_stages(*given)
    stopped[:] = ["nowhere"]
    assert set(evaluate_stages(*given)["stages"]) == set(STAGES)
    assert (tmp_path / "report.html").read_text() == "page 1"


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


TINY = Size(
    training_scenes=1,
    held_out_scenes=1,
    keyframes=3,
    synth={"width": 176, "height": 99, "lidar_beams": 16, "lidar_azimuths": 360},
    cues={"sizes.network": [32, 88], "sizes.render": [32, 88], "inspect": 2},
    train=(
        "model.grid.voxel=1.6", "rays.grid=[8,22]", "rays.lidar=256", "loss.eikonal_samples=512",
        "model.render.samples=16", "stage1.max_steps=3", "stage2.max_steps=3", "run.progress=false",
    ),
)  # fmt: skip


def test_the_whole_way_and_again(tmp_path: Path) -> None:
    """Log, cues, both stages, evaluation, report; what results.json promises; and a second run that redoes nothing."""
    console = Console(record=True, width=160)
    results = run(tmp_path, console, size=TINY)
    written = json.loads((tmp_path / "results.json").read_text())
    assert set(written["stages"]) == {"untrained", "stage1", "stage2"}
    for figures in written["stages"].values():
        assert {"rayiou_geometry", "rayiou_nonground", "abs_rel", "flow_epe_dynamic"} <= set(figures)
        assert 0 <= figures["rayiou_geometry"] <= 1
    assert {"rayiou_geometry", "rayiou_nonground"} <= set(written["baselines"]["flat_ground"])
    assert "flow_epe_dynamic" in written["baselines"]["zero_flow"]
    assert {"flow_epe", "mask_iou"} <= set(written["labels"])
    assert set(written["seconds"]) == {"synth", "cues", "train", "eval"}
    assert "<html" in (tmp_path / "report.html").read_text()[:200]
    assert "stage2" in console.export_text()
    inspected = json.loads((tmp_path / "store.inspection" / "inspection.json").read_text())
    assert inspected["sample"]["keyframes"] == 2, "the cue flow leaves the label-quality page"
    final = json.loads((tmp_path / "eval" / "stage2" / "results.json").read_text())
    assert any(note.startswith(f"threshold: sdf <= {final['threshold_m']:g} m") for note in final["notes"])
    assert "scene-0001" in str(final["notes"]), "the threshold is chosen on the training scene"
    assert final["checkpoint"] == str(tmp_path / "train" / "stage2" / "ema"), "the average is what is judged"

    def stamps() -> dict[Path, int]:
        kept = [*(tmp_path / "train").rglob("*.safetensors"), *(tmp_path / "store.zarr" / "commits").glob("*.json")]
        return {path: path.stat().st_mtime_ns for path in [*kept, *(tmp_path / "log" / "samples").rglob("*.jpg")]}

    before = stamps()
    assert len(before) > 30
    assert run(tmp_path, Console(quiet=True), size=TINY)["stages"] == results["stages"]
    assert stamps() == before
