"""The configuration of a cue extraction: one YAML file or preset, checked, and the parameter of the Prefect flow."""

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipelines.cues.base import ImageSizes
from storage.configured import StoreLocation
from storage.location import Location
from storage.profiles import GREATEST_JPEG_QUALITY, LEAST_JPEG_QUALITY, PLAIN, PROFILES


class ConfigError(ValueError):
    """A configuration that cannot be used. The message quotes the key, the value and what would be right."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def expanded(path: str | Path) -> Path:
    """A path as a configuration writes it, with the $variables that are set and ~ replaced."""
    return Path(os.path.expandvars(path)).expanduser()


class DatasetConfig(_Model):
    """Which log to read. `scenes` (names) narrows `split` (an official split of the data set), both narrow the log."""

    kind: str
    root: Path
    version: str | None = None
    split: str | None = None
    scenes: tuple[str, ...] | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("root")
    @classmethod
    def _root(cls, root: Path) -> Path:
        return expanded(root)


class SizesConfig(_Model):
    """Image sizes in pixels, (height, width): `network` is what the network sees, `render` what flow and losses use."""

    network: tuple[int, int]
    render: tuple[int, int]
    keep: Literal["bottom", "centre"] = "bottom"

    @model_validator(mode="after")
    def _whole_factor(self) -> "SizesConfig":
        (H, W), (h, w) = self.network, self.render
        if min(h, w) < 1 or H % h or W % w or H // h != W // w:
            raise ValueError(
                f"render {list(self.render)} must be network {list(self.network)} divided by one whole number on both "
                f"axes, for example {[H // 2, W // 2]}"
            )
        return self

    def image_sizes(self) -> ImageSizes:
        """The same as the record that extractors take."""
        return ImageSizes(network=self.network, render=self.render, keep=self.keep)


class RunnerConfig(_Model):
    """Where the units of work run: `workers` threads here, or Dask (a local cluster, or the one at `scheduler`)."""

    kind: Literal["threads", "dask"] = "threads"
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    scheduler: str | None = None
    retries: int = Field(default=2, ge=0)
    """How often a unit that met an I/O error (not a damaged file) is tried again."""
    retry_wait_s: float = Field(default=2.0, ge=0)
    image_cache_mb: int = Field(default=256, ge=0)
    """Bound on decoded raw images kept per process."""

    @model_validator(mode="after")
    def _scheduler_is_dask(self) -> "RunnerConfig":
        if self.scheduler is not None and self.kind != "dask":
            raise ValueError(f"scheduler {self.scheduler!r} is given, but kind is {self.kind!r}: set kind to dask")
        return self


class CuesConfig(_Model):
    """Everything that decides what a cue store will hold, and how it is made.

    `cues` maps a cue's name to its parameters; the key `backend` chooses among several extractors of one cue. A plain
    list of names takes every parameter's default. `on_error: skip` leaves out frames that cannot be read and records
    them; `fail` stops at the first. `truth` writes ground truth, where the data set has it, to the sibling store.
    `profile` trades bytes against precision and decoding time (storage.profiles); a store keeps the one it was made
    with, and without a `jpeg_quality` the profile's is taken. `inspect` is on how many keyframes the label-quality page
    at the end of a flow is based (docs/inspection.md); 0 makes none.
    """

    dataset: DatasetConfig
    store: StoreLocation
    sizes: SizesConfig
    cues: dict[str, dict[str, Any]]
    profile: Literal["fast", "small"] = "fast"
    jpeg_quality: int = Field(default=PROFILES[PLAIN].jpeg_quality, ge=LEAST_JPEG_QUALITY, le=GREATEST_JPEG_QUALITY)
    block_keyframes: int = Field(default=40, ge=1)
    keyframe_interval_s: float = Field(gt=0)
    on_error: Literal["fail", "skip"] = "fail"
    truth: bool = True
    inspect: int = Field(default=100, ge=0)
    runner: RunnerConfig = Field(default_factory=RunnerConfig)

    @model_validator(mode="before")
    @classmethod
    def _quality_of_profile(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("profile") in PROFILES and values.get("jpeg_quality") is None:
            return {**values, "jpeg_quality": PROFILES[values["profile"]].jpeg_quality}
        return values

    @field_validator("store")
    @classmethod
    def _store(cls, store: Location) -> Location:
        if store.suffix != ".zarr":
            raise ValueError(f"a store's name ends in .zarr: try {store}.zarr")
        if isinstance(store, Path):
            for folder in (store, *store.parents):
                if folder.is_file():
                    raise ValueError(f"{folder} is a file, where a store needs a folder: give another path")
        return store

    @field_validator("cues", mode="before")
    @classmethod
    def _list_of_cues(cls, cues: Any) -> Any:
        if isinstance(cues, (list, tuple)):
            return {str(name): {} for name in cues}
        if isinstance(cues, Mapping):
            return {name: {} if parameters is None else parameters for name, parameters in cues.items()}
        return cues

    @field_validator("cues")
    @classmethod
    def _known_cues(cls, cues: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        from pipelines.registry import check_cue

        for name, parameters in cues.items():
            check_cue(name, parameters)
        return cues

    def digest(self, *parts: object) -> str:
        """SHA-256 (hex) over the settings that change what is stored for every cue, and over `parts`."""
        shared: dict[str, object] = {
            "sizes": self.sizes.model_dump(mode="json"),
            "jpeg_quality": self.jpeg_quality,
            "block_keyframes": self.block_keyframes,
        }
        if self.profile != PLAIN:  # of which earlier digests say nothing
            shared["profile"] = self.profile
        return json_digest([shared, *parts])


_PATHS = ("weights", "text_encoder", "own_car")
"""Parameters of cues that may be, or hold, a path."""


def absolute(config: CuesConfig) -> CuesConfig:
    """The same configuration with paths that mean the same from any working folder, for processes elsewhere.

    A cue's weights and masks of the own car count as paths where there is such a file; otherwise they are names.
    """
    changed: dict[str, Any] = {
        "dataset": config.dataset.model_copy(update={"root": config.dataset.root.absolute()}),
        "cues": _absolute_files(config.cues),
    }
    if isinstance(config.store, Path):
        changed["store"] = config.store.absolute()
    return config.model_copy(update=changed)


def _absolute_files(value: Any, key: str = "") -> Any:
    """A parameter, or a group of them, with the paths of files that are here made absolute."""
    if isinstance(value, Mapping):
        return {name: _absolute_files(part, key if key in _PATHS else str(name)) for name, part in value.items()}
    if key in _PATHS and isinstance(value, str) and value and (path := expanded(value)).exists():
        return str(path.absolute())
    return value


def json_digest(value: object) -> str:
    """SHA-256 (hex) of a JSON-able value; equal values give equal digests whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def preset_names() -> list[str]:
    """Names of the configurations that ship with the package."""
    folder = resources.files("pipelines") / "configs"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(source: str | Path, overrides: Mapping[str, Any] | None = None) -> CuesConfig:
    """Read a preset by name, or a YAML file, with dotted-key overrides such as {"dataset.root": "/data"}.

    Raises:
        ConfigError: no such file or preset, not YAML, an unknown key, a wrong value, a key of what has no keys.
    """
    text = _read(source)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not a YAML file: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected keys such as dataset, store, sizes, cues; got {type(values).__name__}")
    for key, value in (overrides or {}).items():
        if value is not None:
            _set(values, key, value)
    try:
        return CuesConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, CuesConfig, str(source))) from None


