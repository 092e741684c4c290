"""Image pairs for the fine-tuning, saved in one folder that needs no data set to be read: arrays of one size.

images.npy  uint8 (n, H, W, 3) RGB, every image once
pairs.npy   int64 (m, 2) positions in images.npy, first and second
flow.npy    float32 (m, 2, H, W) true flow first -> second in these pixels, NaN where unknown; only where there is truth
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from pipelines.datasets.records import DataError


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
        """Write the arrays; pairs.npy comes last and marks the folder as whole."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "images.npy", self.images)
        if self.flow is not None:
            np.save(folder / "flow.npy", self.flow.astype(np.float32))
        np.save(folder / "pairs.npy", self.pairs)
        return folder

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
