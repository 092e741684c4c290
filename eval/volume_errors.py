"""Which voxels of a volume are right, missed or invented, against another volume of the same grid."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from eval.colours import verdict_colours
from eval.voxels import FLOOR

NOTHING, HIT, MISSED, INVENTED, NOT_JUDGED = range(5)
"""Codes, in the order of `eval.colours.VERDICTS`."""


@dataclass(frozen=True)
class VolumeErrors:
    """Codes per voxel, and how many voxels have each.

    invented counts what nobody could see too, behind surfaces and inside things: the truth of a driving log is a shell.
    """

    kind: UInt8[np.ndarray, "x y z"]
    hit: int
    missed: int
    invented: int
    not_judged: int

    @property
    def iou(self) -> float:
        """hit / (hit + missed + invented): voxel IoU of this one volume; nan where both are empty."""
        return _share(self.hit, self.hit + self.missed + self.invented)

    @property
    def recall(self) -> float:
        """hit / (hit + missed)."""
        return _share(self.hit, self.hit + self.missed)

    @property
    def precision(self) -> float:
        """hit / (hit + invented)."""
        return _share(self.hit, self.hit + self.invented)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def compare_volumes(
    predicted: Bool[np.ndarray, "x y z"],
    true: Bool[np.ndarray, "x y z"],
    judged: Bool[np.ndarray, "x y z"] | None = None,
) -> VolumeErrors:
    """Each voxel's code. `judged` is false where the truth knows nothing: occupied there is neither right nor wrong."""
    kind = np.zeros(predicted.shape, dtype=np.uint8)
    kind[predicted & true], kind[~predicted & true], kind[predicted & ~true] = HIT, MISSED, INVENTED
    if judged is not None:
        kind[~judged & predicted] = NOT_JUDGED
        kind[~judged & ~predicted] = NOTHING
    counts = np.bincount(kind.ravel(), minlength=5).tolist()
    return VolumeErrors(kind, *counts[1:])


def exposed(occupied: Bool[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Occupied voxels with a free one beside or on top, or below; outside the box is free, but not under it."""
    padded = np.pad(occupied, 1)
    padded[..., 0] = True
    covered = np.ones_like(occupied)
    for axis in range(3):
        for shift in (-1, 1):
            covered &= np.roll(padded, shift, axis)[1:-1, 1:-1, 1:-1]
    return occupied & ~covered


def errors_from_above(kind: UInt8[np.ndarray, "x y z"], pixels: int = 400) -> UInt8[np.ndarray, "height width 3"]:
    """Each column in the mean colour of its coded surface voxels, x up and y to the left, about `pixels` high.

    The topmost voxel alone would hide that a wall is half right, and all together that what lies in the ground does not
    matter.
    """
    there = exposed(kind != NOTHING)
    total = (verdict_colours(kind) * there[..., None].astype(np.float64)).sum(axis=2)
    count = there.sum(axis=2)[..., None]
    plane: Float[np.ndarray, "x y 3"] = np.where(count > 0, total / np.maximum(count, 1), FLOOR)
    factor = max(1, round(pixels / max(plane.shape[:2])))
    return plane[::-1, ::-1].round().astype(np.uint8).repeat(factor, axis=0).repeat(factor, axis=1)
