"""Which returns and which rays lie on a thing: by hand, against a slow version, and both by the same rule."""

import numpy as np
import torch

from train.things import THING_M, rays_on_things, returns_on_things


def test_returns_past_the_edge_are_left_out() -> None:
    instance = np.array([1, 1, 1, 1, 2, 0], np.uint16)
    depth = np.array([10.0, 11.0, 10.5, 40.0, 40.0, 10.0])
    assert returns_on_things(instance, depth).tolist() == [True, True, True, False, True, False]
    assert returns_on_things(np.zeros(0, np.uint16), np.zeros(0)).shape == (0,)


def test_rays_past_the_edge_are_left_out() -> None:
    distance = torch.tensor([10.0, 30.0, 11.0, 10.5, 40.0, 12.0, 3.0, 50.0, 20.0])
    things = torch.tensor([1, 1, 1, 1, 2, 1, 1, 0, 2])
    # Of thing 1's 3, 10, 10.5, 11, 12, 30 the one at place floor(0.25 x 5) is 10; of thing 2's 20, 40 it is 20.
    assert rays_on_things(distance, things, 4).tolist() == [True, False, True, True, False, True, False, False, True]
    rng = np.random.default_rng(0)
    distance, things = torch.from_numpy(rng.uniform(0, 30, 200)), torch.from_numpy(rng.integers(0, 9, 200))
    found = rays_on_things(distance, things, 12)
    for thing in range(1, 9):
        of_it = distance[things == thing]
        near = np.quantile(of_it.numpy(), 0.25, method="lower")
        assert found[things == thing].tolist() == ((of_it - near).abs() < THING_M).tolist()
    assert not found[things == 0].any()


def test_returns_and_rays_by_the_same_rule() -> None:
    """Of 4k + 1 values the nearer quarter is one of them, and both take that."""
    rng = np.random.default_rng(1)
    things = rng.permutation(np.repeat([1, 2, 3], [5, 9, 33]))
    depth = rng.uniform(0, 30, len(things))
    rays = rays_on_things(torch.from_numpy(depth), torch.from_numpy(things), 4)
    assert rays.tolist() == returns_on_things(things.astype(np.uint16), depth).tolist()
