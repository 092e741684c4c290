"""Depth seen from where no camera was: the volume rendered from moved cameras (Let Occ Flow, figure 9)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from eval.predict import Prediction
from eval.raycast import cast_rays
from eval.views import View
from geometry.cameras import pixel_centres, scale_intrinsics
from geometry.grid import VoxelGrid
from geometry.transforms import yaw_transform
from model.render import Renderer, camera_rays, render_view, to_camera_depth

SOLID = 0.5
"""Opacity from which a pixel shows something; the others are left blank, as sky."""


@dataclass(frozen=True)
class Move:
    """A motion of the whole car with its cameras, in its own frame: forward and left in metres, a turn to the left in
    degrees about the frame's origin."""

    name: str
    forward: float = 0.0
    left: float = 0.0
    turn: float = 0.0

    def ego_from_moved(self) -> Float[np.ndarray, "4 4"]:
        """From the moved car's frame to the frame that the volume is in."""
        return yaw_transform(np.deg2rad(self.turn), [self.forward, self.left, 0.0])


MOVES = (
    Move("as it is"),
    Move("forward 2 m", forward=2.0),
    Move("left 1 m", left=1.0),
    Move("turned left 10°", turn=10.0),
    Move("turned right 10°", turn=-10.0),
)
"""The paper shows +2 m along x and +10° of yaw."""


def moved_view(view: View, move: Move, size: tuple[int, int], render: tuple[int, int]) -> View:
    """The camera after the car moved, at `size`; the view's K is at `render` size (height, width)."""
    K = scale_intrinsics(view.K, size[1] / render[1], size[0] / render[0])
    return View(view.camera, K, move.ego_from_moved() @ view.ego_from_cam)


def rendered_depth(
    renderer: Renderer, prediction: Prediction, view: View, size: tuple[int, int], samples: int
) -> Float[np.ndarray, "h w"]:
    """Camera z in metres that the predicted volume renders, nan where a ray meets nothing; the view's K is at `size`.

    Raises:
        ValueError: a prediction without fields (one that was read from a file).
    """
    if prediction.fields is None:
        raise ValueError("this prediction has no fields to render: make it with the network")
    K, pose = torch.from_numpy(view.K), torch.from_numpy(view.ego_from_cam)
    found = render_view(renderer, prediction.fields, K, pose, size, samples=samples)
    return np.where((found.opacity > SOLID).cpu().numpy(), found.depth.double().cpu().numpy(), np.nan)


def cast_depth(
    occupied: Bool[np.ndarray, "x y z"], grid: VoxelGrid, view: View, size: tuple[int, int], workers: int = 1
) -> Float[np.ndarray, "h w"]:
    """Camera z in metres of the face by which each pixel's ray enters the first occupied voxel, nan where there is
    none, 0 from inside one; the view's K is at `size`. As coarse as the voxels are."""
    uv = torch.from_numpy(pixel_centres(*size).reshape(-1, 2))
    K, pose = torch.from_numpy(view.K).double(), torch.from_numpy(view.ego_from_cam).double()
    origins, ways = camera_rays(K, pose, uv)
    hits = cast_rays(occupied, grid, origins.numpy(), ways.numpy(), workers=workers)
    index = np.stack(np.unravel_index(hits.voxel.clip(0), grid.shape), axis=-1)
    low = np.asarray(grid.lower) + index * np.asarray(grid.voxel_size)
    with np.errstate(divide="ignore", invalid="ignore"):
        faces = [(edge - origins.numpy()) / ways.numpy() for edge in (low, low + np.asarray(grid.voxel_size))]
    # A ray along a face has 0 / 0 there: that axis does not decide where it enters.
    entry = np.nan_to_num(np.minimum(*faces), nan=-np.inf).max(axis=-1).clip(0.0)
    depth = to_camera_depth(torch.from_numpy(entry), ways, pose).numpy()
    return np.where(hits.voxel >= 0, depth, np.nan).reshape(size)
