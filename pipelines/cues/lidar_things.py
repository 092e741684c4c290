"""Things in a LiDAR sweep: clusters of points off the ground, and which of their points later sweeps see through."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int32, Int64
from scipy.ndimage import label
from scipy.spatial import cKDTree

from geometry.transforms import transform_points
from pipelines.cues.ranges import check_numbers


@dataclass(frozen=True)
class ThingRule:
    """What a thing is and when a later or earlier sweep proves that one of its points is gone.

    cell: metres; points in cells that touch, seen from above, belong together. lowest, highest: metres above the
        ground, between which points make a thing; points of its cells down to `skirt` are added.
    longest: metres; larger clusters are background, not things. least_points: smaller clusters are noise.
    angle: degrees; a beam passes a place when it points at it to this.
    margin, margin_share: how much farther than the place (m, and share of its range) a beam must reach to prove it
        empty.
    least_share: share of a thing's places, and least_cells: their number, that must be empty for it to have moved.
    """

    cell: float = 0.4
    lowest: float = 0.3
    skirt: float = 0.12
    highest: float = 4.0
    longest: float = 16.0
    least_points: int = 4
    angle: float = 0.9
    margin: float = 0.5
    margin_share: float = 0.05
    least_share: float = 0.08
    least_cells: int = 2

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("cell", "angle", "least_share"), free=("lowest", "skirt"))


def find_things(
    points: Float[np.ndarray, "n 3"], height: Float[np.ndarray, " n"], rule: ThingRule
) -> Int32[np.ndarray, " n"]:
    """Number 1..m of the thing that each point (ego frame, m; `height` above ground) belongs to; 0 for none."""
    out = np.zeros(len(points), np.int32)
    usable = (height > rule.skirt) & (height < rule.highest) & np.isfinite(points).all(axis=1)
    if not (usable & (height > rule.lowest)).any():
        return out
    cells = np.floor(points[:, :2] / rule.cell).astype(np.int64)
    cells -= cells[usable].min(axis=0)
    grid = np.zeros(cells[usable].max(axis=0) + 1, bool)
    grid[tuple(cells[usable & (height > rule.lowest)].T)] = True
    labels, _ = label(grid, np.ones((3, 3)))
    out[usable] = labels[tuple(cells[usable].T)]
    order = np.argsort(out, kind="stable")
    starts = np.searchsorted(out[order], np.arange(1, out.max() + 2))
    number = np.zeros(out.max() + 1, np.int32)
    for k, (start, stop) in enumerate(itertools.pairwise(starts), 1):
        extent = np.ptp(points[order[start:stop], :2], axis=0) if stop > start else np.zeros(2)
        if stop - start >= rule.least_points and np.hypot(*extent) <= rule.longest:
            number[k] = number.max() + 1
    return number[out]


def seen_through(
    points: Float[np.ndarray, "n 3"],
    other_from_ego: Float[np.ndarray, "4 4"],
    other: Float[np.ndarray, "m 3"],
    origin: Float[np.ndarray, "3"],
    rule: ThingRule,
) -> Float[np.ndarray, " n"]:
    """1 where another sweep looks through a point's place, 0 where it meets something there, NaN where it cannot tell.

    Args:
        points: ego frame, metres.
        other_from_ego: ego frame of the other sweep from that of the points, for what stands still.
        other, origin: the other sweep's points and its sensor's place, in its own ego frame.
    """
    verdict = np.full(len(points), np.nan)
    if not len(points) or len(other) < 3:
        return verdict
    ray = transform_points(other_from_ego, points) - origin
    beam = other - origin
    reach, length = np.linalg.norm(beam, axis=1), np.linalg.norm(ray, axis=1)
    near = 2 * np.sin(np.deg2rad(rule.angle) / 2)
    distance, index = cKDTree(beam / reach[:, None]).query(ray / length[:, None], k=3, distance_upper_bound=near)
    there = np.isfinite(distance)
    reached = np.where(there, reach[np.where(there, index, 0)], np.nan)
    margin = rule.margin + rule.margin_share * length
    with np.errstate(invalid="ignore"):
        beyond = reached > (length + margin)[:, None]
        met = np.abs(reached - length[:, None]) <= margin[:, None]
    verdict[(beyond | ~there).all(axis=1) & there.any(axis=1)] = 1.0
    verdict[met.any(axis=1)] = 0.0
    return verdict


@dataclass(frozen=True)
class Emptied:
    """By thing number ([0] unused): share of a thing's places seen to be empty, and number of places that were told."""

    share: Float[np.ndarray, " things"]
    told: Int64[np.ndarray, " things"]


def emptied(
    points: Float[np.ndarray, "n 3"],
    things: Int32[np.ndarray, " n"],
    verdict: Float[np.ndarray, " n"],
    rule: ThingRule,
) -> Emptied:
    """How much of each thing is gone by a `verdict` of seen_through.

    Counted in cubes of `cell` metres, not in points, most of which lie on the part nearest to the sensor. The share is
    0 where fewer than `least_cells` are empty.
    """
    count = int(things.max(initial=0)) + 1
    told = (things > 0) & ~np.isnan(verdict)
    if not told.any():
        return Emptied(np.zeros(count), np.zeros(count, np.int64))
    cubes = np.floor(points[told] / rule.cell).astype(np.int64)
    _, cube = np.unique(np.column_stack([things[told], cubes]), axis=0, return_inverse=True)
    cube = cube.ravel()
    empty = np.bincount(cube, verdict[told]) / np.bincount(cube) > 0.5
    owner = np.zeros(len(empty), np.int64)
    owner[cube] = things[told]
    gone, places = np.bincount(owner, empty, count), np.bincount(owner, minlength=count)
    return Emptied(np.where(gone >= rule.least_cells, gone / np.maximum(places, 1), 0.0), places)


def clearest(verdicts: Sequence[Emptied]) -> Emptied:
    """Of several sweeps, the largest share of each thing that is gone, and the most places that were told."""
    return Emptied(
        np.max([verdict.share for verdict in verdicts], axis=0), np.max([verdict.told for verdict in verdicts], axis=0)
    )
