"""A log of nothing and a cue that labels nothing, so that what remains is what a unit costs by itself.

Known to a process through entry points of a folder on its path, as a package outside this repository is:
`register(folder)` writes them, and `environment(folder)` puts folder and module on the path of child processes.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from geometry.grid import VoxelGrid
from pipelines.cues.base import BlockContext, CueBlock, parameters_digest
from pipelines.datasets.records import Frame, LidarSweep, Scene, SceneTruth

SIZE = 8
"""Pixels a side of the images there are not."""

_ENTRY_POINTS = """[occflow.datasets]
empty = empty_cue:EmptyLog
[occflow.cues]
masks.empty = empty_cue:EmptyMasks
"""


def register(folder: Path) -> None:
    """Write a distribution's entry points into `folder`."""
    info = folder / "occflow_empty-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: occflow-empty\nVersion: 0\n")
    (info / "entry_points.txt").write_text(_ENTRY_POINTS)


def environment(folder: Path) -> dict[str, str]:
    """Environment variables of a process that is to know the log and the cue."""
    here = Path(__file__).resolve().parent
    path = [str(folder), str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(part for part in path if part)}


def config_values(folder: Path, scenes: int, keyframes: int, runner: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of `scenes * keyframes` units of one keyframe, and one init unit per scene."""
    (folder / "raw").mkdir(exist_ok=True)
    return {
        "dataset": {"kind": "empty", "root": str(folder / "raw"), "options": {"scenes": scenes, "frames": keyframes}},
        "store": str(folder / "store.zarr"),
        "sizes": {"network": [SIZE, SIZE], "render": [SIZE, SIZE]},
        "keyframe_interval_s": 0.5,
        "block_keyframes": 1,
        "cues": {"masks": {"backend": "empty"}},
        "runner": dict(runner),
        "inspect": 0,
    }


@dataclass
class EmptyLog:
    """Scenes of keyframes at 2 Hz without image or sweep."""

    root: Path
    scenes: int = 1
    frames: int = 1
    dataset: str = "empty"
    cameras: Sequence[str] = ("CAM",)
    classes: Sequence[str] = ("thing",)
    occupancy_classes: Sequence[str] = ()
    occupancy_grid: VoxelGrid = field(default_factory=lambda: VoxelGrid((0, 0, 0), (8, 8, 8), (8, 8, 8)))
    notes: list[str] = field(default_factory=list)

    def scene_names(self, split: str | None = None) -> list[str]:
        """See Log."""
        return [f"{s:04d}" for s in range(self.scenes)]

    def scene(self, name: str) -> Scene:
        """See Log."""
        frames = [Frame(f"{name}-{t}", 500_000 * t, True, np.eye(4)) for t in range(self.frames)]
        return Scene(name, tuple(frames))

    def read_lidar(self, sweep: LidarSweep) -> np.ndarray:
        """There is none to read."""
        raise AssertionError(sweep)

    def truth(self, scene: str) -> SceneTruth | None:
        """See Log."""
        return None


@dataclass(frozen=True)
class EmptyMasks:
    """No instance anywhere, after `seconds` of doing nothing."""

    seconds: float = 0.0
    name: ClassVar[str] = "masks"
    needs: ClassVar[tuple[str, ...]] = ()

    def config_digest(self) -> str:
        """See CueExtractor."""
        return parameters_digest(self, version=1)

    def licence(self) -> str:
        """See CueExtractor."""
        return "Apache-2.0"

    def extract(self, context: BlockContext) -> CueBlock:
        """See CueExtractor."""
        from storage.schema import MASK_TABLE_FIELDS, MASK_TABLE_ROWS

        time.sleep(self.seconds)
        count, cameras = context.stop - context.start, len(context.cameras)
        return CueBlock(
            {
                "masks/instance": np.zeros((count, cameras, SIZE, SIZE), np.uint16),
                "masks/table": np.zeros((count, cameras, MASK_TABLE_ROWS, len(MASK_TABLE_FIELDS)), np.float32),
            }
        )
