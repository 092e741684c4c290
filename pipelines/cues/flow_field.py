"""Arithmetic of flow fields: following, composing, checking forward against backward, resampling, packing."""

from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float, Int16, Int64, Shaped, UInt8

from geometry.cameras import ImageTransform, in_image, pixel_centres
from pipelines.cues.protocols import FlowField
from storage.schema import FLOW_SCALE, INVALID_FLOW

OUT_OF_RANGE = 32767 / FLOW_SCALE
"""Render pixels beyond which a displacement has no int16 value."""


def endpoints(flow: Float[np.ndarray, "2 height width"]) -> Float[np.ndarray, "height width 2"]:
    """Continuous position (u, v), pixel centres at +0.5, where each pixel's flow ends; NaN where the flow is."""
    return np.moveaxis(_centre_planes(*flow.shape[1:]) + flow, 0, -1)


@lru_cache(8)
def _centre_planes(height: int, width: int) -> Float[np.ndarray, "2 height width"]:
    """pixel_centres with u and v apart: arithmetic on interleaved coordinates takes several times as long."""
    planes = np.ascontiguousarray(np.moveaxis(pixel_centres(height, width), -1, 0))
    planes.setflags(write=False)  # shared by everybody who asks
    return planes


def sample_field(
    field: Shaped[np.ndarray, "channels height width"], uv: Float[np.ndarray, "rows columns 2"]
) -> Float[np.ndarray, "channels rows columns"]:
    """Bilinear samples of a float field at pixel positions; NaN where any pixel that counts is NaN or lies outside.

    Positions between the outermost pixel centres and the image's edge take the edge pixels.
    """
    channels, height, width = field.shape
    inside = in_image(uv, height, width)
    u = np.where(inside, uv[..., 0], 0.5).astype(np.float32) - 0.5
    v = np.where(inside, uv[..., 1], 0.5).astype(np.float32) - 0.5
    out = np.empty((channels, *inside.shape), np.float32)
    for k, layer in enumerate(np.ascontiguousarray(field, np.float32)):
        cv2.remap(layer, u, v, cv2.INTER_LINEAR, dst=out[k], borderMode=cv2.BORDER_REPLICATE)
    np.copyto(out, np.nan, where=~inside)
    return out


def compose(
    first: Float[np.ndarray, "2 height width"], second: Float[np.ndarray, "2 height width"]
) -> Float[np.ndarray, "2 height width"]:
    """Flow a→c from a→b and b→c of one size; NaN where either is unknown along the way."""
    return (first + sample_field(second, endpoints(first))).astype(np.float32)


def round_trip_error(
    forward: Float[np.ndarray, "2 height width"], backward: Float[np.ndarray, "2 height width"]
) -> Float[np.ndarray, "height width"]:
    """Length in pixels of forward + backward at the forward end; inf where either is unknown or leaves the image."""
    error = np.linalg.norm(compose(forward, backward), axis=0)
    return np.where(np.isnan(error), np.inf, error).astype(np.float32)


def checked(
    forward: Float[np.ndarray, "2 height width"],
    backward: Float[np.ndarray, "2 height width"],
    tolerance: float,
    relative: float,
) -> FlowField:
    """The forward flow where going there and back returns to within `tolerance + relative * length` pixels.

    Confidence falls linearly from 1 at a perfect return to 0 at that bound.
    """
    bound = tolerance + relative * np.linalg.norm(forward, axis=0)
    with np.errstate(invalid="ignore"):
        confidence = 1.0 - round_trip_error(forward, backward) / bound
    return limited(forward, np.nan_to_num(confidence, nan=0.0, neginf=0.0))


def limited(flow: Float[np.ndarray, "2 height width"], confidence: np.ndarray) -> FlowField:
    """A FlowField whose flow is NaN exactly where the confidence is 0 (or the flow was unknown or leaves the image)."""
    stays = in_image(endpoints(flow), *flow.shape[1:])
    kept = np.where(stays, np.clip(confidence, 0.0, 1.0), 0.0).astype(np.float32)
    return FlowField(np.where(kept > 0, flow, np.nan).astype(np.float32), kept)


