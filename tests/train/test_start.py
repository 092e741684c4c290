"""Runs that start from other weights than the seed's: what is taken, what is said, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.network import OccFlow
from train.config import ConfigError, TrainConfig, build_config
from train.loop import train as run

Make = Callable[..., TrainConfig]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def official_file(path: Path, config: TrainConfig) -> dict[str, torch.Tensor]:
    """The backbone's tensors in the layout of the official release, with its classifier."""
    torch.manual_seed(99)
    own = OccFlow(config.model).backbone.state_dict()
    entries = {name: torch.randn_like(value) * 0.02 for name, value in own.items() if "output_norms" not in name}
    torch.save({"model": entries | {"head.weight": torch.zeros(3, 4), "head.bias": torch.zeros(3)}}, path)
    return entries


def test_a_run_starts_from_an_official_backbone(
    tiny_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "convnext.pth"
    plain = tiny_config(out=tmp_path / "plain")
    entries = official_file(path, plain)
    run(plain)
    capsys.readouterr()
    config = tiny_config(start={"backbone": path}, out=tmp_path / "run")
    run(config)
    begun, seeded = weights_of(config.out / "untrained"), weights_of(plain.out / "untrained")
    for name, value in seeded.items():
        official = entries.get(name.removeprefix("backbone."))
        assert torch.equal(begun[name], value if official is None else official), name
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"starting from {path}: {len(entries)} tensors taken"
    assert "  in it, not used: head.weight" in said
    assert "  not in it, as the seed made it: backbone.output_norms.0.weight" in said
    assert len(said) == 1 + 2 + sum("output_norms" in name for name in seeded)


def test_a_run_goes_on_from_another_ones_weights(
    tiny_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a network with another decoder the rest is taken; resumed, the run no more needs the folder."""
    first = run(tiny_config(out=tmp_path / "first"))
    trained = weights_of(first.checkpoint)
    capsys.readouterr()
    config = tiny_config(model={"heads": {"hidden": 24}}, start={"network": first.checkpoint}, out=tmp_path / "second")
    run(config)
    begun = weights_of(config.out / "untrained")
    other = {name for name, value in begun.items() if name not in trained or value.shape != trained[name].shape}
    assert other
    assert all(name.startswith(("sdf_head.", "flow_head.")) for name in other)
    assert all(torch.equal(begun[name], trained[name]) for name in begun if name not in other)
    said = capsys.readouterr().out
    assert f"{len(begun) - len(other)} tensors taken" in said
    assert all(f"  not in it, as the seed made it: {name}\n" in said for name in other)
    (first.checkpoint / "model.safetensors").unlink()
    assert run(config, resume=True).finished
    assert capsys.readouterr().out == ""


def test_what_cannot_be_started_from_leaves_no_run_behind(tiny_config: Make, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    save_file({"somewhere.else": torch.zeros(2)}, folder / "model.safetensors")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"nothing")
    (tmp_path / "text.pth").write_bytes(b"not a checkpoint")
    residual: dict[str, Any] = {"model": {"backbone": {"kind": "residual", "depths": [1, 1, 1, 1]}}}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"start": {"network": tmp_path / "absent"}}, "absent.*checkpoint folder"),
        ({"start": {"network": broken}}, "broken.*checkpoint folder"),
        ({"start": {"network": folder}}, r"nothing in .*other.*somewhere\.else"),
        ({"start": {"backbone": tmp_path / "absent.pth"}}, r"start\.backbone.*absent\.pth"),
        ({"start": {"backbone": tmp_path / "text.pth"}}, r"start\.backbone.*text\.pth"),
        ({"start": {"backbone": tmp_path / "text.pth"}, **residual}, r"model\.backbone\.kind=convnext"),
    ]
    for number, (changes, message) in enumerate(cases):
        config = tiny_config(**changes, out=tmp_path / f"run{number}")
        with pytest.raises(ConfigError, match=message):
            run(config)
        assert not config.out.exists()


def test_one_start_at_most() -> None:
    values = {"store": "s", "out": "o", "start": {"backbone": "a.pth", "network": "b"}}
    with pytest.raises(ConfigError, match=r"start\.network holds a backbone"):
        build_config(values)
