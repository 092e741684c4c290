"""What an inspection can be told: how much is looked at, from which value on a check is bad, and how much is shown."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from eval.inspection.catalogue import BY_NAME
from eval.inspection.check import Check
from eval.rules import EvaluationError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Threshold(Section):
    """Of one check; what is not given stays as in the catalogue."""

    limit: float | None = Field(default=None, allow_inf_nan=False)
    """A value beyond it is bad."""
    share: float | None = Field(default=None, ge=0.0, le=1.0)
    """The check fails when more than this share of its values is bad."""
    exclude: bool = False
    """Whether bad keyframes go into the list of exclusions by themselves."""


class InspectionSettings(Section):
    """Everything about an inspection but the store."""

    sample: PositiveInt = 300
    """Keyframes whose pixels are read; tables are read of all."""
    every: bool = False
    """Read all keyframes instead."""
    seed: NonNegativeInt = 0
    scenes: tuple[str, ...] = ()
    """Only these; empty: all."""
    worst: PositiveInt = 12
    """Pictures of the worst keyframes, all failing checks in turn."""
    random: NonNegativeInt = 12
    """Pictures of keyframes drawn at random, for comparison."""
    thumbnail: PositiveInt = 320
    """Width of a picture, pixels."""
    checks: dict[str, Threshold] = {}
    """By name of the check."""

    @model_validator(mode="after")
    def _known(self) -> "InspectionSettings":
        for name in self.checks:
            if name not in BY_NAME:
                close = difflib.get_close_matches(name, BY_NAME, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]!r}?" if close else f"checks: {', '.join(BY_NAME)}"
                raise ValueError(f"checks.{name}: there is no such check; {hint}")
            if self.checks[name].exclude and BY_NAME[name].values.scope not in ("camera", "frame"):
                raise ValueError(f"checks.{name}.exclude: its values belong to no single keyframe; leave it out")
        return self

    def limit(self, check: Check) -> float:
        """The check's limit, as configured."""
        given = self.checks.get(check.name, Threshold()).limit
        return check.bad.limit if given is None else given

    def share(self, check: Check) -> float:
        """The share of bad values that the check allows, as configured."""
        given = self.checks.get(check.name, Threshold()).share
        return check.bad.share if given is None else given

    def excludes(self, check: Check) -> bool:
        """Whether the check excludes by itself."""
        return self.checks.get(check.name, Threshold()).exclude

    def bad(self, check: Check, value: float) -> bool:
        """Whether a value is beyond the check's limit; nan is not."""
        return value < self.limit(check) if check.bad.low else value > self.limit(check)


def load_settings(path: str | Path | None, **given: Any) -> InspectionSettings:
    """Settings from a YAML file (none: the defaults), with those given that are not None.

    Raises:
        EvaluationError: a file that cannot be read, an unknown key or a wrong value.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise EvaluationError(f"{path}: no settings of an inspection: {error}") from None
        if not isinstance(values, dict):
            raise EvaluationError(f"{path}: expected a mapping of keys to values, got {type(values).__name__}")
    values |= {key: value for key, value in given.items() if value is not None}
    try:
        return InspectionSettings.model_validate(values)
    except ValidationError as error:
        lines = [f"{path or 'settings'}: {error.error_count()} wrong value(s)"]
        for item in error.errors():
            key = ".".join(map(str, item["loc"])) or "(whole)"
            lines.append(f"  {key} = {str(item['input'])[:80]}: {item['msg'].removeprefix('Value error, ')}")
        raise EvaluationError("\n".join(lines)) from None
