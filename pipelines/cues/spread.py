"""Motion known at grid points, spread to the pixels around them without crossing edges or reaching far."""

import numpy as np
from jaxtyping import Float, UInt8

from pipelines.cues.protocols import FlowField

AGREEMENT_PX = 1.0
"""Motions that differ from the most trusted one at a pixel by more belong to something else and are not averaged in."""


def spread_tracks(
    image: UInt8[np.ndarray, "height width 3"],
    motion: Float[np.ndarray, "2 rows columns"],
    trust: Float[np.ndarray, "rows columns"],
    stride: int,
    reach: float,
    colour: float,
) -> FlowField:
    """Each pixel takes the motion of the track that is nearest in place and colour, averaged with those that agree.

    Args:
        image: RGB; grid point (r, c) sits on its pixel (stride * r + (stride - 1) // 2, likewise c).
        motion: pixels; meaningless where trust is 0.
        trust: in [0, 1].
        reach: pixels; farther pixels take nothing from a track.
        colour: scale of the colour difference, 0..255.

    Returns:
        Flow and the trust of what it is made of, NaN and 0 out of reach of every trusted track.
    """
    height, width = image.shape[:2]
    rows, columns = trust.shape
    middle = (stride - 1) // 2
    lab = image.astype(np.float32)
    motion = np.where(trust > 0, motion, 0.0)  # it may be NaN or infinite there, which no weight of 0 takes away
    v, u = np.mgrid[:height, :width]
    # Grid cell of each pixel; its candidates are the cells around.
    row0, column0 = (v - middle + stride // 2) // stride, (u - middle + stride // 2) // stride
    span = int(np.ceil(reach / stride))
    best = np.zeros((height, width), np.float32)
    chosen = np.zeros((2, height, width), np.float32)
    candidates = []
    for dr in range(-span, span + 1):
        for dc in range(-span, span + 1):
            r, c = np.clip(row0 + dr, 0, rows - 1), np.clip(column0 + dc, 0, columns - 1)
            y, x = np.minimum(r * stride + middle, height - 1), np.minimum(c * stride + middle, width - 1)
            distance2 = ((y - v) ** 2 + (x - u) ** 2).astype(np.float32)
            difference2 = ((lab - lab[y, x]) ** 2).mean(axis=-1)
            weight = np.exp(-distance2 / (2 * (0.5 * reach) ** 2) - difference2 / (2 * colour**2)) * trust[r, c]
            weight = np.where(distance2 <= reach**2, weight, 0.0)
            moved = motion[:, r, c]
            better = weight > best
            best = np.where(better, weight, best)
            chosen = np.where(better, moved, chosen)
            candidates.append((weight, moved, trust[r, c]))
    total = np.zeros((height, width), np.float32)
    mean = np.zeros((2, height, width), np.float32)
    trusted = np.zeros((height, width), np.float32)
    for weight, moved, own in candidates:
        near = np.linalg.norm(moved - chosen, axis=0) <= AGREEMENT_PX
        weight = np.where(near, weight, 0.0)
        total += weight
        mean += weight * moved
        trusted += weight * own
    known = best > 1e-6
    safe = np.where(known, total, 1.0)
    return FlowField(
        np.where(known, mean / safe, np.nan).astype(np.float32),
        np.where(known, trusted / safe, 0.0).astype(np.float32),
    )
