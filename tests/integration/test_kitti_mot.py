"""KITTI-MOT the whole way: a synthetic log, its cues by the preset, one training step of each stage by the preset."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import occflow
from pipelines.config import load_config as load_cues
from pipelines.extract import extract_log
from pipelines.synth import write_log
from pipelines.synth.config import SynthConfig
from storage.layout import UnitId
from storage.reader import StoreReader
from storage.store import CueStore
from storage.truth import truth_path
from train.config import load_config as load_train
from train.loop import train

SHRUNK = (
    "model.base=demo",
    "model.grid={lower: [0.0, -25.6, -2.2], upper: [51.2, 25.6, 4.2], voxel: 1.6}",
    "model.backbone={depths: [1, 1, 1, 1], dims: [8, 8, 16, 16]}",
    "model.tpv={factor: 1, dim: 16, ffn_dim: 16, layers: 1}",
    "model.fpn_dim=16",
    "model.refine={channels: 8, multipliers: [1, 2], blocks: [1, 1], strides: [1, 1]}",
    "model.heads={hidden: 16}",
    "model.render.samples=24",
    "data.backward_cue=prev",
    "data.workers=0",
    "rays={grid: [8, 16], strides: [1, 2], lidar: 128}",
    "loss.eikonal_samples=512",
    "stage1={max_steps: 1, warmup_steps: 1}",
    "stage2={max_steps: 1, warmup_steps: 1}",
    "run={accelerator: cpu, devices: 1, progress: false, log_every: 1}",
)
"""What of the presets' `kitti_mot` does not fit in a test."""


@pytest.mark.slow
def test_from_a_log_to_a_training_step(tmp_path: Path) -> None:
    synth = {"scenes": 2, "val_scenes": 1, "keyframes": 6, "width": 160, "lidar_beams": 32, "lidar_azimuths": 400}
    write_log(tmp_path / "log", SynthConfig(**synth), dataset="kitti_mot")  # type: ignore[arg-type]
    store = tmp_path / "store.zarr"
    sizes = {"sizes.network": (32, 96), "sizes.render": (32, 96)}
    for split in ("train", "val"):
        given = {"dataset.root": tmp_path / "log", "dataset.split": split, "store": store, "runner.workers": 1}
        report = extract_log(load_cues("kitti_mot_small", given | sizes))
        assert not report.failed
        assert not [note for note in report.notes if "--" not in note], "the reader misses nothing"
    kept = CueStore.open(store)
    reader = StoreReader(store)
    assert (reader.attributes.dataset, reader.attributes.cameras) == ("kitti_mot", ("image_02",))
    assert reader.scenes() == ["training_0000", "training_0001"]
    assert reader.scene("training_0000").table.tags == ("training", "stereo_baseline_m=0.5400")
    for cue in ("images", "lidar", "flow_next", "flow_prev", "masks"):
        assert kept.record(UnitId(cue, "training_0000", 0)) is not None, cue
    flow = kept.record(UnitId("flow_next", "training_0000", 0))
    assert flow is not None
    quality = flow.provenance.quality["against_truth"]
    assert quality["epe"]["value"] < 0.5 * quality["zero_epe"]["value"]
    truth = CueStore.open(truth_path(store))
    occupancy = truth.read_block(UnitId("occupancy", "training_0000", 0))
    assert occupancy["occupancy/valid"].tolist() == [1, 0, 0, 0, 0, 1]
    assert {0, 8, 20} <= set(np.unique(occupancy["occupancy/semantics"][0]).tolist()), "cars, road and free space"

    config = load_train(
        "kitti_mot", [*SHRUNK, f"store={store}", f"out={tmp_path / 'run'}", "data.scenes=[training_0000]"]
    )
    assert config.loss.hessian == 0.1
    train(config)
    for stage in ("stage1", "stage2"):
        assert (tmp_path / "run" / stage).is_dir(), stage

    command = ["eval", str(tmp_path / "run" / "stage2"), str(store), "--scenes", "training_0001", "--pictures", "0"]
    outcome = CliRunner().invoke(occflow.app, command)
    assert outcome.exit_code == 0, outcome.output
    results = json.loads((tmp_path / "run" / "stage2" / "eval" / "results.json").read_text())
    assert results["protocol"] == "semantickitti"
    assert {"DE", "EPE", "DE_FG", "EPE_FG", "D_5%", "FL_10%", "SF_10%", "outlier_rule"} <= set(results["image_motion"])
    assert "baseline 0.54 m" in results["image_motion"]["rule"]
    boxes = results["boxes"]
    assert boxes["moving_boxes"] > 0
    assert boxes["frames"] == 6
    assert 0.5 < boxes["box_velocity_error_zero_flow"] < 30
    assert boxes["time_step_s"]["mean"] == pytest.approx(0.1037, rel=0.01)
    assert results["time_step"]["keyframes_s"]["mean"] == pytest.approx(0.1037, rel=0.01)
