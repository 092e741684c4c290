"""A stage of training: its settings, its length, and where it stands."""

import math
import time

from train.checkpoint import TrainingState
from train.config import TrainConfig
from train.settings import StageConfig


def stage_settings(config: TrainConfig, stage: int) -> StageConfig:
    """The stage's settings; a second stage that follows no first one has no part that is trained already."""
    if stage == 1:
        return config.stage1
    if config.ablation.two_stage:
        return config.stage2
    return config.stage2.model_copy(update={"image_rate": 1.0, "geometry_rate": 1.0})


class Stage:
    """Counts a stage's steps and its time over all its interruptions, and says which part of it they are.

    `step` counts optimiser steps, `whole_steps` those of them that built a volume; `total_steps` is where steps end the
    stage. `seconds_agreed` is the time at the end of the last step, by the clock of the process that is furthest.
    """

    def __init__(self, config: TrainConfig, stage: int, total_steps: int) -> None:
        self.config, self.stage, self.total_steps = config, stage, total_steps
        self.settings = stage_settings(config, stage)
        self.step = self.whole_steps = 0
        self.seconds_agreed = 0.0
        self._seconds_before = 0.0
        self._started = time.monotonic()

    def go_on(self, state: TrainingState) -> None:
        """Stand where a checkpoint left the stage."""
        self.step, self._seconds_before, self.seconds_agreed = state.step, state.seconds, state.seconds
        uncounted = max(0, state.step - self.first_whole_step)
        self.whole_steps = uncounted if state.whole_steps is None else state.whole_steps

    @property
    def seconds(self) -> float:
        """Time spent in this stage, over all its interruptions."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def progress(self) -> float:
        """Part of the stage that is over, 0..1, by the limit that is nearest; the same in all processes."""
        by_time = self.seconds_agreed / self.settings.max_seconds if self.settings.max_seconds else 0.0
        return min(1.0, max(self.step / self.total_steps, by_time))

    @property
    def images_only(self) -> bool:
        """Whether the stage is in its first part, which trains the image side alone (`image_share`)."""
        return self._measured and self.progress < self.settings.image_share

    @property
    def first_whole_step(self) -> int:
        """The step at which that part is over, where steps alone decide; 0 where there is none, and where time may end
        it earlier."""
        if not self._measured or self.settings.max_seconds:
            return 0
        # By the very comparison that `images_only` makes: a product is rounded otherwise than a quotient.
        near = max(0, math.floor(self.settings.image_share * self.total_steps) - 1)
        return next(step for step in range(near, near + 4) if step / self.total_steps >= self.settings.image_share)

    @property
    def anneal_step(self) -> int:
        """The renderer's cosine is annealed over the first stage's steps that render; a second stage starts fully
        annealed."""
        past = self.config.model.render.anneal_steps if self.stage == 2 and self.config.ablation.two_stage else 0
        return self.whole_steps + past

    @property
    def _measured(self) -> bool:
        """Whether anything says how far away is what a cell shows."""
        return self.config.ablation.lidar or self.config.rays.triangulated > 0
