"""A moving average of a network's weights, kept beside them; what it averages never depends on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from model.checkpoint import CheckpointError, load_model

AVERAGE_FOLDER = "ema"
"""Inside a stage's checkpoint folder; itself a checkpoint folder."""


class WeightAverage(pl.Callback):
    """`average = d * average + (1 - d) * weights` after every step, d = min(decay, (1 + n) / (10 + n)) at step n.

    The rising d lets the start go in time: after 90 steps d is 0.91. Step n is the stage's own count, so an
    interrupted stage goes on as if nothing had happened. Numbers that are no floats are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.average: dict[str, Tensor] = {}

    def begin(self, found: Path | None) -> None:
        """Start from the network's present weights, or from what a checkpoint folder kept.

        Raises:
            CheckpointError: the checkpoint has no average, or one that cannot be read.
        """
        self.average = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        if found is None:
            return
        if not (found / AVERAGE_FOLDER).is_dir():
            raise CheckpointError(
                f"{found / AVERAGE_FOLDER}: no such folder, and this run averages weights; take the checkpoint of a "
                "run with optimiser.ema, or train again into another folder"
            )
        kept = load_model(found / AVERAGE_FOLDER).state_dict()
        self.average = {name: value.to(self.average[name]) for name, value in kept.items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Follow the network to its device."""
        devices = {name: value.device for name, value in self.network.state_dict().items()}
        self.average = {name: value.to(devices[name]) for name, value in self.average.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the stage's step number `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        state = self.network.state_dict()
        floats = [name for name, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[name] for name in floats], [state[name] for name in floats], 1 - decay)
        for name in state.keys() - set(floats):
            self.average[name].copy_(state[name])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the step that just ended."""
        self.update(pl_module.step)  # type: ignore[arg-type]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network with the averaged weights, inside the block."""
        own = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        try:
            yield
        finally:
            self.network.load_state_dict(own)
