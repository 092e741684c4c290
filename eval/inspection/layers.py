"""What a reviewer looks at: each layer of one camera image as a picture, on one fixed scale per kind."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from eval.colours import NO_DATA, depth_colours, flow_colours, flow_wheel
from eval.inspection.flow_checks import round_trip, warp_errors
from eval.inspection.views import View
from eval.sheet import captioned, depth_legend, row

Picture = UInt8[np.ndarray, "_ _ 3"]

DEPTH_RANGE_M = (2.0, 60.0)
FULL_FLOW = 0.15
"""Flow of this share of the image's width has the full colour."""
FULL_ERROR_PX = 3.0
"""Residuals and round trips of this many pixels, and more, have the strongest colour."""
FULL_LEVELS = 60.0
"""The same of colour differences, grey levels."""
_HEAT = np.array(
    [(34, 51, 102), (59, 130, 190), (170, 220, 190), (253, 220, 120), (240, 120, 60), (165, 20, 40)], float
)
_INSTANCE = np.array(
    [(230, 80, 60), (60, 140, 230), (70, 180, 90), (220, 160, 40), (160, 90, 210), (40, 190, 190), (230, 110, 170)],
    float,
)


def heat_colours(values: Float[np.ndarray, "*shape"], full: float) -> UInt8[np.ndarray, "*shape 3"]:
    """RGB of an error from 0 (blue) to `full` (red); nan is the page's grey."""
    known = ~np.isnan(values)
    place = np.clip(np.where(known, values, 0.0) / full, 0, 1) * (len(_HEAT) - 1)
    colours = np.stack([np.interp(place, np.arange(len(_HEAT)), _HEAT[:, k]) for k in range(3)], axis=-1)
    return np.where(known[..., None], colours, NO_DATA).round().astype(np.uint8)


def _pale(view: View) -> np.ndarray:
    """A pale grey copy of the image to draw on."""
    if view.image is None:
        return np.full((*view.size, 3), 245, np.uint8)
    grey = view.image.mean(axis=-1, keepdims=True)
    return np.repeat(255 - 0.45 * (255 - grey), 3, axis=-1).astype(np.uint8)


def _dots(view: View, uv: np.ndarray, colours: np.ndarray, order: np.ndarray) -> Picture:
    """Points as squares of about 1/300 of the width on the pale image; later ones over earlier ones."""
    picture, reach = _pale(view), max(1, round(view.size[1] / 400))
    at = np.floor(uv[order]).astype(int)
    for dv in range(-(reach // 2), (reach + 1) // 2):
        for du in range(-(reach // 2), (reach + 1) // 2):
            rows, columns = (at[:, 1] + dv).clip(0, view.size[0] - 1), (at[:, 0] + du).clip(0, view.size[1] - 1)
            picture[rows, columns] = colours[order]
    return picture


def image_layer(view: View) -> Picture | None:
    """The image."""
    return view.image


def next_layer(view: View) -> Picture | None:
    """The next keyframe's image."""
    return view.next_image


def flow_layer(view: View) -> Picture | None:
    """Flow by the colour wheel: hue is the direction in the image, red = right, green-yellow = up."""
    if view.flow is None:
        return None
    picture = flow_colours(np.stack([view.flow[0], -view.flow[1]], axis=-1), FULL_FLOW * view.size[1], (255, 255, 255))
    picture[np.isnan(view.flow[0])] = NO_DATA
    return picture


def confidence_layer(view: View) -> Picture | None:
    """Confidence: blue is sure, red is not; grey where there is no flow."""
    if view.cue is None or view.flow is None:
        return None
    doubt = 1 - view.cue.confidence / 255.0
    return heat_colours(np.where(np.isnan(view.flow[0]), np.nan, doubt), 1.0)


def round_trip_layer(view: View) -> Picture | None:
    """How far forward and backward flow miss each other, px."""
    if view.flow is None or view.backward is None:
        return None
    return heat_colours(round_trip(view.flow, view.backward)[1], FULL_ERROR_PX)


def before_layer(view: View) -> Picture | None:
    """Colour difference to the next image as it is."""
    if view.image is None or view.next_image is None:
        return None
    return heat_colours(np.abs(view.next_image.astype(np.float64) - view.image).mean(axis=-1), FULL_LEVELS)


def after_layer(view: View) -> Picture | None:
    """Colour difference to the next image warped by the flow."""
    if view.image is None or view.next_image is None or view.flow is None:
        return None
    return heat_colours(warp_errors(view.image, view.next_image, view.flow)[1], FULL_LEVELS)


def masks_layer(view: View) -> Picture | None:
    """Instances in colour over the image."""
    if view.masks is None:
        return None
    picture = _pale(view).astype(np.float64)
    found = view.masks > 0
    picture[found] = 0.4 * picture[found] + 0.6 * _INSTANCE[view.masks[found].astype(int) % len(_INSTANCE)]
    return picture.round().astype(np.uint8)


def lidar_layer(view: View) -> Picture | None:
    """LiDAR points by depth, near ones on top."""
    if view.keyframe.points is None:
        return None
    uv, depth = view.seen
    return _dots(view, uv, depth_colours(depth, *DEPTH_RANGE_M), np.argsort(-depth))


def residual_layer(view: View) -> Picture | None:
    """Flow less static flow at LiDAR points outside masks, px; large ones on top."""
    if view.static is None or view.residual is None:
        return None
    residual, judged = view.residual
    length = np.linalg.norm(residual[judged], axis=1)
    return _dots(view, view.static.uv[judged], heat_colours(length, FULL_ERROR_PX), np.argsort(length))


LAYERS: dict[str, Callable[[View], Picture | None]] = {
    "image": image_layer,
    "next image": next_layer,
    "flow": flow_layer,
    "confidence": confidence_layer,
    "there and back": round_trip_layer,
    "before warping": before_layer,
    "after warping": after_layer,
    "masks": masks_layer,
    "LiDAR depth": lidar_layer,
    "static residual": residual_layer,
}
"""By name, in the order in which they are shown; a layer is None where the store has nothing for it."""


def legend() -> Picture:
    """The colour scales of all layers side by side."""
    ramp = np.broadcast_to(heat_colours(np.linspace(0, 1, 300), 1.0), (20, 300, 3))
    heat = f"errors: 0 to {FULL_ERROR_PX:g} px, 0 to {FULL_LEVELS:g} grey levels, doubt 0 to 1"
    wheel = flow_wheel(84, 1.0)
    # The wheel's own axes are the road's (up is forward, red); in the image red is to the right.
    disc = np.rot90(wheel[..., :3], -1), np.rot90(wheel[..., 3:], -1) / 255.0
    blended = (disc[0] * disc[1] + 255 * (1 - disc[1])).round().astype(np.uint8)
    text = captioned(np.full((2, 300, 3), 255, np.uint8), f"flow: full colour from {FULL_FLOW:.0%} of the width")
    return row([depth_legend(), captioned(np.ascontiguousarray(ramp), heat), blended, text])


def fitted(picture: Picture, width: int) -> Picture:
    """A picture at another width: smooth when it shrinks, in whole pixels when it grows."""
    if picture.shape[1] == width:
        return picture
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    how = Image.Resampling.LANCZOS if width < picture.shape[1] else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize((width, height), how))
