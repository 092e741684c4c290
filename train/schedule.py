"""Learning rates: linear warm-up and steps down, and how fast each part of the network learns in each stage."""

from collections.abc import Iterable

import torch
from torch import nn

from train.settings import OptimiserConfig, StageConfig

IMAGE_SIDE = ("backbone", "pyramid", "tpv", "depth_lift")
GEOMETRY = ("fusion", "refine", "sdf_head")


def rate_factor(stage: StageConfig, step: int, progress: float) -> float:
    """What the base rates are multiplied by at a step; `progress` is the part of the stage that is over, 0..1.

    With 1000 warm-up steps, milestones (0.6, 0.8) and decay 0.4: step 0 gives 0.001, step 999 gives 1, then 1 until
    60 % of the stage, 0.4 until 80 %, 0.16 to the end.
    """
    warm = min(1.0, (step + 1) / stage.warmup_steps) if stage.warmup_steps else 1.0
    passed = sum(progress >= milestone for milestone in stage.milestones)
    return stage.lr_scale * warm * stage.decay**passed


def temperature_bound(stage: StageConfig, start: float, progress: float) -> float | None:
    """Lowest temperature v at a point of the stage: from `start` to `temperature_floor` over `temperature_span`.

    With start 0.1, floor 0.25 and span (0.1, 0.7): 0.1 until a tenth of the stage is over, 0.175 at 0.4, and 0.25 from
    0.7 on. None where the stage has no floor.
    """
    if stage.temperature_floor is None:
        return None
    first, last = stage.temperature_span
    part = min(1.0, max(0.0, (progress - first) / (last - first)))
    return start + part * (stage.temperature_floor - start)


def part_rate(name: str, stage: StageConfig, optimiser: OptimiserConfig) -> float:
    """Base rate of a parameter by its name in the network."""
    part = name.split(".")[0]
    if part in IMAGE_SIDE:
        side = optimiser.lr * stage.image_rate
        return side * optimiser.backbone_rate if part == "backbone" else side
    if part in GEOMETRY:
        return optimiser.lr * stage.geometry_rate
    if part == "flow_head":
        return optimiser.lr * optimiser.flow_rate
    if part == "pixel_motion_head":
        return optimiser.lr * optimiser.motion_rate
    if part == "renderer":
        return optimiser.lr * optimiser.temperature_rate
    return optimiser.lr


def build_optimiser(
    parameters: Iterable[tuple[str, nn.Parameter]],
    stage: StageConfig,
    optimiser: OptimiserConfig,
    *,
    scaled: bool = False,
) -> torch.optim.AdamW:
    """AdamW with one group per rate; `base` keeps each group's rate before the schedule.

    The temperature is a single number whose zero means nothing: it has no weight decay.

    Args:
        scaled: gradients are those of a loss that was scaled up (`run.precision: 16-mixed`). A fused optimiser would
            take the scale off by itself, after they were clipped and looked at.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            decay = 0.0 if name.startswith("renderer.") else optimiser.weight_decay
            groups.setdefault((part_rate(name, stage, optimiser), decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": params, "lr": rate, "base": rate, "weight_decay": decay}
            for (rate, decay), params in groups.items()
        ],
        fused=not scaled,
    )


def set_rates(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its base times `factor`."""
    for group in optimiser.param_groups:
        group["lr"] = group["base"] * factor