def _read(source: str | Path) -> str:
    if str(source) in preset_names():
        return (resources.files("pipelines") / "configs" / f"{source}.yaml").read_text()
    path = expanded(source)
    try:
        return path.read_text()
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(
            f"{source}: neither a readable YAML file nor a preset; presets are {', '.join(preset_names())}"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{source}: not a YAML file: {error.reason} at byte {error.start}; save it as UTF-8"
        ) from None


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *folders, leaf = dotted.split(".")
    for depth, folder in enumerate(folders, 1):
        inner = values.get(folder)
        if inner is None:  # `lidar:` takes every default
            inner = {}
        elif isinstance(inner, list) and (depth, folder) == (1, "cues"):  # names that take every default
            inner = {str(name): {} for name in inner}
        if not isinstance(inner, dict):
            above = ".".join(folders[:depth])
            raise ConfigError(
                f"{dotted} = {value!r}: {above} is {inner!r}, which has no keys; give {above} as a whole, a mapping "
                "of keys to values"
            )
        values[folder] = inner
        values = inner
    values[leaf] = value


def explain(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """One line per fault of a failed validation: key, value, what would be right."""
    lines = []
    for fault in error.errors():
        location = [str(part) for part in fault["loc"]]
        key = ".".join(location) or "(the whole file)"
        if fault["type"] == "extra_forbidden":
            lines.append(f"{source}: unknown key {key!r} (value {fault['input']!r}); {_suggest(model, location)}")
        elif fault["type"] == "missing":
            lines.append(f"{source}: key {key!r} is missing")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            # A whole section says nothing that its own message does not.
            given = "" if isinstance(fault["input"], Mapping) else f" = {fault['input']!r}"
            lines.append(f"{source}: {key}{given}: {message}")
    return "\n".join(lines)


def _suggest(model: type[BaseModel], location: list[str]) -> str:
    """What the misspelt last key of `location` may have meant, from the fields of the (nested) model it stands in."""
    for part in location[:-1]:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return closest(location[-1], model.model_fields)


def closest(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """'did you mean x?' where a known name resembles `name`, else all the known names."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
