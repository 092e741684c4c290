"""What predictions without any learning score: a flat ground, and no motion."""

from typing import Any

import numpy as np
from jaxtyping import Float

from eval.depth import MAX_DEPTH
from eval.predict import Prediction
from geometry.cameras import camera_directions
from geometry.grid import KITTI_GROUND_Z, VoxelGrid
from geometry.transforms import rotate_vectors

GROUND_HEIGHT = {"nuscenes": 0.0, "kitti": KITTI_GROUND_Z}
"""Height of the road in metres in the ego frame: nuScenes' has its origin on the ground below the rear axle."""


def ground_height(dataset: str) -> float:
    """The road's height for a data set by its name (`nuscenes`, `semantic_kitti`, ...); 0 for an unknown one."""
    return next((z for name, z in GROUND_HEIGHT.items() if name in dataset.lower()), 0.0)


def flat_ground(grid: VoxelGrid, height: float = 0.0) -> Prediction:
    """One layer of occupied voxels: the one that contains z = `height` metres; nothing moves.

    On nuScenes' grid z = 0 lies in the middle of layer 2 ([-0.2, 0.2) m), the layer where OpenOcc has the road near
    the car. Only that layer is filled: rays end at the first occupied voxel, so what lies below is never reached.

    Raises:
        ValueError: the height lies outside the grid.
    """
    layer = int(np.floor(grid.index_coordinates(np.array([0.0, 0.0, height]))[2] + 1e-9))
    if not 0 <= layer < grid.shape[2]:
        raise ValueError(f"ground height {height} m lies outside the grid's z range {grid.lower[2]}..{grid.upper[2]} m")
    occupied = np.zeros(grid.shape, dtype=bool)
    occupied[:, :, layer] = True
    return Prediction(occupied, np.zeros((*grid.shape, 2), dtype=np.float32))


def flat_ground_depth(
    K: Float[np.ndarray, "3 3"],
    ego_from_cam: Float[np.ndarray, "4 4"],
    uv: Float[np.ndarray, "n 2"],
    grid: VoxelGrid,
    height: float = 0.0,
) -> Float[np.ndarray, "n"]:
    """Camera z (n,) in metres, at pixels uv, of the plane z = `height` of the ego frame.

    Rays that do not meet the plane inside the grid's box end where they leave the box, as a network's rays must; at
    80 m where the camera is outside it.
    """
    rays = rotate_vectors(ego_from_cam, camera_directions(K, uv))  # one metre of camera z long
    with np.errstate(divide="ignore", invalid="ignore"):
        plane = (height - ego_from_cam[2, 3]) / rays[:, 2]
    plane = np.where(np.isfinite(plane) & (plane > 0), plane, MAX_DEPTH)
    leave = grid.exit_distance(np.broadcast_to(ego_from_cam[:3, 3], rays.shape), rays)
    return np.minimum(plane, np.where(leave > 0, leave, MAX_DEPTH)).clip(max=MAX_DEPTH)


def zero_flow(mave: dict[str, Any] | None, dynamic: dict[str, Any] | None) -> dict[str, float]:
    """The zero-flow baseline beside a network: its mAVE on that network's true positives, its error on moving voxels.

    Takes what `VelocityResult.to_dict` and `DynamicFlow.compute` of that network gave.
    """
    out = {}
    if mave is not None:
        out["mave"] = mave["mave_zero_flow_same_tp"]
    if dynamic is not None:
        out["flow_epe_dynamic"] = out["flow_epe_dynamic_masked"] = dynamic["flow_epe_dynamic_zero_flow"]
    return out
