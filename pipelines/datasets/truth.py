"""Occupancy truth in .npz files, OpenOcc's and Occ3D's, and the exact per-camera truth of synthetic logs beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.datasets.files import read_npz
from pipelines.datasets.records import DataError, Scene, SceneTruth

OCCUPANCY_CLASSES = (
    "car",
    "truck",
    "trailer",
    "bus",
    "construction_vehicle",
    "bicycle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "barrier",
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
)
"""OpenOcc's classes by index; free is index 16."""
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
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
)
"""Occ3D-nuScenes' classes by index; free is index 17."""
MOVABLE_CLASSES = OCCUPANCY_CLASSES[:8]
"""Classes of movable-object masks, the same for every data set."""

UNKNOWN = 255
CAMERA_KEYS = ("depth", "instance", "moving", "flow_next")


def read_camera_truth(path: Path) -> dict[str, np.ndarray] | None:
    """Exact truth of one camera image, `depth`, `instance`, `moving`, `flow_next` where present (see SceneTruth).

    Stored types may be narrower (float16 depth, say); returned are float32, uint16, uint8, float32.

    Raises:
        DataError: damaged file, or arrays that are not of one image size.
    """
    arrays = read_npz(path)
    if arrays is None:
        return None
    types = dict(zip(CAMERA_KEYS, (np.float32, np.uint16, np.uint8, np.float32), strict=True))
    found = {key: arrays[key].astype(dtype, copy=False) for key, dtype in types.items() if key in arrays}
    sizes = {key: value.shape[-2:] for key, value in found.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"{path}: arrays of different image sizes {sizes}; write this truth again")
    return found


def leads_to_next(truth: SceneTruth, scene: Scene, t: int) -> bool:
    """Whether true flow at keyframe `t` ends in the next keyframe: with `keyframe_every` it may end in a sweep."""
    target = getattr(truth, "flow_target", None)
    if target is None:
        return True
    frames = scene.keyframes
    return t + 1 < len(frames) and frames[t + 1].token == target(frames[t].token)


def read_occupancy(
    path: Path, shape: tuple[int, int, int], classes: Sequence[str], whose: str
) -> tuple[np.ndarray, np.ndarray | None] | None:
    """`semantics` u8 (X, Y, Z) and `flow` f32 (X, Y, Z, 2), or None for it, of an .npz file; None without the file.

    Args:
        path: the file; other arrays in it (Occ3D's masks) are left alone.
        shape: of the grid.
        classes: by index; the index after the last is free.
        whose: the layout's name, for messages.

    Raises:
        DataError: a damaged file, one of another grid, or one whose numbers cannot be those of `classes`.
    """
    arrays = read_npz(path)
    if arrays is None:
        return None
    semantics, flow, free = arrays.get("semantics"), arrays.get("flow"), len(classes)
    if semantics is None or semantics.shape != shape:
        found = None if semantics is None else semantics.shape
        raise DataError(f"{path}: expected 'semantics' of shape {shape}, found {found}; restore the file")
    if flow is not None and flow.shape != (*shape, 2):
        raise DataError(f"{path}: expected 'flow' of shape {(*shape, 2)}, found {flow.shape}; restore the file")
    known = semantics[semantics != UNKNOWN]
    if known.size and (int(known.max()) > free or int(known.min()) < 0):
        worst = int(known.max()) if int(known.max()) > free else int(known.min())
        raise DataError(
            f"{path}: class index {worst}, but {whose}'s run 0..{free} (free); files of another layout number their "
            "classes otherwise: name the right one in dataset.options.occupancy"
        )
    if known.size and not (known == free).any():
        raise DataError(
            f"{path}: no voxel has {whose}'s number of free ({free}); files of another layout number their classes "
            "otherwise: name the right one in dataset.options.occupancy"
        )
    return semantics.astype(np.uint8, copy=False), None if flow is None else flow.astype(np.float32, copy=False)


@dataclass(frozen=True)
class NpzTruth:
    """Truth of one scene: `<folder>/<token>/labels.npz` (semantics, flow) and `<folder>/<token>/<channel>.npz`.

    Of several folders the first that holds a file wins. OpenOcc gives flow in m/s, horizontal, in the ego frame at
    LiDAR time; Occ3D gives none. `whose` names the layout, `classes` its classes.
    """

    folders: tuple[Path, ...]
    shape: tuple[int, int, int] = (200, 200, 16)
    classes: tuple[str, ...] = OCCUPANCY_CLASSES
    whose: str = "OpenOcc"

    def occupancy(self, token: str) -> tuple[np.ndarray, np.ndarray | None] | None:
        """See SceneTruth. Raises DataError as `read_occupancy`."""
        for folder in self.folders:
            found = read_occupancy(folder / token / "labels.npz", self.shape, self.classes, self.whose)
            if found is not None:
                return found
        return None

    def camera(self, token: str, channel: str) -> dict[str, np.ndarray] | None:
        """See SceneTruth."""
        for folder in self.folders:
            found = read_camera_truth(folder / token / f"{channel}.npz")
            if found is not None:
                return found
        return None
