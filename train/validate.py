"""The losses on a few held-out keyframes, always with the same rays: whether a run still learns, and its best moment.

No truth is read: without any, the training signal on keyframes that are not trained on is all there is to judge by.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from storage.reader import StoreReader
from train.average import WeightAverage
from train.batch import Batch, collate
from train.checkpoint import TrainingState, save_checkpoint
from train.config import ConfigError, TrainConfig
from train.data import KeyframeDataset
from train.module import StageModule
from train.selection import Exclusion, training_frames


def validation_batches(config: TrainConfig, stage: int, reader: StoreReader) -> list[Batch]:
    """`run.validate_keyframes` evenly spaced keyframes of `data.validate_on`, each a batch of one, the same every time.

    Raises:
        ConfigError: none of them has every cue that the stage needs.
    """
    # Here they are what is looked at, so that their neighbours in time may be read too.
    seen = config.model_copy(update={"data": config.data.model_copy(update={"scenes": (), "validate_on": ()})})
    chosen = Exclusion(config.data.validate_on)
    frames = [frame for frame in training_frames(seen, stage, reader) if chosen(*frame)]
    if not frames:
        raise ConfigError(
            f"data.validate_on = {list(config.data.validate_on)}: no keyframe of {reader.path} matches and has every "
            f"cue of stage {stage}"
        )
    count = min(config.run.validate_keyframes, len(frames))
    picked = [frames[i] for i in np.round(np.linspace(0, len(frames) - 1, count)).astype(int)]
    dataset = KeyframeDataset(seen, stage, picked, cache_bytes=0)
    return [collate([dataset[draw, draw]]) for draw in range(count)]


@contextmanager
def measuring(module: StageModule) -> Iterator[None]:
    """The module in evaluation mode and without memory of what is done in the block: training goes on unchanged."""
    numbers, steps, training = module.numbers, len(module.totals), module.network.training
    module.numbers = {}
    module.network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.numbers, module.fixed_seed = numbers, None
        del module.totals[steps:]
        module.network.train(training)


class Validator(pl.Callback):
    """Measures every `validate_every` steps and at the stage's end, on the first process; keeps the best weights.

    They are in `folder` (`stage<n>-best`, a checkpoint folder); with `average` it is that which is measured and kept.
    """

    def __init__(
        self,
        config: TrainConfig,
        batches: list[Batch],
        folder: Path,
        state: TrainingState,
        average: WeightAverage | None,
    ) -> None:
        self.config, self.batches, self.folder, self.average = config, batches, folder, average
        self.best_by = (config.run.best_by, len(batches))
        self.best, self.best_step = state.best, state.best_step
        # A run may go on by another loss, or on other keyframes: what was lowest by the old one says nothing of it.
        if state.best_by not in (None, self.best_by):
            self.best, self.best_step = None, 0
        self._measured = -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where it is time."""
        assert isinstance(pl_module, StageModule)
        if pl_module.step % self.config.run.validate_every == 0:
            self.look(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the end; not where the stage was interrupted, which an uninterrupted run would not have done."""
        assert isinstance(pl_module, StageModule)
        if pl_module.progress >= 1 and pl_module.step != self._measured:
            self.look(trainer, pl_module)

    def look(self, trainer: pl.Trainer, module: StageModule) -> None:
        """Measure now: log every term as `validation/<term>`, and keep the weights if they are the best so far.

        Not while a stage trains the image side alone: its total is of one term.
        """
        if not trainer.is_global_zero or module.images_only:
            return
        self._measured = module.step
        with self.average.applied() if self.average is not None else nullcontext():
            found = self.measure(trainer, module)
            value = found.get(self.config.run.best_by, found["total"])
            if math.isfinite(value) and (self.best is None or value < self.best):
                self.best, self.best_step = value, module.step
                state = TrainingState(module.stage, module.step, module.seconds, finished=False)
                state.whole_steps = module.whole_steps
                save_checkpoint(self.folder, module.network, self.config, state)
        if trainer.logger is not None:
            scalars = {f"stage{module.stage}/validation/{name}": value for name, value in found.items()}
            trainer.logger.log_metrics(scalars, step=module.step)

    def measure(self, trainer: pl.Trainer, module: StageModule) -> dict[str, float]:
        """Mean of every loss term over the keyframes, unweighted as in the log, and `total`."""
        sums: dict[str, float] = {}
        with measuring(module), trainer.precision_plugin.train_step_context():
            for number, batch in enumerate(self.batches):
                module.numbers, module.fixed_seed = {}, 2 * number
                module.training_step(batch.to(module.device), number)
                for name, value in module.numbers.items():
                    if name.startswith("loss/"):
                        term = name.removeprefix("loss/")
                        sums[term] = sums.get(term, 0.0) + float(value)
        return {name: value / len(self.batches) for name, value in sums.items()}
