"""Checks of masks that need no truth: area, flicker, depth spread, masks that stay on the own car."""

import math

import numpy as np
from jaxtyping import Bool, Float, Integer

LEAST_PIXELS = 20
"""Smaller instances are not judged: one pixel of flow error would decide."""


def masked_share(instance: Integer[np.ndarray, "h w"]) -> float:
    """Share of the image under masks."""
    return float((instance > 0).mean())


def instance_count(instance: Integer[np.ndarray, "h w"]) -> int:
    """Instances in the image."""
    return int((np.unique(instance) > 0).sum())


def flicker(
    instance: Integer[np.ndarray, "h w"], following: Integer[np.ndarray, "h w"], flow: Float[np.ndarray, "2 h w"]
) -> tuple[int, int]:
    """Instances that the next masks do not have, and instances judged.

    Flow moves an instance's pixels to the next keyframe. It is judged where at least half of its pixels have a flow
    that ends in the image, and `LEAST_PIXELS` of them; it is lost when fewer than a tenth of those meet any mask. All
    on one pixel grid.
    """
    height, width = instance.shape
    lost = judged = 0
    for label in np.unique(instance[instance > 0]):
        rows, columns = np.nonzero(instance == label)
        with np.errstate(invalid="ignore"):
            u = np.floor(columns + 0.5 + flow[0, rows, columns])
            v = np.floor(rows + 0.5 + flow[1, rows, columns])
            kept = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        if kept.sum() < max(LEAST_PIXELS, len(rows) / 2):
            continue
        judged += 1
        lost += bool((following[v[kept].astype(int), u[kept].astype(int)] > 0).mean() < 0.1)
    return lost, judged


def surely_lost(lost: int, judged: int, z: float = 1.645) -> float:
    """The lower end of the one-sided 95 % interval of a share (Wilson 1927): 8 of 14 instances are no proof that half
    of a scene's are lost, 160 of 280 are."""
    share, spare = lost / judged, z * z / judged
    spread = z * math.sqrt(share * (1 - share) / judged + spare / (4 * judged))
    return (share + spare / 2 - spread) / (1 + spare)


def depth_strays(
    label: Integer[np.ndarray, " n"], depth: Float[np.ndarray, " n"], size_m: float = 6.0, least: int = 6
) -> tuple[int, int]:
    """LiDAR points inside masks that lie more than `size_m` (a long car) from their instance's median depth, and all
    points of instances with at least `least`.

    Args:
        label: instance at each point's pixel, 0 for none.
        depth: camera z, metres.
    """
    stray = total = 0
    for one in np.unique(label[label > 0]):
        own = depth[label == one]
        if len(own) >= least:
            stray += int((np.abs(own - np.median(own)) > size_m).sum())
            total += len(own)
    return stray, total


EDGE_SHIFTS = np.arange(-12, 13)
"""Shifts in pixels that mask borders are tried at."""


def border_scores(
    instance: Integer[np.ndarray, "h w"], strength: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "shifts"]:
    """Sum of sideways image edge strength on the left and right borders of masks, moved by each of `EDGE_SHIFTS`.

    Scores of several images add up. For shifts up and down give both arrays transposed.
    """
    rows, columns = np.nonzero(instance[:, 1:] != instance[:, :-1])
    moved = columns[None] + EDGE_SHIFTS[:, None]
    inside = (moved >= 0) & (moved < instance.shape[1] - 1)
    moved = np.clip(moved, 0, instance.shape[1] - 2)
    found = (strength[rows[None], moved] + strength[rows[None], moved + 1]) / 2
    return (found * inside).sum(axis=1)


def border_shift(scores: Float[np.ndarray, "shifts"], clear: float = 1.3) -> float:
    """The shift in pixels that fits best; nan without a peak `clear` times the median."""
    if scores.max() <= clear * np.median(scores):
        return float("nan")
    return float(EDGE_SHIFTS[int(scores.argmax())])


class Persistence:
    """How often each pixel of one camera is masked: masks that sit on the own car are there in every scene."""

    def __init__(self) -> None:
        self.scenes: dict[str, int] = {}
        self._sum: np.ndarray | None = None

    def add(self, scene: str, masked: Bool[np.ndarray, "h w"]) -> None:
        """One more image; scene by scene."""
        self._sum = masked.astype(np.int64) if self._sum is None else self._sum + masked
        self.scenes[scene] = self.scenes.get(scene, 0) + 1

    def share(self, often: float = 0.6, least_images: int = 12, least_scenes: int = 3) -> float:
        """Share of the image that is masked in more than `often` of the images; nan while there are too few of them, or
        of too few scenes: a car that drives ahead is there for a whole scene."""
        count = sum(self.scenes.values())
        if self._sum is None or count < least_images or len(self.scenes) < least_scenes:
            return float("nan")
        return float((self._sum > often * count).mean())
