"""How far a LiDAR sweep reaches, in which directions and around the car, compared with what is usual in its store."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

SECTORS = 72
"""Parts of the circle, 5 degrees each."""
SPARSE = 0.1
"""A sector with less than this share of its usual points is missing."""
LEAST_IN_SECTOR = 5
"""Usual points from which on a sector can be missed."""
CELL_M, CELLS = 4.0, 12
"""Squares around the sensor, seen from above, and how many a side: 24 m to each side."""
NEARLY_ALL = 0.8
"""Share of sweeps that must reach a square for the next sweep to be expected there."""
LEAST_CELLS = 10


@dataclass(frozen=True)
class SweepExtent:
    """Extent of one sweep.

    Attributes:
        elevation_deg: span from 2 % to 98 % of the points.
        range_m: that 5 % of the points exceed.
        sectors: points by azimuth; the first begins straight ahead, they go to the left.
        cells: squares (x forward, y left) that hold a point.
    """

    points: int
    elevation_deg: float
    range_m: float
    sectors: Int[np.ndarray, " sectors"]
    cells: Bool[np.ndarray, "cells cells"]


@dataclass(frozen=True)
class UsualExtent:
    """The same of a store: medians over some sweeps, and the share of sweeps that reach each square."""

    points: float
    elevation_deg: float
    range_m: float
    sectors: Float[np.ndarray, " sectors"]
    cells: Float[np.ndarray, "cells cells"]

    def ratio(self, sweep: SweepExtent) -> float:
        """The lowest of points, elevation span and range in relation to the usual; 1 is usual."""
        own = (sweep.points, sweep.elevation_deg, sweep.range_m)
        theirs = (self.points, self.elevation_deg, self.range_m)
        return float(min(a / max(b, 1e-6) for a, b in zip(own, theirs, strict=True)))

    def missing_degrees(self, sweep: SweepExtent) -> float:
        """Degrees of azimuth in which the sweep has less than `SPARSE` of the usual points."""
        expected = self.sectors >= LEAST_IN_SECTOR
        return float((expected & (sweep.sectors < SPARSE * self.sectors)).sum() * 360 / SECTORS)

    def reached_share(self, sweep: SweepExtent) -> float:
        """Share of the squares that nearly all sweeps reach, and this one too; nan where there are few."""
        expected = self.cells >= NEARLY_ALL
        return float(sweep.cells[expected].mean()) if expected.sum() >= LEAST_CELLS else float("nan")


def azimuth_elevation(ray: Float[np.ndarray, "n 3"]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Degrees: azimuth from 0 (ahead) over 90 (left) to 360, elevation from -90 to 90."""
    distance = np.linalg.norm(ray, axis=1)
    azimuth = np.degrees(np.arctan2(ray[:, 1], ray[:, 0])) % 360
    return azimuth, np.degrees(np.arcsin(ray[:, 2] / np.maximum(distance, 1e-6)))


def sweep_extent(points: Float[np.ndarray, "n 3"], origin: Float[np.ndarray, "3"]) -> SweepExtent:
    """Extent of a sweep's points (ego frame, metres) around the sensor."""
    cells = np.zeros((CELLS, CELLS), bool)
    if not len(points):
        return SweepExtent(0, 0.0, 0.0, np.zeros(SECTORS, np.int64), cells)
    ray = points - origin
    azimuth, elevation = azimuth_elevation(ray)
    sectors = np.bincount((azimuth * SECTORS / 360).astype(int) % SECTORS, minlength=SECTORS)
    at = np.floor(ray[:, :2] / CELL_M).astype(int) + CELLS // 2
    at = at[((at >= 0) & (at < CELLS)).all(axis=1)]
    cells[at[:, 0], at[:, 1]] = True
    low, high = np.quantile(elevation, [0.02, 0.98])
    return SweepExtent(
        len(points), float(high - low), float(np.quantile(np.linalg.norm(ray, axis=1), 0.95)), sectors, cells
    )


def usual_extent(sweeps: list[SweepExtent]) -> UsualExtent:
    """What is usual in several sweeps, at least one."""
    points, elevation, reach = np.median([(s.points, s.elevation_deg, s.range_m) for s in sweeps], axis=0)
    return UsualExtent(
        float(points),
        float(elevation),
        float(reach),
        np.median([s.sectors for s in sweeps], axis=0),
        np.mean([s.cells for s in sweeps], axis=0),
    )


HISTOGRAMS: dict[str, tuple[float, float, int]] = {
    "range_m": (0.0, 80.0, 40),
    "elevation_deg": (-40.0, 20.0, 30),
    "azimuth_deg": (0.0, 360.0, 72),
}
"""Lower end, upper end and bins of what the page draws; what lies outside is in the first or last bin."""
DENSITY_M, DENSITY_CELLS = 4.0, 30
"""Squares of the density seen from above, and how many a side."""


class SweepHistograms:
    """Range, elevation, azimuth and bird's-eye density of all sweeps that were looked at, added up."""

    def __init__(self) -> None:
        self.sweeps = self.points = self.unseen = self.not_finite = 0
        self.counts = {name: np.zeros(bins, np.int64) for name, (_, _, bins) in HISTOGRAMS.items()}
        self.density = np.zeros((DENSITY_CELLS, DENSITY_CELLS), np.int64)

    def add(self, points: Float[np.ndarray, "n 3"], origin: Float[np.ndarray, "3"], unseen: int, lost: int) -> None:
        """Add a sweep (ego frame, metres), how many of its points no camera sees, and how many are not finite."""
        ray = points - origin
        azimuth, elevation = azimuth_elevation(ray)
        values = {"range_m": np.linalg.norm(ray, axis=1), "elevation_deg": elevation, "azimuth_deg": azimuth}
        for name, (low, high, bins) in HISTOGRAMS.items():
            place = np.clip((values[name] - low) / (high - low) * bins, 0, bins - 1).astype(int)
            self.counts[name] += np.bincount(place, minlength=bins)
        at = np.floor(ray[:, :2] / DENSITY_M).astype(int) + DENSITY_CELLS // 2
        at = at[((at >= 0) & (at < DENSITY_CELLS)).all(axis=1)]
        np.add.at(self.density, (at[:, 0], at[:, 1]), 1)
        self.sweeps += 1
        self.points += len(points)
        self.unseen += unseen
        self.not_finite += lost

    def result(self) -> dict[str, Any]:
        """As plain types: histograms, density per sweep and square metre (x forward, y left), and what is lost."""
        return {
            "sweeps": self.sweeps,
            "points_per_sweep": self.points / max(1, self.sweeps),
            "unseen_share": self.unseen / max(1, self.points),
            "not_finite_share": self.not_finite / max(1, self.points + self.not_finite),
            "histograms": {
                name: {"low": low, "high": high, "counts": self.counts[name].tolist()}
                for name, (low, high, _) in HISTOGRAMS.items()
            },
            "density": {
                "cell_m": DENSITY_M,
                "per_m2": (self.density / max(1, self.sweeps) / DENSITY_M**2).round(4).tolist(),
            },
        }
