"""Draws what a network says about one keyframe: depth and motion per camera, its volume, the truth beside it, where
the two differ, and depth from where no camera was."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from eval.arrows import with_arrows
from eval.camera_tiles import (
    DEPTH_RANGE,
    FULL_SPEED,
    Picture,
    around,
    depth_error_tiles,
    lidar_by_camera,
    lidar_tiles,
    render_tile,
    resized,
    samples_per_ray,
    tile_size,
)
from eval.colours import depth_colours, flow_colours, height_colours, verdict_colours
from eval.frames import TruthSource, evaluated_keyframes, open_truth
from eval.novel import MOVES, cast_depth, moved_view, rendered_depth
from eval.predict import UNKNOWN, Prediction, Predictor, evaluation_grid
from eval.protocols import occupied_in
from eval.rules import usual_protocol
from eval.views import View, views
from eval.volume_errors import VolumeErrors, compare_volumes, errors_from_above
from eval.voxels import chase_view, from_above, perspective
from geometry.grid import VoxelGrid
from model.network import OccFlow
from storage.location import ObjectPath
from storage.reader import StoreReader

_VIEW_SIZE = (340, 600)
_NOVEL_WIDTH = 288


@dataclass(frozen=True)
class Volume:
    """One volume as it is drawn: what counts of it, and its motion in m/s.

    judged: false where it is a truth that knows nothing there; None: it knows all.
    """

    occupied: Bool[np.ndarray, "x y z"]
    flow: Float[np.ndarray, "x y z 2"]
    judged: Bool[np.ndarray, "x y z"] | None = None


@dataclass(frozen=True)
class VolumePictures:
    """One volume, prediction or truth, by two colours in two views: RGB. Arrows show motion in the view from above."""

    height: Picture
    motion: Picture
    height_above: Picture
    motion_above: Picture


@dataclass(frozen=True)
class ErrorPictures:
    """A prediction against the truth: RGB in two views, and the counts."""

    seen: Picture
    above: Picture
    errors: VolumeErrors


@dataclass(frozen=True)
class NovelPicture:
    """Depth of the front camera after a move of the car: rendered from the prediction, and cast through the true
    volume (None without truth)."""

    name: str
    predicted: Picture
    truth: Picture | None


@dataclass(frozen=True)
class KeyframePictures:
    """Pictures of one keyframe. Camera tiles are RGB of one size, in the order of `cameras`, left to right around the
    car; a row is empty where the store has nothing for it."""

    scene: str
    t: int
    token: str
    threshold: float
    grid: VoxelGrid
    cameras: tuple[str, ...]
    images: list[Picture]
    depth: list[Picture]
    lidar: list[Picture]
    depth_error: list[Picture]
    motion: list[Picture]
    predicted: VolumePictures
    truth: VolumePictures | None
    errors: ErrorPictures | None
    novel: list[NovelPicture]
    predicted_volume: Volume
    true_volume: Volume | None

    @property
    def height_range(self) -> tuple[float, float]:
        """Metres between which heights are coloured."""
        return self.grid.lower[2], self.grid.upper[2]


def draw_examples(
    model: OccFlow,
    store: str | Path | ObjectPath,
    scenes: Sequence[str] | None = None,
    count: int = 3,
    *,
    threshold: float | None = None,
    keyframes: int | None = None,
    exclude: Sequence[str | Path] = (),
    workers: int = 2,
) -> list[KeyframePictures]:
    """Pictures of `count` of the keyframes that `eval.evaluate.evaluate` measures with these options, evenly spread
    over the scenes (default all), with truth if any."""
    predictor, source = picture_sources(model, store, threshold)
    frames = evaluated_keyframes(predictor.reader, scenes, predictor.queue_length, keyframes, exclude)
    chosen = spread(with_images(predictor.reader, frames), count)
    return [draw_keyframe(predictor, source, scene, t, workers) for scene, t in chosen]


def with_images(reader: StoreReader, frames: Sequence[tuple[str, int]]) -> Sequence[tuple[str, int]]:
    """The keyframes with an image of their own; where none has one, all: their volumes can be drawn."""
    found = [(scene, t) for scene, t in frames if reader.scene(scene).table.camera_valid[t].any()]
    return found or frames


def picture_sources(
    model: OccFlow, store: str | Path | ObjectPath, threshold: float | None = None
) -> tuple[Predictor, TruthSource]:
    """The network's predictions on the truth's grid where there is one, and that truth."""
    reader = StoreReader(store)
    truth = open_truth(reader.path)
    grid = evaluation_grid(model.config.grid.build(), truth and truth.attributes.occupancy_grid)
    return Predictor(model, reader, grid, threshold), TruthSource(reader, truth)


def spread(frames: Sequence[tuple[str, int]], count: int) -> list[tuple[str, int]]:
    """`count` of the keyframes, each from the middle of an equal part of them; all where there are no more."""
    parts = min(count, len(frames))
    return [frames[int((i + 0.5) * len(frames) / parts)] for i in range(parts)]


def draw_keyframe(
    predictor: Predictor,
    source: TruthSource,
    scene: str,
    t: int,
    workers: int = 2,
    *,
    novel: bool = True,
    like: KeyframePictures | None = None,
) -> KeyframePictures:
    """All pictures of a keyframe, from the store's images and LiDAR, a network and the truth where there is some.

    Args:
        novel: draw depth from moved cameras too, which doubles the rendering.
        like: pictures of the same keyframe by another network on the same grid, whose truth is not drawn again.

    Raises:
        CueMissing: the images of the keyframe are not committed.
    """
    reader, grid = predictor.reader, predictor.grid
    table, attributes = reader.scene(scene).table, reader.attributes
    prediction = predictor.predict(scene, t)
    seen = around(views(table, t, attributes.network_size, attributes.render_size))
    size = tile_size(len(seen), attributes.network_size)
    rendered = [render_tile(predictor, prediction, view, size) for view in seen]
    images = [resized(reader.scene(scene).image(t, view.camera), size) for view in seen]
    sparse = lidar_by_camera(predictor, scene, t)
    # What the protocol frees is neither supervised nor measured, and would hide what lies below or behind it.
    protocol = usual_protocol(attributes.dataset, grid)
    counted = protocol.evaluated(grid.shape)
    volume = Volume(prediction.occupied & counted, prediction.flow)
    true_volume = truth_volume(source, scene, t, counted)
    # Depth of moved cameras is rendered up to the sides of the volume, so the truth's goes as far.
    whole = truth_volume(source, scene, t, replace(protocol, border=0).evaluated(grid.shape)) if novel else None
    drawn_truth = like.truth if like is not None else None
    if true_volume is not None and drawn_truth is None:
        drawn_truth = draw_volume(true_volume, grid, workers)
    return KeyframePictures(
        scene=scene,
        t=t,
        token=table.tokens[t],
        threshold=predictor.threshold,
        grid=grid,
        cameras=tuple(attributes.cameras[view.camera] for view in seen),
        images=images,
        depth=[depth for depth, _ in rendered],
        lidar=lidar_tiles(images, seen, sparse, attributes.render_size),
        depth_error=depth_error_tiles(predictor, prediction, images, seen, sparse),
        motion=[motion for _, motion in rendered],
        predicted=draw_volume(volume, grid, workers),
        truth=drawn_truth,
        errors=None if true_volume is None else draw_errors(volume, true_volume, grid, workers),
        novel=draw_novel(predictor, prediction, seen, whole, workers) if novel else [],
        predicted_volume=volume,
        true_volume=true_volume,
    )


def truth_volume(source: TruthSource, scene: str, t: int, counted: Bool[np.ndarray, "x y z"]) -> Volume | None:
    """The truth where it is `counted` and free elsewhere; None where the keyframe has none."""
    found = source.volume(scene, t)
    if found is None:
        return None
    known = found[0] != UNKNOWN
    occupied = occupied_in(found[0], source.classes) & known
    return Volume(occupied & counted, found[1], known)


def draw_volume(volume: Volume, grid: VoxelGrid, workers: int = 2) -> VolumePictures:
    """The four pictures of a volume."""
    heights = height_colours(grid.centres()[0, 0, :, 2], grid.lower[2], grid.upper[2])
    by_height = np.broadcast_to(heights, (*grid.shape, 3))
    by_motion = flow_colours(np.where(volume.occupied[..., None], volume.flow, 0.0), FULL_SPEED)
    colourings = [by_height, by_motion]
    seen, flat = perspective(volume.occupied, colourings, grid, chase_view(grid), *_VIEW_SIZE, workers=workers)
    above = [with_car(from_above(volume.occupied, colours, grid), grid) for colours in colourings]
    return VolumePictures(seen, flat, above[0], with_arrows(above[1], volume.occupied, volume.flow, grid))


def draw_errors(predicted: Volume, true: Volume, grid: VoxelGrid, workers: int = 2) -> ErrorPictures:
    """Both views of what is right, missed and invented: everything that either volume holds, by its verdict."""
    errors = compare_volumes(predicted.occupied, true.occupied, true.judged)
    colours = verdict_colours(errors.kind)
    seen = perspective(errors.kind > 0, [colours], grid, chase_view(grid), *_VIEW_SIZE, workers=workers)[0]
    return ErrorPictures(seen, with_car(errors_from_above(errors.kind), grid), errors)


def draw_novel(
    predictor: Predictor, prediction: Prediction, seen: Sequence[View], true: Volume | None, workers: int = 2
) -> list[NovelPicture]:
    """Depth of the camera that looks most straight ahead after each of `MOVES`; nothing without a camera."""
    if not seen:
        return []
    render, grid = predictor.reader.attributes.render_size, predictor.grid
    front = max(seen, key=lambda view: view.ego_from_cam[0, 2])
    size = (max(1, round(_NOVEL_WIDTH * render[0] / render[1])), _NOVEL_WIDTH)
    drawn = []
    for move in MOVES:
        view = moved_view(front, move, size, render)
        ours = rendered_depth(predictor.model.renderer, prediction, view, size, samples_per_ray(predictor))
        theirs = None if true is None else cast_depth(true.occupied, grid, view, size, workers)
        pictures = [None if depth is None else depth_colours(depth, *DEPTH_RANGE) for depth in (ours, theirs)]
        assert pictures[0] is not None
        drawn.append(NovelPicture(move.name, pictures[0], pictures[1]))
    return drawn


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
