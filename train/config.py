"""Everything a training run can be told: one pydantic model, YAML presets by name, `a.b=c` overrides."""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, NonNegativeInt, ValidationError, model_validator

from model.config import ModelConfig
from storage.configured import StoreLocation
from train.loss_settings import LossConfig, SplatConfig
from train.settings import (
    AblationConfig,
    DataConfig,
    OptimiserConfig,
    RaysConfig,
    RunConfig,
    Section,
    StageConfig,
    StartConfig,
)

_CONFIGS = resources.files("train") / "configs"
MODEL_BASES = {"demo": ModelConfig.demo, "nuscenes": ModelConfig.nuscenes, "semantic_kitti": ModelConfig.semantic_kitti}
"""Networks that a YAML file's `model.base` can start from; its other keys then override."""


class ConfigError(ValueError):
    """A configuration that cannot be used. The message quotes each key, its value and what would be right."""


class TrainConfig(Section):
    """A whole run: both stages of one network on one store."""

    store: StoreLocation
    out: Path
    seed: NonNegativeInt = 0
    model: ModelConfig = ModelConfig()
    start: StartConfig = StartConfig()
    data: DataConfig = DataConfig()
    rays: RaysConfig = RaysConfig()
    ablation: AblationConfig = AblationConfig()
    loss: LossConfig = LossConfig()
    splat: SplatConfig = SplatConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    stage1: StageConfig = StageConfig(epochs=10)
    stage2: StageConfig = StageConfig(epochs=16, milestones=(0.6, 0.8), decay=0.4, image_rate=0.25, geometry_rate=0.4)
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.start.backbone is not None and self.start.network is not None:
            raise ValueError("start.network holds a backbone already: give that or start.backbone, not both")
        if self.rays.strides[0] > self.rays.strides[1]:
            raise ValueError(f"rays.strides are (lowest, highest), got {self.rays.strides}")
        if self.loss.pixel_depth and not self.model.depth_lift.bins:
            raise ValueError("loss.pixel_depth needs a network with depth per pixel: set model.depth_lift.bins")
        compared = self.loss.pixel_match or self.loss.pixel_place or self.loss.pixel_motion
        if compared and not self.model.pixel_motion.cell:
            raise ValueError(
                "loss.pixel_match, loss.pixel_place and loss.pixel_motion need a network that compares images: set "
                "model.pixel_motion.cell"
            )
        if self.loss.pixel_place and not self.loss.lifted_flow:
            raise ValueError("loss.pixel_place learns from the spots of loss.lifted_flow: give that a weight")
        if self.loss.pixel_match and self.data.backward_cue != "prev":
            raise ValueError(
                "loss.pixel_match compares with flow to the keyframe before: set data.backward_cue=prev, got "
                f"{self.data.backward_cue!r}"
            )
        if self.loss.pixel_motion and not (self.loss.lifted_flow or self.loss.lifted_still):
            raise ValueError(
                "loss.pixel_motion learns from what loss.lifted_flow and lifted_still do: give one a weight"
            )
        if (self.loss.lifted_flow or self.loss.lifted_still) and not (self.ablation.lidar or self.rays.triangulated):
            raise ValueError(
                "loss.lifted_flow and lifted_still learn from LiDAR's returns or from triangulated ones: switch "
                "ablation.lidar on, set rays.triangulated, or set both losses to 0"
            )
        if self.model.heads.movable and not (self.loss.splat and self.splat.movable):
            raise ValueError("model.heads.movable is taught by loss.splat alone: give that a weight, or leave it off")
        if max(self.stage1.image_share, self.stage2.image_share) and not self.loss.pixel_depth:
            raise ValueError("image_share trains on loss.pixel_depth alone: give that a weight, or set image_share=0")
        return self


