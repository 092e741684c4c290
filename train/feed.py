"""What a stage is fed with: its keyframes, how many steps they make, and where in them it stands."""

import math

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from train.batch import Batch
from train.checkpoint import TrainingState
from train.config import TrainConfig
from train.data import build_loader
from train.module import StageModule
from train.order import EpochOrder
from train.settings import StageConfig

_ENDLESS = 10**9
"""Steps of a stage that only time ends."""


def stage_steps(settings: StageConfig, frames: int, global_batch: int, state: TrainingState) -> int:
    """Optimiser steps of a stage, those taken before `state` included: the lower of its epochs and its max_steps.

    Endless where only time limits it. The last step of an epoch limit may reach into the epoch after by up to
    `global_batch` - 1 keyframes.
    """
    # 1.1 x 100 keyframes are a little more than 110 in binary numbers, which would be a step more.
    wanted = round(settings.epochs * frames, 6) if settings.epochs else 0
    left = wanted - (state.epoch * frames + state.position)
    by_epochs = state.step + math.ceil(left / global_batch) if settings.epochs else _ENDLESS
    return max(1, min(by_epochs, settings.max_steps or _ENDLESS))


class StageFeed(pl.LightningDataModule):
    """Loads the batches of a stage from where `state` stands.

    All processes go by the first one's list of keyframes: two that look at a store while it is being filled may see
    different ones, and their shares would overlap.
    """

    def __init__(self, config: TrainConfig, stage: int, frames: list[tuple[str, int]], state: TrainingState) -> None:
        super().__init__()
        self.config, self.stage, self.frames = config, stage, frames
        self._state = state
        self._global_batch = config.run.batch

    def serve(self, trainer: pl.Trainer, module: StageModule) -> None:
        """Feed this trainer's module; before `fit`."""
        self._module = module
        self._global_batch = self.config.run.batch * trainer.world_size
        module.keyframes = self.keyframes

    def setup(self, stage: str) -> None:
        """Agree on the keyframes, once the processes can talk to each other."""
        assert self.trainer is not None
        self.frames = [(name, t) for name, t in self.trainer.strategy.broadcast(self.frames)]
        settings = self._module.settings
        self._module.total_steps = stage_steps(settings, len(self.frames), self._global_batch, self._state)

    def train_dataloader(self) -> DataLoader[Batch]:
        """This process's share of the steps that are left."""
        assert self.trainer is not None
        steps = self._module.total_steps - self._state.step
        rank, world = self.trainer.global_rank, self.trainer.world_size
        whole = self._first + (self._module.first_whole_step - self._state.step) * self._global_batch
        return build_loader(self.config, self.stage, self.frames, steps, self._first, rank, world, whole)

    @property
    def _first(self) -> int:
        """The draw at which this call of the stage begins."""
        return self._state.epoch * len(self.frames) + self._state.position

    def place(self, step: int) -> tuple[int, int]:
        """(epoch, position) of the draw that follows the stage's first `step` steps."""
        return divmod(self._first + (step - self._state.step) * self._global_batch, len(self.frames))

    def keyframes(self, step: int) -> list[tuple[str, int]]:
        """What this process is given at a step of the stage."""
        assert self.trainer is not None
        batch, frames = self.config.run.batch, len(self.frames)
        first = self._first + (step - self._state.step) * self._global_batch + self.trainer.global_rank * batch
        draws = [divmod(draw, frames) for draw in range(first, first + batch)]
        order = EpochOrder(self.frames, self.config.seed, self.stage, self.config.data.locality)
        return [self.frames[int(order(epoch)[place])] for epoch, place in draws]

    def by_scene(self) -> dict[str, list[int]]:
        """The keyframes as a checkpoint keeps them."""
        kept: dict[str, list[int]] = {}
        for name, t in self.frames:
            kept.setdefault(name, []).append(t)
        return kept
