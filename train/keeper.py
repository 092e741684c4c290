"""When a stage's checkpoint is written, and when the stage ends."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from train.average import WeightAverage
from train.checkpoint import TrainingState, save_checkpoint
from train.config import TrainConfig
from train.feed import StageFeed
from train.interrupt import StopRequest
from train.module import StageModule
from train.validate import Validator


class Keeper(pl.Callback):
    """Saves every `checkpoint_seconds`, at the end, and where a stop is requested, which ends the run in order."""

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        feed: StageFeed,
        stop: StopRequest,
        average: WeightAverage | None = None,
        validator: Validator | None = None,
    ) -> None:
        self.folder, self.config, self.feed, self.stop = folder, config, feed, stop
        self.average, self.validator = average, validator
        self.interrupted = False
        self._saved = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take SIGTERM back from Lightning, whose handler raises in the middle of an epoch; it restores ours later."""
        self.stop.listen()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop where a limit or a signal says so; save where it is time."""
        assert isinstance(pl_module, StageModule)
        # Clocks and signals differ between processes; if one went on alone it would wait for the others for ever, and
        # rates that follow different clocks would make different networks of one.
        alone = trainer.world_size == 1  # nobody to ask, and a GPU would be waited for
        place = "cpu" if alone else trainer.strategy.root_device
        own = torch.tensor([float(self.stop.made), pl_module.seconds], device=place)
        agreed = own if alone else trainer.strategy.reduce(own, reduce_op="max")
        stop, pl_module.seconds_agreed = agreed.tolist()
        self.interrupted = stop > 0
        if self.interrupted or pl_module.progress >= 1:
            trainer.should_stop = True
        elif time.monotonic() - self._saved > self.config.run.checkpoint_seconds:
            self.save(trainer, pl_module, finished=False)

    def save(self, trainer: pl.Trainer, module: StageModule, *, finished: bool) -> None:
        """Write the stage's checkpoint (rank 0)."""
        if trainer.is_global_zero:
            state = TrainingState(module.stage, module.step, module.seconds, finished)
            state.whole_steps = module.whole_steps
            state.epoch, state.position = self.feed.place(module.step)
            state.frames = self.feed.by_scene()
            if not finished:
                state.optimiser = trainer.optimizers[0].state_dict()
                state.precision = trainer.precision_plugin.state_dict()
            if self.validator is not None:
                state.best, state.best_step = self.validator.best, self.validator.best_step
                state.best_by = self.validator.best_by
            save_checkpoint(self.folder, module.network, self.config, state, self.average)
        self._saved = time.monotonic()