def presets() -> list[str]:
    """Names of the presets that come with the program."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _CONFIGS.iterdir() if entry.name.endswith(".yaml"))


def ablation_rows() -> list[str]:
    """Names of the small override files, one per row of the ablation tables."""
    return sorted(entry.name.removesuffix(".yaml") for entry in (_CONFIGS / "ablations").iterdir())


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """A configuration from a preset's name or a YAML file, with `a.b=c` overrides (c is YAML).

    A row of the ablation tables is laid over it after a plus sign: `nuscenes+t4_concat`.

    Raises:
        ConfigError: no such preset, file or row, not YAML, an unknown key (with the closest right one), a wrong value.
    """
    base, *rows = [str(source)] if Path(source).is_file() else str(source).split("+")
    values, where = _read(base)
    for row in rows:
        values = _merge(values, _row_values(row))
    for override in overrides:
        _override(values, override)
    return build_config(values, where)


def build_config(values: dict[str, Any], where: str = "configuration") -> TrainConfig:
    """A configuration from plain values; `where` names them in errors. Raises ConfigError."""
    values = dict(values)
    if isinstance(values.get("model"), dict):
        values["model"] = _model_values(values["model"], where)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, TrainConfig, where)) from None


def dump_config(config: TrainConfig) -> str:
    """The configuration as YAML, every value written out; `load_config` reads it back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def explain(error: ValidationError, root: type[BaseModel], where: str) -> str:
    """A validation error as lines of key, value and what would be right."""
    lines = [f"{where}: {error.error_count()} wrong value(s)"]
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "(whole)"
        if item["type"] == "extra_forbidden":
            known = _keys(root, item["loc"][:-1])
            close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
            lines.append(f"  {key} = {item['input']!r}: there is no such key; {hint}")
        elif item["type"] == "missing":
            lines.append(f"  {key}: not given, and there is no default; set it with `{key}=…`")
        else:
            # A whole section at odds with itself names its values in its own message.
            given = "" if isinstance(item["input"], dict | BaseModel) else f" = {item['input']!r}"
            lines.append(f"  {key}{given}: {item['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


def _keys(root: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Field names of the section at `path`."""
    section: Any = root
    for part in path:
        field = section.model_fields.get(str(part)) if hasattr(section, "model_fields") else None
        section = field.annotation if field is not None else None
    return list(section.model_fields) if hasattr(section, "model_fields") else []


def _read(source: str | Path) -> tuple[dict[str, Any], str]:
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; give a YAML file or one of the presets: {', '.join(presets())}")
        text, where = path.read_text(), str(path)
    elif str(source) in presets():
        text, where = (_CONFIGS / f"{source}.yaml").read_text(), f"preset {source}"
    else:
        close = difflib.get_close_matches(str(source), presets(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"{source}: no such preset; {hint}Presets: {', '.join(presets())}; or give a .yaml file")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a mapping of keys to values, got {type(values).__name__}")
    return values, where


def _row_values(row: str) -> dict[str, Any]:
    """What an override file of the ablations says."""
    if row not in ablation_rows():
        close = difflib.get_close_matches(row, ablation_rows(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"+{row}: no such row of the ablations; {hint}Rows: {', '.join(ablation_rows())}")
    return yaml.safe_load((_CONFIGS / "ablations" / f"{row}.yaml").read_text())


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {override!r}: expected key=value with a dotted key, such as stage1.max_steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from None
    section = values
    for part in parts[:-1]:
        inner = section.get(part)
        section[part] = dict(inner) if isinstance(inner, dict) else {}
        section = section[part]
    section[parts[-1]] = value


def _model_values(values: dict[str, Any], where: str) -> dict[str, Any]:
    """`model` with its `base` written out, the other keys laid over it."""
    values = dict(values)
    base = values.pop("base", None)
    if base is None:
        return values
    if base not in MODEL_BASES:
        raise ConfigError(f"{where}: model.base = {base!r}: there is no such network; known: {', '.join(MODEL_BASES)}")
    return _merge(MODEL_BASES[base]().model_dump(), values)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
