"""KITTI-MOT's truth: boxes of the tracking labels, and the exact volumes and images that synthetic logs carry besides.

The real data set has neither occupancy nor flow of these sequences.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipelines.datasets.records import LabelledBox
from pipelines.datasets.semantic_kitti_truth import KITTI_CLASSES, next_frame
from pipelines.datasets.truth import read_camera_truth, read_occupancy


@dataclass(frozen=True)
class KittiMotTruth:
    """Truth of one sequence.

    folder: of `<token>/labels.npz` (semantics, flow) and `<token>/<channel>.npz`, None for a real sequence. labels: the
    boxes of each frame number, called when they are first asked for; None where the sequence has no label_02.
    """

    folder: Path | None
    shape: tuple[int, int, int]
    labels: Callable[[], Mapping[int, Sequence[LabelledBox]]] | None = None

    @property
    def cues(self) -> tuple[str, ...]:
        """See SceneTruth."""
        return (("occupancy", "camera") if self.folder else ()) + (("boxes",) if self.labels else ())

    def occupancy(self, token: str) -> tuple[np.ndarray, np.ndarray | None] | None:
        """See SceneTruth; velodyne frame, classes of `KITTI_CLASSES`, free 20, 255 where no scan ever looked.

        Raises:
            DataError: as `read_occupancy`.
        """
        if self.folder is None:
            return None
        return read_occupancy(self.folder / token / "labels.npz", self.shape, KITTI_CLASSES, "SemanticKITTI")

    def camera(self, token: str, channel: str) -> dict[str, np.ndarray] | None:
        """See SceneTruth."""
        return None if self.folder is None else read_camera_truth(self.folder / token / f"{channel}.npz")

    def flow_target(self, token: str) -> str:
        """See SceneTruth: synthetic logs are made with every frame a keyframe, so true flow ends in the next frame."""
        return next_frame(token)

    def boxes(self, token: str) -> Sequence[LabelledBox] | None:
        """See SceneTruth; labelled is what the left camera sees.

        Raises:
            DataError: labels that are damaged.
        """
        return None if self._boxes is None else self._boxes.get(int(token))

    @cached_property
    def _boxes(self) -> Mapping[int, Sequence[LabelledBox]] | None:
        return None if self.labels is None else self.labels()
