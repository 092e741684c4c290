"""Pictures of predictions in files: volumes, truth and errors beside the store's images and LiDAR; none is rendered."""

from collections.abc import Sequence
from pathlib import Path

from eval.camera_tiles import around, lidar_tiles, resized, tile_size
from eval.frames import TruthSource, evaluated_keyframes
from eval.pictures import KeyframePictures, Volume, draw_errors, draw_volume, spread, truth_volume
from eval.rules import usual_protocol
from eval.score import Volumes, named_truth, open_volumes
from eval.views import lidar_views, views
from storage.location import ObjectPath
from storage.reader import StoreReader


def draw_files(
    root: Path,
    layout: str,
    store: str | Path | ObjectPath,
    scenes: Sequence[str] | None = None,
    count: int = 3,
    truth: str | Path | None = None,
    workers: int = 2,
    keyframes: int | None = None,
    exclude: Sequence[str | Path] = (),
) -> list[KeyframePictures]:
    """Pictures of `count` of the scored keyframes that have a file, evenly spread over the scenes (default all).

    Args:
        root, layout: a folder of predictions, `openocc` or `uniocc`; a submission holds rays only and gives none.
        truth: a folder of OpenOcc's or Occ3D's ground truth; default the truth store beside the cue store.
        keyframes, exclude: as for `eval.score.score`.

    Raises:
        EvaluationError: as `eval.score.score`.
    """
    if layout == "submission":
        return []
    reader = StoreReader(store)
    known = named_truth(truth, reader)
    volumes = open_volumes(root, layout, reader, known)[1]
    scored = evaluated_keyframes(reader, scenes, None, keyframes, exclude)
    there = [(s, t) for s, t in scored if volumes.path(s, t).is_file()]
    source = TruthSource(reader, known)
    return [draw_file(volumes, source, scene, t, workers) for scene, t in spread(there, count)]


def draw_file(volumes: Volumes, source: TruthSource, scene: str, t: int, workers: int = 2) -> KeyframePictures:
    """What a file says of one keyframe: as `eval.pictures.draw_keyframe`, without what takes a network to render."""
    reader, grid = volumes.reader, volumes.grid
    kept, attributes = reader.scene(scene), reader.attributes
    prediction = volumes.at(scene, t)
    # A store that serves to score files needs no images.
    seen = (
        around(views(kept.table, t, attributes.network_size, attributes.render_size)) if kept.has("images", t) else []
    )
    size = tile_size(len(seen), attributes.network_size)
    images = [resized(kept.image(t, view.camera), size) for view in seen]
    sparse = {view.camera: points for view, points in lidar_views(reader, scene, t)} if seen else {}
    counted = usual_protocol(attributes.dataset, grid).evaluated(grid.shape)
    volume = Volume(prediction.occupied & counted, prediction.flow)
    true = truth_volume(source, scene, t, counted)
    return KeyframePictures(
        scene=scene,
        t=t,
        token=kept.table.tokens[t],
        threshold=float("nan"),
        grid=grid,
        cameras=tuple(attributes.cameras[view.camera] for view in seen),
        images=images,
        depth=[],
        lidar=lidar_tiles(images, seen, sparse, attributes.render_size),
        depth_error=[],
        motion=[],
        predicted=draw_volume(volume, grid, workers),
        truth=None if true is None else draw_volume(true, grid, workers),
        errors=None if true is None else draw_errors(volume, true, grid, workers),
        novel=[],
        predicted_volume=volume,
        true_volume=true,
    )
