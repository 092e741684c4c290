"""Which things of a LiDAR sweep move: those that left their place, and those whose flow no still world explains."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int32

from pipelines.cues.lidar_things import Emptied
from pipelines.cues.motion_residual import Motion

LEAST_PIXELS = 6
"""Pixels of a thing with known flow below which its flow is not heard."""
LEAST_KNOWN = 0.3
"""Share of a thing's pixels whose flow must be known for it to be heard."""
TOLD_PLACES = 5
"""Places of a thing that LiDAR must have told something about before its silence counts."""
STILL = 0.3
"""Strength of flow below which it testifies that a thing stands still."""
DOUBT = 5.0
"""How many times more of a thing must be gone for LiDAR to outweigh flow that says it stands still."""
UNNOTICED_M = 0.7
"""Motion between two sweeps (m) that may leave every told place of a thing filled, by itself."""


def thing_strengths(
    shown: Sequence[Int32[np.ndarray, "height width"]], motions: Sequence[Motion], empty: Emptied, least_share: float
) -> Float[np.ndarray, " things"]:
    """How surely each thing moves, in units of the threshold (above 1 it does); by thing number, [0] unused.

    A thing whose flow claims that it moved far, while LiDAR finds every place of it filled, does not move: its flow is
    wrong. Where flow finds that it stands still, much of it must be gone: beams miss leaves and edges by chance.

    Args:
        shown, motions: of every camera, the thing number of each pixel (0 none) and its unexplained motion.
        empty: what LiDAR says.
        least_share: share of a thing that must be gone.
    """
    out, needed = np.zeros(len(empty.share)), np.full(len(empty.share), least_share)
    if shown:
        owner = np.concatenate([numbers.ravel() for numbers in shown])
        strength = np.concatenate([motion.strength.ravel() for motion in motions])
        metres = np.concatenate([motion.metres.ravel() for motion in motions])
        order = np.argsort(owner, kind="stable")
        starts = np.searchsorted(owner[order], np.arange(len(out) + 1))
        for k in range(1, len(out)):
            own = order[starts[k] : starts[k + 1]]
            known = own[~np.isnan(strength[own])]
            if len(known) < max(LEAST_PIXELS, LEAST_KNOWN * len(own)):
                continue
            refuted = empty.told[k] >= TOLD_PLACES and empty.share[k] == 0 and np.median(metres[known]) > UNNOTICED_M
            out[k] = 0.0 if refuted else np.median(strength[known])
            if np.median(strength[known]) < STILL:
                needed[k] *= DOUBT
    return np.maximum(out, empty.share / needed)


def moving_regions(
    shown: Int32[np.ndarray, "height width"], strengths: Float[np.ndarray, " things"], least_area: float
) -> tuple[Int32[np.ndarray, "height width"], list[float]]:
    """Regions 1..n of one image that show a moving thing each, and their strengths; small ones (a share) left out."""
    labels = np.zeros(shown.shape, np.int32)
    kept: list[float] = []
    for k, pixels in zip(*np.unique(shown[shown > 0], return_counts=True), strict=True):
        if strengths[k] > 1.0 and pixels >= max(4, least_area * shown.size):
            kept.append(float(strengths[k]))
            labels[shown == k] = len(kept)
    return labels, kept
