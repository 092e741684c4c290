"""LiDAR in the keyframe's cameras, and the depth that a network renders along the same pixels' rays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from eval.depth import SparseDepth, project_lidar
from geometry.cameras import scale_intrinsics
from model.fields import Fields
from model.render import Renderer, camera_rays, to_camera_depth
from storage.queue import queue_poses
from storage.reader import StoreReader
from storage.schema import SceneTable


@dataclass(frozen=True)
class View:
    """One camera at render size: K in those pixels, pose to the ego frame at LiDAR time (the camera's own lag is in
    it), metres."""

    camera: int
    K: Float[np.ndarray, "3 3"]
    ego_from_cam: Float[np.ndarray, "4 4"]


def views(table: SceneTable, t: int, network: tuple[int, int], render: tuple[int, int]) -> list[View]:
    """The cameras that have an image at keyframe `t`, at render size; sizes are (height, width)."""
    poses = queue_poses(table, t, 1)
    K = scale_intrinsics(poses["K"][0].astype(np.float64), render[1] / network[1], render[0] / network[0])
    pose = poses["ref_from_cam"][0].astype(np.float64)
    return [View(int(c), K[c], pose[c]) for c in np.flatnonzero(poses["camera_valid"][0])]


def lidar_views(reader: StoreReader, scene: str, t: int) -> Iterator[tuple[View, SparseDepth]]:
    """Each camera of a keyframe with the LiDAR points it sees, at render size; nothing without LiDAR or images."""
    source = reader.scene(scene)
    if not source.has("lidar", t):
        return
    cue = source.lidar(t)
    points = cue.points[:, :3].astype(np.float64)
    sizes = reader.attributes
    for view in views(source.table, t, sizes.network_size, sizes.render_size):
        seen = (cue.cameras >> view.camera) & 1 == 1
        sparse = project_lidar(points, view.ego_from_cam, view.K, *sizes.render_size, seen)
        if len(sparse.depth):
            yield view, sparse


@torch.no_grad()
def rendered_depths(
    renderer: Renderer, fields: Fields, wanted: Sequence[tuple[View, Float[np.ndarray, "_ 2"]]], chunk: int = 16384
) -> list[Float[np.ndarray, "_"]]:
    """Camera z in metres at pixels (n, 2) of each view, from fields of batch 1; 0 where a ray meets nothing at all.

    The rays of all views are rendered together, `chunk` at a time: every call costs a gradient of the whole volume.
    """
    like = fields.sdf
    rays, scales = [], []
    for view, uv in wanted:
        K, pose, pixels = (torch.from_numpy(array).to(like) for array in (view.K, view.ego_from_cam, uv))
        rays.append(torch.stack(camera_rays(K, pose, pixels)))
        scales.append(to_camera_depth(torch.ones_like(pixels[:, 0]), rays[-1][1], pose))
    if not rays:
        return []
    parts = [
        renderer(fields, origins[None], directions[None], with_flow=False).range()[0]
        for origins, directions in torch.cat(rays, dim=1).split(chunk, dim=1)
    ]
    depth = torch.cat(parts) * torch.cat(scales)
    return [part.double().cpu().numpy() for part in depth.split([len(scale) for scale in scales])]
