"""Reads nuScenes v1.0 logs (mini, trainval, test, synthetic or partial copies) without loading whole tables.

Frames of reference are nuScenes' own: ego at the rear axle's ground projection, x forward, y left, z up; every image
has the ego pose of its own trigger time. K is moved by half a pixel to centres at +0.5 (nuScenes calibrates with
centres on whole numbers).
"""

import re
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from geometry.grid import NUSCENES_GRID, VoxelGrid
from pipelines.datasets import splits
from pipelines.datasets.files import read_lidar_file
from pipelines.datasets.nuscenes_index import LIDAR_CHANNEL, NuScenesIndex, SceneRow, build_index, read_scenes
from pipelines.datasets.nuscenes_scene import SceneBuilder
from pipelines.datasets.records import DataError, LidarSweep, Scene
from pipelines.datasets.truth import MOVABLE_CLASSES, OCC3D_CLASSES, OCCUPANCY_CLASSES, NpzTruth

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
"""nuScenes' cameras, clockwise from the front: the order of index c."""

_OPENOCC_FOLDERS = ("truth", "openocc_v2")
"""A synthetic log's own truth has OpenOcc's layout."""
_OCC3D_FOLDERS = ("gts", "occ3d")
_UNUSED_TABLES = ("log", "map", "instance", "sample_annotation")
_BUILDING = threading.Lock()