def onto_grid(
    values: Float[np.ndarray, "channels height width"],
    raw_size: tuple[int, int],
    transform: ImageTransform,
    tolerance: float,
) -> Float[np.ndarray, "channels out_height out_width"]:
    """Resample a field, without mixing across edges, onto the image of `transform`; values keep their units.

    Each output pixel centre takes the bilinear mean of those of its four neighbours that are known and lie within
    `tolerance` (largest channel difference) of its nearest known neighbour; NaN where all four are unknown.

    Args:
        values: on a grid that covers the raw image (any size), NaN = unknown; inf is a value like any other.
        raw_size: (height, width) of the raw image.
        transform: raw image to output image.
        tolerance: in the units of `values`.
    """
    channels, height, width = values.shape
    index, weight = _four_corners((height, width), raw_size, transform)
    stack = np.moveaxis(values.reshape(channels, -1)[:, index], 0, 1)
    known = ~np.isnan(stack).any(axis=1)
    weight = np.where(known, weight + 1e-9, 0.0)
    nearest = np.take_along_axis(stack, weight.argmax(axis=0)[None, None], axis=0)
    with np.errstate(invalid="ignore"):
        near = (stack == nearest) | (np.abs(stack - nearest) <= tolerance)
    weight = np.where(near.all(axis=1), weight, 0.0)
    total = weight.sum(axis=0)
    used = weight[:, None] > 0
    # inf times a weight of zero is NaN: leave unused corners out before weighting.
    mean = (np.where(used, stack, 0.0) * np.where(used, weight[:, None], 1.0)).sum(axis=0)
    return np.where(total > 0, mean / np.where(total > 0, total, 1.0), np.nan).astype(np.float32)


@lru_cache(4)
def _four_corners(
    size: tuple[int, int], raw_size: tuple[int, int], transform: ImageTransform
) -> tuple[Int64[np.ndarray, "4 rows columns"], Float[np.ndarray, "4 rows columns"]]:
    """Of a field of `size`: flat indices of the four pixels around each output pixel centre, and bilinear weights."""
    height, width = size
    raw = pixel_centres(transform.height, transform.width) + np.array([transform.left, transform.top])
    raw /= transform.scale
    x = raw[..., 0] * (width / raw_size[1]) - 0.5
    y = raw[..., 1] * (height / raw_size[0]) - 0.5
    x0, y0 = np.floor(x), np.floor(y)
    corners, weights = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            column = np.clip(x0 + dx, 0, width - 1).astype(np.int64)
            row = np.clip(y0 + dy, 0, height - 1).astype(np.int64)
            corners.append(row * width + column)
            weights.append((1 - np.abs(x - x0 - dx)) * (1 - np.abs(y - y0 - dy)))
    return np.stack(corners), np.stack(weights)


def flow_onto_render(
    field: FlowField, raw_size: tuple[int, int], transform: ImageTransform, tolerance: float = 1.0
) -> FlowField:
    """A flow computed on the (resized) raw image, in render pixels on the render grid of `transform`.

    Args:
        field: at the working size; its pixels are `raw_size / working size` raw pixels wide.
        raw_size: (height, width) of the raw image.
        transform: raw to render image.
        tolerance: render pixels; neighbours that move more differently than this are not averaged.
    """
    _, height, width = field.flow.shape
    scale = np.array([raw_size[1] / width, raw_size[0] / height], np.float32) * np.float32(transform.scale)
    # Scaled to the tolerance, confidence never keeps two neighbours apart: only their motion does.
    weight = np.where(field.confidence > 0, field.confidence, np.nan) * tolerance
    out = onto_grid(np.concatenate([field.flow * scale[:, None, None], weight[None]]), raw_size, transform, tolerance)
    confidence = np.nan_to_num(out[2] / tolerance)
    return FlowField(np.where(confidence > 0, out[:2], np.nan), confidence)


def pack_flow(
    field: FlowField,
) -> tuple[Int16[np.ndarray, "2 height width"], UInt8[np.ndarray, "height width"], int]:
    """Stored flow (1/64 px, -32768 = invalid), stored confidence (0 = invalid) and how many were out of range."""
    with np.errstate(invalid="ignore"):
        in_range = (np.abs(field.flow) <= OUT_OF_RANGE).all(axis=0)
    known = field.confidence > 0
    valid = known & in_range
    scaled = np.round(np.where(valid, field.flow, 0.0) * FLOW_SCALE)
    flow = np.where(valid, scaled, INVALID_FLOW).astype(np.int16)
    confidence = np.where(valid, np.clip(np.round(field.confidence * 255), 1, 255), 0).astype(np.uint8)
    return flow, confidence, int((known & ~in_range).sum())


def unpack_flow(flow: Int16[np.ndarray, "2 height width"]) -> Float[np.ndarray, "2 height width"]:
    """Stored flow in render pixels, NaN where invalid."""
    return np.where(flow == INVALID_FLOW, np.nan, flow.astype(np.float32) / FLOW_SCALE)


def empty_flow(slot: str, frames: int, cameras: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The four arrays of a flow slot with nothing in them: all invalid, no target."""
    return {
        f"flow/{slot}/flow": np.full((frames, cameras, 2, *size), INVALID_FLOW, np.int16),
        f"flow/{slot}/confidence": np.zeros((frames, cameras, *size), np.uint8),
        f"flow/{slot}/target_frame": np.full((frames, cameras), -1, np.int32),
        f"flow/{slot}/target_sweep": np.full((frames, cameras), -1, np.int32),
    }
