"""Checkpoint folders: the network, the run's configuration, and what training needs to go on exactly."""

import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import CheckpointError, load_weights, save_model
from model.network import OccFlow
from train.average import AVERAGE_FOLDER, WeightAverage
from train.config import TrainConfig, dump_config, load_config

CONFIG_NAME = "config.yaml"
TRAINING_NAME = "training.pt"


@dataclass
class TrainingState:
    """Where a stage stands.

    Attributes:
        step: optimiser steps taken.
        seconds: time spent.
        finished: its limit was reached.
        optimiser: its state, empty where nothing was trained yet or all is done.
        precision: of the precision plugin (how much `16-mixed` scales its losses up), empty where it keeps nothing.
        epoch, position: the next draw: complete passes over `frames`, and keyframes of the present pass already seen,
            by all processes together.
        frames: keyframe indices by scene, in order: what an epoch of this stage consists of.
        whole_steps: of the steps, how many built a volume; None in checkpoints that did not count them.
        best, best_step: lowest loss measured on `data.validate_on`, and when; None before the first measurement.
        best_by: which loss that is, on how many keyframes.
    """

    stage: int
    step: int
    seconds: float
    finished: bool
    optimiser: dict[str, Any] = field(default_factory=dict)
    precision: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0
    position: int = 0
    frames: dict[str, list[int]] = field(default_factory=dict)
    whole_steps: int | None = None
    best: float | None = None
    best_step: int = 0
    best_by: tuple[str, int] | None = None


def save_checkpoint(
    folder: Path, network: OccFlow, config: TrainConfig, state: TrainingState, average: WeightAverage | None = None
) -> Path:
    """Write a checkpoint folder, replacing an older one only when the new one is whole; returns `folder`.

    With `average`, its weights go into a checkpoint folder of their own inside, `ema`.
    """
    writing = folder.with_name(f"{folder.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    save_model(network, writing)
    (writing / CONFIG_NAME).write_text(dump_config(config))
    torch.save(asdict(state), writing / TRAINING_NAME)
    if average is not None:
        with average.applied():
            save_model(network, writing / AVERAGE_FOLDER)
        shutil.copy(writing / CONFIG_NAME, writing / AVERAGE_FOLDER)
    for path in writing.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    old = folder.with_name(f"{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    writing.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def find_checkpoint(folder: Path) -> Path | None:
    """The checkpoint at `folder`, or the one before it where a kill hit between the two renames."""
    for candidate in (folder, folder.with_name(f"{folder.name}.old")):
        if (candidate / TRAINING_NAME).is_file():
            return candidate
    return None


def load_state(folder: Path) -> TrainingState:
    """The training state of a checkpoint. Raises CheckpointError."""
    path = folder / TRAINING_NAME
    try:
        return TrainingState(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # an unpickler raises nearly anything on damaged bytes
        raise CheckpointError(
            f"{path}: cannot be read as training state ({error}); train again into another folder"
        ) from error


def load_model(folder: str | Path) -> tuple[OccFlow, TrainConfig]:
    """Network (on the CPU, in evaluation mode) and configuration of a checkpoint folder.

    Raises:
        CheckpointError: a file is missing, damaged, or of another configuration.
        ConfigError: config.yaml is not a configuration of this version.
    """
    config = load_config(Path(folder) / CONFIG_NAME)
    network = OccFlow(config.model)
    load_weights(network, folder)
    return network.eval(), config
