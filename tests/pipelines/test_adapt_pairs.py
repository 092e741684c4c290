"""Folders of frame pairs: whole or refused, never a mixture; images of several sizes; what a resumed run takes."""

import hashlib
import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.adapt import collect
from pipelines.adapt.collect import CollectSettings, collect_pairs
from pipelines.adapt.pairs import FramePairs, PairsError, write_pairs
from pipelines.adapt.run import fine_tune
from pipelines.config import ConfigError, CuesConfig
from pipelines.cues.unimatch.network import UniMatch, save_network
from pipelines.cues.unimatch.variants import Variant
from pipelines.datasets.records import DataError

TINY = Variant("tiny", scales=1, splits=(2,), widths=(8, 8, 8), channels=16, layers=1)
SIZE = (32, 48)


def pairs_of(count: int, value: int, flow: bool) -> FramePairs:
    """`count` pairs of images that are all `value`, with a true flow of `value` or none."""
    images = np.full((count + 1, *SIZE, 3), value, np.uint8)
    index = np.stack([np.arange(count), np.arange(count) + 1], axis=1)
    return FramePairs(images, index, np.full((count, 2, *SIZE), value, np.float32) if flow else None)


def record(path: str, width: int, height: int) -> SimpleNamespace:
    return SimpleNamespace(path=Path(path), width=width, height=height)


