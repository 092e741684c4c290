"""Blocks of zeros are found in JPEGs and scans, and plain pictures are not taken for them."""

import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.files import read_lidar_file
from pipelines.datasets.records import DataError
from pipelines.datasets.zero_runs import JPEG_RUN, LIDAR_RUN, zeros_in_jpeg, zeros_in_lidar


def _jpeg(pixels: np.ndarray, **options: object) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def _noise(height: int = 96, width: int = 320) -> np.ndarray:
    rng = np.random.default_rng(4)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("options", [{}, {"quality": 95, "subsampling": 0}, {"restart_marker_blocks": 8}])
def test_a_block_of_zeros_in_a_jpeg(options: dict[str, object]) -> None:
    whole = _jpeg(_noise(), **options)
    assert zeros_in_jpeg(whole) is None
    for start in (len(whole) // 3, len(whole) - 2 - JPEG_RUN):
        harmed = bytearray(whole)
        harmed[start : start + JPEG_RUN] = bytes(JPEG_RUN)
        found = zeros_in_jpeg(bytes(harmed))
        assert found is not None
        assert start - 8 <= found <= start, "sound bytes before it may be zero too"
        # It decodes all the same, to another picture.
        assert (
            np.abs(np.asarray(Image.open(BytesIO(harmed)), int) - np.asarray(Image.open(BytesIO(whole)), int)).max() > 9
        )


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}])
@pytest.mark.parametrize("plain", [96, 64])
def test_plain_pictures_are_sound(options: dict[str, object], plain: int) -> None:
    """Huffman tables made for a picture with plain areas give them codes of zeros alone."""
    pixels = np.repeat(np.repeat(_noise(6, 20), 16, axis=0), 80, axis=1)
    pixels[:plain] = 0
    data = _jpeg(pixels, **options)
    if options:
        assert max(len(run) for run in re.findall(rb"\0+", data[data.find(b"\xff\xda") :])) > JPEG_RUN
    assert zeros_in_jpeg(data) is None


def test_zeros_outside_of_the_pixels_are_none_of_them() -> None:
    data = _jpeg(_noise())
    comment = b"\xff\xfe" + (302).to_bytes(2, "big") + bytes(300)
    assert zeros_in_jpeg(data[:2] + comment + data[2:] + bytes(300)) is None
    assert zeros_in_jpeg(b"\xff\xd8") is None
    assert zeros_in_jpeg(data[:300]) is None


def test_a_block_of_zeros_in_a_scan(tmp_path: Path) -> None:
    path = tmp_path / "000000.bin"
    points = np.random.default_rng(0).normal(0, 10, (200, 4)).astype("<f4")
    points[50:60] = 0
    points.tofile(path)
    assert len(read_lidar_file(path, 4)) == 200
    points[100:132] = 0
    points.tofile(path)
    with pytest.raises(
        DataError, match=r"000000\.bin: damaged LiDAR file: 512 or more zero bytes from point 100 of 200 on"
    ):
        read_lidar_file(path, 4)
    assert len(read_lidar_file(path, 4, no_returns=True)) == 200


def test_real_files_are_sound(shared_data: Callable[[str], Path]) -> None:
    root = shared_data("nuscenes_keyframe")
    images = list(root.glob("samples/CAM_*/*.jpg"))
    assert images
    assert [zeros_in_jpeg(path.read_bytes()) for path in images] == [None] * len(images)
    scans = [*root.glob("samples/LIDAR_TOP/*.bin"), *shared_data("semantic_kitti").glob("sequences/*/velodyne/*.bin")]
    assert scans
    assert [zeros_in_lidar(path.read_bytes()) for path in scans] == [None] * len(scans)
    assert LIDAR_RUN < 4096, "a page"
