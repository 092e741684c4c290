"""Are the files of a model whole? Told by structure and checksums, without loading a tensor or running code in them."""

import json
import struct
import zipfile
import zlib
from pathlib import Path

FOLDER_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "pytorch_model.bin",
)
"""What a model folder may hold that matters (patterns)."""

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl")

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_AGAIN = "download it again"


class FaultyWeights(ValueError):
    """A file that cannot be weights as it is."""


def folder_files(folder: Path) -> list[Path]:
    """The files of a model folder that decide what the model is, by name; each checked to be whole.

    Of several forms of the weights the one that transformers would load counts: safetensors before .bin.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise FaultyWeights(f"{folder}: no config.json; expected a folder as transformers' save_pretrained writes it")
    form = next((name for name in _WEIGHTS if (folder / name).is_file()), None)
    if form is None:
        raise FaultyWeights(f"{folder}: no weights; expected one of {', '.join(_WEIGHTS)}")
    weights = [folder / form]
    if form.endswith(".index.json"):
        shards = sorted(set(_json(folder / form).get("weight_map", {}).values()))
        if not shards:
            raise FaultyWeights(f"{folder / form}: names no file in weight_map: {_AGAIN}")
        weights += [folder / name for name in shards]
    small = [file for name in FOLDER_FILES if name not in _WEIGHTS for file in folder.glob(name)]
    small = [file for file in small if file.suffix != ".safetensors"]
    for file in [*small, *weights]:
        check_file(file)
    return sorted({*small, *weights})


def check_file(path: Path) -> None:
    """Raise FaultyWeights unless the file is there, not empty, and as long as its own header says."""
    if not path.is_file():
        raise FaultyWeights(f"{path}: no such file")
    size = path.stat().st_size
    if size == 0:
        raise FaultyWeights(f"{path}: empty: {_AGAIN}")
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise FaultyWeights(f"{path}: a Git LFS pointer, not the file it stands for: run `git lfs pull` there")
    if path.suffix == ".json":
        _json(path)
    elif path.suffix == ".safetensors":
        _check_safetensors(path, size)
    elif path.suffix in CHECKPOINT_SUFFIXES:
        _check_pickle(path, head)


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise FaultyWeights(f"{path}: not JSON ({error}): {_AGAIN}") from None
    if not isinstance(value, dict):
        raise FaultyWeights(f"{path}: expected an object, got {type(value).__name__}: {_AGAIN}")
    return value


def _check_safetensors(path: Path, size: int) -> None:
    """8 bytes: length n of the header; n bytes of JSON; then the tensors, whose last offset is the end of the file."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, 100_000_000):
            raise FaultyWeights(f"{path}: no safetensors header, or cut off in it: {_AGAIN}")
        try:
            header = json.loads(file.read(length))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise FaultyWeights(f"{path}: the safetensors header cannot be read: {_AGAIN}") from None
    if size != 8 + length + end:
        raise FaultyWeights(f"{path}: {size} bytes, but its header promises {8 + length + end}: {_AGAIN}")


def _check_pickle(path: Path, head: bytes) -> None:
    """PyTorch's files are zip archives, whose directory lies at the very end; before 1.6 they were bare pickles."""
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                archive.infolist()
        except zipfile.BadZipFile:
            raise FaultyWeights(f"{path}: a PyTorch file that is cut off: {_AGAIN}") from None
    elif not head.startswith(b"\x80"):
        raise FaultyWeights(f"{path}: starts with {head[:12]!r}, which no PyTorch file does: {_AGAIN}")


def check_members(path: Path) -> None:
    """Raise FaultyWeights unless what a PyTorch file holds has the checksums of its directory; reads all of it.

    `torch.load` does not look at them. A checksum of 0 is that of a file written without any. Files of other kinds
    have none.
    """
    with path.open("rb") as start:
        if start.read(2) != b"PK":
            return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.CRC:
                continue
            try:
                with archive.open(member) as file:
                    while file.read(1 << 20):
                        pass
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: "encrypted"
                raise FaultyWeights(f"{path}: {member.filename} in it is damaged ({error}): {_AGAIN}") from None
