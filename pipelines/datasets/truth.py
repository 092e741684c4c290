"""Ground truth on disk in OpenOcc's layout, and the exact per-camera truth that synthetic logs carry beside it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.datasets.files import read_npz
from pipelines.datasets.records import DataError

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
MOVABLE_CLASSES = OCCUPANCY_CLASSES[:8]
"""Classes of movable-object masks, the same for every data set."""

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


@dataclass(frozen=True)
class OpenOccTruth:
    """Truth of one scene: `<folder>/<token>/labels.npz` (semantics, flow) and `<folder>/<token>/<channel>.npz`.

    Of several folders the first that holds a file wins. OpenOcc gives flow in m/s, horizontal, in the ego frame at
    LiDAR time.
    """

    folders: tuple[Path, ...]
    shape: tuple[int, int, int] = (200, 200, 16)

    def occupancy(self, token: str) -> tuple[np.ndarray, np.ndarray | None] | None:
        """See SceneTruth. Raises DataError for a damaged file or one of another grid."""
        for folder in self.folders:
            path = folder / token / "labels.npz"
            arrays = read_npz(path)
            if arrays is None:
                continue
            semantics, flow = arrays.get("semantics"), arrays.get("flow")
            if semantics is None or semantics.shape != self.shape:
                found = None if semantics is None else semantics.shape
                raise DataError(f"{path}: expected 'semantics' of shape {self.shape}, found {found}; restore the file")
            if flow is not None and flow.shape != (*self.shape, 2):
                raise DataError(f"{path}: expected 'flow' of shape {(*self.shape, 2)}, found {flow.shape}; restore it")
            top = int(semantics[semantics != 255].max(initial=0))
            if top > len(OCCUPANCY_CLASSES):
                raise DataError(
                    f"{path}: class index {top}, but OpenOcc's run 0..{len(OCCUPANCY_CLASSES)} (free); "
                    "Occ3D's labels number classes otherwise: use OpenOcc's"
                )
            return semantics.astype(np.uint8, copy=False), None if flow is None else flow.astype(np.float32, copy=False)
        return None

    def camera(self, token: str, channel: str) -> dict[str, np.ndarray] | None:
        """See SceneTruth."""
        for folder in self.folders:
            found = read_camera_truth(folder / token / f"{channel}.npz")
            if found is not None:
                return found
        return None
