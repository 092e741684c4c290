"""Every keyframe once per epoch, over any number of processes, from any position on."""

import numpy as np
import pytest

from train.sampler import StepSampler, epoch_order

SEED, STAGE = 4, 1
SIZES = [(1, 1), (5, 1), (7, 2), (8, 2), (3, 4)]
"""Keyframes and batch, also fewer keyframes than one batch takes."""


def keys(
    frames: int, batch: int, world: int, steps: int, first: int = 0, seed: int = SEED
) -> list[list[list[tuple[int, int]]]]:
    """By rank, then step."""
    return [list(StepSampler(frames, batch, seed, STAGE, steps, first, rank, world)) for rank in range(world)]


def in_draw_order(by_rank: list[list[list[tuple[int, int]]]]) -> list[tuple[int, int]]:
    return [key for step in zip(*by_rank, strict=True) for share in step for key in share]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(("frames", "batch"), SIZES)
def test_every_keyframe_once_per_epoch_and_no_draw_twice(frames: int, batch: int, world: int) -> None:
    steps = -(-3 * frames // (world * batch))
    by_rank = keys(frames, batch, world, steps)
    draws = [{draw for step in share for draw, _ in step} for share in by_rank]
    assert sum(map(len, draws)) == len(set.union(*draws)) == steps * world * batch
    seen = [frame for _, frame in in_draw_order(by_rank)]
    for epoch in range(3):
        assert sorted(seen[epoch * frames : (epoch + 1) * frames]) == list(range(frames))
    beyond = len(seen) - 3 * frames
    assert 0 <= beyond < world * batch, "a stage of three epochs draws no whole step too much"


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(("frames", "batch"), SIZES)
def test_going_on_at_every_step(frames: int, batch: int, world: int) -> None:
    whole = keys(frames, batch, world, steps=9)
    for step in range(10):
        rest = keys(frames, batch, world, 9 - step, first=step * world * batch)
        assert [share[step:] for share in whole] == rest


def test_going_on_with_other_processes_and_another_batch() -> None:
    whole = in_draw_order(keys(7, 2, 1, steps=14))
    for done in range(14):
        for world, batch in ((1, 1), (2, 1), (3, 2), (4, 1)):
            rest = in_draw_order(keys(7, batch, world, steps=2, first=2 * done))
            common = min(len(rest), len(whole) - 2 * done)
            assert rest[:common] == whole[2 * done : 2 * done + common]


def test_the_order_depends_on_seed_stage_and_epoch_alone() -> None:
    orders = {tuple(epoch_order(50, seed, stage, epoch)) for seed in (0, 1) for stage in (1, 2) for epoch in range(3)}
    assert len(orders) == 12
    assert np.array_equal(epoch_order(50, 0, 1, 2), epoch_order(50, 0, 1, 2))


def test_the_tail_by_hand() -> None:
    """Five keyframes, two processes: the third step holds the last keyframe of epoch 0 and the first of epoch 1."""
    zero, one = keys(5, 1, 2, steps=3)
    first, second = epoch_order(5, SEED, STAGE, 0), epoch_order(5, SEED, STAGE, 1)
    assert zero == [[(0, first[0])], [(2, first[2])], [(4, first[4])]]
    assert one == [[(1, first[1])], [(3, first[3])], [(5, second[0])]]


def test_lengths_and_nonsense() -> None:
    assert len(StepSampler(5, 1, 0, 1, steps=3)) == 3
    assert list(StepSampler(5, 1, 0, 1, steps=-2)) == []
    with pytest.raises(ValueError, match="got 0"):
        StepSampler(0, 1, 0, 1, steps=1)
    with pytest.raises(ValueError, match="2 of 2"):
        StepSampler(3, 1, 0, 1, steps=1, rank=2, world=2)
