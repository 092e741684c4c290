"""The fine-tuning itself: a plain function over saved pairs, which can be stopped and gone on with."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipelines.adapt.figures import measure
from pipelines.adapt.losses import photometric_loss, smoothness_loss, teacher_loss
from pipelines.adapt.pairs import FramePairs, PairsError
from pipelines.adapt.state import RunState, network_digest
from pipelines.adapt.views import Cut
from pipelines.cues.ranges import check_numbers
from pipelines.cues.unimatch.inference import CheckRule, autocast, confidence
from pipelines.cues.unimatch.network import TwoWayFlow, UniMatch

SURE = 2 / 3
"""Confidence from which the flow of the whole image may teach: a miss of a third of what the check allows."""


@dataclass(frozen=True)
class AdaptSettings:
    """How to fine-tune.

    Attributes:
        steps, batch: optimiser steps, and pairs in each.
        learning_rate, weight_decay, clip: of AdamW; a tenth of the steps warms up, the rest falls as a cosine.
        smoothness, smooth_order, edge_weight: of the flow before upsampling.
        teacher: weight of self-supervision: the flow of the whole image, where it is sure, teaches the flow of an
            enlarged cut, where that is not. From `teacher_from` (share of the steps) on it grows for a tenth of them.
        margin: share of height and width that a cut leaves out at the most.
        stage_decay: weight of an earlier stage's answer relative to the next one's (as in upstream's training).
        tolerance, relative: of the check there and back that decides what is occluded.
        held_out: every so-many-th pair is measured on and never trained on; 0 measures on all, trains on all.
        measured: pairs that are measured at the most. every: steps between measurements and saved states.
    """

    steps: int = 2000
    batch: int = 1
    learning_rate: float = 2e-5
    weight_decay: float = 1e-4
    clip: float = 1.0
    smoothness: float = 2.0
    smooth_order: int = 2
    edge_weight: float = 150.0
    teacher: float = 0.3
    teacher_from: float = 0.5
    margin: float = 0.25
    stage_decay: float = 0.9
    tolerance: float = 0.5
    relative: float = 0.01
    precision: Literal["float32", "bfloat16"] = "float32"
    held_out: int = 10
    measured: int = 50
    every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(
            self,
            least={"steps": 1, "batch": 1, "measured": 1, "every": 1},
            above_zero=("learning_rate", "clip", "tolerance"),
            shares=("teacher_from",),
            below_one=("margin",),
        )
        if self.smooth_order not in (1, 2):
            raise ValueError(f"smooth_order = {self.smooth_order}: expected 1 or 2")


def adapt(
    network: UniMatch,
    pairs: FramePairs,
    settings: AdaptSettings,
    out: Path,
    resume: bool = False,
    report: Callable[[int, dict[str, float]], None] = lambda step, figures: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Fine-tune `network` (changed in place, on its device) on pairs without labels.

    Args:
        network: the starting point.
        pairs: sides are multiples of `network.variant.multiple`; their true flow is measured against, never learned.
        out: folder of `adapted.pth` (published form), `history.json`, and `state.pt` to go on from.
        resume: go on with the run in `out`, with the same settings and starting point, to the same result as without a
            stop.
        report: takes every measurement, also that before the first step.
        stop: asked after every step; True saves the state and returns.

    Returns:
        The measurements, {"step", and figures.measure's}: before the first step, every `every` steps, after the last.

    Raises:
        PairsError: pairs of a size that the network cannot take, none to train on, or another run or a damaged one in
            `out`.
    """
    training, held = split(pairs, settings)
    _check(network, pairs, training)
    start = network_digest(network)
    network.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )  # fmt: skip
    run = RunState(out, network, optimizer, asdict(settings), start)
    if resume:
        run.restore()
    out.mkdir(parents=True, exist_ok=True)

    def note() -> None:
        network.eval()
        figures = measure(network, pairs, held, settings.precision, settings.batch)
        network.train()
        run.history.append({"step": run.step, **figures})
        report(run.step, figures)

    if not run.history:
        note()
    while run.step < settings.steps:
        _learn(network, optimizer, pairs, training, settings, run.step)
        run.step += 1
        stopped = stop()
        due = run.step % settings.every == 0 or run.step == settings.steps
        if due:
            note()
        if due or stopped:
            run.save()
        if stopped:
            break
    network.eval().requires_grad_(False)
    return run.history


