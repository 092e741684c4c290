"""In which order an epoch goes through the keyframes: all mixed, or near ones together for the sake of a cache."""

from collections.abc import Sequence

import numpy as np

from train.settings import LocalityConfig


class EpochOrder:
    """The permutation of a stage's list of keyframes, by epoch. It depends on list, seed, stage and epoch alone.

    With `locality.block` an epoch is cut into blocks of so many keyframes in a row, at other places in every epoch. Of
    the blocks, in random order, `locality.lanes` are open at a time; draws take turns among them, and a block gives its
    keyframes in random order. So a frame that several samples share is wanted again while it is still in memory, and
    what follows each other in training is from as many places as there are lanes. Draw d is of lane `d % lanes`, until
    no block is left to open: where lanes are a multiple of processes x workers x batch, a lane stays with one worker.
    """

    def __init__(
        self, frames: Sequence[tuple[str, int]], seed: int, stage: int, locality: LocalityConfig | None = None
    ) -> None:
        if not frames:
            raise ValueError("an epoch needs keyframes, got none")
        self._frames, self._seed, self._stage = list(frames), seed, stage
        self._locality = locality or LocalityConfig()
        self._kept: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._frames)

    def __call__(self, epoch: int) -> np.ndarray:
        """Places in the list of keyframes, each once."""
        if self._kept is None or self._kept[0] != epoch:
            rng = np.random.default_rng([self._seed, self._stage, epoch, 1])
            order = self._near(rng) if self._locality.block else rng.permutation(len(self))
            self._kept = epoch, order
        return self._kept[1]

    def _near(self, rng: np.random.Generator) -> np.ndarray:
        blocks = self._blocks(rng)
        waiting = [list(rng.permutation(blocks[k])) for k in rng.permutation(len(blocks))]
        lanes: list[list[int]] = [[] for _ in range(self._locality.lanes)]
        order: list[int] = []
        while len(order) < len(self):
            lane = len(order) % len(lanes)
            if not lanes[lane] and waiting:
                lanes[lane] = waiting.pop()
            # At the end of an epoch an empty lane helps with the longest.
            order.append((lanes[lane] or max(lanes, key=len)).pop())
        return np.array(order)

    def _blocks(self, rng: np.random.Generator) -> list[list[int]]:
        """Keyframes of one scene whose times fall into one block; a keyframe that is listed twice stays together."""
        found: dict[tuple[str, int], list[int]] = {}
        starts: dict[str, int] = {}
        for place, (scene, t) in enumerate(self._frames):
            if scene not in starts:
                starts[scene] = int(rng.integers(self._locality.block))
            found.setdefault((scene, (t + starts[scene]) // self._locality.block), []).append(place)
        return list(found.values())