class NuScenesLog:
    """One nuScenes data set on disk (a `Log`).

    Args:
        root: folder that holds the table folder `v1.0-*` and `samples/`, perhaps `sweeps/`.
        version: table folder; found by itself when there is only one.
        scenes: read rows of these scenes only (less memory), all when None.
        sweeps: include the 12 Hz camera images between keyframes.
        occupancy: whose truth to read, "openocc" (`openocc_v2/`) or "occ3d" (`gts/` or `occ3d/`); by default Occ3D's
            where there is no other. The two number their classes otherwise.
        tags: read scenes only whose description has all of these words (night, rain, ...), whatever their case.
        without_tags: read scenes only whose description has none of these words.

    Raises:
        DataError: no table folder, or several and none named; a named scene that is not there.
    """

    dataset = "nuscenes"
    classes: Sequence[str] = MOVABLE_CLASSES
    occupancy_grid: VoxelGrid = NUSCENES_GRID

    def __init__(
        self,
        root: Path,
        version: str | None = None,
        scenes: Sequence[str] | None = None,
        sweeps: bool = True,
        occupancy: Literal["openocc", "occ3d"] | None = None,
        tags: Sequence[str] = (),
        without_tags: Sequence[str] = (),
    ) -> None:
        self.root = Path(root)
        self.version = _table_folder(self.root, version)
        self.tables = self.root / self.version
        self.notes: list[str] = []
        self._sweeps = sweeps
        self._occ3d = self._is_occ3d(occupancy)
        self.occupancy_classes: Sequence[str] = OCC3D_CLASSES if self._occ3d else OCCUPANCY_CLASSES
        absent_tables = [t for t in _UNUSED_TABLES if not (self.tables / f"{t}.json").exists()]
        if absent_tables:
            self._note(f"{self.version} has no table {', '.join(absent_tables)}: none of them is needed")
        rows = read_scenes(self.tables)
        if scenes is not None:
            absent = sorted(set(scenes) - {row.name for row in rows})
            if absent:
                raise DataError(f"{self.tables / 'scene.json'}: no scene {', '.join(absent)}; choose among its names")
            rows = [row for row in rows if row.name in set(scenes)]
        kept = [row for row in rows if _tagged(row.description, tags, without_tags)]
        if len(kept) < len(rows):
            self._note(f"{len(rows) - len(kept)} of {len(rows)} scenes are left out by tags or without_tags")
        self._scene_rows: list[SceneRow] = kept

    @cached_property
    def cameras(self) -> Sequence[str]:
        """Channels calibrated in this log: the six of nuScenes in their order, then any others by name."""
        found = {c.channel for c in self.index.calibrations} - {LIDAR_CHANNEL}
        return tuple(c for c in CAMERAS if c in found) + tuple(sorted(found - set(CAMERAS)))

    @property
    def index(self) -> NuScenesIndex:
        """The tables, read on first use: one to two minutes for v1.0-trainval, a moment for a mini or synthetic log."""
        with _BUILDING:
            return self._index

    @cached_property
    def _index(self) -> NuScenesIndex:
        index = build_index(self.tables, self._scene_rows, sweeps=self._sweeps)
        for line in index.notes:
            self._note(line)
        return index

    def scene_names(self, split: str | None = None) -> list[str]:
        """See Log. A scene counts as present when its tables list frames and any file of its first frames is there.

        `splits.json` in the root, {"train": [...], "val": [...]}, replaces the official splits.
        """
        present = self._present
        if split is None:
            return list(present)
        return splits.select(present, splits.own_splits(self.root) or splits.nuscenes_splits(self.version), split)

    @cached_property
    def _present(self) -> tuple[str, ...]:
        index = self.index
        listed, present = 0, []
        for number, row in enumerate(self._scene_rows):
            rows = np.asarray(index.rows(number), dtype=np.int64)
            first = rows[index.is_keyframe[rows]][:16]
            listed += bool(len(first))
            if any((self.root / index.filename[i].decode()).exists() for i in first):
                present.append(row.name)
        total = len(self._scene_rows)
        if listed < total:
            self._note(f"{total - listed} of {total} scenes have no rows in sample and sample_data: left out")
        if len(present) < listed:
            self._note(f"{listed - len(present)} of {listed} scenes have no image or LiDAR files here: left out")
        return tuple(present)

    def scene(self, name: str) -> Scene:
        """See Log: one Frame per sample, and between them one per round of camera sweeps.

        Raises:
            DataError: unknown scene; keyframe times that do not increase; a singular K; a pose that is missing or not
                rigid. The message names table, token and value.
        """
        number = next((i for i, row in enumerate(self._scene_rows) if row.name == name), None)
        if number is None:
            raise DataError(f"{self.tables / 'scene.json'}: no scene '{name}'; scenes here: {self._some_names()}")
        builder = SceneBuilder(self.root, self.tables, self.index, number, self.cameras)
        scene = builder.build()
        for line in builder.notes:
            self._note(line)
        return scene

    def read_lidar(self, sweep: LidarSweep) -> Float[np.ndarray, "n 4"]:
        """See Log. `.pcd.bin` holds x y z intensity ring as float32; the ring index is dropped."""
        return read_lidar_file(sweep.path, columns=5)

    def truth(self, scene: str) -> NpzTruth | None:
        """Occupancy labels of `<folder>/<scene>/` in the root, OpenOcc's or Occ3D's; a synthetic log's own truth."""
        names = _OCC3D_FOLDERS if self._occ3d else _OPENOCC_FOLDERS
        folders = tuple(f for f in (self.root / name / scene for name in names) if f.is_dir())
        if not folders:
            return None
        whose = "Occ3D" if self._occ3d else "OpenOcc"
        return NpzTruth(folders, self.occupancy_grid.shape, tuple(self.occupancy_classes), whose)

    def _is_occ3d(self, asked: str | None) -> bool:
        if asked not in (None, "openocc", "occ3d"):
            raise DataError(f"occupancy is '{asked}', expected openocc or occ3d")
        if asked is not None:
            return asked == "occ3d"
        openocc, occ3d = (any((self.root / n).is_dir() for n in names) for names in (_OPENOCC_FOLDERS, _OCC3D_FOLDERS))
        if openocc and occ3d:
            self._note("both OpenOcc's and Occ3D's labels are here: OpenOcc's are read (option occupancy: occ3d)")
        return occ3d and not openocc

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def _some_names(self) -> str:
        names = [row.name for row in self._scene_rows]
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _table_folder(root: Path, version: str | None) -> str:
    """Name of the folder of tables: the version asked for, or the only one that is here."""
    there = sorted(path.parent.name for path in root.glob("v1.0*/scene.json"))
    if version:
        # Where there is none at all, the table that is read first is told to be missing.
        if there and not (root / version).exists():
            raise DataError(
                f"{root / version}: no such table folder, but there is {', '.join(there)}: set version (--set "
                f"dataset.version={there[0]}), or unpack the tables of {version}"
            )
        return version
    if len(there) != 1:
        what = f"several table folders ({', '.join(there)}): name one as version" if there else "no v1.0-*/scene.json"
        raise DataError(f"{root}: {what}; a nuScenes root holds v1.0-mini, v1.0-trainval or v1.0-test beside samples/")
    return there[0]


def _tagged(description: str, tags: Sequence[str], without: Sequence[str]) -> bool:
    """Whether a description has every word of `tags` and none of `without`."""
    words = set(re.findall(r"\w+", description.lower()))
    return {t.lower() for t in tags} <= words and not words & {t.lower() for t in without}
