"""Draws what a network says about one keyframe: depth and motion per camera, its volume, and the truth beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from eval.colours import NO_DATA, depth_colours, flow_colours, height_colours
from eval.frames import TruthSource, chosen_keyframes, open_truth
from eval.predict import UNKNOWN, Prediction, Predictor, evaluation_grid
from eval.protocols import occupied_in
from eval.rules import usual_protocol
from eval.views import View, lidar_views, views
from eval.voxels import chase_view, from_above, perspective
from geometry.cameras import scale_intrinsics
from geometry.grid import VoxelGrid
from model.network import OccFlow
from model.render import render_view
from storage.location import ObjectPath
from storage.reader import StoreReader

Picture = UInt8[np.ndarray, "_ _ 3"]

FULL_SPEED = 10.0
"""m/s at which the colour of motion is saturated."""
DEPTH_RANGE = (2.0, 60.0)
"""Metres, logarithmic scale."""
_SAMPLES = 96
"""Samples per ray, at most: enough for a picture."""
_SOLID = 0.5
"""Opacity from which a pixel shows something; the others are left blank, as sky."""
_VIEW_SIZE = (340, 600)
_STRIP = 1440
"""Pixels across all cameras of a strip."""


@dataclass(frozen=True)
class VolumePictures:
    """One volume, prediction or truth, by two colours in two views: RGB."""

    height: Picture
    motion: Picture
    height_above: Picture
    motion_above: Picture


@dataclass(frozen=True)
class KeyframePictures:
    """Pictures of one keyframe. Camera tiles are RGB of one size, in the order of `cameras`, left to right around the
    car; a row is empty where the store has nothing for it."""

    scene: str
    t: int
    token: str
    threshold: float
    height_range: tuple[float, float]
    cameras: tuple[str, ...]
    images: list[Picture]
    depth: list[Picture]
    lidar: list[Picture]
    motion: list[Picture]
    predicted: VolumePictures
    truth: VolumePictures | None


def draw_examples(
    model: OccFlow,
    store: str | Path | ObjectPath,
    scenes: Sequence[str] | None = None,
    count: int = 3,
    *,
    threshold: float | None = None,
    workers: int = 2,
) -> list[KeyframePictures]:
    """Pictures of `count` keyframes with images, evenly spread over the scenes (default all), with truth if any."""
    reader = StoreReader(store)
    truth = open_truth(reader.path)
    grid = evaluation_grid(model.config.grid.build(), truth and truth.attributes.occupancy_grid)
    predictor, source = Predictor(model, reader, grid, threshold), TruthSource(reader, truth)
    frames = chosen_keyframes(reader, scenes, queue_length=1)
    middles = (np.arange(min(count, len(frames))) + 0.5) * len(frames) / max(1, min(count, len(frames)))
    return [draw_keyframe(predictor, source, *frames[int(i)], workers) for i in middles]


def draw_keyframe(predictor: Predictor, source: TruthSource, scene: str, t: int, workers: int = 2) -> KeyframePictures:
    """All pictures of a keyframe, from the store's images and LiDAR, a network and the truth where there is some.

    Raises:
        CueMissing: the images of the keyframe are not committed.
    """
    reader, grid = predictor.reader, predictor.grid
    table, attributes = reader.scene(scene).table, reader.attributes
    prediction = predictor.predict(scene, t)
    seen = around(views(table, t, attributes.network_size, attributes.render_size))
    size = tile_size(len(seen), attributes.network_size)
    rendered = [render_tile(predictor, prediction, view, size) for view in seen]
    # What the protocol frees is neither supervised nor measured, and would hide what lies below it.
    counted = usual_protocol(attributes.dataset, grid).free_above
    heights = (grid.lower[2], grid.upper[2])
    volume = source.volume(scene, t)
    truth = None
    if volume is not None:
        occupied = occupied_in(volume[0], source.classes) & (volume[0] != UNKNOWN)
        truth = draw_volume(lowest(occupied, counted), volume[1], grid, heights, workers)
    return KeyframePictures(
        scene=scene,
        t=t,
        token=table.tokens[t],
        threshold=predictor.threshold,
        height_range=heights,
        cameras=tuple(attributes.cameras[view.camera] for view in seen),
        images=[resized(reader.scene(scene).image(t, view.camera), size) for view in seen],
        depth=[depth for depth, _ in rendered],
        lidar=lidar_tiles(predictor, scene, t, seen, size),
        motion=[motion for _, motion in rendered],
        predicted=draw_volume(lowest(prediction.occupied, counted), prediction.flow, grid, heights, workers),
        truth=truth,
    )


def lowest(occupied: Bool[np.ndarray, "x y z"], layers: int | None) -> Bool[np.ndarray, "x y z"]:
    """A volume with all but its lowest layers freed; None leaves it as it is."""
    freed = occupied.copy()
    if layers is not None:
        freed[:, :, layers:] = False
    return freed


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


def render_tile(
    predictor: Predictor, prediction: Prediction, view: View, size: tuple[int, int]
) -> tuple[Picture, Picture]:
    """Depth and motion of one camera as RGB, a ray per pixel of the tile; blank where the rays meet nothing."""
    assert prediction.fields is not None
    height, width = predictor.reader.attributes.render_size
    K = scale_intrinsics(view.K, size[1] / width, size[0] / height)
    renderer, pose = predictor.model.renderer, torch.from_numpy(view.ego_from_cam)
    samples = min(_SAMPLES, renderer.config.samples)
    found = render_view(renderer, prediction.fields, torch.from_numpy(K), pose, size, samples=samples)
    solid = (found.opacity > _SOLID).cpu().numpy()
    depth = np.where(solid, found.depth.cpu().numpy(), np.nan)
    motion = flow_colours(found.flow.cpu().numpy() / predictor.reader.attributes.keyframe_interval_s, FULL_SPEED)
    motion[~solid] = NO_DATA
    return depth_colours(depth, *DEPTH_RANGE), motion


def lidar_tiles(predictor: Predictor, scene: str, t: int, seen: Sequence[View], size: tuple[int, int]) -> list[Picture]:
    """LiDAR points by depth over a pale copy of each image; empty without LiDAR at this keyframe."""
    reader = predictor.reader
    sparse = {view.camera: points for view, points in lidar_views(reader, scene, t)}
    if not sparse:
        return []
    render = reader.attributes.render_size
    tiles = []
    for view in seen:
        grey = resized(reader.scene(scene).image(t, view.camera), size).mean(axis=-1, keepdims=True)
        tile = np.repeat(255 - 0.3 * (255 - grey), 3, axis=-1).astype(np.uint8)
        if view.camera in sparse:
            points = sparse[view.camera]
            far_first = np.argsort(-points.depth)
            centres = points.uv[far_first] * (np.array(size[::-1]) / render[::-1])
            reach = max(1, round(size[1] / render[1]))
            stamp(tile, centres, depth_colours(points.depth[far_first], *DEPTH_RANGE), reach)
        tiles.append(tile)
    return tiles


def stamp(tile: Picture, uv: Float[np.ndarray, "n 2"], colours: UInt8[np.ndarray, "n 3"], reach: int) -> None:
    """Paint squares of 2 * reach pixels around positions onto an image, in place; later ones over earlier ones."""
    height, width = tile.shape[:2]
    corner = np.rint(uv).astype(np.int64)
    for dv in range(-reach, reach):
        for du in range(-reach, reach):
            u, v = (corner[:, 0] + du).clip(0, width - 1), (corner[:, 1] + dv).clip(0, height - 1)
            tile[v, u] = colours


def draw_volume(
    occupied: Bool[np.ndarray, "x y z"],
    flow: Float[np.ndarray, "x y z 2"],
    grid: VoxelGrid,
    heights: tuple[float, float],
    workers: int = 2,
) -> VolumePictures:
    """The four pictures of a volume; flow in m/s."""
    by_height = np.broadcast_to(height_colours(grid.centres()[0, 0, :, 2], *heights), (*grid.shape, 3))
    by_motion = flow_colours(np.where(occupied[..., None], flow, 0.0), FULL_SPEED)
    seen, flat = perspective(occupied, [by_height, by_motion], grid, chase_view(grid), *_VIEW_SIZE, workers=workers)
    above = [with_car(from_above(occupied, colours, grid), grid) for colours in (by_height, by_motion)]
    return VolumePictures(seen, flat, *above)


def with_car(picture: Picture, grid: VoxelGrid) -> Picture:
    """A view from above with a small arrow where the car is and looks, when that lies inside."""
    if not (grid.lower[0] <= 0 < grid.upper[0] and grid.lower[1] <= 0 < grid.upper[1]):
        return picture
    scale = picture.shape[0] / (grid.upper[0] - grid.lower[0])
    row, column = grid.upper[0] * scale, grid.upper[1] * scale
    v, u = np.meshgrid(np.arange(picture.shape[0]) + 0.5, np.arange(picture.shape[1]) + 0.5, indexing="ij")
    down, right = (v - row) / scale, np.abs(u - column) / scale
    # A triangle 4.6 m long and 2.4 m wide, notched at the back.
    inside = (down >= -2.8) & (right <= 1.2 * (down + 2.8) / 4.6) & (down <= 1.8 - 0.8 * (1 - right / 1.2))
    out = picture.copy()
    out[inside] = (20, 24, 32)
    return out
