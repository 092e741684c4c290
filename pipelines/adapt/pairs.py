"""Image pairs for the fine-tuning, saved in one folder that needs no data set to be read: arrays of one size.

images.npy  uint8 (n, H, W, 3) RGB, every image once
pairs.npy   int64 (m, 2) positions in images.npy, first and second
flow.npy    float32 (m, 2, H, W) true flow first -> second in these pixels, NaN where unknown; only where there is truth
made_from   text, which log and settings they are of; written by `occflow adapt`, last of all
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from pipelines.datasets.records import DataError
from storage.files import remove_file, scratch_folder

MADE_FROM = "made_from"


class PairsError(DataError):
    """A folder of pairs that cannot be used: says which file, what is wrong, what to do."""


@dataclass(frozen=True)
class FramePairs:
    """See above; arrays may be memory maps."""

    images: UInt8[np.ndarray, "n height width 3"]
    pairs: Int[np.ndarray, "m 2"]
    flow: Float[np.ndarray, "m 2 height width"] | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.images.shape[1], self.images.shape[2]

    def save(self, folder: Path) -> Path:
        """Write the arrays, in place of any that are there; see `write_pairs`."""
        return write_pairs(folder, self.size, len(self.images), self.images, self.pairs, self.flow)

    @classmethod
    def open(cls, folder: Path) -> "FramePairs":
        """Memory maps of a saved folder. Raises PairsError."""
        try:
            pairs = np.load(folder / "pairs.npy", allow_pickle=False)
            images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
            truth = folder / "flow.npy"
            flow = np.load(truth, mmap_mode="r", allow_pickle=False) if truth.exists() else None
        except (OSError, ValueError, EOFError) as error:
            raise PairsError(
                f"{folder}: no whole folder of frame pairs ({error}); `occflow adapt` writes one"
            ) from error
        found = cls(images, pairs, flow)
        if images.ndim != 4 or not len(pairs) or pairs.min() < 0 or pairs.max() >= len(images):
            raise PairsError(
                f"{folder}: {len(pairs)} pairs over {len(images)} images do not belong together; write the folder anew"
            )
        if flow is not None and flow.shape != (len(pairs), 2, *found.size):
            raise PairsError(
                f"{folder}/flow.npy: shape {flow.shape}, expected {(len(pairs), 2, *found.size)}; write the folder anew"
            )
        return found


def write_pairs(
    folder: Path,
    size: tuple[int, int],
    count: int,
    images: Iterable[UInt8[np.ndarray, "height width 3"]],
    pairs: Int[np.ndarray, "m 2"],
    flows: Iterable[Float[np.ndarray, "2 height width"]] | None,
) -> Path:
    """Write a folder of pairs from images and flows that are taken one at a time, so that none but one is in memory.

    What the folder held goes once all is written, its marks first: a write that fails before leaves it as it was, a
    kill after leaves a folder that `FramePairs.open` refuses, never old pairs or old truth beside new images.

    Args:
        size: (height, width) of every image and flow.
        count: of the images; as many flows as pairs.
        flows: None where there is no truth.

    Raises:
        OSError: the folder cannot be written. What the iterables raise is passed on.
        PairsError: another number of images or flows than was said.
    """
    height, width = size
    with scratch_folder(folder / ".new") as scratch:
        _write_rows(scratch / "images.npy", (count, height, width, 3), np.uint8, images)
        if flows is not None:
            _write_rows(scratch / "flow.npy", (len(pairs), 2, height, width), np.float32, flows)
        np.save(scratch / "pairs.npy", pairs.astype(np.int64))
        for name in (MADE_FROM, "pairs.npy", "flow.npy"):
            remove_file(folder / name)
        # pairs.npy last: with it the folder is whole.
        for name in ("images.npy", *(() if flows is None else ("flow.npy",)), "pairs.npy"):
            os.replace(scratch / name, folder / name)
    return folder


def _write_rows(path: Path, shape: tuple[int, ...], dtype: type[np.generic], rows: Iterable[np.ndarray]) -> None:
    """An .npy file, row by row. Plain writes: a full disk is an OSError here, and kills a process with a memory map."""
    with open(path, "wb") as stream:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        count = 0
        for row in rows:
            stream.write(np.ascontiguousarray(row, dtype).data)
            count += 1
    if count != shape[0]:
        raise PairsError(f"{path.name}: {count} rows were given where {shape[0]} were said; hand over as many")
