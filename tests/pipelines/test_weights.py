"""Weights: found by name or path, told apart from damaged ones without loading, identified by content."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import pipelines.weights
from occflow import app
from pipelines.weight_sources import SOURCES, WeightSource
from pipelines.weights import (
    HOME_VARIABLE,
    WeightsError,
    check_weights,
    load_checkpoint,
    locate,
    look,
    source,
    weights_digest,
)

STATE = {"layer.weight": torch.arange(600.0).reshape(20, 30), "layer.bias": torch.zeros(20)}
runner = CliRunner()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights by name, and no hub."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "sam"}')
    save_file(STATE, path / "model.safetensors")
    return path


def test_the_table_is_whole() -> None:
    assert len({row.name for row in SOURCES}) == len(SOURCES)
    for row in SOURCES:
        assert row.licence
        assert (row.kind == "file") == bool(row.file)
        assert row.published.startswith("https://") == (row.kind == "file")
        assert not row.sha256 or len(bytes.fromhex(row.sha256)) == 32
        assert not row.file or row.published.endswith(row.file) or row.note


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
def test_a_whole_file_passes_and_every_cut_is_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(STATE, path)
    else:
        torch.save(STATE, path)
    assert check_weights(path) == [path]
    assert set(load_checkpoint(path)) == set(STATE)
    whole = path.read_bytes()
    for length in (0, 3, 9, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="download it again") as caught:
            check_weights(path)
        assert str(path) in str(caught.value)
    if name.endswith("safetensors"):
        path.write_bytes(whole + b"\0")
        with pytest.raises(WeightsError, match=rf"{len(whole) + 1} bytes, but its header promises {len(whole)}"):
            check_weights(path)


def test_damage_inside_a_file_of_pytorch_is_told(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(STATE, path)
    weights_digest(path)
    whole = path.read_bytes()
    inside = whole.find(STATE["layer.weight"].numpy().tobytes())
    path.write_bytes(whole[: inside + 400] + bytes(64) + whole[inside + 464 :])
    with pytest.raises(WeightsError, match=r"w\.pth: w/data/0 in it is damaged \(Bad CRC-32.*download it again"):
        weights_digest(path)
    found = look(source("gmflow-scale1-things"), path)
    assert (found.state, "w/data/0" in found.detail) == ("damaged", True)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    path.rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin: w/data/0 in it is damaged"):
        weights_digest(tmp_path / "model")


def test_a_file_without_checksums_is_taken_as_it_is(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert weights_digest(tmp_path / "w.pth")


def test_other_things_under_that_name_are_told(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    for content, words in [
        (b"<!DOCTYPE html><html>", "which no PyTorch file does"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
    ]:
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=words):
            check_weights(path)
    with pytest.raises(WeightsError, match="no such file"):
        check_weights(tmp_path / "absent.pth")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightsError, match="not weights by its name"):
        check_weights(tmp_path / "notes.txt")


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"a": Trap()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_checkpoint(tmp_path / "w.pth")
    assert not (tmp_path / "sprung").exists()


def test_folders(tmp_path: Path) -> None:
    path = folder(tmp_path / "model")
    (path / "README.md").write_text("not of the model")
    assert [file.name for file in check_weights(path)] == ["config.json", "model.safetensors"]
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(WeightsError, match=r"tokenizer.json: not JSON"):
        check_weights(path)
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    with pytest.raises(WeightsError, match=r"no weights; expected one of model\.safetensors"):
        check_weights(path)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"model-00002-of-00002\.safetensors: no such file"):
        check_weights(path)
    save_file(STATE, path / "model-00002-of-00002.safetensors")
    assert len(check_weights(path)) == 5
    (path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"no config.json; expected a folder as transformers"):
        check_weights(path)


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    first, second = folder(tmp_path / "a"), folder(tmp_path / "b" / "c")
    (second / "README.md").write_text("more")
    assert weights_digest(first) == weights_digest(second)
    save_file({**STATE, "layer.bias": torch.ones(20)}, second / "model.safetensors")
    assert weights_digest(first) != weights_digest(second)
    file = first / "model.safetensors"
    assert weights_digest(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    lines = "".join(
        f"{hashlib.sha256((first / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("config.json", "model.safetensors")
    )
    assert weights_digest(first) == hashlib.sha256(lines.encode()).hexdigest()


def test_weights_are_found_by_path_by_name_and_in_the_hub_cache(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = folder(tmp_path / "mine")
    assert locate(str(given)) == given
    monkeypatch.setenv("PLACE", str(tmp_path))
    assert locate("$PLACE/mine") == given
    with pytest.raises(WeightsError, match="put the folder of facebook/sam-vit-base"):
        locate("sam-vit-base")
    assert locate(str(folder(home / "sam-vit-base"))) == locate("sam-vit-base") == home / "sam-vit-base"
    with pytest.raises(WeightsError, match=r"get https://\S+/sam_vit_b_01ec64.pth \(Apache-2.0\) and put it at"):
        locate("sam-vit-b-pth")
    torch.save(STATE, home / "sam_vit_b_01ec64.pth")
    assert locate("sam-vit-b-pth") == home / "sam_vit_b_01ec64.pth"
    with pytest.raises(WeightsError, match="did you mean 'sam-vit-base'"):
        locate("sam-vit-bas")
    for nothing in ("", " "):
        with pytest.raises(WeightsError, match="no weights are named"):
            locate(nothing)


def test_the_hub_is_not_asked_unless_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="the extra `cues` is not installed")
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def snapshot(repository: str, **options: object) -> str:
        asked.append((repository, options["local_files_only"]))
        raise LocalEntryNotFoundError("outgoing traffic has been disabled")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    with pytest.raises(WeightsError, match="occflow weights path sam3 --download"):
        locate("sam3")
    with pytest.raises(WeightsError, match=r"asked to download, but: outgoing traffic"):
        locate("sam3", download=True)
    with pytest.raises(WeightsError, match="some/model: no such file or folder, and no model of that id"):
        locate("some/model")
    assert asked == [("facebook/sam3", True), ("facebook/sam3", False), ("some/model", True)]


def test_a_file_with_a_published_name_must_be_that_file(home: Path) -> None:
    path = home / "sam_vit_b_01ec64.pth"
    torch.save(STATE, path)
    with pytest.raises(WeightsError, match="the published file of this name has ec2df62732614e57"):
        weights_digest(path)
    found = look(source("sam-vit-b-pth"))
    assert (found.state, found.path) == ("damaged", path)
    own = path.rename(home / "sam_own.pth")
    assert weights_digest(own) == hashlib.sha256(own.read_bytes()).hexdigest()


def test_the_command_line(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = runner.invoke(app, ["weights", "list"])
    assert shown.exit_code == 0
    for row in SOURCES:
        assert row.published in shown.output
    assert runner.invoke(app, ["weights", "check"]).exit_code == 0, "nothing is here, nothing is damaged"
    absent = runner.invoke(app, ["weights", "check", "sam-vit-base"])
    assert absent.exit_code == 1
    assert "absent" in absent.output
    own = folder(home / "sam-vit-base")
    checked = runner.invoke(app, ["weights", "check", "sam-vit-base"])
    assert checked.exit_code == 0
    assert weights_digest(own) in checked.output
    assert runner.invoke(app, ["weights", "path", "sam-vit-base"]).output.strip() == str(own)
    (own / "model.safetensors").write_bytes(b"short")
    for arguments in (["check", "sam-vit-base"], ["check"], ["check", "sam-vit-huge", "--at", str(own)]):
        broken = runner.invoke(app, ["weights", *arguments])
        assert broken.exit_code == 1
        assert "cut off" in broken.output
    assert runner.invoke(app, ["weights", "path", "sam-vit-base"]).exit_code == 2
    assert runner.invoke(app, ["weights", "check", "sam-vit-basee"]).exit_code == 2
    assert runner.invoke(app, ["weights", "check", "--at", str(own)]).exit_code == 2


def test_a_published_file_is_known_by_its_digest(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / "tiny.pth"
    torch.save(STATE, path)
    row = WeightSource("tiny", "masks: none", "file", "https://example.org/tiny.pth", "MIT", "tiny.pth", "0" * 64)
    monkeypatch.setattr(pipelines.weights, "SOURCES", [row])
    assert look(row).state == "damaged"
    right = replace(row, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(pipelines.weights, "SOURCES", [right])
    assert look(right).digest == right.sha256
    assert "tiny: the published file, sha256" in runner.invoke(app, ["weights", "check", "tiny"]).output
    torch.save({**STATE, "more": torch.zeros(1)}, tmp_path / "own.pth")
    own = runner.invoke(app, ["weights", "check", "tiny", "--at", str(tmp_path / "own.pth")])
    assert own.exit_code == 0
    assert "tiny: whole, but not the published file, sha256" in own.output
