"""Returns of the keyframe and of its neighbours: where they are, where they were measured, what moves is left out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from geometry.transforms import invert, transform_points
from train.config import TrainConfig
from train.data import KeyframeDataset
from train.points import RAISED_M, _draw
from train.returns import Measured, Raised, Returns, draw_returns, passes_near, thinned

Make = Callable[..., TrainConfig]


def with_reach(tiny_config: Make, reach: int, **rays: float) -> TrainConfig:
    return tiny_config(rays={"lidar": 600, "lidar_reach": reach, **rays})


def returns_at(config: TrainConfig, t: int) -> Returns:
    """The returns of a sample."""
    sample = KeyframeDataset(config, 1, [("a", t)], 0)[0, 0]
    fields = (sample.return_points, sample.return_valid, sample.return_own, sample.return_origins)
    points, valid, own, origins = (field for field in fields if field is not None)
    return Returns(points, valid, own, origins)


def test_without_reach_all_returns_are_the_keyframes(world: Any, tiny_config: Make) -> None:
    sample = returns_at(with_reach(tiny_config, 0), 2)
    assert sample.own.all()
    _, origin = world.lidar(2)
    assert torch.allclose(sample.origins, torch.from_numpy(origin).expand(600, 3))


def test_neighbours_returns_lie_on_the_same_walls(world: Any, tiny_config: Make) -> None:
    """Cast again in the world as it is now, from where they were measured, they meet the same surface: what stands."""
    sample = returns_at(with_reach(tiny_config, 2), 2)
    others = (sample.valid & ~sample.own).numpy()
    assert others.sum() > 150
    assert 250 < int((sample.valid & sample.own).sum()) <= 300
    pose = world.ego(2 * 0.5)
    points, origins = (x.numpy()[others].astype(np.float64) for x in (sample.points, sample.origins))
    assert len(np.unique(origins.round(3), axis=0)) == 4
    start = transform_points(pose, origins)
    along = transform_points(pose, points) - start
    share, kind = world.cast(start, along, 1.0)
    assert np.abs(share - 1).max() < 1e-3
    assert (kind == 0).all()


def test_origins_are_where_the_lidar_was(world: Any, tiny_config: Make) -> None:
    sample = returns_at(with_reach(tiny_config, 1), 0)
    _, there = world.lidar(1)
    expected = transform_points(invert(world.ego(0.0)) @ world.ego(0.5), there[None].astype(np.float64))[0]
    found = sample.origins[~sample.own].numpy()
    assert np.abs(found - expected).max() < 1e-4


def test_excluded_keyframes_give_no_returns(tiny_config: Make) -> None:
    config = with_reach(tiny_config, 1)
    config = config.model_copy(update={"data": config.data.model_copy(update={"exclude": ("a:1", "a:3")})})
    sample = returns_at(config, 2)
    assert sample.own.all()


def test_reach_asks_for_masks(tiny_config: Make) -> None:
    from train.selection import needed_cues

    assert "masks" not in needed_cues(with_reach(tiny_config, 0), 1)
    assert "masks" in needed_cues(with_reach(tiny_config, 1), 1)
    assert needed_cues(with_reach(tiny_config, 1), 2).count("masks") == 1


def test_passing_by_hand() -> None:
    """From the origin to (10, 0, 0): an obstacle beside the ray, beyond its end, behind its start, at its end."""
    points, origin = np.array([[10.0, 0, 0]], np.float32), np.zeros((1, 3), np.float32)
    for obstacle, expected in (((5, 0.9, 0), True), ((5, 1.1, 0), False), ((11.2, 0, 0), False), ((-1.2, 0, 0), False),
                               ((10.5, 0, 0), True)):  # fmt: skip
        assert passes_near(points, origin, np.array([obstacle], np.float32), 1.0).tolist() == [expected]
    assert not passes_near(points, origin, np.zeros((0, 3), np.float32), 1.0).any()
    # A return at the sensor itself has no direction.
    assert passes_near(np.zeros((1, 3), np.float32), origin, np.array([[0.5, 0, 0]], np.float32), 1.0).all()


def test_passing_against_a_slow_version() -> None:
    rng = np.random.default_rng(0)
    points, obstacles = rng.uniform(-10, 10, (50, 3)), rng.uniform(-10, 10, (7, 3))
    origins = rng.uniform(-3, 3, (50, 3))
    steps = origins + np.linspace(0, 1, 4001)[:, None, None] * (points - origins)
    nearest = np.linalg.norm(steps[:, :, None] - obstacles, axis=-1).min(axis=(0, 2))
    near = passes_near(points.astype(np.float32), origins.astype(np.float32), obstacles.astype(np.float32), 2.0)
    sure = np.abs(nearest - 2.0) > 0.01
    assert sure.sum() > 40
    assert (near == (nearest < 2.0))[sure].all()
    assert 0 < near.sum() < 50


def test_thinning_keeps_one_point_a_cube() -> None:
    points = np.array([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [0.6, 0.1, 0.1], [-0.1, 0.1, 0.1]], np.float32)
    assert thinned(points, 0.5).shape == (3, 3)
    assert thinned(np.zeros((0, 3), np.float32), 0.5).shape == (0, 3)


def test_draw_pads_and_marks(tiny_config: Make) -> None:
    grid = tiny_config().model.grid.build()
    middle = (np.array(grid.lower) + np.array(grid.upper)) / 2
    points = np.stack([middle, middle + 1000.0]).astype(np.float32)
    measured = Measured(points, np.zeros((2, 3), np.float32), np.ones(2, dtype=bool))
    drawn = draw_returns(measured, grid, 4, np.random.default_rng(0), own=False)
    assert drawn.valid.tolist() == [True, False, False, False]
    assert not drawn.own.any()
    assert torch.isfinite(drawn.origins).all()
    assert drawn.points[0].numpy() == pytest.approx(middle)


def test_a_draw_takes_a_share_of_what_is_raised() -> None:
    """Of 1000 rows ten are raised: of 20 drawn, half to be raised, all ten are; of 8, four at least; without a share by
    chance; none twice."""
    spots = np.zeros((1000, 3), np.float32)
    spots[:, 0] = np.arange(1000)
    spots[7::100, 2] = 0.5
    for count, least in ((20, 10), (8, 4)):
        drawn, valid = _draw(spots, count, np.random.default_rng(0), Raised(0.5, 0.4))
        assert valid.all()
        assert len(set(drawn[:, 0].tolist())) == count
        assert (drawn[:, 2] > 0.4).sum() >= least
    plain, _ = _draw(spots, 20, np.random.default_rng(0))
    none, _ = _draw(spots, 20, np.random.default_rng(0), Raised(0.0, 0.4))
    assert torch.equal(plain, none)
    few, valid = _draw(spots[:3], 5, np.random.default_rng(0), Raised(0.5, 0.4))
    assert valid.tolist() == [True] * 3 + [False] * 2
    assert few.shape == (5, 3)


@pytest.mark.parametrize("reach", [0, 2])
def test_a_share_of_the_returns_lies_above_the_ground(tiny_config: Make, reach: int) -> None:
    """The keyframe's own and its neighbours' alike; as many as without, each of them measured."""
    counts = {}
    for share in (0.0, 0.9):
        sample = returns_at(with_reach(tiny_config, reach, lidar=60, raised=share), 2)
        up = (sample.points[:, 2] > RAISED_M) & sample.valid
        counts[share] = up[sample.own].sum().item(), up[~sample.own].sum().item(), sample.valid.sum().item()
    own = 60 if not reach else 30
    assert counts[0.9][0] >= 0.9 * own > counts[0.0][0] > 0
    assert counts[0.9][2] == pytest.approx(counts[0.0][2], abs=6)
    if reach:
        assert counts[0.9][1] > counts[0.0][1]
