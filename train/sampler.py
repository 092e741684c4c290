"""Which keyframes each process sees at each step: one endless sequence of draws, dealt out to steps and processes."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


def epoch_order(frames: int, seed: int, stage: int, epoch: int) -> np.ndarray:
    """The permutation of 0..frames-1 in which an epoch goes through the keyframes."""
    return np.random.default_rng([seed, stage, epoch, 1]).permutation(frames)


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Keys (draw, frame) of the batches of one process, for `steps` steps.

    Draw d is number `d % frames` of the order of epoch `d // frames`, which depends on seed, stage and epoch alone. A
    step takes `world * batch` draws in a row, process `rank` the `rank`-th `batch` of them. So

    - every epoch holds every keyframe exactly once, over all processes together, and no two processes share a draw;
    - a run that goes on from draw `first` sees what an uninterrupted one would have seen, whatever the number of
      loader workers; also with another number of processes or another batch, whose steps are cut differently.

    The tail: where `frames` is no multiple of `world * batch`, the step that ends an epoch is filled up with the first
    draws of the next epoch, which that epoch then does not repeat. Nothing is dropped and nothing comes twice. Only a
    stage's last step may reach into an epoch that is never finished.

    "Keyframe" here is an entry of the stage's list. Where dynamic keyframes come more often (`data.dynamic`), they
    stand in that list several times: an epoch then holds each entry once, hence such a keyframe `repeat` times at
    different places, under different draws (other rays, other neighbours), and all of the above holds as it stands.

    With 5 frames, batch 1 and 2 processes, the steps take draws (0, 1), (2, 3), (4, 5), …: draw 4 is the last keyframe
    of epoch 0, draw 5 the first of epoch 1.
    """

    def __init__(
        self, frames: int, batch: int, seed: int, stage: int, steps: int, first: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if frames < 1 or not 0 <= rank < world:
            raise ValueError(f"a sampler needs keyframes and a rank below world, got {frames}, {rank} of {world}")
        self.frames, self.batch, self.seed, self.stage = frames, batch, seed, stage
        self.steps, self.first, self.rank, self.world = max(0, steps), first, rank, world

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.arange(0)
        for step in range(self.steps):
            keys = []
            for b in range(self.batch):
                draw = self.first + (step * self.world + self.rank) * self.batch + b
                if draw // self.frames != epoch:
                    epoch = draw // self.frames
                    order = epoch_order(self.frames, self.seed, self.stage, epoch)
                keys.append((draw, int(order[draw % self.frames])))
            yield keys
