"""What Lightning's Trainer is told: machines, precision, and that it stays silent."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger

from train.config import TrainConfig
from train.settings import RunConfig


def on_cpu(run: RunConfig) -> bool:
    """Whether a run trains on the CPU, asked for or for want of a GPU."""
    return run.accelerator == "cpu" or (run.accelerator == "auto" and not torch.cuda.is_available())


def trainer_options(config: TrainConfig) -> dict[str, Any]:
    """Arguments of `lightning.pytorch.Trainer` by name; all but the callbacks."""
    run = config.run
    devices = 1 if on_cpu(run) and run.devices == "auto" else run.devices
    nodes, several = 1, devices != 1 and (on_cpu(run) or torch.cuda.device_count() > 1)
    if torch.distributed.is_torchelastic_launched():
        # torchrun decides how many processes there are, whatever the configuration says.
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
        several = devices * nodes > 1
    ddp = "ddp_find_unused_parameters_true" if _leaves_parameters_out(config) else "ddp"
    return {
        "accelerator": run.accelerator,
        "devices": devices,
        "num_nodes": nodes,
        "precision": "32-true" if run.precision == "tf32" else run.precision,
        "strategy": ddp if several else "auto",
        "max_epochs": 1,
        "logger": TensorBoardLogger(save_dir=config.out, name="tensorboard", version=""),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
    }


def _leaves_parameters_out(config: TrainConfig) -> bool:
    """Whether some steps leave parameters without a gradient: those of the image side alone leave the rest; where
    nothing calms the flow, those in which nothing moves leave its decoder."""
    image_steps = max(config.stage1.image_share, config.stage2.image_share) > 0
    return image_steps or not (config.loss.dreg > 0 or config.loss.smooth_flow > 0)


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning without its advertisements: what it says here is either known or of no use to the reader."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for module in (r"lightning\..*", r"torch\.utils\.tensorboard.*", r"tensorboard\..*"):
                warnings.filterwarnings("ignore", module=module)
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
