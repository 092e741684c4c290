"""Predictions and truth as files of labels in OpenOcc's layout, `<scene>/<token>/labels.npz`, of any system."""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.predict import FREE, Prediction
from eval.protocols import OPENOCC_CLASSES, UNKNOWN, free_index
from eval.rules import EvaluationError
from geometry.grid import NUSCENES_GRID, VoxelGrid
from storage.reader import StoreReader
from storage.schema import StoreAttributes

OCC3D_CLASSES = (
    "others",
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
    *OPENOCC_CLASSES[10:16],
    "free",
)
"""Occ3D-nuScenes' indices 0..17; 17 is free."""


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; objects in it (UniOcc's camera lists) are left alone, nothing is unpickled.

    Raises:
        EvaluationError: no such file, or one that is damaged.
    """
    if not path.is_file():
        raise EvaluationError(f"{path}: no such file; write it, or name the scenes that there are with --scenes")
    found = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for name in archive.files:
                try:
                    found[name] = archive[name]
                except ValueError as error:
                    if "allow_pickle" not in str(error):
                        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise EvaluationError(f"{path}: this is no sound .npz file ({error}); write it again") from error
    return found


def checked_classes(path: Path, name: str, array: np.ndarray | None, shape: tuple[int, ...], free: int) -> np.ndarray:
    """An array of class indices 0..free (or 255) as uint8.

    Raises:
        EvaluationError: it is missing, of another shape or of no whole-number type, or an index is none.
    """
    if array is None:
        raise EvaluationError(f"{path}: no array {name!r}; expected class indices of shape {shape}")
    if array.shape != shape:
        raise EvaluationError(f"{path}: {name!r} has shape {array.shape}, expected {shape}: one value per voxel, x y z")
    if array.dtype.kind not in "iu":
        raise EvaluationError(f"{path}: {name!r} has type {array.dtype}, expected uint8 class indices (not scores)")
    wrong = (array != UNKNOWN) & ((array < 0) | (array > free))
    if wrong.any():
        raise EvaluationError(
            f"{path}: {name!r} has class index {int(array[wrong].flat[0])}, expected 0..{free} ({free} is free) or "
            f"{UNKNOWN}; is it numbered as the truth is?"
        )
    return array.astype(np.uint8, copy=False)


def checked_flow(path: Path, name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array of velocities or displacements as float32.

    Raises:
        EvaluationError: of another shape, of no floating type, or with values that are not finite.
    """
    if array.shape != shape:
        raise EvaluationError(f"{path}: {name!r} has shape {array.shape}, expected {shape}")
    if array.dtype.kind != "f":
        raise EvaluationError(f"{path}: {name!r} has type {array.dtype}, expected float16 or float32")
    wrong = int((~np.isfinite(array)).any(axis=-1).sum())
    if wrong:
        raise EvaluationError(f"{path}: {name!r} is not finite in {wrong} voxels; write zero where nothing is known")
    return array.astype(np.float32, copy=False)


def read_labels(path: Path, grid: VoxelGrid, classes: Sequence[str]) -> Prediction:
    """One keyframe's prediction in OpenOcc's layout, as `occflow predict` and others write it.

    Args:
        path: an .npz file. `semantics` (X, Y, Z): class indices in the truth's numbering; or 16 for free and 255 for
            occupied, class unknown, on any grid (16 alone: free throughout). `flow` (X, Y, Z, 2), m/s, ego frame: may
            be missing. `lower`, `upper` (3,), metres: may be missing, and must be the grid's.
        classes: the truth's, with the one that means free.

    Raises:
        EvaluationError: names the file, what is wrong with it and what was expected.
    """
    arrays = load_arrays(path)
    for name, edge in (("lower", grid.lower), ("upper", grid.upper)):
        if name in arrays and not np.allclose(arrays[name], edge, atol=1e-3):
            raise EvaluationError(f"{path}: {name!r} is {arrays[name].tolist()}, but the truth's grid has {list(edge)}")
    semantics = arrays.get("semantics")
    free = free_index(classes)
    if semantics is not None and semantics.dtype.kind in "iu" and not np.setdiff1d(semantics, (FREE, UNKNOWN)).size:
        semantics = np.where(semantics == FREE, free, UNKNOWN).astype(np.uint8)
    semantics = checked_classes(path, "semantics", semantics, grid.shape, free)
    flow = arrays.get("flow")
    velocity = (
        np.zeros((*grid.shape, 2), np.float32) if flow is None else checked_flow(path, "flow", flow, (*grid.shape, 2))
    )
    velocity = np.where((semantics != free)[..., None], velocity, np.float32(0))  # free space does not move
    named = None if (semantics == UNKNOWN).any() else semantics
    return Prediction(semantics != free, velocity, semantics=named, has_flow=flow is not None)


class LabelFolder:
    """Predictions in `<root>/<scene>/<token>/labels.npz`."""

    layout = "openocc"

    def __init__(self, root: Path, reader: StoreReader, grid: VoxelGrid, classes: Sequence[str]) -> None:
        self.root, self.reader, self.grid, self.classes = Path(root), reader, grid, tuple(classes)

    def path(self, scene: str, t: int) -> Path:
        """The file of a keyframe, there or not."""
        return self.root / scene / self.reader.scene(scene).table.tokens[t] / "labels.npz"

    def at(self, scene: str, t: int) -> Prediction:
        """The prediction of a keyframe. Raises EvaluationError as `read_labels`."""
        return read_labels(self.path(scene, t), self.grid, self.classes)


class FolderTruth:
    """Occupancy truth in OpenOcc's or Occ3D's own folders, with a truth store's calls.

    Args:
        root: holds `<scene>/<token>/labels.npz`.
        reader: the cue store of the same log, which knows scenes and tokens.

    Raises:
        EvaluationError: no file of the store's scenes lies there.
    """

    def __init__(self, root: Path, reader: StoreReader) -> None:
        self.path, self.reader = Path(root), reader
        first = next((p for s in reader.scenes() for p in sorted((self.path / s).glob("*/labels.npz"))), None)
        if first is None:
            some = ", ".join(reader.scenes()[:3])
            raise EvaluationError(f"{root}: no <scene>/<token>/labels.npz of the store's scenes ({some}, ...)")
        found = load_arrays(first)
        occ3d = "mask_camera" in found or ("flow" not in found and (found.get("semantics", np.zeros(1)) == 17).any())
        self.classes = OCC3D_CLASSES if occ3d else OPENOCC_CLASSES
        self.whose = "Occ3D" if occ3d else "OpenOcc"
        box: dict[str, Any] = {name: list(getattr(NUSCENES_GRID, name)) for name in ("lower", "upper", "shape")}
        self.attributes: StoreAttributes = replace(
            reader.attributes, kind="truth", occupancy_grid=box, occupancy_classes=self.classes
        )

    def scenes(self) -> list[str]:
        """Scenes of the store that have a folder."""
        return [name for name in self.reader.scenes() if (self.path / name).is_dir()]

    def scene(self, name: str) -> "_SceneTruth":
        """One scene."""
        return _SceneTruth(self, name)


class _SceneTruth:
    def __init__(self, whole: FolderTruth, name: str) -> None:
        self.whole, self.name = whole, name

    def _path(self, t: int) -> Path:
        return self.whole.path / self.name / self.whole.reader.scene(self.name).table.tokens[t] / "labels.npz"

    def has(self, cue: str, t: int) -> bool:
        """Whether there is a file for this keyframe."""
        return cue == "occupancy" and self._path(t).is_file()

    def boxes(self, t: int) -> None:
        """None: these layouts have no boxes."""

    def occupancy(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Class per voxel and velocity in m/s, zero where the layout has none (Occ3D)."""
        path, shape = self._path(t), NUSCENES_GRID.shape
        arrays = load_arrays(path)
        semantics = checked_classes(path, "semantics", arrays.get("semantics"), shape, free_index(self.whole.classes))
        flow = arrays.get("flow")
        if flow is None:
            return semantics, np.zeros((*shape, 2), np.float32)
        if flow.shape != (*shape, 2):
            raise EvaluationError(f"{path}: 'flow' has shape {flow.shape}, expected {(*shape, 2)}; restore the file")
        return semantics, flow.astype(np.float32)  # not finite where the velocity is unknown: such voxels do not count
