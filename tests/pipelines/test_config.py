"""Configurations: presets load, and every fault is told with its key, its value and what would be right."""

from pathlib import Path

import pytest

from pipelines.config import ConfigError, CuesConfig, absolute, json_digest, load_config, preset_names
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


def test_an_override_reaches_into_a_list_of_cues_and_into_what_is_empty(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "runner:\n")
    config = load_config(path, {"cues.images.jpeg_quality": 70, "runner.workers": 3})
    assert config.cues == {"images": {"jpeg_quality": 70}, "lidar": {}}
    assert config.runner.workers == 3
    for key, told in (
        ("store.name", "store.name = 1: store is 'a.zarr', which has no keys"),
        ("sizes.network.height", r"sizes.network.height = 1: sizes.network is \[64, 176\], which has no keys"),
    ):
        with pytest.raises(ConfigError, match=told):
            load_config(path, {key: 1})


def test_a_store_below_a_variable_that_is_not_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, GOOD)
    monkeypatch.setenv("OCCFLOW_SCRATCH", str(tmp_path))
    assert load_config(path, {"store": "$OCCFLOW_SCRATCH/b.zarr"}).store == tmp_path / "b.zarr"
    monkeypatch.delenv("OCCFLOW_SCRATCH")
    for store in ("$OCCFLOW_SCRATCH/b.zarr", "${OCCFLOW_SCRATCH}/b.zarr", "s3://cues/$OCCFLOW_SCRATCH/b.zarr"):
        with pytest.raises(ConfigError, match=r"the environment variable \$\{?OCCFLOW_SCRATCH\}? is not set here"):
            load_config(path, {"store": store})
    assert load_config(path, {"store": "price$9/b.zarr"}).store == Path("price$9/b.zarr")


def test_paths_made_absolute_mean_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("flow.pth", "bert", "car.png"):
        (tmp_path / name).touch()
    masks = {
        "backend": "grounded_sam",
        "detector": {"kind": "groundingdino", "weights": "groundingdino-swint-pth", "text_encoder": "bert"},
        "own_car": {"CAM_FRONT": "car.png", "CAM_BACK": [[0, 0], [4, 0], [4, 4]]},
    }
    cues = {"images": {}, "flow_next": {"backend": "unimatch", "weights": "./flow.pth"}, "masks": masks}
    config = load_config(written(tmp_path, GOOD), {"cues": cues})
    there = absolute(config)
    assert (there.dataset.root, there.store) == (tmp_path / "data", tmp_path / "a.zarr")
    assert there.cues["flow_next"]["weights"] == str(tmp_path / "flow.pth")
    assert there.cues["masks"]["detector"] == masks["detector"] | {"text_encoder": str(tmp_path / "bert")}, "a name"
    assert there.cues["masks"]["own_car"] == masks["own_car"] | {"CAM_FRONT": str(tmp_path / "car.png")}
    assert absolute(load_config(written(tmp_path, GOOD), {"store": "s3://cues/a.zarr"})).cues == {
        "images": {},
        "lidar": {},
    }


def test_a_profile_brings_its_jpeg_quality(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    plain = load_config(path)
    assert (plain.profile, plain.jpeg_quality) == ("fast", 90)
    assert load_config(path, {"profile": "small"}).jpeg_quality == 75
    own = load_config(path, {"profile": "small", "jpeg_quality": 85})
    assert own.jpeg_quality == 85
    assert CuesConfig.model_validate(own.model_dump()) == own


def test_the_default_profile_leaves_digests_as_they_were(tmp_path: Path) -> None:
    """Stores made before there were profiles stay current."""
    path = written(tmp_path, GOOD)
    sizes = {"network": [64, 176], "render": [32, 88], "keep": "bottom"}
    before = json_digest([{"sizes": sizes, "jpeg_quality": 90, "block_keyframes": 40}, "part"])
    assert load_config(path).digest("part") == before
    assert load_config(path, {"profile": "small", "jpeg_quality": 90}).digest("part") != before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("store:", "stroe: b.zarr\nstore:"), ["'stroe'", "'b.zarr'", "did you mean 'store'"]),
        (("kind:", "knd: x, kind:"), ["'dataset.knd'", "'x'", "did you mean 'kind'"]),
        (("store:", "profile: tiny\nstore:"), ["profile", "'tiny'", "'fast' or 'small'"]),
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
    with pytest.raises(ConfigError, match=r"presets are .*demo, demo_camera_only"):
        load_config("nuscene")
    with pytest.raises(ConfigError, match="not a YAML file"):
        load_config(written(tmp_path, "a: [1"))
    with pytest.raises(ConfigError, match="expected keys such as"):
        load_config(written(tmp_path, "- 1"))
    (tmp_path / "latin.yaml").write_bytes("store: f\u00fcr.zarr".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin.yaml: not a YAML file: .* at byte 8; save it as UTF-8"):
        load_config(tmp_path / "latin.yaml")


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
