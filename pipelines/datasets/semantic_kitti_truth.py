"""SemanticKITTI's voxel files as occupancy truth, and the exact truth that synthetic logs carry beside them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.datasets.files import GET_IT_AGAIN, file_size, read_npz
from pipelines.datasets.records import DataError
from pipelines.datasets.truth import read_camera_truth

KITTI_CLASSES = (
    "car",
    "bicycle",
    "motorcycle",
    "truck",
    "other_vehicle",
    "person",
    "bicyclist",
    "motorcyclist",
    "road",
    "parking",
    "sidewalk",
    "other_ground",
    "building",
    "fence",
    "vegetation",
    "trunk",
    "terrain",
    "pole",
    "traffic_sign",
    "occupied",
)
"""SemanticKITTI's nineteen evaluated classes in its own order, less one (its 0 is "unlabeled"), then "occupied": solid,
of no evaluated class. Free is index 20, unknown 255."""

FREE = len(KITTI_CLASSES)
UNKNOWN = 255

_RAW = {
    "car": (10, 252),
    "bicycle": (11,),
    "motorcycle": (15,),
    "truck": (18, 258),
    "other_vehicle": (13, 16, 20, 256, 257, 259),
    "person": (30, 254),
    "bicyclist": (31, 253),
    "motorcyclist": (32, 255),
    "road": (40, 60),
    "parking": (44,),
    "sidewalk": (48,),
    "other_ground": (49,),
    "building": (50,),
    "fence": (51,),
    "vegetation": (70,),
    "trunk": (71,),
    "terrain": (72,),
    "pole": (80,),
    "traffic_sign": (81,),
    "occupied": (1, 52, 99),
}
"""Raw label numbers of the data set's documentation; 252..259 are the moving ones of the same kind."""


def _lookup() -> np.ndarray:
    table = np.full(1 << 16, UNKNOWN, dtype=np.uint8)
    table[0] = FREE
    for index, name in enumerate(KITTI_CLASSES):
        table[list(_RAW[name])] = index
    return table


CLASS_OF_RAW_LABEL = _lookup()
"""uint8 (65536,): raw 16-bit voxel label to class index; labels that the data set does not define are unknown."""


@dataclass(frozen=True)
class SemanticKittiTruth:
    """Truth of one sequence. `voxels`: folder of .label / .invalid / .bin / .occluded; `exact`: synthetic truth."""

    voxels: Path
    exact: Path
    shape: tuple[int, int, int]
    unlabelled_free: bool = False

    def occupancy(self, token: str) -> tuple[np.ndarray, np.ndarray | None] | None:
        """See SceneTruth; velodyne frame. Flow only where `exact` has `<token>/labels.npz` with `flow` in m/s.

        With `.label`: classes, and 255 where `.invalid` says no scan ever looked. With `.bin` only (one scan's own
        occupancy, no completed scene): "occupied" where a point fell, 255 where `.invalid` or `.occluded` says that
        nothing is known, free elsewhere.

        Raises:
            DataError: a file of the wrong size.
        """
        label = self.voxels / f"{token}.label"
        flow = self._flow(token)
        if label.exists():
            size = file_size(label, "voxel labels")
            if size != 2 * int(np.prod(self.shape)):
                raise DataError(_wrong_size(label, size, 2 * int(np.prod(self.shape)), "one uint16 a voxel"))
            semantics = CLASS_OF_RAW_LABEL[np.fromfile(label, dtype="<u2")].reshape(self.shape)
            if self.unlabelled_free:
                semantics[semantics == KITTI_CLASSES.index("occupied")] = FREE
        else:
            occupied = self._bits(token, "bin")
            if occupied is None:
                return None
            semantics = np.where(occupied, KITTI_CLASSES.index("occupied"), FREE).astype(np.uint8)
            hidden = self._bits(token, "occluded")
            if hidden is not None:
                semantics[hidden & ~occupied] = UNKNOWN
        invalid = self._bits(token, "invalid")
        if invalid is not None:
            semantics[invalid] = UNKNOWN
        return semantics, flow

    def camera(self, token: str, channel: str) -> dict[str, np.ndarray] | None:
        """See SceneTruth."""
        return read_camera_truth(self.exact / token / f"{channel}.npz")

    def flow_target(self, token: str) -> str:
        """See SceneTruth: synthetic logs are made with every frame a keyframe, so true flow ends in the next frame."""
        return next_frame(token)

    def _bits(self, token: str, suffix: str) -> np.ndarray | None:
        """bool (X, Y, Z) of a file of packed bits, first voxel in the highest bit, z running fastest."""
        path = self.voxels / f"{token}.{suffix}"
        if not path.exists():
            return None
        size, expected = file_size(path, "voxel flags"), int(np.prod(self.shape)) // 8
        if size != expected:
            raise DataError(_wrong_size(path, size, expected, "one bit a voxel"))
        return np.unpackbits(np.fromfile(path, dtype=np.uint8)).astype(bool).reshape(self.shape)

    def _flow(self, token: str) -> np.ndarray | None:
        path = self.exact / token / "labels.npz"
        flow = (read_npz(path) or {}).get("flow")
        if flow is None:
            return None
        if flow.shape != (*self.shape, 2):
            raise DataError(f"{path}: expected 'flow' of shape {(*self.shape, 2)}, found {flow.shape}; write it again")
        return flow.astype(np.float32, copy=False)


def next_frame(token: str) -> str:
    """The token of the frame after this one, in either layout of KITTI."""
    return f"{int(token) + 1:06d}"


def _wrong_size(path: Path, size: int, expected: int, what: str) -> str:
    return f"{path}: {size} bytes, expected {expected} ({what}); {GET_IT_AGAIN}"
