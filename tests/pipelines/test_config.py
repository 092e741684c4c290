"""Configurations: presets load, and every fault is told with its key, its value and what would be right."""

from pathlib import Path

import pytest

from pipelines.config import ConfigError, load_config, preset_names
from pipelines.cues.images import ImagesCue
from pipelines.cues.lidar import LidarCue
from pipelines.workbench import Workbench


def written(folder: Path, text: str) -> Path:
    path = folder / "cues.yaml"
    path.write_text(text)
    return path


GOOD = """
dataset: {kind: nuscenes, root: data}
store: a.zarr
sizes: {network: [64, 176], render: [32, 88]}
keyframe_interval_s: 0.5
cues: [images, lidar]
"""


def test_presets_load() -> None:
    assert {"demo", "demo_camera_only", "nuscenes", "semantic_kitti"} <= set(preset_names())
    for name in preset_names():
        config = load_config(name)
        assert "images" in config.cues
        assert ("lidar" in config.cues) != name.endswith("camera_only")


def test_the_paper_sizes() -> None:
    assert load_config("nuscenes").sizes.network == (512, 1408)
    assert load_config("nuscenes").sizes.render == (256, 704)
    assert load_config("semantic_kitti").sizes.render == (352, 1216)


def test_a_list_of_cues_takes_every_default(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, GOOD)).cues == {"images": {}, "lidar": {}}


def test_overrides_and_none(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, GOOD), {"dataset.root": "/elsewhere", "runner.workers": 3, "store": None})
    assert config.dataset.root == Path("/elsewhere")
    assert config.runner.workers == 3
    assert config.store == Path("a.zarr")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("store:", "stroe: b.zarr\nstore:"), ["'stroe'", "'b.zarr'", "did you mean 'store'"]),
        (("kind:", "knd: x, kind:"), ["'dataset.knd'", "'x'", "did you mean 'kind'"]),
        (("[images, lidar]", "[images, lidr]"), ["cues", "unknown cue 'lidr'", "did you mean 'lidar'"]),
        (("[images, lidar]", "{flow_aux: {backend: diss}}"), ["'diss'", "did you mean 'dis'"]),
        (("[images, lidar]", "{lidar: {min_rnge: 2}}"), ["'min_rnge'", "value 2", "did you mean 'min_range'"]),
        (("[images, lidar]", "{lidar: {min_range: far}}"), ["min_range", "'far'"]),
        (("a.zarr", "a"), ["store = 'a'", "a.zarr"]),
        (("[32, 88]", "[32, 80]"), ["[32, 80]", "[64, 176]", "whole number", "[32, 88]"]),
        (("0.5", "-1"), ["keyframe_interval_s = -1", "greater than 0"]),
        (("keyframe_interval_s: 0.5", ""), ["'keyframe_interval_s' is missing"]),
        (("cues:", "runner: {scheduler: tcp://x}\ncues:"), ["scheduler 'tcp://x'", "set kind to dask"]),
    ],
)
def test_faults_name_key_value_and_remedy(tmp_path: Path, change: tuple[str, str], words: list[str]) -> None:
    path = written(tmp_path, GOOD.replace(*change))
    with pytest.raises(ConfigError) as error:
        load_config(path)
    message = str(error.value)
    assert str(path) in message
    for word in words:
        assert word in message, message


def test_what_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="presets are demo"):
        load_config("nuscene")
    with pytest.raises(ConfigError, match="not a YAML file"):
        load_config(written(tmp_path, "a: [1"))
    with pytest.raises(ConfigError, match="expected keys such as"):
        load_config(written(tmp_path, "- 1"))


def test_a_cue_that_lacks_its_upstream_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Workbench(load_config(written(tmp_path, GOOD)))
    monkeypatch.setattr(ImagesCue, "needs", ("flow_next",))
    with pytest.raises(ConfigError, match="'images' is made from 'flow_next', which is not listed; add 'flow_next'"):
        _ = bench.extractors


def test_cues_in_a_circle_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Workbench(load_config(written(tmp_path, GOOD)))
    monkeypatch.setattr(ImagesCue, "needs", ("lidar",))
    monkeypatch.setattr(LidarCue, "needs", ("images",))
    with pytest.raises(ConfigError, match="circle"):
        _ = bench.extractors


def test_upstream_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Workbench(load_config(written(tmp_path, GOOD)))
    monkeypatch.setattr(ImagesCue, "needs", ("lidar",))
    assert list(bench.extractors) == ["lidar", "images"]
