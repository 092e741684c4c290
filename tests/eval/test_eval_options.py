"""`occflow eval` passes over no option: what means nothing for a network, or for files, is refused with the reason."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

import occflow


@pytest.mark.parametrize("option", [["--threshold", "0.2"], ["--sweep"], ["--against", "other"]])
def test_files_have_no_network(tmp_path: Path, option: list[str]) -> None:
    outcome = CliRunner().invoke(occflow.app, ["eval", str(tmp_path), str(tmp_path / "store.zarr"), *option])
    assert outcome.exit_code != 0
    said = " ".join(outcome.output.split())
    assert option[0] in said
    assert "holds no network (model.safetensors)" in said


@pytest.mark.parametrize("option", [["--float16"], ["--truth", "gts"], ["--export", "x.gz"], ["--skip-missing"]])
def test_a_checkpoint_is_no_file_of_predictions(tmp_path: Path, option: list[str]) -> None:
    (tmp_path / "model.safetensors").touch()
    outcome = CliRunner().invoke(occflow.app, ["eval", str(tmp_path), str(tmp_path / "store.zarr"), *option])
    assert outcome.exit_code != 0
    said = " ".join(outcome.output.split())
    assert option[0] in said
    assert "is for predictions in files" in said