def _learn(
    network: UniMatch,
    optimizer: torch.optim.Optimizer,
    pairs: FramePairs,
    training: list[int],
    settings: AdaptSettings,
    step: int,
) -> None:
    """One step of the optimiser."""
    # Drawn anew from the step's number alone: a run that goes on needs no state of random numbers.
    draw = np.random.default_rng((settings.seed, step))
    chosen = draw.choice(training, settings.batch)
    first, second = _batch(pairs, chosen, draw.random() < 0.5, network.mean.device)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * _pace(step, settings.steps)
    cut = torch.Generator().manual_seed(int(draw.integers(2**62)))
    loss = unsupervised_loss(network, first, second, settings, step / settings.steps, cut)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
    if torch.isfinite(norm):
        optimizer.step()


def unsupervised_loss(
    network: UniMatch,
    first: Tensor,
    second: Tensor,
    settings: AdaptSettings,
    progress: float,
    random: torch.Generator,
) -> Tensor:
    """Census + smoothness + self-supervision of a batch of pairs, both ways; `progress` 0..1 through the run.

    Args:
        first, second: (B, 3, H, W) RGB in 0..255, float32.
    """
    with autocast(first.device, settings.precision):
        flow = network(first, second, steps=True)
    here, there = torch.cat([first, second]) / 255, torch.cat([second, first]) / 255
    visible = _visible(flow, settings)
    weights = [settings.stage_decay ** (len(flow.steps) - 1 - k) for k in range(len(flow.steps))]
    loss = sum(
        (w * photometric_loss(here, there, answer, visible) for w, answer in zip(weights, flow.steps, strict=True)),
        start=first.new_zeros(()),
    )
    loss = loss + settings.smoothness * smoothness_loss(
        here, flow.coarse, settings.smooth_order, settings.edge_weight
    )  # fmt: skip
    share = settings.teacher * min(max((progress - settings.teacher_from) / 0.1, 0.0), 1.0)
    if share == 0:
        return loss
    cut = Cut.draw(first.shape[-2], first.shape[-1], settings.margin, random)
    with autocast(first.device, settings.precision):
        student = network(cut.images(first), cut.images(second), steps=True)
    teacher = cut.flow(flow.steps[-1].detach())
    sure = cut.images((_trust(flow, settings) > SURE).float()) > 0.99
    counts = sure & ~_visible(student, settings)
    lesson = sum(
        (w * teacher_loss(answer, teacher, counts) for w, answer in zip(weights, student.steps, strict=True)),
        start=first.new_zeros(()),
    )
    return loss + share * lesson


@torch.no_grad()
def _trust(flow: TwoWayFlow, settings: AdaptSettings) -> Tensor:
    """(2B, 1, H, W): confidence of the last answer, both ways."""
    rule = CheckRule(settings.tolerance, settings.relative)
    ways = [confidence(flow.forward, flow.backward, rule), confidence(flow.backward, flow.forward, rule)]
    return torch.cat(ways)[:, None]


def _visible(flow: TwoWayFlow, settings: AdaptSettings) -> Tensor:
    """(2B, 1, H, W): not occluded by the last answer; what is not asks for no gradient."""
    return _trust(flow, settings) > 0


def split(pairs: FramePairs, settings: AdaptSettings) -> tuple[list[int], list[int]]:
    """Positions of pairs to train on and to measure on; half of `held_out` pairs or fewer leave none for that."""
    every = list(range(len(pairs)))
    held = every[settings.held_out // 2 :: settings.held_out] if settings.held_out else every
    training = [i for i in every if i not in set(held)] if settings.held_out else every
    if len(held) > settings.measured:
        held = [held[i] for i in np.linspace(0, len(held) - 1, settings.measured).astype(int)]
    return training, held


def _check(network: UniMatch, pairs: FramePairs, training: list[int]) -> None:
    multiple = network.variant.multiple
    if any(side % multiple for side in pairs.size):
        raise PairsError(
            f"pairs of {pairs.size[0]}x{pairs.size[1]} pixels: {network.variant.name} needs multiples of {multiple}; "
            "save the pairs at another size"
        )
    if not training:
        raise PairsError(f"{len(pairs)} pairs leave none to train on; take more, or held_out: 0")


def _batch(pairs: FramePairs, chosen: np.ndarray, mirrored: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    both = [torch.from_numpy(pairs.images[pairs.pairs[chosen, k]]) for k in (0, 1)]
    first, second = (image.to(device).permute(0, 3, 1, 2).float() for image in both)
    return (first.flip(-1), second.flip(-1)) if mirrored else (first, second)


def _pace(step: int, steps: int) -> float:
    """Share of the learning rate at a step."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
