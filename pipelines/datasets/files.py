"""Reads images, LiDAR sweeps and label files of raw logs, and turns every kind of damage into a DataError."""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, UInt8

from geometry.cameras import check_intrinsics
from geometry.transforms import check_rigid
from pipelines.datasets.records import CameraImage, DataError
from pipelines.datasets.zero_runs import LIDAR_RUN, zeros_in_lidar

if TYPE_CHECKING:
    import PIL.Image

GET_IT_AGAIN = "restore this file from the data set's archive, or leave its frame out"


def file_size(path: Path, what: str) -> int:
    """Bytes of an existing, non-empty file; raises DataError naming `path` and `what` it should hold."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {what} is missing ({error.strerror}); {GET_IT_AGAIN}") from error
    if size == 0:
        raise DataError(f"{path}: {what} is empty (0 bytes); {GET_IT_AGAIN}")
    return size


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) from an image file's header, without reading its pixels. Raises DataError."""
    from PIL import Image, UnidentifiedImageError

    size = file_size(path, "image")
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise DataError(f"{path}: not an image ({size} bytes: {error}); {GET_IT_AGAIN}") from error


def read_image(path: Path, expected: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """RGB pixels of a JPEG or PNG file.

    PIL, because OpenCV fills what a truncated file lacks with grey and reports nothing.

    Args:
        path: the file.
        expected: (height, width) that the calibration was made for, checked when given.

    Raises:
        DataError: missing, empty, truncated or undecodable file, one of more than 8 bits of grey, or another size than
            `expected`.
    """
    with _opened(path, path, file_size(path, "image")) as image:
        pixels = np.array(image.convert("RGB"))
    _check_size(path, pixels.shape[:2], expected)
    return pixels


def check_image(path: Path, data: bytes, expected: tuple[int, int]) -> None:
    """Raise the DataError that `read_image` would for a file of these bytes; a JPEG takes a fifth of the time.

    All of its data is decoded, but to an eighth of its size: 2.9 ms instead of 14.8 for a nuScenes image (1600x900) on
    one core, and 14 for a KITTI PNG, of which there is no small version.
    """
    with _opened(path, BytesIO(data), len(data)) as image:
        width, height = image.size
        image.draft("RGB", (width // 8, height // 8))
        image.load()
    _check_size(path, (height, width), expected)


@contextmanager
def _opened(path: Path, source: Path | BytesIO, size: int) -> Iterator["PIL.Image.Image"]:
    """The image in `source`, which is `path` or its content; what goes wrong inside becomes a DataError."""
    from PIL import Image, ImageFile, UnidentifiedImageError

    # A process-wide switch that other libraries turn on; with it PIL greys like OpenCV. Not restored: threads share it.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(source) as image:
            if image.mode.startswith(("I", "F")):  # PIL would make white of all that is above 255
                raise DataError(
                    f"{path}: grey values of {'32' if image.mode in ('I', 'F') else '16'} bits (mode {image.mode}), "
                    "expected 8 bits; save the images with 8 bits a channel"
                )
            yield image
    except DataError:
        raise
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged image ({size} bytes: {error}); {GET_IT_AGAIN}") from error


def _check_size(path: Path, found: tuple[int, ...], expected: tuple[int, int] | None) -> None:
    if expected is not None and found != expected:
        height, width = found
        raise DataError(
            f"{path}: image of {width}x{height}, but its calibration is for {expected[1]}x{expected[0]}; "
            "restore the original image (K would not fit a resized one)"
        )


def load_image(image: CameraImage) -> UInt8[np.ndarray, "height width 3"]:
    """RGB pixels of a record, checked against the size its calibration is for. Raises DataError."""
    return read_image(image.path, (image.height, image.width))


def read_lidar_file(path: Path, columns: int, no_returns: bool = False) -> Float[np.ndarray, "n 4"]:
    """x y z intensity, float32, metres in the sensor's frame, of a raw float32 file with `columns` values per point.

    Points with a non-finite coordinate are dropped.

    Args:
        path: the file.
        columns: values per point, the first four being x y z intensity.
        no_returns: the sensor writes zeros where nothing came back, so that many of them are no damage.

    Raises:
        DataError: missing or empty file, one that ends inside a point, or one with a block of zeros.
    """
    size = file_size(path, "LiDAR sweep")
    row = 4 * columns
    if size % row:
        raise DataError(
            f"{path}: truncated LiDAR file: {size} bytes are not a whole number of points "
            f"({columns} float32 = {row} bytes each); {GET_IT_AGAIN}"
        )
    data = path.read_bytes()
    zeros = None if no_returns else zeros_in_lidar(data)
    if zeros is not None:
        raise DataError(
            f"{path}: damaged LiDAR file: {LIDAR_RUN} or more zero bytes from point {zeros // row} of {size // row} "
            f"on; {GET_IT_AGAIN}"
        )
    points = np.frombuffer(data, dtype="<f4").reshape(-1, columns)[:, :4]
    return np.ascontiguousarray(points[np.isfinite(points[:, :3]).all(axis=1)], dtype=np.float32)


def read_npz(path: Path) -> dict[str, np.ndarray] | None:
    """All arrays of an .npz file, None where there is no such file. Raises DataError for a damaged one."""
    if not path.exists():
        return None
    size = file_size(path, "label file")
    try:
        # np.load leaves a file that it opened itself open when the archive is damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged label file ({size} bytes: {error}); {GET_IT_AGAIN}") from error


def checked_intrinsics(where: str, K: npt.ArrayLike) -> Float[np.ndarray, "3 3"]:
    """K as float64 with pixel centres moved from whole numbers to +0.5; DataError for a singular one or none.

    Data sets calibrated with OpenCV (nuScenes, KITTI) call the centre of the first pixel (0, 0); here it is
    (0.5, 0.5), so both principal-point coordinates grow by half a pixel.
    """
    try:
        matrix = np.array(K, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: camera matrix {K!r:.80} is not 3 rows of 3 numbers; repair it") from error
    try:
        check_intrinsics(where, matrix)
    except ValueError as error:
        raise DataError(f"{error}; repair the calibration or leave this camera out") from error
    matrix[0, 2] += 0.5
    matrix[1, 2] += 0.5
    return matrix


def checked_pose(where: str, dst_from_src: np.ndarray) -> Float[np.ndarray, "4 4"]:
    """The same rigid transform; DataError naming `where` when it is not finite or not rigid."""
    try:
        check_rigid(where, dst_from_src)
    except ValueError as error:
        raise DataError(f"{error}; repair this pose or leave its frame out") from error
    return dst_from_src


def check_increasing(where: str, tokens: Sequence[str], timestamps: npt.ArrayLike, unit: str = "us") -> None:
    """Raise a DataError naming the first pair of `tokens` whose timestamps do not strictly increase."""
    times = np.asarray(timestamps)
    wrong = np.flatnonzero(np.diff(times) <= 0)
    if wrong.size:
        i = int(wrong[0])
        raise DataError(
            f"{where}: timestamps must increase, but {tokens[i]} has {times[i]} {unit} and {tokens[i + 1]}, "
            f"which follows it, has {times[i + 1]} {unit} ({wrong.size} such pairs); repair or leave out these frames"
        )