def log_of(monkeypatch: pytest.MonkeyPatch, records: list[SimpleNamespace]) -> Any:
    """A log whose pairs are made of two records each."""
    found = [("s", k, "c", *records[2 * k : 2 * k + 2]) for k in range(len(records) // 2)]
    monkeypatch.setattr(collect, "_pairs", lambda log, scene, between: found)
    return SimpleNamespace(scene=lambda name: None)


def blank(image: Any) -> np.ndarray:
    return np.full((image.height, image.width, 3), image.width % 256, np.uint8)


def test_pairs_saved_over_others_leave_nothing_of_them(tmp_path: Path) -> None:
    pairs_of(2, 7, flow=True).save(tmp_path)
    (tmp_path / "made_from").write_text("the log before")
    pairs_of(2, 9, flow=False).save(tmp_path)
    found = FramePairs.open(tmp_path)
    assert found.flow is None
    assert (found.images == 9).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.npy", "pairs.npy"]
    pairs_of(3, 5, flow=True).save(tmp_path)
    found = FramePairs.open(tmp_path)
    assert found.flow is not None
    np.testing.assert_array_equal(found.flow, np.full((3, 2, *SIZE), 5, np.float32))
    assert found.pairs.tolist() == [[0, 1], [1, 2], [2, 3]]


def test_pairs_can_be_saved_where_they_lie(tmp_path: Path) -> None:
    pairs_of(2, 7, flow=True).save(tmp_path)
    opened = FramePairs.open(tmp_path)
    replace(opened, pairs=opened.pairs[:, ::-1]).save(tmp_path)
    found = FramePairs.open(tmp_path)
    assert (found.images == 7).all()
    assert found.flow is not None
    assert (found.flow == 7).all()
    assert found.pairs.tolist() == [[1, 0], [2, 1]]


def test_a_failed_write_leaves_the_pairs_that_were_there(tmp_path: Path) -> None:
    pairs_of(2, 7, flow=True).save(tmp_path)
    (tmp_path / "made_from").write_text("mark")

    def damaged() -> Iterator[np.ndarray]:
        yield np.zeros((*SIZE, 3), np.uint8)
        raise DataError("2.png: damaged")

    with pytest.raises(DataError, match="damaged"):
        write_pairs(tmp_path, SIZE, 2, damaged(), np.array([[0, 1]]), None)
    assert (FramePairs.open(tmp_path).images == 7).all()
    assert (tmp_path / "made_from").read_text() == "mark"


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_between_the_files_leaves_no_folder_that_opens(
    renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.adapt import pairs

    pairs_of(2, 7, flow=True).save(tmp_path)
    (tmp_path / "made_from").write_text("mark")
    done: list[Path] = []
    rename = pairs.os.replace

    def killed(source: Path, target: Path) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        rename(source, target)

    monkeypatch.setattr(pairs, "os", SimpleNamespace(replace=killed))
    with pytest.raises(KeyboardInterrupt):
        pairs_of(2, 9, flow=True).save(tmp_path)
    assert not (tmp_path / "made_from").exists()
    with pytest.raises(PairsError, match="no whole folder"):
        FramePairs.open(tmp_path)


def test_sequences_of_kittis_sizes_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(1241, 376), (1242, 375), (1226, 370), (1238, 374)]
    records = [record(f"{k}-{width}", width, height) for width, height in sizes for k in range(2)]
    log = log_of(monkeypatch, records)
    pairs = collect_pairs(log, ["s"], blank, 32, CollectSettings(max_width=128), tmp_path, truth=False)
    # 128 columns of 1241x376 are 38.8 rows; the next multiple of 32 above is 64.
    assert pairs.images.shape == (8, 64, 128, 3)
    assert [int(image[0, 0, 0]) for image in pairs.images] == [width % 256 for width, _ in sizes for _ in range(2)]


def test_true_flow_is_stretched_from_its_own_images_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A surface that moves a tenth of the image's width moves a tenth of the stretched one's, whatever it was."""
    records = [record(f"{k}-{width}", width, height) for width, height in ((96, 32), (100, 32)) for k in range(2)]
    log = log_of(monkeypatch, [*records, record("4", 96, 32), record("5", 96, 32)])

    def camera(token: int, channel: str) -> dict[str, np.ndarray] | None:
        if token == 2:
            return None
        flow = np.zeros((2, 32, (96, 100)[token]), np.float32)
        flow[0] = flow.shape[2] / 10
        return {"flow_next": flow}

    log.truth = lambda name: SimpleNamespace(camera=camera)
    log.scene = lambda name: SimpleNamespace(keyframes=[SimpleNamespace(token=k) for k in range(3)])
    monkeypatch.setattr(collect, "leads_to_next", lambda *any: True)
    pairs = collect_pairs(log, ["s"], blank, 32, CollectSettings(), tmp_path)
    assert pairs.flow is not None
    np.testing.assert_allclose(pairs.flow[:2, 0], 9.6, rtol=1e-6)
    assert (pairs.flow[:2, 1] == 0).all()
    assert np.isnan(pairs.flow[2]).all(), "no truth for this pair alone"


@pytest.mark.parametrize(("width", "refused"), [(104, False), (106, True), (96, False), (94, True)])
def test_shapes_too_far_apart_are_refused(
    width: int, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_of(monkeypatch, [record(f"{k}.png", w, 50) for k, w in enumerate((100, 100, width, width))])
    if not refused:
        assert len(collect_pairs(log, ["s"], blank, 16, CollectSettings(), tmp_path, truth=False)) == 2
        return
    with pytest.raises(PairsError, match=rf"2\.png: {width}x50 pixels, where 0\.png has 100x50; .*\(--scenes\)"):
        collect_pairs(log, ["s"], blank, 16, CollectSettings(), tmp_path, truth=False)


def test_collecting_holds_a_few_images_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(monkeypatch, [record(str(k), 320, 192) for k in range(60)])
    tracemalloc.start()
    try:
        collect_pairs(log, ["s"], blank, 32, CollectSettings(), tmp_path, truth=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "images.npy").stat().st_size > 60 * 320 * 192 * 3
    assert peak < 6 * 320 * 192 * 3


@pytest.fixture
def tiny_weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_network(UniMatch(TINY), tmp_path / "tiny.pth")


def test_a_resumed_run_takes_its_own_pairs_or_none(
    cues_config: Callable[..., CuesConfig], tiny_weights: Path, tmp_path: Path
) -> None:
    out, values = tmp_path / "out", {"steps": 1, "max_width": 96, "held_out": 3}
    fine_tune(cues_config(), str(tiny_weights), out, ("00",), "cpu", values, tell=lambda line: None)
    images = out / "pairs" / "images.npy"
    before = (images.stat().st_ino, (out / "pairs" / "made_from").read_text())
    with pytest.raises(ConfigError, match=r"made_from: .*scenes = \['00'\] \(now \['01'\]\)"):
        fine_tune(cues_config(), str(tiny_weights), out, ("01",), "cpu", values, resume=True)
    with pytest.raises(ConfigError, match=r"max_width = 96 \(now 64\)"):
        fine_tune(cues_config(), str(tiny_weights), out, ("00",), "cpu", {**values, "max_width": 64}, resume=True)
    assert (images.stat().st_ino, (out / "pairs" / "made_from").read_text()) == before
    (out / "pairs" / "made_from").write_text("0a1b2c")
    with pytest.raises(ConfigError, match="holds '0a1b2c', not what pairs are made from"):
        fine_tune(cues_config(), str(tiny_weights), out, ("00",), "cpu", values, resume=True)


def test_a_run_of_an_earlier_version_goes_on(
    cues_config: Callable[..., CuesConfig], tiny_weights: Path, tmp_path: Path
) -> None:
    """Its mark is a digest of dataset, truth, scenes, settings and multiple; here worked out anew."""
    config, out, values = cues_config(), tmp_path / "out", {"steps": 1, "max_width": 96, "held_out": 3}
    fine_tune(config, str(tiny_weights), out, ("00",), "cpu", values, tell=lambda line: None)
    marked, images = out / "pairs" / "made_from", out / "pairs" / "images.npy"
    facts = [config.dataset.model_dump(mode="json"), config.truth, ["00"]]
    facts += [{"between": "keyframes", "max_width": 96, "limit": 2000}, TINY.multiple]
    marked.write_text(hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest())
    before = images.stat().st_ino
    fine_tune(config, str(tiny_weights), out, ("00",), "cpu", values, resume=True, tell=lambda line: None)
    assert images.stat().st_ino == before
    with pytest.raises(ConfigError, match="not what pairs are made from"):
        fine_tune(config, str(tiny_weights), out, ("01",), "cpu", values, resume=True)


def test_that_nothing_is_measured_is_said(
    cues_config: Callable[..., CuesConfig], tiny_weights: Path, tmp_path: Path
) -> None:
    """Three pairs, and by default the sixth is the first that would be held out."""
    lines: list[str] = []
    values = {"steps": 1, "max_width": 96}
    done = fine_tune(cues_config(), str(tiny_weights), tmp_path / "a", ("00",), "cpu", values, tell=lines.append)
    assert set(done.history[0]) == {"step"}
    assert any("nothing will be measured: 3 pairs are too few to hold out every 10th" in line for line in lines)
    assert "step 0: nothing measured" in lines
    advised = {**values, "held_out": 2}
    done = fine_tune(cues_config(), str(tiny_weights), tmp_path / "b", ("00",), "cpu", advised, tell=lambda line: None)
    assert done.history[0]["census"] > 0
