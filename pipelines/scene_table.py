"""The small per-frame facts of a scene, from its records: what its `init` unit commits before any block."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from geometry.cameras import ImageTransform
from pipelines.cues.base import ImageSizes
from pipelines.datasets.records import CameraImage, Frame, Scene
from storage.schema import SceneTable


def sweep_slots(scene: Scene) -> int:
    """P: the most sweeps that follow any keyframe of the scene."""
    return max((len(scene.sweeps_after(t)) for t in range(len(scene.keyframes))), default=0)


def scene_table(
    scene: Scene,
    cameras: Sequence[str],
    sizes: ImageSizes,
    max_image_bytes: int,
    max_sweep_bytes: int,
    max_lidar_points: int,
) -> SceneTable:
    """Tables of all keyframes and sweeps. A camera that a frame lacks is invalid and has NaN matrices.

    Args:
        scene: records, without the files that cannot be used.
        cameras: channel names in the store's order.
        sizes: K is given at `sizes.network` for keyframes and at `sizes.render` for sweeps.
        max_image_bytes, max_sweep_bytes: bound on a JPEG's bytes in this scene, keyframes and sweeps.
        max_lidar_points: bound on the points of a sweep.
    """
    keyframes = scene.keyframes
    T, C, P = len(keyframes), len(cameras), sweep_slots(scene)
    key = _empty_columns((T, C))
    key["image_from_raw"] = np.full((T, C, 3, 3), np.nan)
    sweep = _empty_columns((T, P, C))
    for t, frame in enumerate(keyframes):
        for c, image, transform in _images(frame, cameras, sizes.transform):
            _fill(key, (t, c), image, transform)
            key["image_from_raw"][t, c] = transform.image_from_raw
        for p, between in enumerate(scene.sweeps_after(t)):
            for c, image, transform in _images(between, cameras, sizes.render_transform):
                _fill(sweep, (t, p, c), image, transform)
    return SceneTable(
        tokens=tuple(frame.token for frame in keyframes),
        timestamp_us=np.array([frame.timestamp_us for frame in keyframes], dtype=np.int64),
        global_from_ego=np.array([frame.global_from_ego for frame in keyframes], dtype=np.float64).reshape(T, 4, 4),
        camera_valid=key["valid"],
        camera_timestamp_us=key["timestamp_us"],
        camera_global_from_ego=key["global_from_ego"],
        ego_from_cam=key["ego_from_cam"],
        K=key["K"],
        image_from_raw=key["image_from_raw"],
        sweep_valid=sweep["valid"],
        sweep_timestamp_us=sweep["timestamp_us"],
        sweep_global_from_ego=sweep["global_from_ego"],
        sweep_ego_from_cam=sweep["ego_from_cam"],
        sweep_K=sweep["K"],
        max_image_bytes=max_image_bytes,
        max_sweep_bytes=max_sweep_bytes,
        max_lidar_points=max_lidar_points,
        tags=scene.tags,
    )


def _empty_columns(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {
        "valid": np.zeros(shape, dtype=bool),
        "timestamp_us": np.zeros(shape, dtype=np.int64),
        "global_from_ego": np.full((*shape, 4, 4), np.nan),
        "ego_from_cam": np.full((*shape, 4, 4), np.nan),
        "K": np.full((*shape, 3, 3), np.nan),
    }


def _images(
    frame: Frame, cameras: Sequence[str], transform_of: Callable[[CameraImage], ImageTransform]
) -> Iterator[tuple[int, CameraImage, ImageTransform]]:
    for c, channel in enumerate(cameras):
        image = frame.images.get(channel)
        if image is not None:
            yield c, image, transform_of(image)


def _fill(columns: dict[str, np.ndarray], at: tuple[int, ...], image: CameraImage, transform: ImageTransform) -> None:
    columns["valid"][at] = True
    columns["timestamp_us"][at] = image.timestamp_us
    columns["global_from_ego"][at] = image.global_from_ego
    columns["ego_from_cam"][at] = image.ego_from_cam
    columns["K"][at] = transform.intrinsics(image.K)
