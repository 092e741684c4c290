"""What `--dry-run` says beforehand: units, bytes, hours by device, and whether the disk holds it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import pipelines.estimate
from pipelines.config import CuesConfig, load_config
from pipelines.console import show_dry_run
from pipelines.cues.flow_dis import DisFlowCue
from pipelines.estimate import Estimate, check_space, estimate, projection
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
    assert images.bytes == pytest.approx(8 * 0.28e6 * 32 * 96 / 1e6)
    assert rows["lidar"].bytes == pytest.approx(8 * 1.55e6)  # KITTI's scanner has four times nuScenes' points
    assert rows["flow_next"].seconds == pytest.approx(8 * 5.0 * 16 * 48 / 1e6)
    assert not config.store.exists()


def test_a_profile_has_its_own_rates(cues_config: Build) -> None:
    rows = by_cue(cues_config(profile="small"))
    assert rows["images"].bytes == pytest.approx(8 * 0.103e6 * 32 * 96 / 1e6)
    assert rows["flow_next"].bytes == pytest.approx(8 * 0.8e6 * 16 * 48 / 1e6)


def test_all_of_nuscenes_by_hand() -> None:
    found = projection(load_config("nuscenes"))
    assert found is not None
    whole, profiles = found
    assert (whole.keyframes, whole.cameras) == (34_149, 6)
    small = profiles["small"]
    assert small["images"] == pytest.approx(34_149 * 6 * 0.103e6 * 512 * 1408 / 1e6)
    assert small["sweeps"] == pytest.approx((34_149 - 850) * 5 * 6 * 0.134e6 * 256 * 704 / 1e6)
    assert small["lidar"] == pytest.approx(34_149 * 0.15e6)
    assert sum(small.values()) < 110e9 < sum(profiles["fast"].values())


def test_a_log_of_unknown_extent_has_no_projection(cues_config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.estimate, "WHOLE", {})
    console = Console(record=True, width=120)
    show_dry_run(cues_config(), None, None, console)
    assert "all of" not in console.export_text()


def test_a_dry_run_shows_the_projection(cues_config: Build) -> None:
    console = Console(record=True, width=120)
    show_dry_run(cues_config(), None, None, console)
    text = console.export_text()
    assert "all of SemanticKITTI sequences 00 to 10 (23,201 keyframes, 1 camera), GB by profile:" in text
    assert "fast" in text
    assert "small" in text


def test_a_small_store_is_made_and_kept_small(cues_config: Build) -> None:
    """The profile reaches the store, its units stay current, and another profile is refused rather than mixed in."""
    config = cues_config(profile="small")
    extract_log(config, scenes=["00"])
    assert CueStore.open(config.store).attributes.profile == "small"
    assert by_cue(config)["images"].units == 2
    assert not [item for item in plan(config, scenes=["00"]).work if item.state != "current"]
    with pytest.raises(StoreError, match=r"profile: 'small' there, 'fast' asked for"):
        plan(cues_config())


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


def test_a_dry_run_makes_no_store_of_an_empty_folder(cues_config: Build) -> None:
    config = cues_config()
    Path(config.store).mkdir()
    show_dry_run(config, None, None, Console(record=True))
    assert list(Path(config.store).iterdir()) == []
    assert extract_log(config, scenes=["00"]).committed


def test_a_disk_that_is_too_small(cues_config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=2 * 10**9)
    monkeypatch.setattr(pipelines.estimate.shutil, "disk_usage", lambda folder: usage)
    config = cues_config()
    check_space(config, [Estimate("images", 1, 1, 1.9e9, 1.0, "store")])
    with pytest.raises(StoreError, match=r"about 3.8 GB are needed, 2.0 GB are free"):
        check_space(config, [Estimate("images", 1, 1, 1.9e9, 1.0, "store")] * 2)
