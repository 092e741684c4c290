"""Everything a training run can be told: one pydantic model, YAML presets by name, `a.b=c` overrides."""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from model.config import ModelConfig

MODEL_BASES = {"demo": ModelConfig.demo, "nuscenes": ModelConfig.nuscenes, "semantic_kitti": ModelConfig.semantic_kitti}
"""Networks that a YAML file's `model.base` can start from; its other keys then override."""


class ConfigError(ValueError):
    """A configuration that cannot be used. The message quotes each key, its value and what would be right."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NeighbourConfig(_Section):
    """The Gaussian rule by which photometric neighbours are drawn, over the distance the ego car travelled."""

    mean_m: NonNegativeFloat = 0.5
    sigma_m: PositiveFloat = 0.5
    max_m: PositiveFloat = 6.0
    max_frames: PositiveInt = 20
    """At most this many stored images away."""
    sweeps: bool = True
    """Draw among sweeps and keyframes; False: among keyframes only (stores without sweeps)."""


class DataConfig(_Section):
    """What is read from the store."""

    scenes: tuple[str, ...] = ()
    """Names or shell patterns of scenes to train on; empty: all."""
    exclude: tuple[str, ...] = ()
    """Never trained on and never a neighbour: `scene`, `scene:t` or `scene:first-last`, scene names may be patterns."""
    workers: NonNegativeInt = 0
    """Loader processes, started by spawn; 0 reads in the training process."""
    cache_mb: NonNegativeInt = 1024
    """Decoded frames kept in memory, all workers together."""
    neighbour: NeighbourConfig = NeighbourConfig()
    backward_cue: Literal["aux", "prev"] = "aux"
    """Flow slot of the backward static flow."""
    min_flow_confidence: int = Field(default=0, ge=0, le=255)
    min_mask_score: float = Field(default=0.0, ge=0.0, le=1.0)


class RaysConfig(_Section):
    """Rays of one step."""

    grid: tuple[PositiveInt, PositiveInt] = (32, 88)
    """Rows and columns of camera rays, per camera."""
    strides: tuple[PositiveInt, PositiveInt] = (4, 8)
    """Lowest and highest stride in render pixels; those that do not fit are not drawn."""
    lidar: PositiveInt = 4096
    far_sample: bool = True
    """Whether the light that passes every sample comes from one more sample, at the exit of the volume (rays that see
    the sky then need no matter); False: weights are shared among the samples in the volume alone."""


class AblationConfig(_Section):
    """One switch per row of the paper's tables 5-8; the rows of table 4 are `model.fusion.kind`."""

    two_stage: bool = True
    dynamic_disentanglement: bool = True
    forward_static_flow: bool = True
    backward_static_flow: bool = True
    flow_supervision: bool = True
    lidar: bool = True
    """False: camera only. No cue may then come from LiDAR, masks included; the store's records are checked."""


class LossConfig(_Section):
    """Weights of eq. 12 and the constants inside its terms."""

    photometric: NonNegativeFloat = 1.0
    flow: NonNegativeFloat = 0.005
    """Per pixel at `reference_width`."""
    dreg: NonNegativeFloat = 0.1
    lidar: NonNegativeFloat = 0.2
    eikonal: NonNegativeFloat = 0.1
    hessian: NonNegativeFloat = 0.05
    smooth_depth: NonNegativeFloat = 0.02
    smooth_flow: NonNegativeFloat = 0.01
    sparsity_grid: NonNegativeFloat = 0.005
    sparsity_hidden: NonNegativeFloat = 0.01
    reference_width: PositiveInt = 704
    """Image width at which the flow weight and `dynamic_pixels` are stated: at width w an error counts
    reference_width / w times its pixels, so that neither changes meaning with the resolution."""
    dynamic_pixels: PositiveFloat = 8.0
    """Dynamic flow longer than this, and movable: dynamic (eq. 10). Pixels at `reference_width`."""
    gamma_max: PositiveFloat = 20.0
    neighbours: Literal["mean", "min"] = "mean"
    """How two photometric neighbours combine."""
    automask: bool = True
    empty_flow_share: NonNegativeFloat = 0.2
    hidden_margin_m: PositiveFloat = 3.0
    eikonal_samples: NonNegativeInt = 65536
    """Ray samples, drawn at random, on which eq. 15 is taken besides the grid."""


class OptimiserConfig(_Section):
    """AdamW, and which parts learn at which rate."""

    lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.01
    clip: PositiveFloat = 35.0
    backbone_rate: NonNegativeFloat = 0.1
    """Of `lr`; 1 for a backbone without pre-trained weights."""
    temperature_rate: NonNegativeFloat = 1.0


class StageConfig(_Section):
    """One stage: how long, and its learning-rate schedule. Of the limits given the first reached ends it."""

    epochs: PositiveFloat | None = None
    max_steps: PositiveInt | None = None
    max_seconds: PositiveFloat | None = None
    warmup_steps: NonNegativeInt = 1000
    milestones: tuple[float, ...] = (0.8,)
    """Fractions of the stage after which the rate is multiplied by `decay`."""
    decay: PositiveFloat = 0.2
    image_rate: NonNegativeFloat = 1.0
    """Rate of the image side (backbone, FPN, TPV encoder), of the stage's own."""
    geometry_rate: NonNegativeFloat = 1.0
    """Rate of temporal fusion, refine module and SDF head."""
    lr_scale: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _ends(self) -> "StageConfig":
        if self.epochs is None and self.max_steps is None and self.max_seconds is None:
            raise ValueError("a stage needs epochs, max_steps or max_seconds, or it never ends")
        if list(self.milestones) != sorted(self.milestones) or not all(0 < m < 1 for m in self.milestones):
            raise ValueError(f"milestones are rising fractions between 0 and 1, got {self.milestones}")
        return self


class RunConfig(_Section):
    """The machine's side of a run."""

    accelerator: str = "auto"
    devices: int | Literal["auto"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    batch: PositiveInt = 1
    """Keyframes per device and step."""
    checkpoint_seconds: PositiveFloat = 600.0
    log_every: PositiveInt = 20
    progress: bool = True


class TrainConfig(_Section):
    """A whole run: both stages of one network on one store."""

    store: Path
    out: Path
    seed: NonNegativeInt = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    rays: RaysConfig = RaysConfig()
    ablation: AblationConfig = AblationConfig()
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    stage1: StageConfig = StageConfig(epochs=10)
    stage2: StageConfig = StageConfig(epochs=16, milestones=(0.6, 0.8), decay=0.4, image_rate=0.25, geometry_rate=0.4)
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.rays.strides[0] > self.rays.strides[1]:
            raise ValueError(f"rays.strides are (lowest, highest), got {self.rays.strides}")
        return self


def presets() -> list[str]:
    """Names of the presets that come with the program."""
    folder = resources.files("train") / "configs"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """A configuration from a preset's name or a YAML file, with `a.b=c` overrides (c is YAML).

    Raises:
        ConfigError: no such preset or file, not YAML, an unknown key (with the closest right one), a wrong value.
    """
    values, where = _read(source)
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
            lines.append(f"  {key} = {item['input']!r}: {item['msg'].removeprefix('Value error, ')}")
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
        text, where = (resources.files("train") / "configs" / f"{source}.yaml").read_text(), f"preset {source}"
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
