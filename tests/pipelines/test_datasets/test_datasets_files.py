"""Damaged images, sweeps and poses become errors that name file, value and remedy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from pipelines.datasets.files import (
    check_image,
    check_increasing,
    checked_intrinsics,
    checked_pose,
    image_size,
    read_image,
    read_lidar_file,
    read_npz,
)
from pipelines.datasets.records import DataError


def _photo(path: Path) -> np.ndarray:
    """A smooth colour picture with some noise, stored in the format of the suffix."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :80]
    pixels = np.stack([3 * x, 5 * y, x + y], axis=-1) + rng.integers(0, 8, (48, 80, 3))
    pixels = pixels.astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=95, subsampling=0)
    return pixels


def test_pixels_are_rgb(tmp_path: Path) -> None:
    pixels = _photo(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", (48, 80)), pixels)
    _photo(tmp_path / "a.jpg")
    error = read_image(tmp_path / "a.jpg").astype(int) - pixels
    assert np.abs(error).mean() < 3
    assert image_size(tmp_path / "a.jpg") == (48, 80)


def test_grey_images_get_three_channels(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 77, np.uint8)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.full((4, 6, 3), 77))


def test_grey_images_of_sixteen_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 6), 30_000, np.uint16)).save(path)
    with pytest.raises(DataError, match=r"^[^:]*deep\.png: grey values of 16 bits .*, expected 8 bits"):
        read_image(path)
    with pytest.raises(DataError, match="expected 8 bits"):
        check_image(path, path.read_bytes(), (4, 6))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("tolerant", [False, True])
def test_truncated_images(
    tmp_path: Path, suffix: str, kept: float, tolerant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where some library has told PIL to put up with truncated files."""
    path = tmp_path / f"cut.{suffix}"
    _photo(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    with pytest.raises(DataError, match=rf"cut\.{suffix}.*{int(kept * len(data))} bytes.*restore"):
        read_image(path)


def _verdict(check: Callable[[], object]) -> bool:
    try:
        check()
    except DataError:
        return False
    return True


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_check_refuses_what_cannot_be_decoded_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    path, rng = tmp_path / f"a.{suffix}", np.random.default_rng(1)
    _photo(path)
    whole, verdicts = path.read_bytes(), []
    check_image(path, whole, (48, 80))
    with pytest.raises(DataError, match="image of 80x48, but its calibration is for 80x40"):
        check_image(path, whole, (40, 80))
    for _ in range(40):
        harmed, count = bytearray(whole), int(rng.choice([1, 2, 16, 256]))
        start = int(rng.integers(0, len(whole) - count))
        harmed[start : start + count] = rng.bytes(count)
        path.write_bytes(harmed)
        verdicts.append(_verdict(lambda: read_image(path, (48, 80))))
        data = bytes(harmed)
        assert _verdict(lambda data=data: check_image(path, data, (48, 80))) == verdicts[-1]
    assert False in verdicts


def test_missing_and_empty_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jpg: image is missing \(No such file.*restore"):
        read_image(tmp_path / "none.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DataError, match=r"empty\.jpg: image is empty"):
        read_image(tmp_path / "empty.jpg")
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"text\.jpg.*16 bytes"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(DataError, match=r"text\.jpg: not an image"):
        image_size(tmp_path / "text.jpg")


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    _photo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: image of 80x48, but its calibration is for 160x96"):
        read_image(tmp_path / "a.png", (96, 160))


def test_lidar_files(tmp_path: Path) -> None:
    rows = np.arange(20, dtype="<f4").reshape(4, 5)
    rows[1, 1] = np.nan
    path = tmp_path / "a.pcd.bin"
    rows.tofile(path)
    points = read_lidar_file(path, columns=5)
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, [[0, 1, 2, 3], [10, 11, 12, 13], [15, 16, 17, 18]])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"a\.pcd\.bin: truncated LiDAR file: 77 bytes.*20 bytes each.*restore"):
        read_lidar_file(path, columns=5)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        read_lidar_file(path, columns=5)
    with pytest.raises(DataError, match="LiDAR sweep is missing"):
        read_lidar_file(tmp_path / "none.bin", columns=4)


def test_npz_files(tmp_path: Path) -> None:
    assert read_npz(tmp_path / "none.npz") is None
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"text\.npz: damaged label file \(5 bytes"):
        read_npz(tmp_path / "text.npz")


def test_intrinsics_move_by_half_a_pixel() -> None:
    K = np.array([[100.0, 0, 49.5], [0, 90, 19.5], [0, 0, 1]])
    moved = checked_intrinsics("cam", K)
    np.testing.assert_array_equal(moved, [[100, 0, 50], [0, 90, 20], [0, 0, 1]])
    assert K[0, 2] == 49.5
    with pytest.raises(DataError, match=r"cam 7.*singular.*repair"):
        checked_intrinsics("cam 7", np.diag([100.0, 0.0, 1.0]))
    with pytest.raises(DataError, match="finite"):
        checked_intrinsics("cam", np.full((3, 3), np.nan))


@pytest.mark.parametrize("scale", [1.01, -1.0, np.nan])
def test_poses_must_be_rigid(scale: float) -> None:
    pose = np.eye(4)
    pose[:3, :3] *= scale
    with pytest.raises(DataError, match=r"pose of x.*repair"):
        checked_pose("pose of x", pose)


def test_times_must_increase() -> None:
    check_increasing("log", ["a", "b", "c"], [1, 2, 3])
    check_increasing("log", [], [])
    check_increasing("log", ["a"], [1])
    for times in ([1, 5, 4], [1, 5, 5]):
        with pytest.raises(DataError, match=rf"log: .*b has 5 us and c, which follows it, has {times[2]} us"):
            check_increasing("log", ["a", "b", "c"], times)
