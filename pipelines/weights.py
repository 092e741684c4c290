"""Model weights of the cue backends: where upstream publishes them, what is here, and whether it is whole.

Nothing here downloads unless it is asked to.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pipelines.config import ConfigError, closest, expanded
from pipelines.weight_files import (
    CHECKPOINT_SUFFIXES,
    FOLDER_FILES,
    FaultyWeights,
    check_file,
    check_members,
    folder_files,
)
from pipelines.weight_sources import SOURCES, WeightSource

HOME_VARIABLE = "OCCFLOW_WEIGHTS"
"""Environment variable: the folder in which files and folders are found by the names of `SOURCES`."""


class WeightsError(ConfigError):
    """Weights that are not here, not whole or not what they should be. The message says where to get them."""


def source(name: str) -> WeightSource:
    """The row of that name. WeightsError for an unknown one."""
    rows = {row.name: row for row in SOURCES}
    if name not in rows:
        raise WeightsError(f"no weights are called {name!r}; {closest(name, rows)}")
    return rows[name]


def weights_home() -> Path:
    """Folder of weights found by name: $OCCFLOW_WEIGHTS, by default ~/.cache/occflow/weights."""
    given = os.environ.get(HOME_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "occflow" / "weights"


def locate(weights: str, download: bool = False, revision: str | None = None) -> Path:
    """The file or folder that a configuration means.

    Args:
        weights: a path, a name of SOURCES, or a hub id (owner/name). A path wins where there is such a file.
        download: whether a hub id that is not in the local cache may be fetched.
        revision: of a hub id.

    Raises:
        WeightsError: nothing there; the message says what to do.
    """
    if not weights.strip():
        # As a path it would be the folder that the command is run in.
        raise WeightsError("no weights are named: give a path, or a name of `occflow weights list`")
    path = expanded(weights)
    if path.exists():
        return path
    row = next((row for row in SOURCES if row.name == weights), None)
    if row is not None:
        for name in filter(None, (row.name, row.file)):
            if (weights_home() / name).exists():
                return weights_home() / name
        if row.kind == "file":
            raise WeightsError(_absent(row))
        return _from_hub(row.published, download, revision, _absent(row))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", weights) and not weights.startswith("."):
        return _from_hub(
            weights,
            download,
            revision,
            f"{weights}: no such file or folder, and no model of that id in the local hub cache; "
            "give a folder, or set download: true to fetch it",
        )
    names = {row.name: row for row in SOURCES}
    raise WeightsError(
        f"{weights}: no such file or folder, and no name of `occflow weights list`: {closest(weights, names)}"
    )


def _absent(row: WeightSource) -> str:
    place = weights_home() / (row.file or row.name)
    if row.kind == "file":
        return f"weights {row.name} are not here: get {row.published} ({row.licence}) and put it at {place}"
    return (
        f"weights {row.name} are not here: put the folder of {row.published} ({row.licence}) at {place}, or fetch it "
        f"by `occflow weights path {row.name} --download`"
    )


def _from_hub(repository: str, download: bool, revision: str | None, absent: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    except ImportError:
        raise WeightsError(f"{absent}. (The hub cache is not looked into: pip install 'occflow[cues]')") from None
    try:
        found = snapshot_download(
            repository, revision=revision, local_files_only=not download, allow_patterns=list(FOLDER_FILES)
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        why = f" (asked to download, but: {_first_line(error)})" if download else ""
        raise WeightsError(absent + why) from None
    except (HfHubHTTPError, OSError) as error:
        raise WeightsError(f"{repository}: the hub did not give it: {_first_line(error)}") from None
    return Path(found)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def check_weights(path: Path) -> list[Path]:
    """Files of a checkpoint or a model folder that decide what a model is, checked to be whole.

    Raises:
        WeightsError: missing, truncated, or no weights at all.
    """
    try:
        if path.is_dir():
            return folder_files(path)
        if path.is_file() and path.suffix not in CHECKPOINT_SUFFIXES:
            raise FaultyWeights(
                f"{path}: not weights by its name; expected {', '.join(CHECKPOINT_SUFFIXES)} or a folder"
            )
        check_file(path)
    except FaultyWeights as error:
        raise WeightsError(str(error)) from None
    return [path]


def weights_digest(path: Path) -> str:
    """SHA-256 (hex) of a checkpoint; of a folder, over names and digests of the files that decide what the model is.

    Where the files lie and what else lies there does not count. A file is read once per process unless it changes;
    twice, if it has checksums of its own and no published digest speaks for it.

    Raises:
        WeightsError: not whole, or a file that has the name of a published one and is not it.
    """
    files = check_weights(path)
    if files == [path]:
        digest = file_digest(path)
        published = next((row.sha256 for row in SOURCES if row.sha256 and row.file == path.name), None)
        if published is None:
            _check_content(path)
        elif digest != published:
            raise WeightsError(
                f"{path}: SHA-256 is {digest}, but the published file of this name has {published}: get it again, or "
                "rename it if it is your own"
            )
        return digest
    for file in files:
        _check_content(file)
    lines = "".join(f"{file_digest(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file; read again only if its size or time has changed."""
    return _digest(*_facts(path))


def _check_content(path: Path) -> None:
    """Raise WeightsError unless a file agrees with its own checksums; read again only if it has changed."""
    try:
        _members_checked(*_facts(path))
    except FaultyWeights as error:
        raise WeightsError(str(error)) from None


def _facts(path: Path) -> tuple[str, int, int]:
    real = path.resolve()
    facts = real.stat()
    return str(real), facts.st_size, facts.st_mtime_ns


@lru_cache(256)
def _digest(path: str, size: int, time: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(256)
def _members_checked(path: str, size: int, time: int) -> None:
    check_members(Path(path))


@dataclass(frozen=True)
class Found:
    """What is here of one source: state "ok", "absent" or "damaged"; where; its digest; one line about it."""

    row: WeightSource
    state: Literal["ok", "absent", "damaged"]
    path: Path | None = None
    digest: str = ""
    detail: str = ""


def look(row: WeightSource, where: Path | None = None, digest: bool = True) -> Found:
    """What is here of a source (or at `where`), checked; never raises. `digest` False reads no whole file."""
    try:
        path = where or locate(row.name)
    except WeightsError as error:
        return Found(row, "absent", detail=str(error))
    try:
        if not path.exists():
            raise WeightsError(f"{path}: no such file or folder")
        check_weights(path)
        found = weights_digest(path) if digest else ""
    except (WeightsError, OSError) as error:
        return Found(row, "damaged", path, detail=str(error))
    return Found(row, "ok", path, found, row.note)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors (and plain values) of a .safetensors, .pth, .pt or .bin file, on the CPU; no code in it is run.

    Raises:
        WeightsError: not whole, or something other than tensors and plain values in it.
    """
    check_weights(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        import torch

        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling fails in many ways
        raise WeightsError(f"{path}: cannot be read as weights: {_first_line(error)}") from None
