"""What KITTI's benchmarks have in common on disk: tables of numbers, calibration rows, numbered files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from geometry.grid import KITTI_GRID, VoxelGrid
from pipelines.datasets.files import file_size
from pipelines.datasets.records import DataError

IMAGE_SUFFIXES = (".png", ".jpg")


def grid_from(z_origin: float) -> VoxelGrid:
    """KITTI's voxel grid with its lower edge at `z_origin` metres."""
    height = KITTI_GRID.upper[2] - KITTI_GRID.lower[2]
    z = float(z_origin)  # YAML reads -2 as a whole number
    return VoxelGrid((*KITTI_GRID.lower[:2], z), (*KITTI_GRID.upper[:2], z + height), KITTI_GRID.shape)


def read_rows(path: Path, columns: int, what: str = "table") -> Float[np.ndarray, "n columns"]:
    """Lines of `columns` numbers each; raises DataError naming the first line that is not."""
    file_size(path, what)
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            values = [float(v) for v in line.split()]
        except ValueError:
            values = []
        if len(values) != columns:
            raise DataError(f"{path}: line {number} is {line!r:.60}, expected {columns} numbers; restore this file")
        rows.append(values)
    return np.array(rows, dtype=np.float64).reshape(-1, columns)


def read_calibration_rows(path: Path) -> dict[str, Float[np.ndarray, " n"]]:
    """`key: numbers` per line, float64. The tracking files write some keys without the colon.

    Raises:
        DataError: missing or empty file, or a row that is not numbers.
    """
    file_size(path, "calibration")
    rows: dict[str, np.ndarray] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, values = line.strip().replace(":", " ", 1).partition(" ")
        if not key:
            continue
        try:
            rows[key] = np.array([float(v) for v in values.split()])
        except ValueError as error:
            raise DataError(f"{path}: {key} is not a row of numbers ({error}); restore this file") from error
    return rows


def calibration_row(
    path: Path, rows: Mapping[str, np.ndarray], shape: tuple[int, int], *keys: str
) -> Float[np.ndarray, "rows columns"]:
    """The row under the first of `keys` that is there, in `shape`; DataError where none is or it has another length."""
    count = shape[0] * shape[1]
    found = next((key for key in keys if key in rows), None)
    size = rows[found].size if found is not None else "no such row"
    if found is None or size != count:
        raise DataError(f"{path}: '{found or keys[0]}' needs {count} numbers, found {size}; restore this file")
    return rows[found].reshape(shape)


def image_path(folder: Path, number: int) -> Path:
    """`NNNNNN.png` in a folder, or the .jpg that some copies hold instead."""
    png = folder / f"{number:06d}.png"
    return png if png.exists() else png.with_suffix(".jpg")


def image_numbers(folder: Path) -> list[int]:
    """Frame numbers of the images in a folder, rising; none where there is no such folder."""
    if not folder.is_dir():
        return []
    stems = {path.stem for path in folder.iterdir() if path.suffix in IMAGE_SUFFIXES}
    return sorted(int(stem) for stem in stems if stem.isdigit())


def runs(numbers: Sequence[int]) -> str:
    """'3, 10-270' for the numbers of those runs; the first few."""
    edges = np.flatnonzero(np.diff(numbers) != 1)
    starts, ends = [0, *(edges + 1)], [*edges, len(numbers) - 1]
    found = [(numbers[a], numbers[b]) for a, b in zip(starts, ends, strict=True)]
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found[:4])
    return text + (" ..." if len(found) > 4 else "")
