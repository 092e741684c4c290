"""The fixed mask of the own car in a camera's picture, from a polygon or a painted image."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool

from geometry.cameras import ImageTransform
from pipelines.config import ConfigError, closest

OwnCar = str | tuple[tuple[float, float], ...]
"""Path of an image of the raw image's size, not black where the own car is; or a polygon, (u, v) in raw pixels."""


def check_own_car(masks: dict[str, OwnCar]) -> None:
    """ConfigError for a polygon of fewer than three corners or an image that cannot be read."""
    for camera, mask in masks.items():
        if isinstance(mask, str):
            _read(camera, mask)
        elif len(mask) < 3:
            raise ConfigError(f"own_car.{camera} = {mask}: a polygon has three corners or more, [[u, v], ...]")


def check_cameras(masks: dict[str, OwnCar], cameras: Sequence[str]) -> None:
    """ConfigError for a mask of a camera that the log does not have: it would be used nowhere."""
    for camera in masks:
        if camera not in cameras:
            raise ConfigError(f"own_car.{camera}: the log has no camera of that name; {closest(camera, list(cameras))}")


def own_car_digests(masks: dict[str, OwnCar]) -> dict[str, str]:
    """What identifies each mask: a polygon's corners, an image's content."""
    return {
        camera: hashlib.sha256(Path(mask).expanduser().read_bytes()).hexdigest() if isinstance(mask, str) else str(mask)
        for camera, mask in masks.items()
    }


def own_car_mask(
    camera: str, mask: OwnCar, raw_size: tuple[int, int], transform: ImageTransform
) -> Bool[np.ndarray, "height width"]:
    """The mask on the grid of `transform`; raw_size is (height, width) of the camera's raw image.

    Raises:
        ConfigError: an image of another size than the camera's.
    """
    # A file that is painted anew is another mask.
    file = Path(mask).expanduser() if isinstance(mask, str) else None
    changed = file.stat().st_mtime_ns if file is not None and file.is_file() else 0
    return _on_grid(camera, mask, raw_size, transform, changed)


@lru_cache(32)
def _on_grid(
    camera: str, mask: OwnCar, raw_size: tuple[int, int], transform: ImageTransform, changed: int
) -> Bool[np.ndarray, "height width"]:
    """The same, read and resampled once for all images of a camera; `changed` tells versions of a file apart."""
    if isinstance(mask, str):
        painted = _read(camera, mask)
        if painted.shape != raw_size:
            raise ConfigError(
                f"own_car.{camera} = {mask}: {painted.shape[1]}x{painted.shape[0]} pixels, but the camera's "
                f"images have {raw_size[1]}x{raw_size[0]}"
            )
    else:
        painted = np.zeros(raw_size, np.uint8)
        # OpenCV counts pixel centres from 0.
        corners = np.asarray(mask, np.float64) - 0.5
        cv2.fillPoly(painted, [np.rint(corners * 16).astype(np.int32)], (255,), shift=4)
    v, u = np.mgrid[: transform.height, : transform.width] + 0.5
    column = np.floor((u + transform.left) / transform.scale).astype(int).clip(0, raw_size[1] - 1)
    row = np.floor((v + transform.top) / transform.scale).astype(int).clip(0, raw_size[0] - 1)
    found = painted[row, column] > 0
    found.setflags(write=False)
    return found


def _read(camera: str, file: str) -> np.ndarray:
    path = Path(file).expanduser()
    painted = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) if path.is_file() else None
    if painted is None:
        raise ConfigError(
            f"own_car.{camera} = {file}: no image can be read there; expected a PNG of the raw image's size"
        )
    return painted
