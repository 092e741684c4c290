"""Configuration: every preset loads, overrides reach any key, and mistakes are told with their remedy."""

from pathlib import Path

import pytest
import yaml

from train.config import ConfigError, ablation_rows, dump_config, load_config, presets
from train.selection import needed_cues


@pytest.mark.parametrize(
    "name", ["ablation", "demo", "kitti_mot", "nuscenes", "nuscenes_camera_only", "semantic_kitti"]
)
def test_presets_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    assert name in presets()
    config = load_config(name)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_presets_hold_the_papers_numbers() -> None:
    config = load_config("nuscenes")
    assert (config.loss.photometric, config.loss.flow, config.loss.dreg, config.loss.lidar) == (1, 0.005, 0.1, 0.2)
    assert (config.optimiser.lr, config.optimiser.weight_decay, config.optimiser.clip) == (1e-4, 0.01, 35)
    assert (config.stage1.warmup_steps, config.stage2.epochs, config.rays.grid) == (1000, 16, (32, 88))
    assert config.model.grid.build().shape == (200, 200, 16)
    kitti = load_config("semantic_kitti")
    assert (kitti.loss.hessian, kitti.data.neighbour.sigma_m, kitti.stage2.epochs) == (0.1, 1.0, 12)
    assert kitti.model.grid.build().shape == (256, 256, 32)
    assert (kitti.model.depth_lift.ground_z, kitti.model.heads.ground_height) == (-1.73, -1.73), "the LiDAR's frame"
    assert not load_config("nuscenes_camera_only").ablation.lidar


def test_overrides_reach_the_network_and_every_ablation_row() -> None:
    kinds = ("none", "concat", "bev_pool_forward", "bev_pool_bfam", "full")
    for kind in kinds:
        assert load_config("demo", [f"model.fusion.kind={kind}"]).model.fusion.kind == kind
    switches = ("two_stage", "dynamic_disentanglement", "forward_static_flow", "backward_static_flow")
    for switch in (*switches, "flow_supervision", "lidar"):
        assert not getattr(load_config("demo", [f"ablation.{switch}=false"]).ablation, switch)
    config = load_config("demo", ["model.fusion.kind=none", "rays.grid=[8, 22]", "data.exclude=[a, b:3]"])
    assert config.model.tpv.dim == load_config("demo").model.tpv.dim
    assert config.rays.grid == (8, 22)
    assert config.data.exclude == ("a", "b:3")


def test_a_row_of_the_ablations_is_laid_over_any_preset(tmp_path: Path) -> None:
    assert len(ablation_rows()) == 21
    config = load_config("nuscenes+t4_concat", ["optimiser.lr=1e-3"])
    assert (config.model.fusion.kind, config.ablation.lidar, config.optimiser.lr) == ("concat", False, 1e-3)
    assert config.model.tpv == load_config("nuscenes").model.tpv
    assert config.ablation.forward_static_flow, "KITTI's table has static flow, whatever the preset says"
    assert not load_config("kitti_mot+t8_full").ablation.backward_static_flow
    path = tmp_path / "c++.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config, "a file whose name has a plus is a file"
    with pytest.raises(ConfigError, match=r"\+t4_conct: no such row.*did you mean 't4_concat'"):
        load_config("nuscenes+t4_conct")
    with pytest.raises(ConfigError, match="nuscene: no such preset; did you mean 'nuscenes'"):
        load_config("nuscene+t4_concat")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage1.max_step=3", ["stage1.max_step", "3", "'max_steps'"]),
        ("los.flow=3", ["los", "'loss'"]),
        ("model.fusoin.kind=full", ["model.fusoin", "'fusion'"]),
        ("model.fusion.kind=ful", ["model.fusion.kind", "'ful'", "'full'"]),
        ("data.workers=-1", ["data.workers", "-1", "greater than or equal to 0"]),
        ("optimiser.lr=fast", ["optimiser.lr", "'fast'", "number"]),
        ("stage1.milestones=[0.8, 0.6]", ["stage1", "rising fractions"]),
        ("rays.strides=[4, 2]", ["(lowest, highest)"]),
        ("model.base=huge", ["model.base", "'huge'", "demo, nuscenes, semantic_kitti"]),
        ("zzzz=1", ["zzzz", "known here: store, out"]),
        ("stage1", ["'stage1'", "key=value"]),
        ("stage1.max_steps=[", ["not YAML"]),
    ],
)
def test_mistakes_quote_key_value_and_remedy(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("demo", [override])
    for word in words:
        assert word in str(caught.value)


def test_unknown_sources(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'nuscenes'"):
        load_config("nuscene")
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "absent.yaml")
    path = tmp_path / "list.yaml"
    path.write_text("[1, 2]")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_config(path)
    path.write_text(yaml.safe_dump({"stage1": {"epochs": 1}}))
    with pytest.raises(ConfigError, match="store: not given"):
        load_config(path)


def test_a_stage_must_end() -> None:
    with pytest.raises(ConfigError, match="epochs, max_steps or max_seconds"):
        load_config("demo", ["stage1={}"])


def test_lifted_motion_has_something_to_learn_from() -> None:
    """Else the losses would be switched off and nothing would say so."""
    given = ["store=s", "out=o", "loss.lifted_flow=1"]
    with pytest.raises(ConfigError, match=r"lifted_flow and lifted_still learn from LiDAR's returns"):
        load_config("nuscenes_camera_only", given)
    config = load_config("nuscenes_camera_only", [*given, "rays.triangulated=512", "ablation.flow_supervision=false"])
    assert {"flow_next", "masks"} <= set(needed_cues(config, 2))
    alone = load_config("nuscenes", [*given, "ablation.dynamic_disentanglement=false"])
    assert {"flow_next", "masks"} <= set(needed_cues(alone, 2))
    without = load_config("nuscenes", [*given[:2], "ablation.dynamic_disentanglement=false"])
    assert "masks" not in needed_cues(without, 2)
