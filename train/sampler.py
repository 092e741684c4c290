"""Which keyframes each process sees at each step: one endless sequence of draws, dealt out to steps and processes."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from train.order import EpochOrder


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Keys (draw, frame) of the batches of one process, for `steps` steps.

    Draw d is number `d % frames` of the order of epoch `d // frames` (see `EpochOrder`). A step takes `world * batch`
    draws in a row, process `rank` the `rank`-th `batch` of them. So

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
        self, order: EpochOrder, batch: int, steps: int, first: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"a sampler needs a rank below world, got {rank} of {world}")
        self.order, self.batch = order, batch
        self.steps, self.first, self.rank, self.world = max(0, steps), first, rank, world

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.steps):
            keys = []
            for b in range(self.batch):
                draw = self.first + (step * self.world + self.rank) * self.batch + b
                epoch, place = divmod(draw, len(self.order))
                keys.append((draw, int(self.order(epoch)[place])))
            yield keys
