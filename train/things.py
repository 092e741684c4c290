"""What lies on the thing whose mask it falls into, and not on what is seen past the mask's edge."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, UInt16
from torch import Tensor

NEAR_QUANTILE = 0.25
THING_M = 4.0
"""Metres. What is as much farther or nearer than the nearer quarter of all that falls into a mask lies behind or before
the thing: a mask reaches past its edge, and what is seen there is mostly behind it."""


def returns_on_things(instance: UInt16[np.ndarray, " n"], depth: Float64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which returns lie on the thing whose mask they fall into (0: none), by their depth, metres."""
    found = np.zeros(len(instance), dtype=bool)
    for name in np.unique(instance[instance > 0]):
        of_it = instance == name
        found |= of_it & (np.abs(depth - np.quantile(depth[of_it], NEAR_QUANTILE)) < THING_M)
    return found


@torch.no_grad()
def rays_on_things(distance: Float[Tensor, " rays"], things: Int[Tensor, " rays"], count: int) -> Bool[Tensor, " rays"]:
    """Which rays end on the thing whose mask they pass (1 .. `count` - 1, 0: none), by how far they go, metres.

    The quantile is that of the ray at place floor(NEAR_QUANTILE (k - 1)) of a thing's k. Sorted as one list, by thing
    and then by distance, so that no host has to ask a GPU how many rays a thing has.
    """
    by_distance = distance.argsort()
    order = by_distance.index_select(0, things.index_select(0, by_distance).argsort(stable=True))
    rays = torch.zeros(count, dtype=torch.long, device=things.device).index_add(0, things, torch.ones_like(things))
    first = rays.cumsum(0) - rays
    place = first + ((rays - 1).clamp_min(0) * NEAR_QUANTILE).floor().long()
    near = distance.index_select(0, order.index_select(0, place.clamp_max(len(things) - 1)))
    return (things > 0) & ((distance - near.index_select(0, things)).abs() < THING_M)
