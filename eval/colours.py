"""Colour scales of the pictures: depth, height, and motion by the colour wheel."""

import numpy as np
from jaxtyping import Float, UInt8

_DEPTH = ((253, 245, 180), (252, 176, 92), (226, 88, 82), (146, 44, 116), (62, 24, 96), (12, 8, 38))
"""Near to far."""
_HEIGHT = (
    (58, 82, 122),
    (74, 130, 158),
    (96, 178, 164),
    (158, 208, 134),
    (240, 210, 104),
    (242, 150, 92),
    (214, 88, 108),
)
"""Low to high."""
STILL = (186, 192, 202)
"""Grey of things that do not move."""
NO_DATA = (236, 239, 243)
VERDICTS = {
    "nothing": NO_DATA,
    "hit": (158, 190, 165),
    "missed": (45, 105, 200),
    "invented": (222, 92, 48),
    "not judged": (214, 206, 190),
}
"""Colours of a compared voxel, in the order of its code (`eval.volume_errors`)."""
_NEARER, _RIGHT, _FARTHER = (33, 84, 176), (238, 238, 232), (188, 40, 36)


def _ramp(stops: tuple[tuple[int, int, int], ...], position: np.ndarray) -> np.ndarray:
    """Colours (..., 3) float in 0..255 at positions in [0, 1] along equally spaced stops; nan becomes 0."""
    position = np.nan_to_num(np.clip(position, 0.0, 1.0)) * (len(stops) - 1)
    table = np.asarray(stops, dtype=np.float64)
    return np.stack([np.interp(position, np.arange(len(stops)), table[:, k]) for k in range(3)], axis=-1)


def depth_colours(
    depth: Float[np.ndarray, "*shape"], near: float = 2.0, far: float = 60.0
) -> UInt8[np.ndarray, "*shape 3"]:
    """RGB of depth in metres, logarithmic from `near` (bright) to `far` (dark); nan is the page's grey."""
    known = np.isfinite(depth) & (depth > 0)
    safe = np.where(known, depth, near)
    colours = _ramp(_DEPTH, np.log(safe / near) / np.log(far / near))
    return np.where(known[..., None], colours, NO_DATA).round().astype(np.uint8)


def height_colours(z: Float[np.ndarray, "*shape"], low: float, high: float) -> UInt8[np.ndarray, "*shape 3"]:
    """RGB of a height in metres between `low` and `high`."""
    return _ramp(_HEIGHT, (z - low) / (high - low)).round().astype(np.uint8)


def flow_colours(
    flow: Float[np.ndarray, "*shape 2"], full: float, still: tuple[int, int, int] = STILL
) -> UInt8[np.ndarray, "*shape 3"]:
    """RGB of horizontal motion (vx, vy): hue is the direction, red = forward (+x), turning with the angle towards left
    (+y) through yellow-green; saturation grows to `full` (same unit as the flow), from `still`."""
    speed = np.linalg.norm(np.nan_to_num(flow), axis=-1)
    angle = np.arctan2(np.nan_to_num(flow[..., 1]), np.nan_to_num(flow[..., 0]))
    pure = _hue(angle / (2 * np.pi) % 1.0)
    weight = np.clip(speed / full, 0.0, 1.0)[..., None] ** 0.7
    return (np.asarray(still) * (1 - weight) + pure * weight).round().astype(np.uint8)


def _hue(turn: np.ndarray) -> np.ndarray:
    """Saturated colours (..., 3), 0..255, of a hue in [0, 1)."""
    offset = np.array([0.0, 2 / 3, 1 / 3])
    phase = (turn[..., None] + offset) % 1.0
    return 28 + 222 * np.clip(np.abs(phase * 6 - 3) - 1, 0.0, 1.0)


def difference_colours(ratio: Float[np.ndarray, "*shape"], full: float = 1.5) -> UInt8[np.ndarray, "*shape 3"]:
    """RGB of predicted over true depth: blue where too near, pale where right, red where too far; full colour from a
    factor of `full` on, either way. nan is the page's grey."""
    known = np.isfinite(ratio) & (ratio > 0)
    place = np.log(np.where(known, ratio, 1.0)) / np.log(full) / 2 + 0.5
    return np.where(known[..., None], _ramp((_NEARER, _RIGHT, _FARTHER), place), NO_DATA).round().astype(np.uint8)


def verdict_colours(kind: UInt8[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """RGB of codes of `eval.volume_errors`."""
    return np.array(list(VERDICTS.values()), dtype=np.uint8)[kind]


def flow_wheel(size: int, full: float = 1.0) -> UInt8[np.ndarray, "size size 4"]:
    """The legend of `flow_colours`, RGBA: forward is up and left is left, as in the bird's-eye view."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    down, right = np.meshgrid(axis, axis, indexing="ij")
    flow = np.stack([-down, -right], axis=-1) * full
    radius = np.hypot(down, right)
    alpha = np.clip((1 - radius) * size / 2, 0, 1) * 255
    return np.concatenate([flow_colours(flow, full), alpha[..., None].astype(np.uint8)], axis=-1)
