"""What `--dry-run` says beforehand: units, bytes, hours by device, and whether the disk holds it."""

import shutil
from collections.abc import Callable

import pytest
from rich.console import Console

import pipelines.estimate
from pipelines.config import CuesConfig
from pipelines.console import show_dry_run
from pipelines.cues.flow_dis import DisFlowCue
from pipelines.estimate import Estimate, check_space, estimate
from pipelines.extract import extract_log
from pipelines.plan import plan
from storage.errors import StoreError
from storage.store import CueStore

Build = Callable[..., CuesConfig]


def by_cue(config: CuesConfig) -> dict[str, Estimate]:
    return {row.cue: row for row in estimate(config, plan(config))}


def test_built_in_rates_by_hand(cues_config: Build) -> None:
    """Two scenes of four keyframes, one camera, images of 32 x 96 pixels, blocks of three keyframes."""
    config = cues_config()
    rows = by_cue(config)
    assert set(rows) == {"images", "sweeps", "lidar", "flow_next"}
    images = rows["images"]
    assert (images.units, images.keyframes, images.source) == (4, 8, "built-in")
    assert images.bytes == pytest.approx(8 * 0.26e6 * 32 * 96 / 1e6)
    assert rows["lidar"].bytes == pytest.approx(8 * 0.5e6)
    assert rows["flow_next"].seconds == pytest.approx(8 * 5.0 * 16 * 48 / 1e6)
    assert not config.store.exists()


def test_rates_of_the_store_itself(cues_config: Build) -> None:
    config = cues_config()
    extract_log(config, scenes=["00"])
    made = [record for record in CueStore.open(config.store).records() if record.unit.cue == "images"]
    images = by_cue(config)["images"]
    assert (images.units, images.keyframes, images.source) == (2, 4, "store")
    assert images.bytes == pytest.approx(sum(record.bytes for record in made))
    assert images.seconds == pytest.approx(sum(record.provenance.seconds for record in made))
    extract_log(config)
    assert by_cue(config) == {}


def test_hours_of_a_gpu_are_counted_apart(cues_config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DisFlowCue, "needs_gpu", True, raising=False)
    config = cues_config()
    rows = by_cue(config)
    assert [cue for cue, row in rows.items() if row.gpu] == ["flow_next"]
    monkeypatch.setattr(pipelines.console, "estimate", lambda *_: [Estimate("f", 1, 1, 1e9, 7200.0, "store", True)])
    console = Console(record=True, width=120)
    show_dry_run(config, None, None, console)
    assert "about 0.00 core hours, 2.00 GPU hours, 1.00 GB" in console.export_text()


def test_a_disk_that_is_too_small(cues_config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=2 * 10**9)
    monkeypatch.setattr(pipelines.estimate.shutil, "disk_usage", lambda folder: usage)
    config = cues_config()
    check_space(config, [Estimate("images", 1, 1, 1.9e9, 1.0, "store")])
    with pytest.raises(StoreError, match=r"about 3.8 GB are needed, 2.0 GB are free"):
        check_space(config, [Estimate("images", 1, 1, 1.9e9, 1.0, "store")] * 2)
