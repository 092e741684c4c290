"""The exact truth that synthetic KITTI-MOT logs carry; the real data set has none of occupancy or flow."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.datasets.semantic_kitti_truth import KITTI_CLASSES
from pipelines.datasets.truth import read_camera_truth, read_occupancy


@dataclass(frozen=True)
class KittiMotTruth:
    """Truth of one sequence: `<folder>/<token>/labels.npz` (semantics, flow) and `<folder>/<token>/<channel>.npz`."""

    folder: Path
    shape: tuple[int, int, int]

    def occupancy(self, token: str) -> tuple[np.ndarray, np.ndarray | None] | None:
        """See SceneTruth; velodyne frame, classes of `KITTI_CLASSES`, free 20, 255 where no scan ever looked.

        Raises:
            DataError: as `read_occupancy`.
        """
        return read_occupancy(self.folder / token / "labels.npz", self.shape, KITTI_CLASSES, "SemanticKITTI")

    def camera(self, token: str, channel: str) -> dict[str, np.ndarray] | None:
        """See SceneTruth."""
        return read_camera_truth(self.folder / token / f"{channel}.npz")
