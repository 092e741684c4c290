"""Networks on disk: a round trip, and every way a folder can be wrong."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import CheckpointError, load_model, save_model
from model.config import ModelConfig
from model.fields import FrameInput
from model.network import OccFlow


def test_round_trip_gives_the_same_fields(tmp_path: Path, tiny_config: ModelConfig, tiny_frames: FrameInput) -> None:
    model = OccFlow(tiny_config).eval()
    loaded = load_model(save_model(model, tmp_path / "step-1"))
    assert loaded.config == tiny_config
    assert not loaded.training
    assert torch.equal(loaded(tiny_frames).sdf, model(tiny_frames).sdf)
    assert sorted(p.name for p in (tmp_path / "step-1").iterdir()) == ["model.safetensors", "model.yaml"]


def test_wrong_folders_are_named_with_what_is_wrong(tmp_path: Path, tiny_config: ModelConfig) -> None:
    folder = save_model(OccFlow(tiny_config), tmp_path)
    weights, config = folder / "model.safetensors", folder / "model.yaml"
    state, text = load_file(weights), config.read_text()

    renamed = dict(state)
    renamed["sdf_head.other"] = renamed.pop("sdf_head.mlp.2.bias")
    save_file(renamed, weights)
    with pytest.raises(CheckpointError, match=r"missing 1 \(sdf_head.mlp.2.bias\), unexpected 1 \(sdf_head.other\)"):
        load_model(folder)
    save_file(state | {"sdf_head.mlp.2.bias": torch.zeros(2)}, weights)
    with pytest.raises(CheckpointError, match=r"sdf_head.mlp.2.bias is \(2,\), expected \(1,\)"):
        load_model(folder)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors: no such file"):
        load_model(folder)
    config.write_text(text + "surprise: 1\n")
    with pytest.raises(CheckpointError, match=r"(?s)model.yaml: not a network configuration.*surprise"):
        load_model(folder)
    config.write_bytes(b"\xff\xfe" + text.encode())
    with pytest.raises(CheckpointError, match=r"model.yaml: not a network configuration"):
        load_model(folder)
    with pytest.raises(CheckpointError, match=r"model.yaml/model.yaml: no such file; a checkpoint folder holds"):
        load_model(config)
    config.unlink()
    with pytest.raises(CheckpointError, match=r"model.yaml: no such file"):
        load_model(folder)
