"""Every keyframe once per epoch, over any number of processes, from any position on."""

from collections import OrderedDict

import numpy as np
import pytest

from train.order import EpochOrder
from train.sampler import StepSampler
from train.settings import LocalityConfig

SEED, STAGE = 4, 1
SIZES = [(1, 1), (5, 1), (7, 2), (8, 2), (3, 4)]
"""Keyframes and batch, also fewer keyframes than one batch takes."""


LOCALITIES = [LocalityConfig(), LocalityConfig(block=3, lanes=2), LocalityConfig(block=4, lanes=8)]


def order(frames: int, seed: int = SEED, stage: int = STAGE, locality: LocalityConfig | None = None) -> EpochOrder:
    """Of keyframes of two scenes, which take turns in the list."""
    return EpochOrder([("ab"[k % 2], k // 2) for k in range(frames)], seed, stage, locality)


def order_of(frames: list[tuple[str, int]], locality: LocalityConfig | None = None) -> EpochOrder:
    return EpochOrder(frames, SEED, STAGE, locality)


def keys(
    frames: int, batch: int, world: int, steps: int, first: int = 0, locality: LocalityConfig | None = None
) -> list[list[list[tuple[int, int]]]]:
    """By rank, then step."""
    given = order(frames, locality=locality)
    return [list(StepSampler(given, batch, steps, first, rank, world)) for rank in range(world)]


def in_draw_order(by_rank: list[list[list[tuple[int, int]]]]) -> list[tuple[int, int]]:
    return [key for step in zip(*by_rank, strict=True) for share in step for key in share]


@pytest.mark.parametrize("locality", LOCALITIES)
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(("frames", "batch"), SIZES)
def test_every_keyframe_once_per_epoch_and_no_draw_twice(
    frames: int, batch: int, world: int, locality: LocalityConfig
) -> None:
    steps = -(-3 * frames // (world * batch))
    by_rank = keys(frames, batch, world, steps, locality=locality)
    draws = [{draw for step in share for draw, _ in step} for share in by_rank]
    assert sum(map(len, draws)) == len(set.union(*draws)) == steps * world * batch
    seen = [frame for _, frame in in_draw_order(by_rank)]
    for epoch in range(3):
        assert sorted(seen[epoch * frames : (epoch + 1) * frames]) == list(range(frames))
    beyond = len(seen) - 3 * frames
    assert 0 <= beyond < world * batch, "a stage of three epochs draws no whole step too much"


@pytest.mark.parametrize("locality", LOCALITIES)
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(("frames", "batch"), SIZES)
def test_going_on_at_every_step(frames: int, batch: int, world: int, locality: LocalityConfig) -> None:
    whole = keys(frames, batch, world, steps=9, locality=locality)
    for step in range(10):
        rest = keys(frames, batch, world, 9 - step, step * world * batch, locality)
        assert [share[step:] for share in whole] == rest


def test_going_on_with_other_processes_and_another_batch() -> None:
    whole = in_draw_order(keys(7, 2, 1, steps=14))
    for done in range(14):
        for world, batch in ((1, 1), (2, 1), (3, 2), (4, 1)):
            rest = in_draw_order(keys(7, batch, world, steps=2, first=2 * done))
            common = min(len(rest), len(whole) - 2 * done)
            assert rest[:common] == whole[2 * done : 2 * done + common]


def test_the_order_depends_on_seed_stage_and_epoch_alone() -> None:
    for locality in LOCALITIES:
        made = [order(50, seed, stage, locality) for seed in (0, 1) for stage in (1, 2)]
        assert len({tuple(one(epoch)) for one in made for epoch in range(3)}) == 12
        again = order(50, 0, 1, locality)
        again(7)  # whatever was asked before
        assert np.array_equal(made[0](2), again(2))


def test_the_tail_by_hand() -> None:
    """Five keyframes, two processes: the third step holds the last keyframe of epoch 0 and the first of epoch 1."""
    zero, one = keys(5, 1, 2, steps=3)
    first, second = order(5)(0).copy(), order(5)(1)
    assert zero == [[(0, first[0])], [(2, first[2])], [(4, first[4])]]
    assert one == [[(1, first[1])], [(3, first[3])], [(5, second[0])]]


def test_lengths_and_nonsense() -> None:
    assert len(StepSampler(order(5), 1, steps=3)) == 3
    assert list(StepSampler(order(5), 1, steps=-2)) == []
    with pytest.raises(ValueError, match="got none"):
        EpochOrder([], 0, 1)
    with pytest.raises(ValueError, match="2 of 2"):
        StepSampler(order(3), 1, steps=1, rank=2, world=2)


LONG = [(scene, t) for scene in "abcdef" for t in range(40)]


def decoded(drawn: np.ndarray, kept: int) -> float:
    """Frames decoded per sample, which reads its keyframe, two before and the one after it, with room for `kept`."""
    cache: OrderedDict[tuple[str, int], None] = OrderedDict()
    misses = 0
    for scene, t in (LONG[k] for k in drawn):
        for frame in ((scene, t + step) for step in (-2, -1, 0, 1) if 0 <= t + step < 40):
            misses += frame not in cache
            cache[frame] = None
            cache.move_to_end(frame)
            if len(cache) > kept:
                cache.popitem(last=False)
    return misses / len(drawn)


@pytest.mark.parametrize(("block", "lanes"), [(10, 4), (8, 6), (20, 2)])
def test_near_keyframes_are_drawn_while_their_frames_are_kept(block: int, lanes: int) -> None:
    kept = lanes * (block + 3)
    for epoch in range(3):
        near = order_of(LONG, LocalityConfig(block=block, lanes=lanes))(epoch)
        assert decoded(near, kept) < 1 + 5 / block < 2 < decoded(order_of(LONG)(epoch), kept)
        scenes = [{LONG[k][0] for k in near[n : n + lanes]} for n in range(0, len(LONG) // 2, lanes)]
        assert np.mean([len(found) for found in scenes]) > 1.2, "what follows each other is from several scenes"


def test_blocks_begin_elsewhere_in_every_epoch_and_repeats_stay_together() -> None:
    twice = [(scene, t) for scene in "ab" for t in range(12) for _ in range(2)]
    made = EpochOrder(twice, 0, 1, LocalityConfig(block=4, lanes=1))
    starts = set()
    for epoch in range(12):
        drawn = [twice[k] for k in made(epoch)]
        for scene, t in set(twice):
            first, second = (n for n, key in enumerate(drawn) if key == (scene, t))
            assert second - first < 8, "in one block of four keyframes, each listed twice"
        starts.add(min(t for scene, t in drawn[:8] if scene == drawn[0][0]) % 4)
    assert len(starts) > 1


def test_a_worker_keeps_its_lanes() -> None:
    """Two processes of two workers, batch two: of eight lanes each worker sees two, until no block is left to open."""
    lanes, world, workers, batch = 8, 2, 2, 2
    near = EpochOrder(LONG, SEED, STAGE, LocalityConfig(block=10, lanes=lanes))
    for rank in range(world):
        given = list(StepSampler(near, batch, 20, 0, rank, world))
        for worker in range(workers):
            draws = [draw for step in given[worker::workers] for draw, _ in step]
            assert len({draw % lanes for draw in draws}) == lanes // (world * workers)
