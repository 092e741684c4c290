"""The tiles of one camera: its image, rendered depth and motion, LiDAR, and where rendered depth is wrong."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from eval.colours import NO_DATA, depth_colours, difference_colours, flow_colours
from eval.depth import SparseDepth
from eval.novel import SOLID
from eval.predict import Prediction, Predictor
from eval.views import View, lidar_views, rendered_depths
from geometry.cameras import scale_intrinsics
from model.render import render_view

Picture = UInt8[np.ndarray, "_ _ 3"]

FULL_SPEED = 10.0
"""m/s at which the colour of motion is saturated."""
DEPTH_RANGE = (2.0, 60.0)
"""Metres, logarithmic scale."""
_SAMPLES = 96
"""Samples per ray, at most: enough for a picture."""
_STRIP = 1440
"""Pixels across all cameras of a strip."""


def around(found: Sequence[View]) -> list[View]:
    """Views from the left rear over the front to the right rear, whatever the cameras' names."""

    def turn(view: View) -> float:
        forward = view.ego_from_cam[:3, 2]
        # 3.05 rad: a camera that looks straight back (180 degrees, either sign) comes last.
        return float((3.05 - np.arctan2(forward[1], forward[0])) % (2 * np.pi))

    return sorted(found, key=turn)


def tile_size(cameras: int, network: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of one camera in a strip of all: at most twice the size of its image."""
    width = min(720, _STRIP // max(1, cameras), 2 * network[1])
    return max(1, round(width * network[0] / network[1])), width


def resized(image: Picture, size: tuple[int, int]) -> Picture:
    """An image at another (height, width)."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


def samples_per_ray(predictor: Predictor) -> int:
    """How many samples a picture's rays take."""
    return min(_SAMPLES, predictor.model.renderer.config.samples)


def render_tile(
    predictor: Predictor, prediction: Prediction, view: View, size: tuple[int, int]
) -> tuple[Picture, Picture]:
    """Depth and motion of one camera as RGB, a ray per pixel of the tile; blank where the rays meet nothing."""
    assert prediction.fields is not None
    height, width = predictor.reader.attributes.render_size
    K = scale_intrinsics(view.K, size[1] / width, size[0] / height)
    renderer, pose = predictor.model.renderer, torch.from_numpy(view.ego_from_cam)
    samples = samples_per_ray(predictor)
    found = render_view(renderer, prediction.fields, torch.from_numpy(K), pose, size, samples=samples)
    solid = (found.opacity > SOLID).cpu().numpy()
    depth = np.where(solid, found.depth.cpu().numpy(), np.nan)
    motion = flow_colours(found.flow.cpu().numpy() / predictor.reader.attributes.keyframe_interval_s, FULL_SPEED)
    motion[~solid] = NO_DATA
    return depth_colours(depth, *DEPTH_RANGE), motion


def lidar_by_camera(predictor: Predictor, scene: str, t: int) -> dict[int, SparseDepth]:
    """LiDAR points in each camera's render pixels; empty without LiDAR at this keyframe."""
    return {view.camera: points for view, points in lidar_views(predictor.reader, scene, t)}


def lidar_tiles(
    images: Sequence[Picture], seen: Sequence[View], sparse: dict[int, SparseDepth], render: tuple[int, int]
) -> list[Picture]:
    """LiDAR points by depth over a pale copy of each image; empty without LiDAR at this keyframe.

    Args:
        images: tiles, one per view of `seen`.
        render: (height, width) that the points' pixels are of.
    """
    if not sparse:
        return []
    depth = {camera: depth_colours(points.depth, *DEPTH_RANGE) for camera, points in sparse.items()}
    return [
        _dotted(image, sparse.get(view.camera), depth.get(view.camera), render)
        for image, view in zip(images, seen, strict=True)
    ]


def depth_error_tiles(
    predictor: Predictor,
    prediction: Prediction,
    images: Sequence[Picture],
    seen: Sequence[View],
    sparse: dict[int, SparseDepth],
) -> list[Picture]:
    """LiDAR points by rendered over measured depth, over a pale copy of each image; empty without LiDAR.

    Points whose ray meets nothing are drawn as infinitely far.
    """
    if not sparse or prediction.fields is None:
        return []
    wanted = [(view, sparse[view.camera].uv) for view in seen if view.camera in sparse]
    found = rendered_depths(predictor.model.renderer, prediction.fields, wanted)
    colours = {}
    for (view, _), rendered in zip(wanted, found, strict=True):
        ratio = np.where(rendered > 0, rendered, 1e6) / sparse[view.camera].depth
        colours[view.camera] = difference_colours(ratio)
    render = predictor.reader.attributes.render_size
    return [
        _dotted(image, sparse.get(view.camera), colours.get(view.camera), render)
        for image, view in zip(images, seen, strict=True)
    ]


def _dotted(
    image: Picture, points: SparseDepth | None, colours: UInt8[np.ndarray, "n 3"] | None, render: tuple[int, int]
) -> Picture:
    """Points as coloured squares on a pale copy of an image, near ones over far ones."""
    grey = image.mean(axis=-1, keepdims=True)
    tile = np.repeat(255 - 0.3 * (255 - grey), 3, axis=-1).astype(np.uint8)
    if points is not None and colours is not None:
        far_first = np.argsort(-points.depth)
        size = tile.shape[:2]
        centres = points.uv[far_first] * (np.array(size[::-1]) / render[::-1])
        stamp(tile, centres, colours[far_first], max(1, round(size[1] / render[1])))
    return tile


def stamp(tile: Picture, uv: Float[np.ndarray, "n 2"], colours: UInt8[np.ndarray, "n 3"], reach: int) -> None:
    """Paint squares of 2 * reach pixels around positions onto an image, in place; later ones over earlier ones."""
    height, width = tile.shape[:2]
    corner = np.rint(uv).astype(np.int64)
    for dv in range(-reach, reach):
        for du in range(-reach, reach):
            u, v = (corner[:, 0] + du).clip(0, width - 1), (corner[:, 1] + dv).clip(0, height - 1)
            tile[v, u] = colours
