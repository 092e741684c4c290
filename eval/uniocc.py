"""UniOcc's files, `<scene>/<keyframe number>.npz`: classes of their own, and flow in voxels with the car's own motion.

The layout is that of UniOcc (Wang et al., ICCV 2025) as its repository documents it: `occ_label` (X, Y, Z), 10 = free;
`occ_flow_forward` (X, Y, Z, 3), from each voxel's place in this ego frame to its place in the next keyframe's own ego
frame, in voxels, zero in the last keyframe; `occ_flow_backward` likewise to the one before.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from eval.label_files import checked_classes, checked_flow, load_arrays
from eval.predict import Prediction
from geometry.grid import VoxelGrid
from geometry.transforms import invert, transform_points
from storage.reader import StoreReader
from storage.schema import SceneTable
from storage.whole_file import whole_file

FREE = 10
CLASSES = (
    "undefined",
    "car",
    "bicycle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "vegetation",
    "road",
    "terrain",
    "building",
    "free",
)
"""By index, as UniOcc's viewer names them; `car` is every vehicle."""
_MEMBERS = {
    "car": ("car", "truck", "trailer", "bus", "construction_vehicle", "other_vehicle"),
    "bicycle": ("bicycle", "bicyclist"),
    "motorcycle": ("motorcycle", "motorcyclist"),
    "pedestrian": ("pedestrian", "person"),
    "traffic_cone": ("traffic_cone",),
    "vegetation": ("vegetation", "trunk"),
    "road": ("driveable_surface", "other_flat", "road", "parking", "other_ground", "lane_marking"),
    "terrain": ("sidewalk", "terrain"),
    "building": ("manmade", "building", "other_structure"),
}
"""OpenOcc's, Occ3D's and SemanticKITTI's names of what UniOcc's classes hold; what is not among them is undefined."""
_INDEX = {name: CLASSES.index(one) for one, names in _MEMBERS.items() for name in names}


def _step(table: SceneTable, t: int, other: int) -> tuple[Float[np.ndarray, "4 4"], float]:
    """other_from_current ego pose, and seconds from keyframe t to the other."""
    pose = invert(table.global_from_ego[other]) @ table.global_from_ego[t]
    return pose, (int(table.timestamp_us[other]) - int(table.timestamp_us[t])) * 1e-6


def voxel_flow(
    velocity: Float[np.ndarray, "x y z 2"],
    grid: VoxelGrid,
    other_from_current: Float[np.ndarray, "4 4"],
    seconds: float,
) -> Float32[np.ndarray, "x y z 3"]:
    """Displacement in voxels, from one ego frame to another `seconds` later (or earlier), own motion included.

    Args:
        velocity: m/s, horizontal, in the current ego frame, the world at rest being zero.
    """
    points = grid.centres()
    moved = points.copy()
    moved[..., :2] += np.asarray(velocity, dtype=np.float64) * seconds
    there = transform_points(other_from_current, moved.reshape(-1, 3)).reshape(points.shape)
    return ((there - points) / np.asarray(grid.voxel_size)).astype(np.float32)


def velocity_of(
    flow: Float[np.ndarray, "x y z 3"], grid: VoxelGrid, other_from_current: Float[np.ndarray, "4 4"], seconds: float
) -> Float32[np.ndarray, "x y z 2"]:
    """The inverse of `voxel_flow`: horizontal velocity in m/s, own motion taken out (the vertical part is dropped)."""
    points = grid.centres()
    there = points + np.asarray(flow, dtype=np.float64) * np.asarray(grid.voxel_size)
    back = transform_points(invert(other_from_current), there.reshape(-1, 3)).reshape(points.shape)
    return ((back - points)[..., :2] / seconds).astype(np.float32)


class UniOccFolder:
    """Predictions in UniOcc's layout; keyframe numbers are the store's, from 0.

    Poses and times are the store's: a flow can only be turned into a velocity by how far the car itself went.
    """

    layout = "uniocc"

    def __init__(self, root: Path, reader: StoreReader, grid: VoxelGrid) -> None:
        self.root, self.reader, self.grid = Path(root), reader, grid

    def path(self, scene: str, t: int) -> Path:
        """The file of a keyframe, there or not."""
        return self.root / scene / f"{t}.npz"

    def at(self, scene: str, t: int) -> Prediction:
        """The prediction of a keyframe: occupied where the label is not free, class unknown (UniOcc has its own).

        The last keyframe of a scene has no forward flow and so no velocity; nor has a file without flow.

        Raises:
            EvaluationError: a missing file, or arrays of the wrong shape, type or range.
        """
        path, table = self.path(scene, t), self.reader.scene(scene).table
        arrays = load_arrays(path)
        label = checked_classes(path, "occ_label", arrays.get("occ_label"), self.grid.shape, FREE)
        velocity, flow = np.zeros((*self.grid.shape, 2), np.float32), arrays.get("occ_flow_forward")
        known = flow is not None and t + 1 < table.length
        if flow is not None:
            flow = checked_flow(path, "occ_flow_forward", flow, (*self.grid.shape, 3))
            if known:
                velocity = velocity_of(flow, self.grid, *_step(table, t, t + 1))
                velocity = np.where((label != FREE)[..., None], velocity, np.float32(0))  # free space has no flow
        return Prediction(label != FREE, velocity, has_flow=known)


def write_uniocc(
    prediction: Prediction, classes: Sequence[str], grid: VoxelGrid, table: SceneTable, t: int, folder: Path
) -> Path:
    """Write `<folder>/<t>.npz`, whole or not at all.

    Classes, which `classes` names by index, become UniOcc's; occupied voxels of unknown class, or of one that UniOcc
    has no place for (barriers, fences), are 0, undefined. Both flows assume the voxel's velocity constant; free voxels
    have none. The keys for cameras and annotations, which a prediction does not have, are left out.
    """
    label = np.where(prediction.occupied, 0, FREE).astype(np.uint8)
    if prediction.semantics is not None:
        # 256 entries: 255 is a class that nobody knows.
        known = np.zeros(256, dtype=np.uint8)
        known[: len(classes)] = [_INDEX.get(name.replace("-", "_"), 0) for name in classes]
        label = np.where(prediction.occupied, known[prediction.semantics], FREE).astype(np.uint8)
    flows = {}
    for name, other in (("occ_flow_forward", t + 1), ("occ_flow_backward", t - 1)):
        flow = np.zeros((*grid.shape, 3), np.float32)
        if prediction.has_flow and 0 <= other < table.length:
            whole = voxel_flow(prediction.flow, grid, *_step(table, t, other))
            flow = np.where(prediction.occupied[..., None], whole, np.float32(0))
        flows[name] = flow
    path = folder / f"{t}.npz"
    with whole_file(path) as temporary:
        np.savez_compressed(temporary, occ_label=label, ego_to_world_transformation=table.global_from_ego[t], **flows)
    return path
